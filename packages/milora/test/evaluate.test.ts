import { generate } from '@milora/llama';
import type { LlamaForCausalLM } from '@milora/llama';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { inject } from '../src/adapter.js';
import type { Adapter, AdapterConfig } from '../src/adapter.js';
import { BatchIterator } from '../src/batches.js';
import type { Batch, BatchOptions } from '../src/batches.js';
import type { TokenizedExample } from '../src/tokenize.js';
import { complete, evaluate, forgetting, forgettingAgainst } from '../src/evaluate.js';
import { loraInit, micaInit, miloraInit, pissaInit } from '../src/inits.js';
import type { Init } from '../src/inits.js';
import { examplesOf, liveBytes, logitsOf, randomModel, tinyConfig, tinyModel, trainSteps } from './tiny.js';

const V = 19;
const EXAMPLES = examplesOf(9, 8, V, 6);

const models: LlamaForCausalLM[] = [];
afterEach(() => models.splice(0).forEach((model) => model.dispose()));

async function adapted(
  init: Init,
  steps: number,
  config: Partial<AdapterConfig> = {},
): Promise<[LlamaForCausalLM, Adapter]> {
  const model = tinyModel();
  models.push(model);
  const adapter = await inject(model, init, { rank: 2, alpha: 4, ...config });
  if (steps > 0) await trainSteps(model, steps);
  return [model, adapter];
}

const batchesOf = (options: Partial<BatchOptions> = {}): BatchIterator =>
  new BatchIterator(EXAMPLES, { batchSize: 4, seed: 2, ...options });

const LAYOUTS: [string, Partial<BatchOptions>][] = [
  ['padded', {}],
  ['padded to a multiple', { batchSize: 3, padToMultiple: 8 }],
  ['packed', { mode: 'pack', maxLength: 20, batchSize: 2 }],
];

/** Log-probabilities of each next token in float64, text by text and alone: rows `[T, V]`. */
async function logProbabilities(model: LlamaForCausalLM, { ids }: TokenizedExample): Promise<Float64Array[]> {
  const logits = await logitsOf(model, { inputIds: ids, batch: 1, length: ids.length });
  return Array.from(ids, (_, t) => {
    const row = logits.slice(t * V, (t + 1) * V);
    const max = Math.max(...row);
    const lse = max + Math.log(row.reduce((sum, x) => sum + Math.exp(x - max), 0));
    return row.map((x) => x - lse);
  });
}

async function referenceLossOf(model: LlamaForCausalLM): Promise<{ loss: number; targets: number }> {
  let [total, targets] = [0, 0];
  for (const example of EXAMPLES) {
    const rows = await logProbabilities(model, example);
    example.labels.forEach((label, t) => {
      if (t === 0 || label < 0) return;
      total -= rows[t - 1]![label]!;
      targets++;
    });
  }
  return { loss: total / targets, targets };
}

/** −Σ_v p(v) log q(v), its floor at q = p, and the number of tokens, over all tokens that have a next one. */
async function referenceForgetting(
  model: LlamaForCausalLM,
  adapter: Adapter,
): Promise<{ loss: number; kl: number; tokens: number }> {
  let [cross, entropy, tokens] = [0, 0, 0];
  for (const example of EXAMPLES) {
    const tuned = await logProbabilities(model, example);
    const base = await adapter.disabled(() => logProbabilities(model, example));
    for (let t = 0; t + 1 < example.ids.length; t++) {
      for (let v = 0; v < V; v++) {
        cross -= Math.exp(base[t]![v]!) * tuned[t]![v]!;
        entropy -= Math.exp(base[t]![v]!) * base[t]![v]!;
      }
      tokens++;
    }
  }
  return { loss: cross / tokens, kl: (cross - entropy) / tokens, tokens };
}

/** Sums of float32 over a vocabulary and a few tokens. */
const CLOSE = 1e-5;

describe('evaluate', () => {
  it.each(LAYOUTS)('is the mean over target tokens of all batches, %s', async (_, layout) => {
    const [model, adapter] = await adapted(miloraInit, 5);
    const expected = await referenceLossOf(model);
    const { loss, perplexity, targets } = await evaluate(model, batchesOf(layout));
    expect(targets).toBe(expected.targets);
    expect(Math.abs(loss - expected.loss)).toBeLessThan(CLOSE);
    expect(perplexity).toBe(Math.exp(loss));
    adapter.unload();
  });

  it('takes an async source, and gives 0 over nothing', async () => {
    const [model, adapter] = await adapted(miloraInit, 1);
    async function* paused(): AsyncGenerator<Batch> {
      for (const batch of batchesOf()) yield await Promise.resolve(batch);
    }
    expect(await evaluate(model, paused())).toEqual(await evaluate(model, batchesOf()));
    expect(await evaluate(model, [])).toEqual({ loss: 0, perplexity: 1, targets: 0 });
    adapter.unload();
  });

  it('turns dropout off, and leaves mode and memory as they were, also when it fails', async () => {
    const [model, adapter] = await adapted(miloraInit, 3, { dropout: 0.5 });
    const still = await evaluate(model, batchesOf());
    model.train();
    const bytes = liveBytes();
    expect(await evaluate(model, batchesOf())).toEqual(still);
    expect(model.training).toBe(true);
    const broken = { ...batchesOf().nextBatch(), inputIds: new Int32Array(3) };
    await expect(evaluate(model, [broken])).rejects.toThrow(/token ids/);
    await expect(forgetting(model, adapter, [broken])).rejects.toThrow(/token ids/);
    expect(model.training).toBe(true);
    expect(liveBytes()).toBe(bytes);
    adapter.unload();
  });
});

