/** The benchmark suites with tiny settings: which lines they write and that these are well formed. Times are not looked at. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createWasmBackend } from '@milora/tensor';
import type { MatmulSpec } from '@milora/tensor';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { runBench } from '../bench/bench.js';
import { configs } from '../bench/configs.js';
import { Finetuning, configOf, randomTokens } from '../bench/suites/finetuning.js';
import { requirePeers } from '../bench/suites/peers.js';
import { attentionFlops, attentionGradFlops, causalPairs, stepFlops } from '../bench/suites/roofline.js';
import type { Result } from '../bench/suites/suite.js';

const folders: string[] = [];
const temporary = (): string => {
  const folder = mkdtempSync(join(tmpdir(), 'bench-'));
  folders.push(folder);
  return folder;
};

afterEach(() => {
  folders.splice(0).forEach((folder) => rmSync(folder, { recursive: true }));
  vi.restoreAllMocks();
});

/** The angle of a whole decomposition, and weights with a verdict that none got. */
const MAY_BE_ZERO = ['angle', 'determined', 'sensitive', 'tied'];

async function resultsOf(...args: string[]): Promise<Result[]> {
  const lines: string[] = [];
  await runBench([...args, '--json', '--seconds', '0.01'], (line) => lines.push(line));
  const results = lines.map((line) => JSON.parse(line) as Result);
  for (const result of results) {
    expect(Object.keys(result)).toEqual(['suite', 'case', 'metric', 'value', 'unit', 'threads', 'backend']);
    if (MAY_BE_ZERO.includes(result.metric)) expect(result.value).toBeGreaterThanOrEqual(0);
    else expect(result.value).toBeGreaterThan(0);
    expect(Number.isFinite(result.value)).toBe(true);
  }
  return results;
}

const metricsOf = (results: readonly Result[]): string[] =>
  results.map(({ case: of, metric, threads, backend }) => {
    const name = backend.replace(/-(relaxed|strict)$/, ''); // which build it is depends on the engine
    return `${of}: ${metric} (${threads}, ${name})`;
  });

const memory = ['throughput', 'peak', 'reserved', 'rss'];

describe('the suites write', () => {
  it('limits, and fractions of them', async () => {
    const results = await resultsOf('gemm', 'limits', '--shapes', '16x24x32');
    const limits = ['multiply-add', 'copy 128 MiB', 'read 128 MiB', 'read 2 MiB'];
    expect(metricsOf(results)).toEqual([
      ...[1, 2].flatMap((threads) => limits.map((of) => `${of}: throughput (${threads}, wasm)`)),
      '16x24x32: throughput (2, wasm)',
      '16x24x32: fraction (2, wasm)',
    ]);
  });

  it('gemm on both backends', async () => {
    const results = await resultsOf(
      'gemm',
      '--backends',
      'wasm,gpu/webasm',
      '--shapes',
      '8x8x8,1x16x8',
      '--threads',
      '1',
    );
    expect(metricsOf(results)).toEqual(
      ['wasm', 'gpu/webasm'].flatMap((backend) => ['8x8x8', '1x16x8'].map((of) => `${of}: throughput (1, ${backend})`)),
    );
  });

  it('attention', async () => {
    const results = await resultsOf('attention', '--sizes', '260K,15M', '--lengths', '16', '--batches', '1');
    expect(metricsOf(results)).toEqual(
      ['1x16x8x4x8', '1x16x6x6x48'].flatMap((shape) =>
        ['forward', 'forward + backward'].flatMap((pass) =>
          ['throughput', 'peak'].map((metric) => `${shape} ${pass}: ${metric} (2, wasm)`),
        ),
      ),
    );
  });

  it('train over lengths and batches', async () => {
    const results = await resultsOf(
      'train',
      '--lengths',
      '8,16',
      '--batches',
      '1,2',
      '--method',
      'lora',
      '--checkpoint',
    );
    expect(metricsOf(results)).toEqual(
      ['1x8', '1x16', '2x8', '2x16'].flatMap((shape) =>
        memory.map((metric) => `lora 260K ${shape} checkpoint: ${metric} (2, wasm)`),
      ),
    );
  });

  it('train on examples of a file, padded and packed, and leaves them for others', async () => {
    const [data, out] = [join(temporary(), 'data.jsonl'), temporary()];
    const record = (n: number): string => JSON.stringify({ prompt: 'a'.repeat(n), completion: 'b'.repeat(2 * n) });
    writeFileSync(data, [3, 9, 5].map(record).join('\n'));
    const results = await resultsOf('train', '--data', data, '--method', 'lora', '--export', out);
    expect(metricsOf(results)).toEqual(
      ['padded', 'packed'].flatMap((layout) => memory.map((metric) => `lora 260K ${layout}: ${metric} (2, wasm)`)),
    );
    const read = (file: string): Buffer => readFileSync(join(out, 'lora-260K-padded', file));
    const index = JSON.parse(read('index.json').toString()) as { tensors: [string, number[]][]; losses: number[] };
    const names = index.tensors.map(([name]) => name);
    expect(names).toContain('model.layers.0.mlp.gate_proj.weight');
    expect(names).toContain('model.layers.4.mlp.down_proj.base_layer.weight');
    expect(names).toContain('model.layers.4.mlp.down_proj.lora_A.default.weight');
    const sizes = index.tensors.map(([, shape]) => shape.reduce((a, b) => a * b));
    expect(read('weights.bin')).toHaveLength(4 * sizes.reduce((a, b) => a + b));
    expect(index.losses).toHaveLength(8);
    const batch = JSON.parse(read('batch.json').toString()) as Record<string, number[]>;
    // begin, prompt, completion, end; the longest has 1 + 9 + 18 + 1 tokens
    expect(batch['attentionMask']!.reduce((a, b) => a + b)).toBe(3 * 2 + 3 * (3 + 9 + 5));
    expect(batch['labels']!.filter((label) => label >= 0)).toHaveLength(3 + 2 * (3 + 9 + 5));
    expect([batch['batch'], batch['length']]).toEqual([3, 29]);
  });

  it('svd of matrices, and of the weights of a model', async () => {
    const results = await resultsOf('svd', '--sizes', '48,20x70,260K');
    const evidence = ['time', 'residual', 'orthogonality', 'angle', 'peak'];
    const metrics = { minor: evidence, leading: evidence, full: evidence, values: ['time', 'peak'] };
    // the peak of the process is told where it has risen
    expect(metricsOf(results.filter(({ metric }) => metric !== 'peak rss'))).toEqual([
      ...['48x48', '20x70'].flatMap((size) =>
        Object.entries(metrics).flatMap(([kind, names]) => {
          const rank = kind === 'minor' || kind === 'leading' ? ` r=${size.split('x')[0]}` : '';
          return names.map((metric) => `${kind}${rank} ${size}: ${metric} (2, wasm)`);
        }),
      ),
      ...['5 of 64x64', '10 of 32x64', '5 of 172x64', '5 of 64x172'].map((of) => `init 260K r=8 ${of}: time (2, wasm)`),
      ...[...evidence.slice(0, 4), 'determined', 'sensitive', 'tied', 'peak'].map(
        (metric) => `init 260K r=8: ${metric} (2, wasm)`,
      ),
    ]);
    const valueOf = (of: string, metric: string): number =>
      results.find((result) => result.case === of && result.metric === metric)!.value;
    expect(valueOf('minor r=20 20x70', 'residual')).toBeLessThan(1e-12);
    expect(['determined', 'sensitive', 'tied'].reduce((sum, name) => sum + valueOf('init 260K r=8', name), 0)).toBe(25);
  });

  it('startup of fresh processes', async () => {
    const results = await resultsOf('startup');
    const packages = ['@milora/tensor', '@milora/tensor/gpu', '@milora/autograd', '@milora/llama', 'milora'];
    expect(metricsOf(results)).toEqual([
      ...packages.map((name) => `${name}: import (1, host)`),
      ...['imports', 'backend', 'model', 'first step'].map((mark) => `lora 260K: ${mark} (2, wasm)`),
    ]);
  });
});

