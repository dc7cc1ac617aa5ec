/**
 * Where the algorithms of this folder compute: memory for matrices, and the few operations that take nearly all the time.
 *
 * There are two: `HostWorkspace` below, plain loops that define what each operation means, and the wasm backend's, with
 * the same operations in f64x2 SIMD on all threads. The algorithms are written once, over this interface; matrices are
 * ordinary Float64Arrays in both, so that whatever is not hot reads and writes their entries.
 */
import { convertHost, type DType, type HostArray } from '../dtype.js';
import { TensorError } from '../errors.js';
import type { HostTensor } from '../host.js';
import { zeroMatrix, type Matrix } from './matrix.js';
import { rotateBlocks } from './rotations.js';

/** Types of weights: what can be decomposed. */
export const DECOMPOSABLE: readonly DType[] = ['f32', 'f64', 'bf16', 'f16'];

/** Part of a stored matrix, possibly transposed: entry (i, j) is `data[at + i·rowStride + j·colStride]`. */
export interface View {
  dtype: DType;
  data: HostArray;
  at: number;
  rows: number;
  cols: number;
  rowStride: number;
  colStride: number;
}

/** Rows `i …` and columns `j …` of a matrix; the whole of it by default. */
export function viewOf(m: Matrix, i = 0, j = 0, rows = m.rows - i, cols = m.cols - j): View {
  return { dtype: 'f64', data: m.data, at: i * m.cols + j, rows, cols, rowStride: m.cols, colStride: 1 };
}

/** Part of a view. */
export function blockOf(v: View, i: number, j: number, rows: number, cols: number): View {
  return { ...v, at: v.at + i * v.rowStride + j * v.colStride, rows, cols };
}

export function transposed(v: View): View {
  return { ...v, rows: v.cols, cols: v.rows, rowStride: v.colStride, colStride: v.rowStride };
}

export interface MultiplyOptions {
  /** −1 subtracts the product. Default 1. */
  sign?: 1 | -1;
  /** Only entries of one triangle of a square result, the diagonal included; what stands in the other is left alone. */
  only?: 'lower' | 'upper';
  /** Float32 is good enough: operands are rounded to it, and may be summed up in it over a few thousand products. */
  single?: boolean;
}

export interface Workspace {
  /** A matrix of zeros, or of anything when `zero` is false. */
  matrix(rows: number, cols: number, zero?: boolean): Matrix;
  /** A matrix in its own type; shares memory with `host` where it can. Only `multiply` takes other types than f64. */
  load(host: HostTensor): View;
  /** A copy of a matrix for `multiply`, in float32 if that takes less memory here. */
  rounded(m: Matrix): View;
  /** Gives memory back before `close`. */
  free(m: { data: HostArray }): void;
  /** Gives back all that is left. */
  close(): void;

  /** Whether all entries of a, which is contiguous, are finite. */
  allFinite(a: View): boolean;
  /** c ← c ± a · b, in float64. c's rows are contiguous (colStride 1) and f64. */
  multiply(c: View, a: View, b: View, options?: MultiplyOptions): void;
  /** to `[n, m]` ← fromᵀ, both f64 with contiguous rows, in different memory or different parts of it. */
  transpose(to: View, from: View): void;
  /** y ← a · x for a with contiguous f64 rows: y `[rows, 1]` or `[1, rows]`, x `[cols]` likewise, both contiguous. */
  rowsTimes(y: View, a: View, x: View): void;
  /** y ← a · x for a symmetric a `[n, n]` with contiguous f64 rows, whose upper triangle is read; y and x as above. */
  symmetricTimes(y: View, a: View, x: View): void;
  /** Every row of a, which is contiguous f64, becomes row − tau · (row · v) · v: a Householder reflection. v: `[1, cols]`. */
  reflectRows(a: View, v: View, tau: number): void;
  /**
   * Part of a sweep of one-sided Jacobi. The rows of x come in blocks of `JACOBI_BLOCK`; for each pair of blocks (p, q) every row
   * of p is rotated against every row of q, or against the later rows of p when p = q. Inner products are those of the first `n`
   * columns; all columns are rotated. `pairs` is p₀, q₀, p₁, q₁, …: no block may be in two pairs. Cosines up to `tolerance` count as
   * zero. Returns the number of rotations.
   */
  jacobiRound(x: Matrix, n: number, pairs: readonly number[], tolerance: number): number;
}

