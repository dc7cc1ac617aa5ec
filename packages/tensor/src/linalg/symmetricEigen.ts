/**
 * The spectrum of a symmetric matrix: to tridiagonal form, divide and conquer there, and back. The backward error is a small
 * multiple of the rounding error of the matrix's norm; small eigenvalues have that absolute accuracy, not a relative one.
 *
 * Sources: Golub & Van Loan, Matrix Computations (4th ed.), §8.3–8.4, and those of the three parts.
 */
import { TensorError } from '../errors.js';
import { tridiagonalEigen, type Eigen } from './divideAndConquer.js';
import type { Matrix } from './matrix.js';
import { checkFinite, exponentToOne, scaleByPowerOfTwo } from './scaling.js';
import { part, type Steps } from './steps.js';
import { applyQ, tridiagonalise, type Tridiagonal } from './tridiagonal.js';
import { tridiagonalValues } from './tridiagonalQl.js';
import type { Workspace } from './workspace.js';

/**
 * All eigenvalues, ascending, and orthonormal eigenvectors of a symmetric matrix that is stored in full; the matrix is
 * overwritten. It and the vectors are the workspace's and the caller's to free. With `largest`, only the vectors of so many
 * of the largest values. Throws `shape` unless the matrix is
 * square, `non-finite` for NaN and infinities, and `no-convergence` if an iteration does not end.
 */
export function* symmetricEigen(a: Matrix, workspace: Workspace, largest = a.rows): Steps<Eigen> {
  const exponent = normalise('symmetricEigen', a);
  const { diagonal, offDiagonal, reflectors } = yield* part(tridiagonalise(a, workspace), 0, 0.4);
  const eigen = yield* part(tridiagonalEigen(diagonal, offDiagonal, workspace), 0.4, 0.7);
  if (largest < a.rows) eigen.vectors = lastColumns(eigen.vectors, largest, workspace);
  let finished = false;
  try {
    yield* part(applyQ(reflectors, eigen.vectors, workspace), 0.7, 1);
    finished = true;
  } finally {
    if (!finished) workspace.free(eigen.vectors);
  }
  scaleByPowerOfTwo(eigen.values, -exponent);
  return eigen;
}

/** The last columns of m, which is freed. */
function lastColumns(m: Matrix, count: number, workspace: Workspace): Matrix {
  const out = workspace.matrix(m.rows, count);
  for (let i = 0; i < m.rows; i++) {
    out.data.set(m.data.subarray((i + 1) * m.cols - count, (i + 1) * m.cols), i * count);
  }
  workspace.free(m);
  return out;
}

/** As `symmetricEigen`, without vectors: the tridiagonal form takes nearly all the time. */
export function* symmetricValues(a: Matrix, workspace: Workspace): Steps<Float64Array> {
  const exponent = normalise('symmetricValues', a);
  const { diagonal, offDiagonal }: Tridiagonal = yield* part(tridiagonalise(a, workspace), 0, 0.95);
  const values = tridiagonalValues(diagonal, offDiagonal);
  scaleByPowerOfTwo(values, -exponent);
  return values;
}

/** Checks the matrix and scales it by a power of two to entries of at most about 1; returns the exponent. */
function normalise(name: string, a: Matrix): number {
  if (a.rows !== a.cols) {
    throw new TensorError('shape', `${name}: expected a square matrix, got [${a.rows}, ${a.cols}]`);
  }
  const exponent = exponentToOne(checkFinite(name, a));
  scaleByPowerOfTwo(a.data, exponent);
  return exponent;
}
