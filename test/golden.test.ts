/** The golden checks of bench/golden.ts on the models in fixtures/, on every backend; and that they notice a wrong number. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it } from 'vitest';
import { runGolden } from '../bench/golden.js';

const FIXTURES = fileURLToPath(new URL('fixtures', import.meta.url));
const MATRICES = fileURLToPath(new URL('../packages/tensor/test/fixtures/svd.safetensors', import.meta.url));

type Check = Parameters<Parameters<typeof runGolden>[3]>[0];

async function checksOf(path: string, backend: string, threads = 1): Promise<Check[]> {
  const checks: Check[] = [];
  const ok = await runGolden([path], [backend], threads, (check) => checks.push(check));
  expect(ok).toBe(checks.every((check) => check.ok));
  return checks;
}

const failures = (checks: readonly Check[]): string[] =>
  checks.filter(({ ok }) => !ok).map(({ case: of, check, error, limit }) => `${of}: ${check}: ${error} > ${limit}`);

function countByCase(checks: readonly Check[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { case: of } of checks) counts[of] = (counts[of] ?? 0) + 1;
  return counts;
}

describe('golden values of PyTorch', () => {
  it.each([
    ['wasm', 1],
    ['wasm', 2],
    ['wasm', 4],
    ['wasm-strict', 2],
    ['gpu/cpu', 1],
    ['gpu/webasm', 1],
  ])('%s with %i thread(s)', async (backend, threads) => {
    const checks = await checksOf(FIXTURES, backend, threads);
    expect(failures(checks)).toEqual([]);
    // Models: logits, loss, two ways to generate, and one gradient for each parameter: 9 in each layer, embedding, norm and
    // output (tied in smollm2-style). Adapters: logits at the start, losses, logits after the steps, two ways to merge, the
    // frozen weight of 5 projections in 2 layers; and two checks of our own start where there is a weight to split.
    expect(countByCase(checks)).toEqual({
      'llama2-style': 4 + 9 * 2 + 3,
      'llama3-style': 4 + 9 * 3 + 3,
      'smollm2-style': 4 + 9 * 3 + 2,
      'adapters/lora': 5 + 10,
      'adapters/pissa': 5 + 10 + 2,
      'adapters/milora': 5 + 10 + 2,
    });
  });

  it('singular value decompositions', async () => {
    const checks = await checksOf(MATRICES, 'wasm');
    expect(failures(checks)).toEqual([]);
    expect(checks).toHaveLength(14 * 3);
  });
});

describe('the golden checks themselves', () => {
  const folders: string[] = [];
  afterEach(() => folders.splice(0).forEach((folder) => rmSync(folder, { recursive: true })));

  /** A copy of the fixtures in which one number of one tensor is another. */
  function corrupted(file: string, tensor: string): string {
    const folder = mkdtempSync(join(tmpdir(), 'golden-'));
    folders.push(folder);
    cpSync(FIXTURES, folder, { recursive: true });
    cpSync(MATRICES, join(folder, 'svd.safetensors'));
    const path = join(folder, file);
    const bytes = readFileSync(path);
    const headerBytes = Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerBytes)) as Record<
      string,
      { dtype: string; data_offsets: [number, number] }
    >;
    const { dtype, data_offsets } = header[tensor]!;
    const at = 8 + headerBytes + data_offsets[0];
    if (dtype === 'F32') bytes.writeFloatLE(bytes.readFloatLE(at) + 0.25, at);
    else if (dtype === 'F64') bytes.writeDoubleLE(bytes.readDoubleLE(at) + 0.25, at);
    else bytes.writeInt8(bytes.readInt8(at) ^ 1, at);
    writeFileSync(path, bytes);
    return folder;
  }

  const factor = 'base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight';
  const residual = 'residual.model.layers.1.mlp.up_proj';
  const generated = ['greedy tokens', 'greedy tokens without cache'];
  const weight = 'model.layers.0.self_attn.v_proj.weight';
  it.each([
    ['a golden logit', 'llama2-style', 'llama2-style/golden.safetensors', 'logits', ['logits']],
    ['the golden loss', 'llama3-style', 'llama3-style/golden.safetensors', 'loss', ['loss']],
    ['a golden gradient', 'smollm2-style', 'smollm2-style/golden.safetensors', `grad.${weight}`, [`grad.${weight}`]],
    ['a golden token', 'llama2-style', 'llama2-style/golden.safetensors', 'generate.greedy', generated],
    ['a golden residual', 'adapters', 'adapters/pissa/golden.safetensors', residual, [residual]],
    [
      'a singular value',
      'svd.safetensors',
      'svd.safetensors',
      'gaussian_96x64.singular_values_f64',
      ['singular values'],
    ],
  ])('notice %s that is another, and nothing else', async (_, folder, file, tensor, failing) => {
    const checks = await checksOf(join(corrupted(file, tensor), folder), 'wasm');
    expect(checks.filter(({ ok }) => !ok).map(({ check }) => check)).toEqual(failing);
  });

  it.each([
    ['a weight of the model', 'smollm2-style', 'smollm2-style/model.safetensors', weight, 'logits'],
    ['a stored factor', 'adapters', 'adapters/milora/adapter_model.safetensors', factor, 'losses'],
  ])('notice %s that is another', async (_, folder, file, tensor, failing) => {
    const checks = await checksOf(join(corrupted(file, tensor), folder), 'wasm');
    expect(checks.filter(({ ok }) => !ok).map(({ check }) => check)).toContain(failing);
  });

  it('refuse a folder without golden values', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'golden-'));
    folders.push(folder);
    await expect(checksOf(folder, 'wasm')).rejects.toThrow(/expected a folder with golden values .*got none/);
  });
});
