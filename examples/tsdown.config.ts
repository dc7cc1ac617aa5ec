import { defineConfig } from 'tsdown';
import { base } from '../tsdown.base.ts';

export default defineConfig({
  ...base,
  platform: 'node',
  entry: { main: 'main.ts', 'tinyworld/make': 'tinyworld/make.ts' },
  dts: false,
});
