// Makes what is missing, and nothing else: node_modules (npm ci), the WebAssembly kernels, the packages' builds.
// Every step is skipped when its inputs are those of the last time. Progress goes to stderr: stdout belongs to the command.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const force = process.argv.includes('--force');
const stamps = join(root, '.ensure');
const workspaces = ['packages/tensor', 'packages/autograd', 'packages/llama', 'packages/milora', 'examples', 'bench'];

function filesBelow(path) {
  const full = join(root, path);
  if (!existsSync(full)) return [];
  if (!statSync(full).isDirectory()) return [path];
  return readdirSync(full)
    .filter((name) => !['node_modules', 'dist', 'test', 'model', 'runs'].includes(name))
    .sort()
    .flatMap((name) => filesBelow(join(path, name)));
}

/** Runs `make` unless the inputs have the hash that stands in the stamp and all outputs exist. */
function step(name, inputs, outputs, make) {
  const hash = createHash('sha256').update(process.version.split('.')[0]);
  for (const file of inputs.flatMap(filesBelow))
    hash.update(relative('.', file)).update(readFileSync(join(root, file)));
  const digest = hash.digest('hex');
  const stamp = join(stamps, name);
  const current = existsSync(stamp) && readFileSync(stamp, 'utf8') === digest;
  if (!force && current && outputs.every((path) => existsSync(join(root, path)))) return;
  console.error(`milora: ${name} …`);
  make();
  mkdirSync(stamps, { recursive: true });
  writeFileSync(stamp, digest);
}

function run(command, args, cwd = root) {
  const { status, error } = spawnSync(command, args, {
    cwd,
    // whatever a tool prints goes to stderr
    stdio: ['ignore', 2, 2],
    shell: process.platform === 'win32',
  });
  if (status !== 0) {
    console.error(
      `milora: expected '${command} ${args.join(' ')}' to succeed, got ${error?.message ?? `exit code ${status}`}`,
    );
    process.exit(1);
  }
}

const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`milora: expected Node 20.19 or later, got ${process.version}`);
  process.exit(1);
}

if (!existsSync(join(root, 'node_modules/tsdown')) || !existsSync(join(root, 'node_modules/assemblyscript'))) {
  console.error('milora: installing packages …');
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund']);
}
step(
  'wasm',
  ['packages/tensor/assembly', 'scripts/build-wasm.mjs'],
  ['packages/tensor/src/backends/wasm/binary.ts'],
  () => run(process.execPath, ['scripts/build-wasm.mjs']),
);
const shared = ['tsconfig.base.json', 'tsdown.base.ts', 'package-lock.json'];
for (const [i, workspace] of workspaces.entries()) {
  // a package's declarations are bundled from those below, so a change there rebuilds it
  const inputs = [...shared, ...workspaces.slice(0, Math.min(i, 4)), workspace];
  const name = `build-${workspace.replace('/', '-')}`;
  step(name, inputs, [`${workspace}/dist`], () =>
    run('npx', ['--no-install', 'tsdown', '--logLevel', 'warn'], join(root, workspace)),
  );
}
