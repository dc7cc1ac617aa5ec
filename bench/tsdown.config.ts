import { defineConfig } from 'tsdown';
import { base } from '../tsdown.base.ts';

export default defineConfig({
  ...base,
  platform: 'node',
  entry: { bench: 'bench.ts', golden: 'golden.ts' },
  dts: false,
});