describe('what cannot be', () => {
  it('is left out aloud when a call takes too long', async () => {
    const error = vi.spyOn(console, 'error').mockReturnValue();
    expect(await resultsOf('gemm', '--shapes', '64x64x64,128x128x128', '--limit', '1e-9')).toEqual([]);
    expect(error.mock.calls.map(String)).toEqual([
      expect.stringMatching(/^bench: gemm 64x64x64 on wasm: left out: expected a call within 1e-9 s, got .*--limit/),
      expect.stringMatching(/^bench: gemm 128x128x128 on wasm: left out: .* from the cases before it/),
    ]);
  });

  it.each([
    [['trian'], /expected suites of limits, gemm, .*, got trian/],
    [['train', '--sizes', '7B'], /--sizes: expected 260K, 15M, 135M, got 7B/],
    [['train', '--sizes', '512'], /--sizes: expected 260K, 15M, 135M, got 512/],
    [['train', '--sizes', '1.1B'], /--sizes: expected 260K, 15M, 135M, got 1.1B/],
    [['svd', '--sizes', '7B'], /--sizes: expected 260K, 15M, 135M, 1.1B or matrices such as 1024, got 7B/],
    [['train', '--lengths', '1.5'], /--lengths: expected whole numbers, got 1.5/],
    [['gemm', '--shapes', '8x8'], /--shapes: expected .*, got 8x8/],
    [['gemm', '--seconds', 'x'], /--seconds: expected a positive number, got x/],
  ])('%j is refused', async (args, message) => {
    await expect(runBench(args, () => undefined)).rejects.toThrow(message);
  });

  it('peers that are not installed are named with the way to get them', () => {
    expect(() => requirePeers(['jax-js', 'tfjs'], temporary())).toThrow(
      /--peers: expected @jax-js\/jax and @tensorflow\/tfjs-backend-wasm .*npm install --prefix bench\/peers/,
    );
    expect(() => requirePeers(['ml-matrix', 'svd-js'], temporary())).toThrow(/expected ml-matrix and svd-js in/);
  });
});

describe('the operations of a training step', () => {
  it.each([false, true])('are those of its products (checkpoint: %s)', async (checkpoint) => {
    const [batch, length] = [2, 12];
    const backend = createWasmBackend({ threads: 1 });
    const run = await Finetuning.start('260K', 'lora', backend, { longest: length, checkpoint });
    let counted = 0;
    const matmul = backend.matmul.bind(backend);
    backend.matmul = (a, b, spec: MatmulSpec, into, plus = []) => {
      const depth = plus.reduce((sum, term) => sum + term.k, spec.k);
      counted += 2 * spec.batch * spec.m * spec.n * depth;
      return matmul(a, b, spec, into, plus);
    };
    const config = configOf('260K', length);
    await run.step(randomTokens(batch, length, config.vocabSize));
    const lengths = Array.from({ length: batch }, () => length);
    const targets = batch * (length - 1);
    const all = stepFlops(config, { lengths, targets, rank: configs['260K'].rank, checkpoint });
    const { numAttentionHeads: H, headDim: D, numHiddenLayers: L } = config;
    const pairs = causalPairs(lengths);
    const attention = (checkpoint ? 2 : 1) * attentionFlops(pairs, H, D) + attentionGradFlops(pairs, H, D);
    expect(counted).toBe(all - L * attention);
    await backend.close();
  });
});
