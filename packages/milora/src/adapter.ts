/**
 * Adapter: all AdapterLinears of one method on one model. `inject` puts them in; the object turns them off and on, merges,
 * and takes them out again.
 */
import { Linear } from '@milora/autograd';
import type { Module, Variable } from '@milora/autograd';
import { Philox, Tensor, matrixFromHost, multiplyMatrices, transposeMatrix } from '@milora/tensor';
import type { DType, HostTensor, Matrix } from '@milora/tensor';
import { AdapterLinear } from './adapterLinear.js';
import type { AdapterForm, Factors } from './adapterLinear.js';
import { MiloraError } from './errors.js';
import { decompose } from './inits.js';
import type { AdapterInit, Init } from './inits.js';
import { scaling } from './peftConfig.js';
import { expandTargetAliases, patternValue, selectTargets } from './targets.js';
import { checkRank } from './window.js';
import type { Window } from './window.js';

/** The paper's targets: q, k, v, up and down. */
export const PAPER_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'up_proj', 'down_proj'] as const;

export interface AdapterConfig {
  rank: number;
  /** Default: the rank, so that the scaling is 1. */
  alpha?: number;
  /** Names, aliases (q, k, v, o, gate, up, down), a regular expression, or "all-linear". Default PAPER_TARGETS. */
  targetModules?: string | readonly string[];
  /** Ranks and alphas of modules that differ, by name or expression, as in PEFT. */
  rankPattern?: Readonly<Record<string, number>>;
  alphaPattern?: Readonly<Record<string, number>>;
  /** Scale by alpha / √rank (rsLoRA). */
  useRslora?: boolean;
  dropout?: number;
  /** `auto`: offset for a 16-bit base, residual otherwise. */
  form?: 'auto' | 'residual' | 'offset';
  /** Seed of random starts and of dropout. Default 0. */
  seed?: number;
}

export interface InjectOptions {
  /** Called before each module, and at the end with done = total. What it returns is awaited. */
  onProgress?: (progress: { done: number; total: number; module: string }) => void | Promise<void>;
  signal?: AbortSignal;
}

/** The settings with all defaults filled in. */
export type ResolvedAdapterConfig = Required<AdapterConfig>;

export function resolveAdapterConfig(config: AdapterConfig): ResolvedAdapterConfig {
  const resolved = {
    alpha: config.rank,
    rankPattern: {},
    alphaPattern: {},
    useRslora: false,
    dropout: 0,
    form: 'auto' as const,
    seed: 0,
    ...config,
    targetModules: expandTargetAliases(config.targetModules ?? PAPER_TARGETS),
  };
  checkRank(Infinity, resolved.rank);
  if (!(resolved.alpha > 0 && Number.isFinite(resolved.alpha))) {
    throw new MiloraError('alpha', `alpha: expected a positive number, got ${resolved.alpha}`);
  }
  if (!(resolved.dropout >= 0 && resolved.dropout < 1)) {
    throw new MiloraError('dropout', `dropout: expected a number in [0, 1), got ${resolved.dropout}`);
  }
  return resolved;
}

/** Every plain linear layer of a model by path. */
export function linearLayers(model: Module): Map<string, Linear> {
  const found = new Map<string, Linear>();
  for (const [path, module] of model.namedModules()) if (module instanceof Linear) found.set(path, module);
  return found;
}

export class Adapter {
  constructor(
    readonly model: Module,
    readonly config: ResolvedAdapterConfig,
    readonly layers: ReadonlyMap<string, AdapterLinear>,
  ) {}

  /** Trained parameters with their paths. */
  trainable(): [string, Variable][] {
    return this.model.trainable();
  }

  /** Number of trained numbers. */
  get trainableCount(): number {
    return this.trainable().reduce((n, [, p]) => n + p.value.size, 0);
  }

  /** Turns all layers on or off; off gives the base model. */
  enable(on = true): void {
    for (const layer of this.layers.values()) layer.enabled = on;
  }

  /** Runs `fn` on the base model. */
  async disabled<T>(fn: () => Promise<T>): Promise<T> {
    this.enable(false);
    try {
      return await fn();
    } finally {
      this.enable(true);
    }
  }

  /** Computes with merged weights from now on. */
  merge(): void {
    for (const layer of this.layers.values()) layer.merge();
  }

  unmerge(): void {
    for (const layer of this.layers.values()) layer.unmerge();
  }

  /** Puts plain layers with merged weights in place of the adapter's, for good: the model no longer knows of it. */
  mergeAndUnload(): void {
    for (const [path, layer] of this.layers) {
      const merged = layer.mergedWeight().keep();
      this.model.replaceModule(path, new Linear(merged, layer.base.bias?.value));
      layer.dispose();
      layer.base.weight.value.dispose();
    }
  }

  /** Puts the original layers back and frees the adapter. */
  unload(): void {
    for (const [path, layer] of this.layers) {
      this.model.replaceModule(path, layer.base);
      layer.dispose();
    }
  }
}

