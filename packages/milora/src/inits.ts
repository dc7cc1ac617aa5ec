/**
 * How an adapter starts: functions (weight, options) → { a, b, residual }, passed as values.
 *
 * W `[out, in]` = U diag(S) Vᵀ (thin, float64). For a window of r triplets and scaling s:
 *
 *     B = U_w √(S_w / s) `[out, r]`,   A = √(S_w / s) V_wᵀ `[r, in]`,   W_res = W − s·B·A
 *
 * so W_res + s·B·A = W and training starts from the unchanged model. The window makes the method: the largest r triplets
 * are PiSSA (arXiv 2404.02948), the smallest r are MiLoRA (arXiv 2406.09044 §3). LoRA (arXiv 2106.09685) and MiCA
 * (arXiv 2604.01694) leave W alone and start from B·A = 0.
 */
import { convertHost, matrixFromHost, svdMatrix } from '@milora/tensor';
import type { HostTensor, Philox, Svd } from '@milora/tensor';
import { MiloraError } from './errors.js';
import { scaling } from './peftConfig.js';
import { checkRank, middle, minor, principal, randomWindow } from './window.js';
import type { Window, WindowSite } from './window.js';

export interface InitOptions {
  rank: number;
  alpha: number;
  useRslora: boolean;
  random: Philox;
  /** Path of the module, for messages. */
  module: string;
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
}

export type Init = (weight: HostTensor, options: InitOptions) => AdapterInit;

/** Chooses r of k triplets. */
export type WindowChoice = (k: number, rank: number, random: Philox, site: WindowSite) => Window;

const both = { a: true, b: true };

function siteOf(weight: HostTensor, options: InitOptions): WindowSite & { k: number } {
  return { module: options.module, shape: weight.shape, k: Math.min(...weight.shape) };
}

/** The SVD of a weight, whose values must be finite. Throws `non-finite` naming the module. */
export function decompose(weight: HostTensor, module: string): Svd {
  try {
    return svdMatrix(matrixFromHost(weight));
  } catch (cause) {
    throw new MiloraError('non-finite', `${module}: ${(cause as Error).message}`, { cause });
  }
}

/** Columns `window` of u as `[rows, r]`, each times a factor. */
function columns({ u }: Svd, window: Window, factor: (index: number) => number): Float32Array {
  const out = new Float32Array(u.rows * window.length);
  window.forEach((index, j) => {
    const f = factor(index);
    for (let i = 0; i < u.rows; i++) out[i * window.length + j] = u.data[i * u.cols + index]! * f;
  });
  return out;
}

/** Rows `window` of vt as `[r, cols]`, each times a factor. */
function rows({ vt }: Svd, window: Window, factor: (index: number) => number): Float32Array {
  const out = new Float32Array(window.length * vt.cols);
  window.forEach((index, i) => {
    const f = factor(index);
    for (let j = 0; j < vt.cols; j++) out[i * vt.cols + j] = vt.data[index * vt.cols + j]! * f;
  });
  return out;
}

/** An init that takes the triplets a function chooses. */
export function windowInit(choose: WindowChoice): Init {
  return (weight, options) => {
    const { k, ...site } = siteOf(weight, options);
    const window = choose(k, options.rank, options.random, site);
    const s = scaling(options.rank, options.alpha, options.useRslora);
    const svd = decompose(weight, options.module);
    const factor = (index: number): number => Math.sqrt(svd.s[index]! / s);
    const [a, b] = [rows(svd, window, factor), columns(svd, window, factor)];
    return { a, b, residual: residualOf(weight, a, b, s), trains: both, window };
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
export const loraInit: Init = (weight, options) => {
  const { k, ...site } = siteOf(weight, options);
  checkRank(k, options.rank, site);
  const [out, inner] = weight.shape as [number, number];
  const bound = 1 / Math.sqrt(inner);
  const a = options.random.uniformArray(options.rank * inner, -bound, bound);
  return { a, b: new Float32Array(out * options.rank), residual: undefined, trains: both };
};

/** MiCA: B = the minor left vectors, frozen; A = 0, trained; the weight untouched. */
export const micaInit: Init = (weight, options) => {
  const { k, ...site } = siteOf(weight, options);
  const window = minor(k, options.rank, site);
  const b = columns(decompose(weight, options.module), window, () => 1);
  const a = new Float32Array(options.rank * weight.shape[1]!);
  return { a, b, residual: undefined, trains: { a: true, b: false }, window };
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
export function factorsInit(factors: ReadonlyMap<string, GivenFactors>, split: boolean): Init {
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
  const w = convertHost(weight.data, weight.dtype, 'f64', weight.shape);
  const result = new Float32Array(out * inner);
  const row = new Float64Array(inner);
  for (let i = 0; i < out; i++) {
    for (let j = 0; j < inner; j++) row[j] = w[i * inner + j]!;
    for (let r = 0; r < rank; r++) {
      const f = s * b[i * rank + r]!;
      if (f === 0) continue;
      for (let j = 0, at = r * inner; j < inner; j++, at++) row[j]! -= f * a[at]!;
    }
    result.set(row, i * inner);
  }
  return result;
}

/** The methods by name, for configuration files and the command. */
export const methods = {
  milora: miloraInit,
  pissa: pissaInit,
  lora: loraInit,
  mica: micaInit,
  middle: middleInit,
  random: randomInit,
} as const;
export type MethodName = keyof typeof methods;
