/**
 * Adapters as PEFT's tensors, and back (docs/milora.md has the format).
 *
 * What an adapter adds to the *untouched* base is ΔW = s·(B·A − B₀·A₀). That is a LoRA of twice the rank:
 *
 *     A' = [A; A₀] `[2r, in]`,  B' = [B, −B₀] `[out, 2r]`,  r' = 2r, alpha' = 2·alpha (√2·alpha with rsLoRA)
 *
 * so any PEFT loads it on the published model. Methods that start from B·A = 0 export as they are.
 */
import type { Module } from '@milora/autograd';
import { firstNonFinite } from '@milora/llama';
import { convertHost } from '@milora/tensor';
import type { HostTensor } from '@milora/tensor';
import { inject, linearLayers } from './adapter.js';
import type { Adapter, ResolvedAdapterConfig } from './adapter.js';
import { MiloraError } from './errors.js';
import { factorsInit } from './inits.js';
import type { GivenFactors } from './inits.js';
import { doubleRank, initChangesBase } from './peftConfig.js';
import type { PeftLoraConfig } from './peftConfig.js';
import { patternValue, selectTargets } from './targets.js';

export interface PeftAdapter {
  config: PeftLoraConfig;
  /** By PEFT's keys, float32. */
  tensors: Map<string, HostTensor>;
}

const PREFIX = 'base_model.model.';
const keyOf = (path: string, factor: 'A' | 'B'): string => `${PREFIX}${path}.lora_${factor}.weight`;

/** Factors of one layer on the host: A `[r, in]`, B `[out, r]`, and those of the start for forms that split the weight. */
export interface LayerFactors {
  a: HostTensor;
  b: HostTensor;
  initial?: { a: HostTensor; b: HostTensor };
}

/** All layers' factors by module path. */
export async function adapterFactors(adapter: Adapter): Promise<Map<string, LayerFactors>> {
  const factors = new Map<string, LayerFactors>();
  for (const [path, { loraA, loraB, initial }] of adapter.layers) {
    factors.set(path, {
      a: await loraA.value.toHost(),
      b: await loraB.value.toHost(),
      ...(initial && { initial: { a: await initial.a.toHost(), b: await initial.b.toHost() } }),
    });
  }
  return factors;
}

/** The adapter as a LoRA on the untouched base. `baseModel` is recorded as `base_model_name_or_path`. */
export async function exportPeft(adapter: Adapter, baseModel: string | null = null): Promise<PeftAdapter> {
  return peftFromFactors(adapter.config, await adapterFactors(adapter), baseModel);
}

/** The same from factors on the host, as a checkpoint has them. */
export function peftFromFactors(
  settings: ResolvedAdapterConfig,
  layers: ReadonlyMap<string, LayerFactors>,
  baseModel: string | null,
): PeftAdapter {
  const { rank, alpha, dropout, targetModules, rankPattern, alphaPattern, useRslora } = settings;
  let config: PeftLoraConfig = {
    baseModelNameOrPath: baseModel,
    rank,
    alpha,
    dropout,
    targetModules,
    rankPattern,
    alphaPattern,
    useRslora,
    initLoraWeights: true,
  };
  if ([...layers.values()].some((layer) => layer.initial)) config = doubleRank(config);
  const tensors = new Map<string, HostTensor>();
  for (const [path, { a, b, initial }] of layers) {
    if (!initial) {
      tensors.set(keyOf(path, 'A'), a);
      tensors.set(keyOf(path, 'B'), b);
      continue;
    }
    const [r, inner] = a.shape as [number, number];
    const out = b.shape[0]!;
    const wideA = new Float32Array(2 * r * inner);
    wideA.set(a.data);
    wideA.set(initial.a.data, r * inner);
    const wideB = new Float32Array(out * 2 * r);
    for (let i = 0; i < out; i++) {
      for (let j = 0; j < r; j++) {
        wideB[i * 2 * r + j] = b.data[i * r + j]!;
        wideB[i * 2 * r + r + j] = -initial.b.data[i * r + j]!;
      }
    }
    tensors.set(keyOf(path, 'A'), { dtype: 'f32', shape: [2 * r, inner], data: wideA });
    tensors.set(keyOf(path, 'B'), { dtype: 'f32', shape: [out, 2 * r], data: wideB });
  }
  return { config, tensors };
}

/**
 * Puts a PEFT adapter on `model`, as a plain LoRA. All tensors that are missing, unknown, misshapen or not finite are named
 * at once.
 *
 * @throws MiloraError `peft-tensors`; `wrong-base` when the adapter belongs to a changed base (PEFT's PiSSA and the like)
 */
export async function importPeft(model: Module, { config, tensors }: PeftAdapter): Promise<Adapter> {
  if (initChangesBase(config.initLoraWeights)) {
    throw new MiloraError(
      'wrong-base',
      `adapter: expected one for the untouched base, got init_lora_weights "${config.initLoraWeights}", whose base has a ` +
        'part taken out. Convert it with PEFT (save_pretrained with path_initial_model_for_weight_conversion) and load that.',
    );
  }
  return inject(model, factorsInit(peftFactors(model, { config, tensors }), false), {
    rank: config.rank,
    alpha: config.alpha,
    targetModules: config.targetModules,
    rankPattern: config.rankPattern,
    alphaPattern: config.alphaPattern,
    useRslora: config.useRslora,
    dropout: config.dropout,
  });
}

/** The factors of PEFT's tensors by module path, checked against the model. */
export function peftFactors(model: Module, { config, tensors }: PeftAdapter): Map<string, GivenFactors> {
  const linears = linearLayers(model);
  const targets = selectTargets([...linears.keys()], config.targetModules);
  const problems: string[] = [];
  const known = new Set<string>();
  const factors = new Map<string, GivenFactors>();
  for (const path of targets) {
    const [out, inner] = linears.get(path)!.weight.shape as [number, number];
    const rank = patternValue(config.rankPattern, path, config.rank);
    const take = (factor: 'A' | 'B', shape: readonly number[]): Float32Array => {
      const key = keyOf(path, factor);
      known.add(key);
      const tensor = tensors.get(key);
      if (!tensor) {
        problems.push(`${key}: missing`);
        return new Float32Array();
      }
      if (String(tensor.shape) !== String(shape)) {
        problems.push(`${key}: expected shape [${shape.join(', ')}], got [${tensor.shape.join(', ')}]`);
      }
      const bad = firstNonFinite(tensor);
      if (bad) problems.push(`${key}: ${bad}`);
      return convertHost(tensor.data, tensor.dtype, 'f32', tensor.shape);
    };
    factors.set(path, { a: take('A', [rank, inner]), b: take('B', [out, rank]) });
  }
  for (const key of tensors.keys()) if (!known.has(key)) problems.push(`${key}: not a target of this adapter`);
  if (problems.length > 0) {
    throw new MiloraError(
      'peft-tensors',
      `adapter: expected the tensors that its config and this model call for, got ${problems.length} problem(s):\n  ${problems.join('\n  ')}`,
    );
  }
  return factors;
}
