import { Linear, Variable, add, gradcheck, mul } from '@milora/autograd';
import type { LlamaForCausalLM } from '@milora/llama';
import { Philox, Tensor, getBackend, matrixFromHost, multiplyMatrices, scope, transposeMatrix } from '@milora/tensor';
import type { HostTensor } from '@milora/tensor';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { PAPER_TARGETS, inject, linearLayers, resolveAdapterConfig } from '../src/adapter.js';
import type { Adapter, AdapterConfig } from '../src/adapter.js';
import { AdapterLinear, adapterLinear } from '../src/adapterLinear.js';
import { MiloraError } from '../src/errors.js';
import { subspaceDrift } from '../src/drift.js';
import { decompose, loraInit, methods, micaInit, miloraInit, pissaInit } from '../src/inits.js';
import type { Init } from '../src/inits.js';
import {
  BATCH,
  LABELS,
  distance,
  liveBytes,
  logitsOf,
  parametersOf,
  tinyBf16Model,
  tinyModel,
  trainSteps,
} from './tiny.js';

/** W_res is rounded to float32 once, and its product with B·A is added in another order: some 1e-6 after two layers. */
const REWRITTEN = 1e-5;

interface Setting {
  name: string;
  init: Init;
  form: 'residual' | 'offset' | 'plain';
  config: AdapterConfig;
  bf16?: boolean;
}

const settings: Setting[] = [
  { name: 'milora, residual', init: miloraInit, form: 'residual', config: { rank: 3, alpha: 6 } },
  { name: 'milora, offset', init: miloraInit, form: 'offset', config: { rank: 3, alpha: 6, form: 'offset' } },
  { name: 'pissa, residual, rsLoRA', init: pissaInit, form: 'residual', config: { rank: 4, useRslora: true } },
  { name: 'milora on bf16', init: miloraInit, form: 'offset', config: { rank: 3 }, bf16: true },
  { name: 'lora', init: loraInit, form: 'plain', config: { rank: 3, alpha: 6 } },
  { name: 'lora on bf16', init: loraInit, form: 'plain', config: { rank: 2 }, bf16: true },
  { name: 'mica', init: micaInit, form: 'plain', config: { rank: 3 } },
];

const models: LlamaForCausalLM[] = [];
afterEach(() => models.splice(0).forEach((model) => model.dispose()));

async function modelFor({ bf16 = false }: { bf16?: boolean }, seed = 1): Promise<LlamaForCausalLM> {
  const model = bf16 ? await tinyBf16Model(seed) : tinyModel(seed);
  models.push(model);
  return model;
}

/** Bits of every base weight and every other frozen parameter. */
async function frozen(model: LlamaForCausalLM, adapter: Adapter): Promise<Map<string, HostTensor>> {
  const bits = new Map<string, HostTensor>();
  for (const [name, { value, requiresGrad }] of model.namedParameters()) {
    if (!requiresGrad) bits.set(name, structuredClone(await value.toHost()));
  }
  for (const [path, { base, initial }] of adapter.layers) {
    bits.set(`${path}.base`, structuredClone(await base.weight.value.toHost()));
    if (initial) {
      bits.set(`${path}.a0`, structuredClone(await initial.a.toHost()));
      bits.set(`${path}.b0`, structuredClone(await initial.b.toHost()));
    }
  }
  return bits;
}

