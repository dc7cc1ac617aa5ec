/** Linear algebra in float64 on the host: decompositions of weights, which must be exact rather than on a device. */
import { TensorError } from '../errors.js';
import { Tensor } from '../tensor.js';
import { matrixFromHost } from './matrix.js';
import type { Matrix } from './matrix.js';
import { svdMatrix } from './svd.js';

export { cholesky } from './cholesky.js';
export { identity, matrixFromHost, multiplyMatrices, transposeMatrix, zeroMatrix } from './matrix.js';
export type { Matrix } from './matrix.js';
export { qr, qrPivoted } from './qr.js';
export type { PivotedQr, Qr } from './qr.js';
export { svdMatrix } from './svd.js';
export type { Svd } from './svd.js';

/**
 * Thin singular value decomposition a = u · diag(s) · vt of a matrix `[m, n]`, k = min(m, n): u `[m, k]`, s `[k]` descending,
 * vt `[k, n]`, all f64, computed in float64 by one-sided Jacobi. Throws on other ranks and on values that are not finite.
 * On an asynchronous backend read the tensor first and use `svdMatrix`.
 */
export function svd(a: Tensor): { u: Tensor; s: Tensor; vt: Tensor } {
  if (a.rank !== 2) throw new TensorError('shape', `svd: expected a matrix, got shape [${a.shape.join(', ')}]`);
  const { u, s, vt } = svdMatrix(matrixFromHost({ shape: a.shape, dtype: a.dtype, data: a.dataSync() }));
  const wrap = (shape: readonly number[], data: Float64Array): Tensor =>
    Tensor.fromHost({ shape, dtype: 'f64', data }, a.backend);
  const of = (m: Matrix): Tensor => wrap([m.rows, m.cols], m.data);
  return { u: of(u), s: wrap([s.length], s), vt: of(vt) };
}
