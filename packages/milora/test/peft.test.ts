import type { LlamaForCausalLM } from '@milora/llama';
import { convertHost } from '@milora/tensor';
import type { HostTensor } from '@milora/tensor';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { inject, linearLayers } from '../src/adapter.js';
import type { Adapter, AdapterConfig } from '../src/adapter.js';
import { MiloraError } from '../src/errors.js';
import { loraInit, micaInit, middleInit, miloraInit, pissaInit, randomInit } from '../src/inits.js';
import type { Init } from '../src/inits.js';
import { adapterFactors, exportPeft, importPeft, peftFromFactors } from '../src/peft.js';
import type { PeftAdapter } from '../src/peft.js';
import { parsePeftConfig, scaling, serializePeftConfig } from '../src/peftConfig.js';
import {
  PROVENANCE_VERSION,
  checkBase,
  fingerprintModel,
  parseProvenance,
  provenanceOf,
  windowOf,
} from '../src/provenance.js';
import { patternValue } from '../src/targets.js';
import { BATCH, distance, liveBytes, logitsOf, tinyBf16Model, tinyModel, trainSteps } from './tiny.js';

const models: LlamaForCausalLM[] = [];
afterEach(() => models.splice(0).forEach((model) => model.dispose()));

async function fresh(bf16 = false): Promise<LlamaForCausalLM> {
  const model = bf16 ? await tinyBf16Model() : tinyModel();
  models.push(model);
  return model;
}

/** An adapter after a few steps. */
async function trained(init: Init, config: AdapterConfig, bf16 = false): Promise<[LlamaForCausalLM, Adapter]> {
  const model = await fresh(bf16);
  const adapter = await inject(model, init, config);
  await trainSteps(model, 4);
  return [model, adapter];
}

/** What a reader of the two files gets. */
const throughText = ({ config, tensors }: PeftAdapter): PeftAdapter => ({
  config: parsePeftConfig(serializePeftConfig(config), 'adapter_config.json'),
  tensors,
});

const settings: [string, Init, AdapterConfig, boolean?][] = [
  ['milora, residual', miloraInit, { rank: 3, alpha: 6 }],
  ['milora, offset', miloraInit, { rank: 3, alpha: 7, form: 'offset' }],
  ['pissa with rsLoRA', pissaInit, { rank: 4, alpha: 3, useRslora: true }],
  ['milora with rsLoRA, offset', miloraInit, { rank: 4, alpha: 8, useRslora: true, form: 'offset' }],
  [
    'milora with patterns',
    miloraInit,
    {
      rank: 2,
      alpha: 4,
      rankPattern: { '0.self_attn.q_proj': 5 },
      alphaPattern: { up_proj: 3, 'layers.1.*v_proj': 9 },
    },
  ],
  ['middle, offset, all linear layers', middleInit, { rank: 2, form: 'offset', targetModules: 'all-linear' }],
  [
    'random with a regular expression',
    randomInit,
    { rank: 2, targetModules: '.*\\.1\\.(self_attn|mlp)\\.(q|down)_proj' },
  ],
  ['milora on bf16', miloraInit, { rank: 3, alpha: 6 }, true],
  ['lora', loraInit, { rank: 3, alpha: 6, rankPattern: { k_proj: 1 } }],
  ['lora with rsLoRA and patterns', loraInit, { rank: 3, useRslora: true, alphaPattern: { k_proj: 2 } }],
  ['mica', micaInit, { rank: 3 }],
];

