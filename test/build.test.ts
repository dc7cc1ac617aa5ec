/** The built packages: what npm would publish. `npm test` builds them first. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const packages = ['tensor', 'autograd', 'llama', 'milora'];

interface Manifest {
  name: string;
  sideEffects: boolean;
  exports: Record<string, { types: string; default: string }>;
}
const manifest = (name: string): Manifest =>
  JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8')) as Manifest;

/** Runs code in a fresh Node process at the root; resolves packages as a user's project would. */
function node(code: string): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, ['--input-type=module', '-e', code], { cwd: root, encoding: 'utf8' });
}

/** All files that an entry of a build pulls in. */
function reachable(entry: string, seen = new Set<string>()): Set<string> {
  if (seen.has(entry)) return seen;
  seen.add(entry);
  const text = readFileSync(entry, 'utf8');
  for (const [, path] of text.matchAll(/(?:from|import)\s*"(\.[^"]+\.js)"/g)) reachable(join(entry, '..', path!), seen);
  return seen;
}

describe.each(packages)('the build of %s', (name) => {
  const { exports, sideEffects } = manifest(name);

  it('has every file that its exports name, and declares no side effects', () => {
    expect(sideEffects).toBe(false);
    for (const { types, default: file } of Object.values(exports)) {
      expect(existsSync(join(root, 'packages', name, types)), types).toBe(true);
      expect(existsSync(join(root, 'packages', name, file)), file).toBe(true);
    }
  });

  it('uses no Node built-in in its main entry', () => {
    for (const file of reachable(join(root, 'packages', name, exports['.']!.default))) {
      expect(readFileSync(file, 'utf8')).not.toMatch(/^\s*import\b[^;]*["']node:/m);
    }
  });

  it('does nothing on import: no thread, no output', () => {
    const entries = Object.keys(exports).map((key) => manifest(name).name + key.slice(1));
    const code = `
      for (const entry of ${JSON.stringify(entries)}) await import(entry);
      const started = ['MessagePort', 'Worker', 'Timeout', 'Immediate'];
      console.log(JSON.stringify(process.getActiveResourcesInfo().filter((kind) => started.includes(kind))));`;
    const { stdout, stderr, status } = node(code);
    expect({ stdout, stderr, status }).toEqual({ stdout: '[]\n', stderr: '', status: 0 });
  });
});

it('starts its threads in a process that runs code from the command line as a module', () => {
  const { stdout, stderr, status } = node(`
    const { createWasmBackend } = await import('@milora/tensor');
    const backend = createWasmBackend({ threads: 3 });
    await backend.ready();
    console.log(backend.threads);`);
  expect({ stdout, stderr, status }).toEqual({ stdout: '3\n', stderr: '', status: 0 });
});

it('trains with the built packages, and the process ends by itself', () => {
  const { stdout, status, stderr } = node(`
    import { Philox } from '@milora/tensor';
    import { parseLlamaConfig, randomLlama } from '@milora/llama';
    import { inject, miloraInit } from 'milora';
    const config = parseLlamaConfig({ model_type: 'llama', vocab_size: 32, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 }, 'config');
    const model = randomLlama(config, new Philox(0));
    const adapter = await inject(model, miloraInit, { rank: 2 });
    const ids = [1, 2, 3, 4];
    const loss = model.loss({ inputIds: ids, batch: 1, length: 4 }, ids);
    loss.backward();
    console.log(adapter.trainable().every(([, p]) => p.grad !== undefined));`);
  expect({ stdout, status, stderr }).toEqual({ stdout: 'true\n', status: 0, stderr: '' });
});

it('runs the milora command from its build', () => {
  const main = join(root, 'packages/milora/dist/cli/main.js');
  const help = spawnSync(process.execPath, [main, '--help'], { encoding: 'utf8' });
  expect(help.status).toBe(0);
  for (const verb of ['train', 'eval', 'generate', 'merge', 'export', 'inspect', 'pretrain']) {
    expect(help.stdout).toContain(verb);
  }
  const wrong = spawnSync(process.execPath, [main, 'trian'], { encoding: 'utf8' });
  expect(wrong.status).toBe(1);
  expect(wrong.stderr).toContain('train');
});

it('commits no absolute path of a machine', () => {
  const files = spawnSync('git', ['ls-files'], { cwd: root, encoding: 'utf8' }).stdout.split('\n');
  const homes = ['home', 'root', 'work', 'tmp', 'Users'].map((folder) => `/${folder}/`).join('|');
  const texts = files.filter((file) => /\.(ts|mjs|js|json|md|yml)$/.test(file) && !/package-lock/.test(file));
  const pattern = new RegExp(`["'\`\\s(](${homes})\\w`);
  const found = texts.filter(
    (file) => existsSync(join(root, file)) && pattern.test(readFileSync(join(root, file), 'utf8')),
  );
  expect(found).toEqual([]);
  expect(readdirSync(root)).toContain('README.md');
});
