import { defineConfig } from 'tsdown';
import { base } from '../tsdown.base.ts';

export default defineConfig({
  ...base,
  platform: 'node',
  entry: {
    main: 'main.ts',
    'tinyworld/make': 'tinyworld/make.ts',
    'spectra/main': 'spectra/main.ts',
    'lessons/01-tensor': 'lessons/01-tensor.ts',
    'lessons/02-autograd': 'lessons/02-autograd.ts',
    'lessons/03-module': 'lessons/03-module.ts',
    'lessons/04-llama': 'lessons/04-llama.ts',
    'lessons/05-milora': 'lessons/05-milora.ts',
  },
  dts: false,
});