describe.each(settings)('%s', (_, init, config, bf16 = false) => {
  it('exports to a LoRA that gives the same answers on the untouched base', async () => {
    const [model, adapter] = await trained(init, config, bf16);
    const tuned = await logitsOf(model, BATCH);
    const exported = throughText(await exportPeft(adapter, 'some/base'));
    expect(exported.config).toMatchObject({ baseModelNameOrPath: 'some/base', initLoraWeights: true });

    const base = await fresh(bf16);
    const untouched = await logitsOf(base, BATCH);
    const imported = await importPeft(base, exported);
    expect([...imported.layers.keys()]).toEqual([...adapter.layers.keys()]);
    // the limit of the issue
    expect(distance(await logitsOf(base, BATCH), tuned)).toBeLessThan(1e-5);
    expect(distance(tuned, untouched)).toBeGreaterThan(0.01);
    imported.unload();
    expect(await logitsOf(base, BATCH)).toEqual(untouched);
    adapter.unload();
  });

  it('holds s·(B·A − B₀·A₀), in float32, at rank r or 2r', async () => {
    const [, adapter] = await trained(init, config, bf16);
    const { config: peft, tensors } = await exportPeft(adapter);
    expect(tensors.size).toBe(2 * adapter.layers.size);
    for (const [path, layer] of adapter.layers) {
      const read = (factor: string): HostTensor => tensors.get(`base_model.model.${path}.lora_${factor}.weight`)!;
      const [a, b] = [read('A'), read('B')];
      const factor = layer.initial ? 2 : 1;
      const rank = patternValue(peft.rankPattern, path, peft.rank);
      expect([a.dtype, b.dtype, a.shape[0], b.shape[1], rank]).toEqual([
        'f32',
        'f32',
        ...Array<number>(3).fill(factor * layer.rank),
      ]);
      const s = scaling(rank, patternValue(peft.alphaPattern, path, peft.alpha), peft.useRslora);
      expect(s).toBeCloseTo(layer.scaling, 12);
      // ΔW from the file against the merged weight less the base's, which float32 rounds to 6e-8 of the weight
      const [out, inner] = layer.base.weight.shape as [number, number];
      const merged = layer.mergedWeight();
      const [after, weight] = [await merged.data(), await layer.base.weight.value.toHost()];
      const before = convertHost(weight.data, weight.dtype, 'f64');
      merged.dispose();
      for (let i = 0; i < out; i++)
        for (let j = 0; j < inner; j++) {
          let sum = 0;
          for (let r = 0; r < rank; r++) sum += b.data[i * rank + r]! * a.data[r * inner + j]!;
          expect(Math.abs(s * sum - (after[i * inner + j]! - before[i * inner + j]!))).toBeLessThan(2e-6);
        }
    }
    adapter.unload();
  });
});

describe('export', () => {
  it('is exact for any rank, alpha, scaling and form', async () => {
    const config = fc.record({
      rank: fc.integer({ min: 1, max: 12 }), // above 6 the export's rank exceeds that of the smallest weight, which is 12
      alpha: fc.integer({ min: 1, max: 12 }),
      useRslora: fc.boolean(),
      form: fc.constantFrom('residual' as const, 'offset' as const),
      seed: fc.nat(100),
    });
    const methods = fc.constantFrom(miloraInit, pissaInit, middleInit, randomInit, loraInit);
    const untouched = tinyModel();
    await fc.assert(
      fc.asyncProperty(config, methods, async (settings, init) => {
        const adapter = await inject(untouched, init, settings);
        await trainSteps(untouched, 1);
        const tuned = await logitsOf(untouched, BATCH);
        const exported = await exportPeft(adapter);
        adapter.unload();
        const imported = await importPeft(untouched, exported);
        expect(distance(await logitsOf(untouched, BATCH), tuned)).toBeLessThan(1e-5);
        imported.unload();
      }),
      { numRuns: 60, seed: 20250711 },
    );
    untouched.dispose();
  });

  it('needs nothing but factors on the host, as a checkpoint has them', async () => {
    const [, adapter] = await trained(miloraInit, { rank: 2 });
    expect(peftFromFactors(adapter.config, await adapterFactors(adapter), 'x')).toEqual(await exportPeft(adapter, 'x'));
    adapter.unload();
  });

  it('can be exported again after an import', async () => {
    const [model, adapter] = await trained(miloraInit, { rank: 2, alpha: 3 });
    const first = await exportPeft(adapter);
    adapter.unload();
    const again = await importPeft(model, first);
    expect(await exportPeft(again)).toEqual(first);
    again.unload();
  });

  it('refuses rsLoRA with patterns at twice the rank, as PEFT does', async () => {
    const [, adapter] = await trained(miloraInit, { rank: 2, useRslora: true, alphaPattern: { q_proj: 3 } });
    await expect(exportPeft(adapter)).rejects.toMatchObject({ code: 'rslora-patterns' });
    adapter.unload();
  });
});