describe.each(settings)('$name', ({ init, form, config, bf16 = false }) => {
  const start = async (changes: Partial<AdapterConfig> = {}): Promise<[LlamaForCausalLM, Adapter, Float64Array]> => {
    const model = await modelFor({ bf16 });
    const base = await logitsOf(model, BATCH);
    return [model, await inject(model, init, { ...config, ...changes }), base];
  };

  it('starts from the unchanged model, in the form expected', async () => {
    const [model, adapter, base] = await start();
    expect([...adapter.layers.values()].map((layer) => layer.form)).toEqual(Array(10).fill(form));
    const logits = await logitsOf(model, BATCH);
    expect(distance(logits, base)).toBeLessThan(REWRITTEN);
    // B·A = 0 adds nothing at all
    if (form === 'plain') expect(logits).toEqual(base);
    adapter.unload();
  });

  it('trains its factors and leaves everything else as it was, bit for bit', async () => {
    const [model, adapter] = await start();
    const before = await frozen(model, adapter);
    const factors = async (): Promise<Float64Array[]> =>
      [...(await parametersOf(model))].filter(([name]) => name.includes('lora_')).map(([, data]) => data);
    const [first, losses] = [await factors(), await trainSteps(model, 5)];
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect(await frozen(model, adapter)).toEqual(before);
    (await factors()).forEach((data, i) => {
      if (init === micaInit && i % 2 === 1) expect(data).toEqual(first[i]);
      else expect(data).not.toEqual(first[i]);
    });
    adapter.unload();
  });

  it('trains A and B of its targets only, whatever was trained before', async () => {
    const model = await modelFor({ bf16 });
    if (!bf16) model.requiresGrad(true);
    const adapter = await inject(model, init, config);
    const names = [0, 1].flatMap((l) =>
      ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'mlp.up_proj', 'mlp.down_proj'].flatMap((module) =>
        (init === micaInit ? ['lora_a'] : ['lora_a', 'lora_b']).map(
          (factor) => `model.layers.${l}.${module}.${factor}`,
        ),
      ),
    );
    const trained = model.trainable();
    expect(trained.map(([name]) => name).sort()).toEqual(names.sort());
    expect(adapter.trainableCount).toBe(trained.reduce((n, [, { value }]) => n + value.size, 0));
    adapter.unload();
  });

  it('gives the base model when it is off, after training too, bit for bit', async () => {
    const [model, adapter, base] = await start();
    await trainSteps(model, 5);
    const tuned = await logitsOf(model, BATCH);
    expect(distance(tuned, base)).toBeGreaterThan(0.01);
    expect(await adapter.disabled(() => logitsOf(model, BATCH))).toEqual(base);
    expect(await logitsOf(model, BATCH)).toEqual(tuned);
    await expect(adapter.disabled(() => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(await logitsOf(model, BATCH)).toEqual(tuned);
    adapter.unload();
  });

  it('merges to the same answers, and unmerges exactly', async () => {
    const [model, adapter, base] = await start();
    await trainSteps(model, 5);
    const tuned = await logitsOf(model, BATCH);
    const bytes = liveBytes();
    adapter.merge();
    adapter.merge();
    const merged = await logitsOf(model, BATCH);
    expect(distance(merged, tuned)).toBeLessThan(2 * REWRITTEN);
    expect(merged).not.toEqual(tuned);
    expect(await adapter.disabled(() => logitsOf(model, BATCH))).toEqual(base);
    adapter.unmerge();
    expect(await logitsOf(model, BATCH)).toEqual(tuned);
    expect(liveBytes()).toBe(bytes);
    adapter.unload();
  });

  it('becomes a plain model by mergeAndUnload', async () => {
    const [model, adapter] = await start();
    const names = [...(await modelFor({ bf16 })).stateDict().keys()];
    await trainSteps(model, 5);
    adapter.merge();
    const merged = await logitsOf(model, BATCH);
    const weights = await parametersOf(model);
    adapter.mergeAndUnload();
    expect(await logitsOf(model, BATCH)).toEqual(merged);
    expect([...model.stateDict().keys()].sort()).toEqual(names.sort());
    expect([...model.namedModules()].filter(([, module]) => module instanceof AdapterLinear)).toEqual([]);
    expect(model.trainable()).toEqual([]);
    expect((await parametersOf(model)).get('model.norm.weight')).toEqual(weights.get('model.norm.weight'));
  });

  it('puts the original layers back and frees its memory by unload', async () => {
    const model = await modelFor({ bf16 });
    const originals = linearLayers(model);
    const base = await logitsOf(model, BATCH);
    const before = liveBytes();
    const adapter = await inject(model, init, config);
    expect(liveBytes()).toBeGreaterThan(before);
    await trainSteps(model, 2);
    adapter.merge();
    adapter.unload();
    expect(liveBytes()).toBe(before);
    expectSame(linearLayers(model), originals);
    expect(await logitsOf(model, BATCH)).toEqual(base);
  });

  it('drops elements of its input in training only, from a seeded stream', async () => {
    const lossOf = async (model: LlamaForCausalLM): Promise<number> => scope(() => model.loss(BATCH, LABELS).item());
    const [model, adapter, base] = await start({ dropout: 0.5, seed: 3 });
    if (form === 'plain') await trainSteps(model, 2); // for a product that is not zero
    const still = await logitsOf(model, BATCH);
    if (form !== 'plain') expect(distance(still, base)).toBeLessThan(REWRITTEN);
    expect(await logitsOf(model, BATCH)).toEqual(still);
    model.train();
    const first = [await lossOf(model), await lossOf(model)];
    expect(first[0]).not.toBe(first[1]);
    model.eval();
    expect(await logitsOf(model, BATCH)).toEqual(still);
    adapter.unload();

    const again = await inject(model, init, { ...config, dropout: 0.5, seed: 3 });
    if (form === 'plain') await trainSteps(model, 2);
    model.train();
    expect([await lossOf(model), await lossOf(model)]).toEqual(first);
    model.eval();
    again.unload();
  });
});

describe('targets and patterns', () => {
  it('takes rank and alpha per module, and the scaling from them', async () => {
    const model = await modelFor({});
    const base = await logitsOf(model, BATCH);
    const adapter = await inject(model, miloraInit, {
      rank: 2,
      alpha: 4,
      targetModules: 'all-linear',
      rankPattern: { 'layers.0.self_attn.q_proj': 5, down_proj: 1 },
      alphaPattern: { down_proj: 7 },
    });
    const facts = Object.fromEntries([...adapter.layers].map(([path, { rank, scaling }]) => [path, [rank, scaling]]));
    expect(Object.keys(facts)).toHaveLength(14);
    expect(facts['model.layers.0.self_attn.q_proj']).toEqual([5, 4 / 5]);
    expect(facts['model.layers.1.self_attn.q_proj']).toEqual([2, 2]);
    expect(facts['model.layers.1.mlp.down_proj']).toEqual([1, 7]);
    expect(distance(await logitsOf(model, BATCH), base)).toBeLessThan(REWRITTEN);
    await trainSteps(model, 3);
    const tuned = await logitsOf(model, BATCH);
    adapter.merge();
    expect(distance(await logitsOf(model, BATCH), tuned)).toBeLessThan(2 * REWRITTEN);
    adapter.unload();
  });

  it('takes names, aliases and expressions', async () => {
    const model = await modelFor({});
    const paths = async (targetModules: string | readonly string[]): Promise<string[]> => {
      const adapter = await inject(model, loraInit, { rank: 1, targetModules });
      adapter.unload();
      return [...adapter.layers.keys()];
    };
    expect(await paths(['q', 'self_attn.v_proj'])).toEqual([
      'model.layers.0.self_attn.q_proj',
      'model.layers.0.self_attn.v_proj',
      'model.layers.1.self_attn.q_proj',
      'model.layers.1.self_attn.v_proj',
    ]);
    expect(await paths('.*1\\.mlp\\.(up|down)_proj')).toEqual([
      'model.layers.1.mlp.up_proj',
      'model.layers.1.mlp.down_proj',
    ]);
    expect(resolveAdapterConfig({ rank: 4 })).toMatchObject({ alpha: 4, targetModules: [...PAPER_TARGETS], seed: 0 });
  });

  it('gives each module random factors of its own, by the seed', async () => {
    const model = await modelFor({});
    const factors = async (seed: number): Promise<Float64Array[]> => {
      const adapter = await inject(model, loraInit, { rank: 2, targetModules: ['q_proj'], seed });
      const all = await parametersOf(model);
      adapter.unload();
      return [...all].filter(([name]) => name.endsWith('lora_a')).map(([, a]) => a);
    };
    const [a, b] = await factors(1);
    expect(a).not.toEqual(b);
    expect(await factors(1)).toEqual([a, b]);
    expect((await factors(2))[0]).not.toEqual(a);
  });
});

/** The very same layers under the same paths. */
function expectSame(after: Map<string, Linear>, before: Map<string, Linear>): void {
  expect([...after.keys()]).toEqual([...before.keys()]);
  for (const [path, layer] of after) expect(layer).toBe(before.get(path));
}

describe('errors leave the model as it was', () => {
  const attempts: [string, Init, AdapterConfig, string][] = [
    ['an unknown target', miloraInit, { rank: 2, targetModules: ['q_proj', 'qq_proj'] }, 'unknown-target'],
    [
      'a rank that only the last module cannot have',
      miloraInit,
      { rank: 2, rankPattern: { '1.mlp.down_proj': 15 } },
      'rank-too-large',
    ],
    ['rank 0', loraInit, { rank: 0 }, 'rank-too-small'],
    ['alpha 0', loraInit, { rank: 2, alpha: 0 }, 'alpha'],
    ['dropout 1', loraInit, { rank: 2, dropout: 1 }, 'dropout'],
  ];
  it.each(attempts)('%s', async (_, init, config, code) => {
    const model = await modelFor({});
    const [before, bytes] = [linearLayers(model), liveBytes()];
    const attempt = inject(model, init, config);
    await expect(attempt).rejects.toThrow(MiloraError);
    await expect(attempt).rejects.toMatchObject({ code });
    expectSame(linearLayers(model), before);
    expect(liveBytes()).toBe(bytes);
  });

  it('a weight with NaN, in the last of the modules', async () => {
    const model = await modelFor({});
    const path = 'model.layers.1.mlp.down_proj';
    const bad = Tensor.fromHost({ dtype: 'f32', shape: [14, 22], data: new Float32Array(308).fill(NaN) }).keep();
    const whole = model.replaceModule(path, new Linear(bad));
    const [before, bytes] = [linearLayers(model), liveBytes()];
    const attempt = inject(model, miloraInit, { rank: 2 });
    await expect(attempt).rejects.toMatchObject({
      code: 'non-finite',
      message: expect.stringContaining(path) as string,
    });
    expectSame(linearLayers(model), before);
    expect(liveBytes()).toBe(bytes);
    model.replaceModule(path, whole);
    bad.dispose();
  });

  it('a signal, between two modules', async () => {
    const model = await modelFor({});
    const [before, bytes] = [linearLayers(model), liveBytes()];
    const controller = new AbortController();
    const seen: number[] = [];
    const attempt = inject(
      model,
      miloraInit,
      { rank: 2 },
      {
        signal: controller.signal,
        onProgress: ({ done, total, module, stage }) => {
          if (stage !== undefined) return;
          expect(total).toBe(10);
          expect(module).toMatch(/^model\.layers\.0\./);
          seen.push(done);
          if (done === 2) controller.abort(new Error('stop'));
        },
      },
    );
    await expect(attempt).rejects.toThrow('stop');
    expect(seen).toEqual([0, 1, 2]);
    expectSame(linearLayers(model), before);
    expect(liveBytes()).toBe(bytes);
  });

  it('a listener that fails at the very end', async () => {
    const model = await modelFor({});
    const [before, bytes] = [linearLayers(model), liveBytes()];
    const onProgress = ({ done, total }: { done: number; total: number }): void => {
      if (done === total) throw new Error('full disk');
    };
    await expect(inject(model, miloraInit, { rank: 2 }, { onProgress })).rejects.toThrow('full disk');
    expectSame(linearLayers(model), before);
    expect(liveBytes()).toBe(bytes);
  });

  it('a second adapter on the same layers', async () => {
    const model = await modelFor({});
    const adapter = await inject(model, loraInit, { rank: 2, targetModules: ['q_proj'] });
    await expect(inject(model, loraInit, { rank: 2, targetModules: ['q_proj'] })).rejects.toMatchObject({
      code: 'unknown-target',
    });
    adapter.unload();
  });
});

describe('gradients of adapterLinear', () => {
  const shape = fc.record({
    lead: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 2 }),
    inner: fc.integer({ min: 1, max: 7 }),
    out: fc.integer({ min: 1, max: 7 }),
    rank: fc.integer({ min: 1, max: 3 }),
    scaling: fc.constantFrom(0.5, 1, 2, -1.5),
    offset: fc.boolean(),
    use: fc.constantFrom('once', 'twice', 'squared', 'with a sum'),
    seed: fc.nat(),
  });

  it('equal differences, also where x already has a gradient', async () => {
    const used = new Set<string>();
    await fc.assert(
      fc.asyncProperty(shape, async ({ lead, inner, out, rank, scaling, offset, use, seed }) => {
        const random = new Philox(seed);
        const made: Tensor[] = [];
        const normal = (...shape: number[]): Tensor => {
          const data = random.normalArray(shape.reduce((a, b) => a * b, 1));
          const tensor = Tensor.fromHost({ dtype: 'f32', shape, data }).keep();
          made.push(tensor);
          return tensor;
        };
        const weights = [normal(out, inner), normal(out, inner)].map((w) => new Variable(w));
        const start = offset ? { a: normal(rank, inner), b: normal(out, rank) } : undefined;
        const inputs = [normal(...lead, inner), normal(rank, inner), normal(out, rank)];
        const layer = (x: Variable, a: Variable, b: Variable, i = 0): Variable =>
          adapterLinear(x, weights[i]!, a, b, scaling, start);
        const fn = (x: Variable, a: Variable, b: Variable): Variable => {
          if (use === 'once') return layer(x, a, b);
          if (use === 'twice') return add(layer(x, a, b), layer(x, a, b, 1));
          if (use === 'squared') return layer(mul(x, x), a, b);
          // the sum gives x a gradient that it shares with the sum's own
          const y = add(x, x);
          return add(layer(y, a, b), layer(add(y, x), a, b, 1));
        };
        used.add(`${use} ${offset}`);
        // polynomials of degree 4 at most, whose difference quotient is exact but for float32
        await gradcheck(fn, inputs, random, { samples: 4, step: 0.1 });
        made.forEach((tensor) => tensor.dispose());
      }),
      { numRuns: 240, seed: 20250711 },
    );
    expect(used.size).toBe(8);
  });

  it('go to what is trained only', async () => {
    const random = new Philox(4);
    const leaf = (shape: number[], requiresGrad: boolean): Variable => {
      const data = random.normalArray(shape[0]! * shape[1]!);
      return new Variable(Tensor.fromHost({ dtype: 'f32', shape, data }), { requiresGrad });
    };
    for (const trained of [1, 2, 3, 4, 5, 6, 7]) {
      scope(() => {
        const [x, a, b] = [leaf([2, 5], (trained & 1) > 0), leaf([3, 5], (trained & 2) > 0), leaf([4, 3], trained > 3)];
        const w = leaf([4, 5], false);
        const y = adapterLinear(x, w, a, b, 1);
        y.backward({ gradient: Tensor.fromHost({ dtype: 'f32', shape: [2, 4], data: random.normalArray(8) }) });
        expect([x, a, b].map(({ grad }) => grad !== undefined)).toEqual([x, a, b].map((v) => v.requiresGrad));
        for (const { grad } of [x, a, b]) grad?.dispose();
      });
    }
  });
});

