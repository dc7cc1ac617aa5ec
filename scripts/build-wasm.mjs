// Compiles packages/tensor/assembly into two WebAssembly modules (strict and relaxed SIMD) and embeds them in binary.ts.
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const entry = 'packages/tensor/assembly/index.ts';
const target = join(root, 'packages/tensor/src/backends/wasm/binary.ts');

const asc = (await import('assemblyscript/asc')).default;

async function compile(relaxed) {
  const folder = mkdtempSync(join(tmpdir(), 'milora-wasm-'));
  try {
    const features = ['simd', 'threads', 'bulk-memory', ...(relaxed ? ['relaxed-simd'] : [])];
    const { error, stderr } = await asc.main([
      join(root, entry),
      ...['--outFile', join(folder, 'kernels.wasm')],
      ...['-O3', '--noAssert', '--runtime', 'stub', '--enable', features.join(',')],
      // the first 4 KiB are the control block; the module itself must not place anything there
      ...[
        '--importMemory',
        '--sharedMemory',
        '--initialMemory',
        '16',
        '--maximumMemory',
        '65536',
        '--memoryBase',
        '4096',
      ],
      ...['--use', `RELAXED=${relaxed ? 1 : 0}`],
    ]);
    if (error) throw new Error(`assemblyscript: ${error.message}\n${stderr.toString()}`);
    return readFileSync(join(folder, 'kernels.wasm')).toString('base64');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const [strict, relaxed] = [await compile(false), await compile(true)];
const text = `// Made by scripts/build-wasm.mjs from ${entry.replace('/index.ts', '')}. Not edited by hand, not committed.
export const strict = '${strict}';
export const relaxed = '${relaxed}';
`;
writeFileSync(`${target}.tmp`, text);
renameSync(`${target}.tmp`, target);
