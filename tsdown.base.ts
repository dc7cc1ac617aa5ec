import type { UserConfig } from 'tsdown';

/** Options that all packages build with. */
export const base: UserConfig = {
  format: 'esm',
  platform: 'neutral',
  target: 'es2022',
  outDir: 'dist',
  sourcemap: true,
  clean: true,
  // lets .js and .d.ts be the endings that package.json's exports name
  fixedExtension: false,
  deps: { neverBundle: [/^node:/] },
  inputOptions: { checks: { pluginTimings: false } },
};
