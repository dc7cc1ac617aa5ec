import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

// Tests read the packages' sources (the `milora-source` export condition), never a build.
const source = { resolve: { conditions: ['milora-source'] }, ssr: { resolve: { conditions: ['milora-source'] } } };

const setup = fileURLToPath(new URL('test/setup.ts', import.meta.url));

const project = (name: string, root: string, include = ['test/**/*.test.ts']) => ({
  ...source,
  test: {
    name,
    root,
    include,
    setupFiles: [setup],
    testTimeout: 120_000,
    hookTimeout: 120_000,
    pool: 'forks' as const,
  },
});

export default defineConfig({
  test: {
    projects: [
      project('tensor', 'packages/tensor'),
      project('autograd', 'packages/autograd'),
      project('llama', 'packages/llama'),
      project('milora', 'packages/milora'),
      project('examples', 'examples'),
      project('repository', '.', ['test/**/*.test.ts']),
    ],
    maxWorkers: 2,
  },
});
