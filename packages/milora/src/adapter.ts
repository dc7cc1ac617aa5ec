/**
 * Adapter: all AdapterLinears of one method on one model. `inject` puts them in; the object turns them off and on, merges,
 * and takes them out again.
 */
import { Linear } from '@milora/autograd';
import type { Module, Variable } from '@milora/autograd';
import { Philox, Tensor } from '@milora/tensor';
import type { Certificate, DType, HostTensor, Progress, SubspaceOptions } from '@milora/tensor';
import { AdapterLinear } from './adapterLinear.js';
import type { AdapterForm, Factors } from './adapterLinear.js';
import { MiloraError } from './errors.js';
import type { AdapterInit, Init, InitOptions } from './inits.js';
import { Messenger, forgivingCache, oneAhead } from './moduleWork.js';
import { scaling } from './peftConfig.js';
import { expandTargetAliases, patternValue, selectTargets } from './targets.js';
import { checkRank } from './window.js';

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

export interface InjectProgress {
  /** Modules that are done, and all. */
  done: number;
  total: number;
  /** Path of the module in work; empty at the end. */
  module: string;
  /** Within a module: what its decomposition does at the moment, and the share of it that is done, 0 to 1. */
  stage?: string;
  share?: number;
}

/**
 * Where and how exactly to decompose, a signal that stops it, and a cache: what an `inject` that was stopped has decomposed,
 * the next one finds there. A cache that cannot be read or written stops nothing.
 */
export interface InjectOptions extends Omit<SubspaceOptions, 'onProgress'> {
  /**
   * Called before each module, with stages while it is decomposed, and at the end with done = total. What it returns is
   * awaited before the next module; stages that come before that are left out.
   */
  onProgress?: (progress: InjectProgress) => void | Promise<void>;
  /** Told of the cache's first error. */
  onCacheError?: (error: unknown) => void;
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
    /** How well each module's window is determined, for methods that take one; by module path, not saved. */
    readonly certificates: ReadonlyMap<string, Certificate> = new Map(),
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
 * @throws MiloraError `unknown-target`, `rank-too-large`, `non-finite` and others, naming the module, and the signal's reason;
 * the model is then unchanged
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
  const { onProgress = () => undefined, onCacheError, ...decomposition } = options;
  if (options.cache) decomposition.cache = forgivingCache(options.cache, onCacheError);
  const layers = new Map<string, AdapterLinear>();
  const certificates = new Map<string, Certificate>();
  const total = targets.length;
  const weights = oneAhead(targets.map((path) => linears.get(path)!.weight.value));
  try {
    for (const [done, module] of targets.entries()) {
      await onProgress({ done, total, module });
      options.signal?.throwIfAborted();
      const weight = (await weights.next()).value!;
      const settings = settingsOf(resolved, module);
      const own = random.split(done);
      const start = await startOf(
        weight,
        init,
        { ...settings, random: own.split(0), module, decomposition },
        (progress) => onProgress({ done, total, module, ...progress }),
      );
      if (start.certificate) certificates.set(module, start.certificate);
      const s = scaling(settings.rank, settings.alpha, settings.useRslora);
      const dropout = { p: resolved.dropout, random: own.split(1) };
      layers.set(
        module,
        adapterLayer(linears.get(module)!, weight, start, s, formOf(start, resolved, weight.dtype), dropout),
      );
    }
    await onProgress({ done: total, total, module: '' });
  } catch (error) {
    for (const layer of layers.values()) layer.dispose();
    throw error;
  } finally {
    await weights.return();
  }
  model.requiresGrad(false);
  for (const [path, layer] of layers) model.replaceModule(path, layer);
  return new Adapter(model, resolved, layers, certificates);
}

/** The part of the settings that modules may have of their own. */
function settingsOf(config: ResolvedAdapterConfig, path: string): Pick<InitOptions, 'rank' | 'alpha' | 'useRslora'> {
  const rank = patternValue(config.rankPattern, path, config.rank);
  const alpha = patternValue(config.alphaPattern, path, config.alpha);
  return { rank, alpha, useRslora: config.useRslora };
}

/** Calls the init; its stages are told to a listener that may be slower than they are. */
async function startOf(
  weight: HostTensor,
  init: Init,
  options: InitOptions,
  onStage: (progress: { stage: string; share: number }) => void | Promise<void>,
): Promise<AdapterInit> {
  const messenger = new Messenger(onStage);
  const onProgress = ({ stage, done }: Progress): void => messenger.tell({ stage, share: done });
  try {
    return await init(weight, { ...options, decomposition: { ...options.decomposition, onProgress } });
  } finally {
    await messenger.settled();
  }
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