describe('import', () => {
  const exported = async (): Promise<PeftAdapter> => {
    const [, adapter] = await trained(loraInit, { rank: 2, targetModules: ['q_proj', 'v_proj'] });
    const peft = await exportPeft(adapter);
    adapter.unload();
    return { config: peft.config, tensors: new Map(peft.tensors) };
  };
  const key = (module: string, factor: string): string =>
    `base_model.model.model.layers.${module}.lora_${factor}.weight`;

  it('names all missing, misshapen and unknown tensors at once, and leaves the model alone', async () => {
    const peft = await exported();
    const model = await fresh();
    const [before, bytes] = [linearLayers(model), liveBytes()];
    peft.tensors.delete(key('0.self_attn.q_proj', 'A'));
    peft.tensors.set(key('1.self_attn.v_proj', 'B'), { dtype: 'f32', shape: [2, 12], data: new Float32Array(24) });
    peft.tensors.set(key('1.mlp.up_proj', 'A'), { dtype: 'f32', shape: [2, 14], data: new Float32Array(28) });
    const attempt = importPeft(model, peft);
    await expect(attempt).rejects.toThrow(MiloraError);
    await expect(attempt).rejects.toMatchObject({ code: 'peft-tensors' });
    await expect(attempt).rejects.toThrow(/3 problem/);
    await expect(attempt).rejects.toThrow(`${key('0.self_attn.q_proj', 'A')}: missing`);
    await expect(attempt).rejects.toThrow(`${key('1.self_attn.v_proj', 'B')}: expected shape [12, 2], got [2, 12]`);
    await expect(attempt).rejects.toThrow(`${key('1.mlp.up_proj', 'A')}: not a target`);
    expect([...linearLayers(model).values()].every((layer, i) => layer === [...before.values()][i])).toBe(true);
    expect(liveBytes()).toBe(bytes);
  });

  it('reads 16-bit and 64-bit factors as the values they hold', async () => {
    const peft = await exported();
    for (const [name, tensor] of peft.tensors) {
      const dtype = name.includes('q_proj') ? 'bf16' : 'f64';
      peft.tensors.set(name, { ...tensor, dtype, data: convertHost(tensor.data, 'f32', dtype) });
    }
    const rounded = new Map(
      [...peft.tensors].map(([name, { data, dtype, shape }]): [string, HostTensor] => [
        name,
        { shape, dtype: 'f32', data: convertHost(data, dtype, 'f32') },
      ]),
    );
    const model = await fresh();
    const logits: Float64Array[] = [];
    for (const tensors of [peft.tensors, rounded]) {
      const adapter = await importPeft(model, { config: peft.config, tensors });
      logits.push(await logitsOf(model, BATCH));
      adapter.unload();
    }
    expect(logits[0]).toEqual(logits[1]);
  });

  it('refuses a factor that is not finite, naming it', async () => {
    const peft = await exported();
    const name = key('1.self_attn.v_proj', 'B');
    const data = Float32Array.from(peft.tensors.get(name)!.data);
    data[3] = NaN;
    peft.tensors.set(name, { ...peft.tensors.get(name)!, data });
    const attempt = importPeft(await fresh(), peft);
    await expect(attempt).rejects.toMatchObject({ code: 'peft-tensors' });
    await expect(attempt).rejects.toThrow(`${name}: expected finite values, got NaN at entry 3`);
  });

  it.each(['pissa', 'pissa_niter_16', 'olora', 'corda', 'loftq', 'PiSSA'])(
    'refuses %s, whose base is another',
    async (name) => {
      const peft = await exported();
      const attempt = importPeft(await fresh(), { ...peft, config: { ...peft.config, initLoraWeights: name } });
      await expect(attempt).rejects.toMatchObject({ code: 'wrong-base' });
      await expect(attempt).rejects.toThrow(name);
    },
  );

  it('refuses targets that this model lacks', async () => {
    const peft = await exported();
    const attempt = importPeft(await fresh(), {
      ...peft,
      config: { ...peft.config, targetModules: ['q_proj', 'c_attn'] },
    });
    await expect(attempt).rejects.toMatchObject({ code: 'unknown-target' });
  });
});

