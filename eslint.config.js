import tseslint from 'typescript-eslint';

/** Packages a room may import from: imports point downwards only (docs/architecture.md). */
const below = {
  tensor: [],
  autograd: ['@milora/tensor'],
  llama: ['@milora/tensor', '@milora/autograd'],
  milora: ['@milora/tensor', '@milora/autograd', '@milora/llama'],
};
const all = ['@milora/tensor', '@milora/autograd', '@milora/llama', 'milora'];

const boundaries = Object.entries(below).map(([room, allowed]) => ({
  files: [`packages/${room}/src/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: [
          {
            group: [
              ...all.filter((name) => !allowed.includes(name)).flatMap((name) => [name, `${name}/*`]),
              '**/packages/*',
              '**/examples/*',
              '**/bench/*',
            ],
            message: 'Imports point downwards only: tensor ← autograd ← llama ← milora ← examples, bench.',
          },
        ],
      },
    ],
  },
}));

// Node built-ins stay out of the main entries: only node.ts, node/ and the command may use them.
const noNode = {
  files: ['packages/*/src/**/*.ts'],
  ignores: ['packages/*/src/node.ts', 'packages/*/src/node/**', 'packages/milora/src/cli/**'],
  rules: {
    'no-restricted-syntax': [
      'error',
      { selector: 'ImportDeclaration[source.value=/^node:/]', message: 'Node built-ins belong under ./node.' },
    ],
  },
};

export default tseslint.config(
  {
    ignores: [
      '**/dist/**',
      '**/node_modules/**',
      'packages/tensor/assembly/**',
      '**/binary.ts',
      'runs/**',
      '.ensure/**',
      'test/.blocks-*/**',
    ],
  },
  ...tseslint.configs.strict,
  {
    rules: {
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/consistent-type-imports': 'error',
      eqeqeq: 'error',
      'prefer-const': 'error',
    },
  },
  ...boundaries,
  noNode,
);
