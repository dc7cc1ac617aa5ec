import { defineConfig } from 'tsdown';
import { base } from '../../tsdown.base.ts';

export default defineConfig({
  ...base,
  entry: { index: 'src/index.ts', node: 'src/node.ts', gpu: 'src/gpu.ts' },
  dts: true,
});
