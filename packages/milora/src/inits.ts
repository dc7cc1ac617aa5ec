/**
 * How an adapter starts: functions (weight, options) → { a, b, residual }, passed as values. Those that decompose the weight
 * take their time and give a promise.
 *
 * W `[out, in]` = U diag(S) Vᵀ (thin, float64). For a window of r triplets and scaling s:
 *
 *     B = U_w √(S_w / s) `[out, r]`,   A = √(S_w / s) V_wᵀ `[r, in]`,   W_res = W − s·B·A
 *
 * so W_res + s·B·A = W and training starts from the unchanged model. The window makes the method: the largest r triplets
 * are PiSSA (arXiv 2404.02948), the smallest r are MiLoRA (arXiv 2406.09044 §3). LoRA (arXiv 2106.09685) and MiCA
 * (arXiv 2604.01694) leave W alone and start from B·A = 0.
 */
import { TensorError, convertHost, openWorkspace, svd, viewOf, windowSubspace } from '@milora/tensor';
import type { Certificate, HostTensor, Philox, Subspace, SubspaceOptions } from '@milora/tensor';
import { MiloraError } from './errors.js';
import { scaling } from './peftConfig.js';
import { boundsOf, checkRank, middle, minor, principal, randomWindow } from './window.js';
import type { Window, WindowSite } from './window.js';

export interface InitOptions {
  rank: number;
  alpha: number;
  useRslora: boolean;
  random: Philox;
  /** Path of the module, for messages. */
  module: string;
  /** For methods that decompose the weight: where, how exactly, with which cache; progress and signal. */
  decomposition?: SubspaceOptions;
}

/** An adapter at its start; matrices are row-major float32. */
export interface AdapterInit {
  /** A `[r, in]`. */
  a: Float32Array;
  /** B `[out, r]`. */
  b: Float32Array;
  /** W − s·B·A `[out, in]`, the frozen weight, when s·B·A was taken out of W; undefined when W stays as it is. */
  residual: Float32Array | undefined;
  /** Which factors are trained. */
  trains: { a: boolean; b: boolean };
  /** The triplets taken, for methods that take some. */
  window?: Window;
  /** How well the weight determines them, where they are consecutive. */
  certificate?: Certificate;
}

export type Init = (weight: HostTensor, options: InitOptions) => AdapterInit | Promise<AdapterInit>;

/** Chooses r of k triplets. */
export type WindowChoice = (k: number, rank: number, random: Philox, site: WindowSite) => Window;

const both = { a: true, b: true };

function siteOf(weight: HostTensor, options: InitOptions): WindowSite & { k: number } {
  return { module: options.module, shape: weight.shape, k: Math.min(...weight.shape) };
}

/** Waits for a decomposition; an error of it gets the module's name. */
export async function ofModule<T>(module: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    // a signal's reason and a listener's own error are not about the module
    if (!(cause instanceof TensorError)) throw cause;
    throw new MiloraError(cause.code, `${module}: ${cause.message}`, { cause });
  }
}

/**
 * All triplets of a weight, whose values must be finite.
 * @throws MiloraError `non-finite` and the other codes of `svd`, naming the module
 */
export function decompose(weight: HostTensor, module: string, options?: SubspaceOptions): Promise<Subspace> {
  return ofModule(module, svd(weight, options));
}

/** The triplets of a window, or all of them if it has gaps, for there is no way to compute scattered ones alone. */
async function tripletsOf(weight: HostTensor, window: Window, options: InitOptions): Promise<Subspace> {
  const { module, decomposition = {} } = options;
  const bounds = boundsOf(window);
  if (bounds) return ofModule(module, windowSubspace(weight, bounds.from, bounds.to, decomposition));
  // all triplets fill several times the space of the weight, which is too much to keep for an ablation
  const { cache: _, ...rest } = decomposition;
  return decompose(weight, module, rest);
}

/** Columns `window` of u as `[rows, r]`, each times a factor. */
function columns({ u, from }: Subspace, window: Window, factor: (index: number) => number): Float32Array {
  const out = new Float32Array(u.rows * window.length);
  window.forEach((index, j) => {
    const f = factor(index);
    for (let i = 0; i < u.rows; i++) out[i * window.length + j] = u.data[i * u.cols + index - from]! * f;
  });
  return out;
}

/** Rows `window` of vt as `[r, cols]`, each times a factor. */
function rows({ vt, from }: Subspace, window: Window, factor: (index: number) => number): Float32Array {
  const out = new Float32Array(window.length * vt.cols);
  window.forEach((index, i) => {
    const f = factor(index);
    for (let j = 0; j < vt.cols; j++) out[i * vt.cols + j] = vt.data[(index - from) * vt.cols + j]! * f;
  });
  return out;
}

/** The window taken, with its certificate; that of a whole decomposition says nothing about a part of it. */
function taken(window: Window, { certificate }: Subspace): Pick<AdapterInit, 'window' | 'certificate'> {
  return boundsOf(window) ? { window, certificate } : { window };
}

