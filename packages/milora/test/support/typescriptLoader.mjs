/**
 * Lets a child process run the sources: `node --conditions=milora-source --import typescriptLoader.mjs src/cli/main.ts`.
 * Types are stripped by the TypeScript compiler, and `./x.js` in a source means `./x.ts`.
 */
import { readFile } from 'node:fs/promises';
import { register } from 'node:module';
import { isMainThread } from 'node:worker_threads';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

if (isMainThread && !process.env['MILORA_LOADER']) {
  process.env['MILORA_LOADER'] = '1';
  register(import.meta.url);
}

export async function resolve(specifier, context, next) {
  const isSource = context.parentURL?.endsWith('.ts') && specifier.startsWith('.') && specifier.endsWith('.js');
  return next(isSource ? specifier.replace(/\.js$/, '.ts') : specifier, context);
}

export async function load(url, context, next) {
  if (!url.endsWith('.ts')) return next(url, context);
  const { outputText } = ts.transpileModule(await readFile(fileURLToPath(url), 'utf8'), {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true },
  });
  return { format: 'module', source: outputText, shortCircuit: true };
}
