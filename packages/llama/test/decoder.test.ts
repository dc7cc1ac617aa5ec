/** Decoding by replays against the ordinary way, with all formats of weights. */
import { Linear, noGrad } from '@milora/autograd';
import { createWasmBackend, scope } from '@milora/tensor';
import type { WasmBackend } from '@milora/tensor';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { castWeights, loadLlama } from '../src/checkpoint.js';
import { Decoder } from '../src/decoder.js';
import { generate, generateBatch } from '../src/generate.js';
import { KVCache } from '../src/kvCache.js';
import { anyConfig, configOf, randomModel } from './models.js';

const dtypes = ['f32', 'bf16', 'int8'] as const;

describe.each([1, 2])('with %i threads', (threads) => {
  let backend: WasmBackend;
  beforeAll(async () => {
    backend = createWasmBackend({ threads });
    await backend.ready();
  });
  afterAll(async () => {
    expect(backend.memory().liveBytes).toBe(0);
    await backend.close();
  });

  it('gives the logits of ordinary steps, bit by bit', () => {
    const cases = fc.record({
      config: anyConfig,
      dtype: fc.constantFrom(...dtypes),
      padding: fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 5 }),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(cases, ({ config, dtype, padding, seed }) => {
        const model = randomModel(config, seed, backend);
        castWeights(model, dtype);
        const B = padding.length;
        const [replayed, ordinary] = [0, 1].map(() => new KVCache(config, B, 12, backend)) as [KVCache, KVCache];
        const decoder = new Decoder(model, replayed, padding);
        for (let t = 0; t < 8; t++) {
          const ids = Int32Array.from({ length: B }, (_, b) => (seed + 7 * t + 3 * b) % config.vocabSize);
          const positions = padding.map((pad) => Math.max(0, t - pad));
          // a row of padding sees nothing: start counting where the longest has ended
          if (t < 2) {
            const input = {
              inputIds: ids,
              batch: B,
              length: 1,
              positions,
              ranges: padding.flatMap((pad) => [pad, Math.max(pad, t + 1)]),
            };
            for (const cache of [replayed, ordinary]) scope(() => noGrad(() => void model.hidden(input, { cache })));
            continue;
          }
          const input = {
            inputIds: ids,
            batch: B,
            length: 1,
            positions,
            ranges: padding.flatMap((pad) => [pad, t + 1]),
          };
          expect(decoder.step(ids)).toBe(true);
          const expected = scope(() => noGrad(() => model.forward(input, { cache: ordinary })).value.dataSync());
          expect(decoder.logits.dataSync()).toEqual(expected);
        }
        for (const part of [decoder, replayed, ordinary, model]) part.dispose();
      }),
      { numRuns: 60 },
    );
  });

  it.each(dtypes)('%s: writes what it writes without a cache', async (dtype) => {
    const model = randomModel(configOf({ vocabSize: 40 }), 5, backend);
    castWeights(model, dtype);
    const prompts = [[1, 2, 3], [7], [5, 4]];
    const all: (number | undefined)[][][] = [];
    for (const useCache of [true, false]) {
      const steps: (number | undefined)[][] = [];
      for await (const ids of generateBatch(model, prompts, { maxNewTokens: 30, stopIds: [11], useCache }))
        steps.push(ids);
      all.push(steps);
    }
    expect(all[0]!.length).toBeGreaterThan(3);
    expect(all[0]).toEqual(all[1]);
    model.dispose();
  });

  it('goes on in the ordinary way with a layer that cannot be recorded', async () => {
    class Twice extends Linear {
      override forward(x: Parameters<Linear['forward']>[0]): ReturnType<Linear['forward']> {
        x.value.dataSync();
        backend.free(backend.fill(1, 0)); // no job
        return super.forward(x);
      }
    }
    const model = randomModel(configOf(), 3, backend);
    const ids = async (): Promise<number[]> => {
      const out: number[] = [];
      for await (const id of generate(model, [1, 2], { maxNewTokens: 9 })) out.push(id);
      return out;
    };
    const expected = await ids();
    const before = model.getModule('model.layers.1.mlp.up_proj') as Linear;
    model.replaceModule('model.layers.1.mlp.up_proj', new Twice(before.weight.value));
    expect(await ids()).toEqual(expected);
    model.dispose();
  });
});

describe('weights', () => {
  it('load in the format asked for; norms and biases stay f32', async () => {
    const config = configOf({ attentionBias: true, tieWordEmbeddings: true });
    const exact = randomModel(config, 2);
    const hosts = new Map(
      await Promise.all([...exact.stateDict()].map(async ([name, x]) => [name, await x.toHost()] as const)),
    );
    const source = {
      name: 'memory',
      names: () => [...hosts.keys()],
      info: (name: string) => hosts.get(name),
      read: async (name: string) => Promise.resolve(hosts.get(name)!),
    };
    for (const dtype of dtypes) {
      const model = await loadLlama(config, source, { dtype });
      for (const [name, x] of model.stateDict()) expect([name, x.dtype]).toEqual([name, x.rank === 2 ? dtype : 'f32']);
      const cast = randomModel(config, 2);
      castWeights(cast, dtype);
      const logits = [model, cast].map((m) =>
        scope(() => noGrad(() => m.forward({ inputIds: [1, 2, 3], batch: 1, length: 3 })).value.dataSync()),
      );
      expect(logits[0]).toEqual(logits[1]);
      for (const m of [model, cast]) m.dispose();
    }
    exact.dispose();
  });

  it('are not made coarser while they are trained, and coarse ones are not trained', () => {
    const model = randomModel(configOf(), 1).requiresGrad(true);
    expect(() => castWeights(model, 'int8')).toThrow(/frozen weights/);
    castWeights(model.requiresGrad(false), 'int8');
    expect(() => model.requiresGrad(true)).toThrow(/dtype f32 to differentiate, got int8/);
    model.dispose();
  });
});
