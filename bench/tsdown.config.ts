import { defineConfig } from 'tsdown';
import { base } from '../tsdown.base.ts';

export default defineConfig({
  ...base,
  platform: 'node',
  entry: {
    bench: 'bench.ts',
    golden: 'golden.ts',
    // processes of their own
    'peers/jax-js': 'peers/jax-js.ts',
    'peers/tfjs': 'peers/tfjs.ts',
    'peers/ml-matrix': 'peers/ml-matrix.ts',
    'peers/svd-js': 'peers/svd-js.ts',
  },
  dts: false,
});