describe('provenance', () => {
  it('fingerprints the values, however they are stored', async () => {
    const narrow = await fingerprintModel(await fresh(true));
    const wide = tinyModel();
    models.push(wide);
    const prints = await fingerprintModel(wide);
    expect(await fingerprintModel(await fresh())).toEqual(prints);
    expect(Object.keys(prints)).toEqual([...wide.stateDict().keys()]);
    // bf16 rounds the matrices, and biases and norms with them; two models in bf16 agree
    expect(await fingerprintModel(await fresh(true))).toEqual(narrow);
    expect(narrow['lm_head.weight']).not.toBe(prints['lm_head.weight']);
  });

  it('refuses another base, naming what differs', async () => {
    const expected = { name: 'some/base', fingerprints: await fingerprintModel(await fresh()) };
    expect(() => checkBase(expected, { ...expected.fingerprints }, 'adapter')).not.toThrow();
    const q = 'model.layers.0.self_attn.q_proj.weight';
    const changed = { ...expected.fingerprints, [q]: 'sha256:0', 'extra.weight': 'sha256:1' };
    const attempt = (): void => checkBase(expected, changed, 'runs/a');
    expect(attempt).toThrow(MiloraError);
    expect(attempt).toThrow(/runs\/a: expected the base model 'some\/base'/);
    expect(attempt).toThrow(`differs in ${q}, extra.weight.`);
    const other = await fingerprintModel(tinyOther());
    expect(() => checkBase(expected, other, 'runs/a')).toThrow(/… \(\d+ in all\)/);
    const { [q]: _, ...missing } = expected.fingerprints;
    expect(() => checkBase(expected, missing, 'runs/a')).toThrow(q);
  });

  const tinyOther = (): LlamaForCausalLM => {
    const model = tinyModel(2);
    models.push(model);
    return model;
  };

  it('records method, windows and settings, and reads them back', async () => {
    const model = await fresh();
    const base = { name: 'some/base', fingerprints: await fingerprintModel(model) };
    for (const [method, init] of Object.entries({ miloraInit, randomInit, loraInit })) {
      const adapter = await inject(model, init, { rank: 3, alphaPattern: { q_proj: 2 }, seed: 4 });
      const provenance = provenanceOf(adapter, method, base);
      const read = parseProvenance(JSON.stringify(provenance), 'milora.json');
      expect(read).toEqual(provenance);
      expect(read).toMatchObject({ version: PROVENANCE_VERSION, method, base, adapter: { rank: 3, seed: 4 } });
      const windows = [...adapter.layers].filter(([, { window }]) => window);
      expect(Object.keys(read.windows)).toEqual(windows.map(([path]) => path));
      for (const [path, { window }] of windows) expect(windowOf(read.windows[path]!)).toEqual(window);
      if (init === miloraInit) expect(read.windows['model.layers.0.mlp.up_proj']).toEqual({ from: 11, to: 14 });
      adapter.unload();
    }
  });

  it.each([
    ['no JSON', '{'],
    ['another version', '{"version": 99}'],
    ['something else', '[]'],
    ['null', 'null'],
  ])('is refused when it is %s', (_, text) => {
    expect(() => parseProvenance(text, 'a/milora.json')).toThrow(MiloraError);
    expect(() => parseProvenance(text, 'a/milora.json')).toThrow(/a\/milora\.json: expected/);
  });
});