describe('forgetting', () => {
  it.each(LAYOUTS)(
    'is cross-entropy against the base and KL, over all tokens with a next one, %s',
    async (_, layout) => {
      for (const init of [miloraInit, pissaInit, loraInit]) {
        const [model, adapter] = await adapted(init, 6);
        const expected = await referenceForgetting(model, adapter);
        const { loss, kl, tokens } = await forgetting(model, adapter, batchesOf(layout));
        expect(tokens).toBe(expected.tokens);
        expect(Math.abs(loss - expected.loss)).toBeLessThan(CLOSE);
        expect(Math.abs(kl - expected.kl)).toBeLessThan(CLOSE);
        expect(kl).toBeGreaterThan(0.01);
        adapter.unload();
      }
    },
  );

  it('has KL 0 before training: exactly where B·A = 0, to rounding where the weight was split', async () => {
    for (const [init, form] of [
      [loraInit, 'auto'],
      [micaInit, 'auto'],
      [miloraInit, 'residual'],
      [miloraInit, 'offset'],
      [pissaInit, 'residual'],
    ] as const) {
      const [model, adapter] = await adapted(init, 0, { form });
      const { kl, loss } = await forgetting(model, adapter, batchesOf());
      const plain = init === loraInit || init === micaInit;
      // KL is of second order in the logits' difference of some 1e-6; what is left is float32's rounding of p and log p
      expect(Math.abs(kl)).toBeLessThanOrEqual(plain ? 0 : 1e-6);
      expect(loss).toBeGreaterThan(1);
      adapter.unload();
    }
  });

  it('leaves the adapter on, the mode and the memory as they were', async () => {
    const [model, adapter] = await adapted(miloraInit, 3, { dropout: 0.5 });
    const batch = batchesOf().nextBatch();
    const before = await logitsOf(model, batch);
    model.train();
    const bytes = liveBytes();
    const first = await forgetting(model, adapter, batchesOf());
    expect(await forgetting(model, adapter, batchesOf())).toEqual(first);
    expect(model.training).toBe(true);
    expect(liveBytes()).toBe(bytes);
    model.eval();
    expect(await logitsOf(model, batch)).toEqual(before);
    adapter.unload();
  });

  it('takes any base: itself gives KL 0 and the entropy', async () => {
    const model = tinyModel();
    models.push(model);
    const { loss, kl } = await forgettingAgainst(model, batchesOf(), (run) => run());
    expect(kl).toBe(0);
    let [entropy, tokens] = [0, 0];
    for (const example of EXAMPLES) {
      const rows = await logProbabilities(model, example);
      for (const row of rows.slice(0, -1)) {
        entropy -= row.reduce((sum, x) => sum + Math.exp(x) * x, 0);
        tokens++;
      }
    }
    expect(Math.abs(loss - entropy / tokens)).toBeLessThan(CLOSE);
  });
});

describe('complete', () => {
  it('gives what generate gives, prompt by prompt and in order, whatever the batch size', async () => {
    const prompts = fc.array(fc.array(fc.nat(V - 1), { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 7 });
    const model = randomModel(tinyConfig({ eosTokenId: [2, 7] }), 9);
    const decode = (ids: readonly number[]): string => ids.join(' ');
    await fc.assert(
      fc.asyncProperty(prompts, fc.integer({ min: 1, max: 4 }), async (texts, batchSize) => {
        const expected: string[] = [];
        for (const text of texts) {
          const ids: number[] = [];
          for await (const id of generate(model, text, { maxNewTokens: 5 })) ids.push(id);
          expected.push(decode(ids));
        }
        expect(await complete(model, texts, decode, { maxNewTokens: 5, batchSize })).toEqual(expected);
        expect(await complete(model, texts, decode, { maxNewTokens: 5 })).toEqual(expected);
      }),
      { numRuns: 30, seed: 20250711 },
    );
    expect(await complete(model, [], decode, { maxNewTokens: 5 })).toEqual([]);
    model.dispose();
  });
});