/**
 * Replaces the targeted linear layers of `model` by AdapterLinears that start as `init` says; everything else is frozen.
 *
 * @throws MiloraError `unknown-target`, `rank-too-large`, `non-finite` and others, naming the module; the model is then unchanged
 *
 * @example
 * const adapter = await inject(model, miloraInit, { rank: 8 });
 */
export async function inject(
  model: Module,
  init: Init,
  config: AdapterConfig,
  options: InjectOptions = {},
): Promise<Adapter> {
  const resolved = resolveAdapterConfig(config);
  const linears = linearLayers(model);
  const targets = selectTargets([...linears.keys()], resolved.targetModules);
  const random = new Philox(resolved.seed);
  const layers = new Map<string, AdapterLinear>();
  try {
    for (const [i, path] of targets.entries()) {
      await options.onProgress?.({ done: i, total: targets.length, module: path });
      options.signal?.throwIfAborted();
      layers.set(path, await makeLayer(path, linears.get(path)!, init, resolved, random.split(i)));
    }
    await options.onProgress?.({ done: targets.length, total: targets.length, module: '' });
  } catch (error) {
    for (const layer of layers.values()) layer.dispose();
    throw error;
  }
  model.requiresGrad(false);
  for (const [path, layer] of layers) model.replaceModule(path, layer);
  return new Adapter(model, resolved, layers);
}

async function makeLayer(
  path: string,
  base: Linear,
  init: Init,
  config: ResolvedAdapterConfig,
  random: Philox,
): Promise<AdapterLinear> {
  const weight = await base.weight.value.toHost();
  const rank = patternValue(config.rankPattern, path, config.rank);
  const alpha = patternValue(config.alphaPattern, path, config.alpha);
  const s = scaling(rank, alpha, config.useRslora);
  const start = init(weight, { rank, alpha, useRslora: config.useRslora, random: random.split(0), module: path });
  return adapterLayer(base, weight, start, s, formOf(start, config, weight.dtype), {
    p: config.dropout,
    random: random.split(1),
  });
}

function formOf(start: AdapterInit, config: ResolvedAdapterConfig, dtype: DType): AdapterForm {
  if (!start.residual) return 'plain';
  if (config.form !== 'auto') return config.form;
  return dtype === 'f32' ? 'residual' : 'offset';
}

function adapterLayer(
  base: Linear,
  weight: HostTensor,
  start: AdapterInit,
  s: number,
  form: AdapterForm,
  dropout: { p: number; random: Philox },
): AdapterLinear {
  const { backend } = base.weight.value;
  const [out, inner] = weight.shape as [number, number];
  const rank = start.a.length / inner;
  const upload = (shape: readonly number[], data: Float32Array): Tensor =>
    Tensor.fromHost({ dtype: 'f32', shape, data }, backend).keep();
  const factors = (): Factors => ({ a: upload([rank, inner], start.a), b: upload([out, rank], start.b) });
  const frozen = form === 'residual' ? upload(weight.shape, start.residual!) : base.weight.value;
  return new AdapterLinear({
    base,
    form,
    weight: frozen,
    factors: factors(),
    initial: form === 'plain' ? undefined : factors(),
    trains: start.trains,
    window: start.window,
    scaling: s,
    dropout,
  });
}

/** How far a trained layer has left the window it started in. */
export interface Drift {
  /** ‖U_pᵀ B‖ / ‖B‖ */
  left: number;
  /** ‖A V_p‖ / ‖A‖ */
  right: number;
}

/**
 * For each layer of a window method, the share of B and A that lies in the singular directions U_p, V_p of the base weight
 * outside the window: 0 at the start, at most 1. The paper shows the orthogonality at the start only; this follows it.
 */
export async function subspaceDrift(adapter: Adapter): Promise<Map<string, Drift>> {
  const result = new Map<string, Drift>();
  for (const [path, layer] of adapter.layers) {
    if (!layer.window) continue;
    const { u, vt } = decompose(await layer.base.weight.value.toHost(), path);
    const a = matrixFromHost(await layer.loraA.value.toHost());
    const b = matrixFromHost(await layer.loraB.value.toHost());
    const left = multiplyMatrices(transposeMatrix(u), b); // [k, r]
    const right = multiplyMatrices(vt, transposeMatrix(a)); // [k, r]
    result.set(path, { left: shareOutside(left, b, layer.window), right: shareOutside(right, a, layer.window) });
  }
  return result;
}

/** ‖rows of `coordinates` outside the window‖ / ‖whole‖. */
function shareOutside(coordinates: Matrix, whole: Matrix, window: Window): number {
  const inside = new Set(window);
  const square = (x: Float64Array): number => x.reduce((sum, v) => sum + v * v, 0);
  let outside = 0;
  for (let d = 0; d < coordinates.rows; d++) {
    if (!inside.has(d)) outside += square(coordinates.data.subarray(d * coordinates.cols, (d + 1) * coordinates.cols));
  }
  const all = square(whole.data);
  return all === 0 ? 0 : Math.sqrt(outside / all);
}