/** Plain loops in host memory: the definition of every operation. */
export class HostWorkspace implements Workspace {
  matrix(rows: number, cols: number): Matrix {
    return zeroMatrix(rows, cols);
  }

  load({ data, dtype, shape }: HostTensor): View {
    const [rows, cols] = shape as [number, number];
    const values = convertHost(data, dtype, 'f64', shape);
    return { dtype: 'f64', data: values, at: 0, rows, cols, rowStride: cols, colStride: 1 };
  }

  rounded(m: Matrix): View {
    return viewOf({ ...m, data: Float64Array.from(m.data, Math.fround) });
  }

  free(): void {
    // the garbage collector's
  }

  close(): void {
    // the same
  }

  allFinite({ data }: View): boolean {
    for (const x of data) if (!Number.isFinite(x)) return false;
    return true;
  }

  multiply(c: View, a: View, b: View, { sign = 1, only, single = false }: MultiplyOptions = {}): void {
    checkProduct(c, a, b);
    const [x, y, z] = [a.data, b.data, c.data];
    const rounded = (value: number): number => (single ? Math.fround(value) : value);
    for (let i = 0; i < c.rows; i++) {
      const [first, end] = [only === 'upper' ? i : 0, only === 'lower' ? Math.min(i + 1, c.cols) : c.cols];
      const row = c.at + i * c.rowStride;
      for (let k = 0; k < a.cols; k++) {
        const factor = sign * rounded(x[a.at + i * a.rowStride + k * a.colStride]!);
        let from = b.at + k * b.rowStride + first * b.colStride;
        for (let j = first; j < end; j++, from += b.colStride) z[row + j] = z[row + j]! + factor * rounded(y[from]!);
      }
    }
  }

  transpose(to: View, from: View): void {
    for (let i = 0; i < to.rows; i++) {
      for (let j = 0; j < to.cols; j++) {
        to.data[to.at + i * to.rowStride + j] = from.data[from.at + j * from.rowStride + i]!;
      }
    }
  }

  rowsTimes(y: View, a: View, x: View): void {
    for (let i = 0; i < a.rows; i++) y.data[y.at + i] = dotAt(a.data, a.at + i * a.rowStride, x.data, x.at, a.cols);
  }

  symmetricTimes(y: View, a: View, x: View): void {
    y.data.fill(0, y.at, y.at + a.rows);
    for (let i = 0; i < a.rows; i++) {
      const row = a.at + i * a.rowStride;
      let sum = a.data[row + i]! * x.data[x.at + i]!;
      for (let j = i + 1; j < a.cols; j++) {
        sum += a.data[row + j]! * x.data[x.at + j]!;
        y.data[y.at + j] = y.data[y.at + j]! + a.data[row + j]! * x.data[x.at + i]!;
      }
      y.data[y.at + i] = y.data[y.at + i]! + sum;
    }
  }

  reflectRows(a: View, v: View, tau: number): void {
    for (let i = 0; i < a.rows; i++) {
      const row = a.at + i * a.rowStride;
      const factor = tau * dotAt(a.data, row, v.data, v.at, a.cols);
      for (let j = 0; j < a.cols; j++) a.data[row + j] = a.data[row + j]! - factor * v.data[v.at + j]!;
    }
  }

  jacobiRound(x: Matrix, n: number, pairs: readonly number[], tolerance: number): number {
    return rotateBlocks(x, n, pairs, tolerance);
  }
}

function dotAt(a: HostArray, i: number, b: HostArray, j: number, n: number): number {
  let [s0, s1] = [0, 0];
  let t = 0;
  for (; t + 2 <= n; t += 2) {
    s0 += a[i + t]! * b[j + t]!;
    s1 += a[i + t + 1]! * b[j + t + 1]!;
  }
  if (t < n) s0 += a[i + t]! * b[j + t]!;
  return s0 + s1;
}

/** Throws `shape` unless c = a · b can be. */
export function checkProduct(c: View, a: View, b: View): void {
  if (a.cols !== b.rows || c.rows !== a.rows || c.cols !== b.cols || c.colStride !== 1 || c.dtype !== 'f64') {
    const of = (v: View): string => `${v.dtype} [${v.rows}, ${v.cols}]`;
    throw new TensorError(
      'shape',
      `multiply: expected c = a · b with contiguous rows, got ${of(c)} = ${of(a)} · ${of(b)}`,
    );
  }
}
