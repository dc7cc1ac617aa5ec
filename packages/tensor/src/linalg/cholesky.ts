/**
 * Cholesky factorisation A = L Lᵀ of a symmetric positive definite matrix, row by row: entry (i, j) of L follows from an
 * inner product of two rows above and left of it. Source: Golub & Van Loan, Matrix Computations (4th ed.), §4.2.
 */
import { TensorError } from '../errors.js';
import { dot, zeroMatrix, type Matrix } from './matrix.js';

/**
 * The lower triangular l `[n, n]` with a = l lᵀ. Reads the lower triangle of a `[n, n]` only. Throws `shape` for a matrix
 * that is not square and `not-positive-definite` with the first leading block that fails.
 */
export function cholesky(a: Matrix): Matrix {
  const n = a.rows;
  if (a.cols !== n) {
    throw new TensorError('shape', `cholesky: expected a square matrix, got [${a.rows}, ${a.cols}]`);
  }
  const l = zeroMatrix(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      l.data[i * n + j] = (a.data[i * n + j]! - dot(l.data, i * n, j * n, j)) / l.data[j * n + j]!;
    }
    const pivot = a.data[i * n + i]! - dot(l.data, i * n, i * n, i);
    // the negation also catches NaN
    if (!(pivot > 0)) {
      throw new TensorError(
        'not-positive-definite',
        `cholesky: expected a positive definite matrix, got one whose leading block of size ${i + 1} is not (pivot ${pivot})`,
      );
    }
    l.data[i * n + i] = Math.sqrt(pivot);
  }
  return l;
}