/** An init that takes the triplets a function chooses. */
export function windowInit(choose: WindowChoice): Init {
  return async (weight, options) => {
    const { k, ...site } = siteOf(weight, options);
    const window = choose(k, options.rank, options.random, site);
    const s = scaling(options.rank, options.alpha, options.useRslora);
    const triplets = await tripletsOf(weight, window, options);
    const factor = (index: number): number => Math.sqrt(triplets.s[index - triplets.from]! / s);
    const [a, b] = [rows(triplets, window, factor), columns(triplets, window, factor)];
    return { a, b, residual: residualOf(weight, a, b, s), trains: both, ...taken(window, triplets) };
  };
}

/** MiLoRA: the minor triplets. */
export const miloraInit: Init = windowInit((k, rank, _, site) => minor(k, rank, site));

/** PiSSA: the principal triplets. */
export const pissaInit: Init = windowInit((k, rank, _, site) => principal(k, rank, site));

/** Triplets from the middle of the spectrum. */
export const middleInit: Init = windowInit((k, rank, _, site) => middle(k, rank, site));

/** Random triplets: the ablation of the MiLoRA paper. */
export const randomInit: Init = windowInit((k, rank, random, site) => randomWindow(k, rank, random, site));

/** LoRA: A uniform in ±1/√in (Kaiming with a = √5, as PEFT), B = 0, the weight untouched. */
export const loraInit = (weight: HostTensor, options: InitOptions): AdapterInit => {
  const { k, ...site } = siteOf(weight, options);
  checkRank(k, options.rank, site);
  const [out, inner] = weight.shape as [number, number];
  const bound = 1 / Math.sqrt(inner);
  const a = options.random.uniformArray(options.rank * inner, -bound, bound);
  return { a, b: new Float32Array(out * options.rank), residual: undefined, trains: both };
};

/** MiCA: B = the minor left vectors, frozen; A = 0, trained; the weight untouched. */
export const micaInit: Init = async (weight, options) => {
  const { k, ...site } = siteOf(weight, options);
  const window = minor(k, options.rank, site);
  const triplets = await tripletsOf(weight, window, options);
  const b = columns(triplets, window, () => 1);
  const a = new Float32Array(options.rank * weight.shape[1]!);
  return { a, b, residual: undefined, trains: { a: true, b: false }, ...taken(window, triplets) };
};

/** Factors made elsewhere: A `[r, in]`, B `[out, r]`, and the window they came from, if known. */
export interface GivenFactors {
  a: Float32Array;
  b: Float32Array;
  window?: Window;
  /** Default: both. */
  trains?: { a: boolean; b: boolean };
}

/**
 * An init from factors made elsewhere, by module path: a PEFT folder or a checkpoint. `split` takes s·B·A out of the weight.
 * Shapes are the caller's care.
 */
export function factorsInit(
  factors: ReadonlyMap<string, GivenFactors>,
  split: boolean,
): (weight: HostTensor, options: InitOptions) => AdapterInit {
  return (weight, { module, rank, alpha, useRslora }) => {
    const found = factors.get(module);
    if (!found) throw new MiloraError('factors', `${module}: expected factors A and B, got none`);
    const residual = split ? residualOf(weight, found.a, found.b, scaling(rank, alpha, useRslora)) : undefined;
    return { ...found, residual, trains: found.trains ?? both };
  };
}

/** W − s·B·A, computed in float64 and rounded once: the frozen weight of a window method. */
export function residualOf(weight: HostTensor, a: Float32Array, b: Float32Array, s: number): Float32Array {
  const [out, inner] = weight.shape as [number, number];
  const rank = a.length / inner;
  const result = new Float32Array(out * inner);
  const workspace = openWorkspace();
  try {
    const factorA = workspace.load({ dtype: 'f32', shape: [rank, inner], data: a });
    const factorB = workspace.matrix(out, rank);
    for (let i = 0; i < b.length; i++) factorB.data[i] = s * b[i]!;
    // rows by the hundred: the whole weight in float64 would be a large copy
    const rows = workspace.matrix(Math.min(out, ROWS), inner);
    for (let from = 0; from < out; from += ROWS) {
      const count = Math.min(ROWS, out - from);
      const part = weight.data.subarray(from * inner, (from + count) * inner);
      rows.data.set(convertHost(part, weight.dtype, 'f64'));
      workspace.multiply(viewOf(rows, 0, 0, count), viewOf(factorB, from, 0, count), factorA, { sign: -1 });
      result.set(rows.data.subarray(0, count * inner), from * inner);
    }
  } finally {
    workspace.close();
  }
  return result;
}

const ROWS = 192;

/** The methods by name, for configuration files and the command. */
export const methods = {
  milora: miloraInit,
  pissa: pissaInit,
  lora: loraInit,
  mica: micaInit,
  middle: middleInit,
  random: randomInit,
} as const satisfies Record<string, Init>;
export type MethodName = keyof typeof methods;
