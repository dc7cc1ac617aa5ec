/**
 * Dense float64 matrices in host memory, row-major: what the factorisations of this folder work on. They are small (a
 * weight's shorter side) and need every digit, hence float64 and plain loops rather than tensors and kernels.
 */
import { convertHost } from '../dtype.js';
import { TensorError } from '../errors.js';
import type { HostTensor } from '../host.js';

/** A `[rows, cols]` matrix; entry (i, j) is `data[i * cols + j]`. */
export interface Matrix {
  rows: number;
  cols: number;
  data: Float64Array;
}

/** A matrix of zeros. */
export function zeroMatrix(rows: number, cols: number): Matrix {
  return { rows, cols, data: new Float64Array(rows * cols) };
}

/** The n × n identity. */
export function identity(n: number): Matrix {
  const out = zeroMatrix(n, n);
  for (let i = 0; i < n; i++) out.data[i * n + i] = 1;
  return out;
}

/** Largest entry of |a − I|, for a square a. */
export function distanceFromIdentity({ rows, data }: Matrix): number {
  let most = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < rows; j++) most = Math.max(most, Math.abs(data[i * rows + j]! - (i === j ? 1 : 0)));
  }
  return most;
}

/** A two-dimensional tensor as a float64 matrix; shares memory when it is f64 already. Throws `shape` otherwise. */
export function matrixFromHost(host: HostTensor): Matrix {
  const [rows, cols] = host.shape;
  if (host.shape.length !== 2 || rows === undefined || cols === undefined) {
    throw new TensorError('shape', `matrixFromHost: expected shape [rows, cols], got [${host.shape.join(', ')}]`);
  }
  return { rows, cols, data: convertHost(host.data, host.dtype, 'f64', host.shape) };
}

/** aᵀ, as a new matrix. */
export function transposeMatrix(a: Matrix): Matrix {
  const { rows, cols } = a;
  const out = zeroMatrix(cols, rows);
  // tiles keep both the rows read and the rows written in cache
  const tile = 32;
  for (let i0 = 0; i0 < rows; i0 += tile) {
    for (let j0 = 0; j0 < cols; j0 += tile) {
      const iEnd = Math.min(i0 + tile, rows);
      const jEnd = Math.min(j0 + tile, cols);
      for (let i = i0; i < iEnd; i++) {
        for (let j = j0; j < jEnd; j++) out.data[j * rows + i] = a.data[i * cols + j]!;
      }
    }
  }
  return out;
}

/** a · b. Throws `shape` unless a has as many cols as b has rows. */
export function multiplyMatrices(a: Matrix, b: Matrix): Matrix {
  if (a.cols !== b.rows) {
    throw new TensorError(
      'shape',
      `multiplyMatrices: expected a.cols = b.rows, got [${a.rows}, ${a.cols}] · [${b.rows}, ${b.cols}]`,
    );
  }
  const out = zeroMatrix(a.rows, b.cols);
  const n = b.cols;
  const inner = a.cols;
  const x = a.data;
  const y = b.data;
  const z = out.data;
  for (let i = 0; i < a.rows; i++) {
    const row = i * n;
    let k = 0;
    // four rows of b per pass over the row of the result: a quarter of its loads and stores
    for (; k + 4 <= inner; k += 4) {
      const x0 = x[i * inner + k]!;
      const x1 = x[i * inner + k + 1]!;
      const x2 = x[i * inner + k + 2]!;
      const x3 = x[i * inner + k + 3]!;
      const y0 = k * n;
      const y1 = y0 + n;
      const y2 = y1 + n;
      const y3 = y2 + n;
      for (let j = 0; j < n; j++) {
        z[row + j] = z[row + j]! + x0 * y[y0 + j]! + x1 * y[y1 + j]! + x2 * y[y2 + j]! + x3 * y[y3 + j]!;
      }
    }
    for (; k < inner; k++) {
      const xk = x[i * inner + k]!;
      for (let j = 0; j < n; j++) z[row + j] = z[row + j]! + xk * y[k * n + j]!;
    }
  }
  return out;
}

/** Σ x[i + t] · x[j + t] over t < n: the inner product of two stretches of one array. */
export function dot(x: Float64Array, i: number, j: number, n: number): number {
  // four independent sums: the adds overlap, and the rounding error is smaller than that of one running sum
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  let t = 0;
  for (; t + 4 <= n; t += 4) {
    s0 += x[i + t]! * x[j + t]!;
    s1 += x[i + t + 1]! * x[j + t + 1]!;
    s2 += x[i + t + 2]! * x[j + t + 2]!;
    s3 += x[i + t + 3]! * x[j + t + 3]!;
  }
  for (; t < n; t++) s0 += x[i + t]! * x[j + t]!;
  return s0 + s1 + (s2 + s3);
}

/** Euclidean norm of `x[i … i + n − 1]`, also where the squares over- or underflow. */
export function norm(x: Float64Array, i: number, n: number): number {
  const square = dot(x, i, i, n);
  if (square > 1e-280 && square < Infinity) return Math.sqrt(square);
  let largest = 0;
  for (let t = 0; t < n; t++) largest = Math.max(largest, Math.abs(x[i + t]!));
  if (largest === 0 || !Number.isFinite(largest)) return largest;
  let sum = 0;
  for (let t = 0; t < n; t++) sum += (x[i + t]! / largest) ** 2;
  return largest * Math.sqrt(sum);
}
