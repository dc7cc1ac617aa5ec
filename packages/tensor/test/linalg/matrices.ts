/** Matrices with known spectra, and what is measured on decompositions of them. */
import { expect } from 'vitest';
import type { WasmBackend } from '../../src/backends/wasm/index.js';
import { convertHost, type DType } from '../../src/dtype.js';
import type { HostTensor } from '../../src/host.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { qr } from '../../src/linalg/qr.js';
import { runNow } from '../../src/linalg/steps.js';
import { jacobiSvd, type Svd } from '../../src/linalg/svd.js';
import { HostWorkspace, type Workspace } from '../../src/linalg/workspace.js';
import { Philox } from '../../src/random.js';

/** Runs in wasm memory, none of which may be left but what the result holds, which the caller copies. */
export function inWorkspace<T>(backend: WasmBackend, run: (workspace: Workspace) => T): T {
  const before = backend.memory().liveBytes;
  const workspace = backend.workspace();
  try {
    return run(workspace);
  } finally {
    workspace.close();
    expect(backend.memory().liveBytes).toBe(before);
  }
}

export const numbers = (length: number, of: (i: number) => number): number[] => Array.from({ length }, (_, i) => of(i));

export function gaussian(rows: number, cols: number, seed: number): Matrix {
  return { rows, cols, data: Float64Array.from(new Philox(seed).normalArray(rows * cols)) };
}

/** a · diag(scales) */
export function scaleColumns(a: Matrix, scales: ArrayLike<number>): Matrix {
  return { ...a, data: a.data.map((x, i) => x * scales[i % a.cols]!) };
}

/** A matrix with the given singular values and random singular vectors. */
export function withSpectrum(rows: number, cols: number, spectrum: readonly number[], seed: number): Matrix {
  const k = spectrum.length;
  const u = qr(gaussian(rows, k, seed)).q;
  const v = qr(gaussian(cols, k, seed + 1)).q;
  return multiplyMatrices(scaleColumns(u, spectrum), transposeMatrix(v));
}

export function diagonal(spectrum: readonly number[], cols = spectrum.length): Matrix {
  const out = zeroMatrix(spectrum.length, cols);
  spectrum.forEach((x, i) => (out.data[i * cols + i] = x));
  return out;
}

export function toHost({ rows, cols, data }: Matrix, dtype: DType): HostTensor {
  return { dtype, shape: [rows, cols], data: convertHost(data.slice(), 'f64', dtype) };
}

export function fromHost({ shape, dtype, data }: HostTensor): Matrix {
  return { rows: shape[0]!, cols: shape[1]!, data: convertHost(data, dtype, 'f64').slice() };
}

/** One-sided Jacobi in plain loops: what everything else is held against. */
export const reference = (a: Matrix): Svd => runNow(jacobiSvd(a, new HostWorkspace()));

export const frobenius = (a: Matrix): number => norm(a.data, 0, a.data.length);

/** a − b */
export function difference(a: Matrix, b: Matrix): Matrix {
  return { ...a, data: a.data.map((x, i) => x - b.data[i]!) };
}

/** Largest singular value. */
export const spectralNorm = (a: Matrix): number => reference(a).s[0] ?? 0;

/** Columns `from … to − 1`. */
export function columns(a: Matrix, from: number, to: number): Matrix {
  const out = zeroMatrix(a.rows, to - from);
  for (let i = 0; i < a.rows; i++) out.data.set(a.data.subarray(i * a.cols + from, i * a.cols + to), i * (to - from));
  return out;
}

/** Largest entry of |aᵀa − I|. */
export function orthogonalityError(a: Matrix): number {
  const gram = multiplyMatrices(transposeMatrix(a), a);
  return gram.data.reduce((most, x, i) => Math.max(most, Math.abs(x - (i % (a.cols + 1) === 0 ? 1 : 0))), 0);
}

/** Sine of the largest angle by which the columns of a, orthonormal, leave the span of those of b. */
export function sineBetween(a: Matrix, b: Matrix): number {
  return spectralNorm(difference(a, multiplyMatrices(b, multiplyMatrices(transposeMatrix(b), a))));
}

/** u · diag(s) · vt */
export const productOf = ({ u, s, vt }: Svd): Matrix => multiplyMatrices(scaleColumns(u, s), vt);

/** Largest of ‖A v − s u‖ and ‖Aᵀu − s v‖. */
export function residualOf(a: Matrix, { u, s, vt }: Svd): number {
  const v = transposeMatrix(vt);
  const columnNorms = (x: Matrix): number => {
    const t = transposeMatrix(x);
    return numbers(t.rows, (i) => norm(t.data, i * t.cols, t.cols)).reduce((p, q) => Math.max(p, q), 0);
  };
  return Math.max(
    columnNorms(difference(multiplyMatrices(a, v), scaleColumns(u, s))),
    columnNorms(difference(multiplyMatrices(transposeMatrix(a), u), scaleColumns(v, s))),
  );
}

/** The bits of an array, so that −0 is not 0. */
export const bits = (x: Float64Array): string => Buffer.from(x.slice().buffer).toString('base64');