describe('gradient checkpointing', () => {
  it('gives the same steps with dropout, whose elements are dropped alike in both runs of a layer', async () => {
    const run = async (checkpointing: boolean): Promise<[number[], Map<string, Float64Array>]> => {
      const model = await modelFor({});
      const adapter = await inject(model, miloraInit, { rank: 3, dropout: 0.4, seed: 5 });
      model.gradientCheckpointing = checkpointing;
      model.train();
      const losses = await trainSteps(model, 4);
      const weights = await parametersOf(model);
      adapter.unload();
      return [losses, weights];
    };
    expect(await run(true)).toEqual(await run(false));
  });
});

describe('subspaceDrift', () => {
  it('is 0 at the start and grows with training', async () => {
    for (const init of [miloraInit, pissaInit]) {
      const model = await modelFor({});
      const adapter = await inject(model, init, { rank: 3, alpha: 6 });
      const before = await subspaceDrift(adapter);
      expect(before.size).toBe(10);
      await trainSteps(model, 5);
      const after = await subspaceDrift(adapter);
      for (const [path, { left, right }] of before) {
        // B and A are rounded to float32
        expect(Math.max(left, right)).toBeLessThan(1e-5);
        expect(after.get(path)!.left).toBeGreaterThan(1e-3);
        expect(after.get(path)!.right).toBeGreaterThan(1e-3);
        expect(after.get(path)!.left).toBeLessThan(1);
      }
      adapter.unload();
    }
  });

  it('is the share of B and A outside the window, in float64', async () => {
    const model = await modelFor({});
    const adapter = await inject(model, miloraInit, { rank: 3 });
    await trainSteps(model, 3);
    const path = 'model.layers.0.mlp.up_proj';
    const layer = adapter.layers.get(path)!;
    const { left, right } = (await subspaceDrift(adapter)).get(path)!;
    const { u, vt } = await decompose(await layer.base.weight.value.toHost(), path);
    const b = matrixFromHost(await layer.loraB.value.toHost());
    const a = matrixFromHost(await layer.loraA.value.toHost());
    const outside = u.cols - 3; // the window is the last three
    const ub = multiplyMatrices(transposeMatrix(u), b).data.subarray(0, outside * 3);
    const va = multiplyMatrices(vt, transposeMatrix(a)).data.subarray(0, outside * 3);
    expect(left).toBeCloseTo(Math.hypot(...ub) / Math.hypot(...b.data), 10);
    expect(right).toBeCloseTo(Math.hypot(...va) / Math.hypot(...a.data), 10);
    adapter.unload();
  });

  it('says nothing of methods without a window', async () => {
    const model = await modelFor({});
    const adapter = await inject(model, loraInit, { rank: 3 });
    expect((await subspaceDrift(adapter)).size).toBe(0);
    adapter.unload();
  });
});

describe('all methods', () => {
  it.each(Object.entries(methods))('%s trains to a lower loss and leaves no memory behind', async (_, init) => {
    const bytes = getBackend().memory().liveBytes;
    const model = tinyModel();
    const adapter = await inject(model, init, { rank: 2 });
    const losses = await trainSteps(model, 10);
    expect(losses.at(-1)).toBeLessThan(0.9 * losses[0]!);
    adapter.unload();
    model.dispose();
    expect(getBackend().memory().liveBytes).toBe(bytes);
  });
});
