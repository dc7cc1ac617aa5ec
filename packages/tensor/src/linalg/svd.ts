/**
 * The thin singular value decomposition of a host matrix, to high relative accuracy.
 *
 *   1. Scale by a power of two (exact), so that neither the squares of large entries nor those of small ones leave the
 *      range of float64; transpose if there are fewer rows than columns; put rows with large entries first, which makes
 *      Householder QR as accurate for badly scaled rows as it is for badly scaled columns.
 *   2. A P = Q R by pivoted QR: cuts a tall matrix down to a square one and makes the rows of R nearly orthogonal.
 *   3. R = Jᵀ diag(s) W by one-sided Jacobi on those rows.
 *   4. U = Q Jᵀ, Vᵀ = W Pᵀ; sort, and fix the signs.
 *
 * Source: Drmač & Veselić, New fast and accurate Jacobi SVD algorithm I–II (2008); for the order of the rows, Cox &
 * Higham, Stability of Householder QR factorization for weighted least squares problems (1998).
 */
import { getBackend } from '../context.js';
import type { Backend } from '../backend.js';
import { jacobi } from './jacobi.js';
import { transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
import { factorise } from './qr.js';
import { part, runNow, type Steps } from './steps.js';
import { HostWorkspace, viewOf, type Workspace } from './workspace.js';
import { checkFinite, exponentToOne, scaleByPowerOfTwo } from './scaling.js';

/** A = u · diag(s) · vt with k = min(m, n): u `[m, k]`, s `[k]` descending, vt `[k, n]`. */
export interface Svd {
  u: Matrix;
  s: Float64Array;
  vt: Matrix;
}

/** The largest entry is scaled to about 2^480: its square, summed over the matrix, stays finite. */
const SCALED_EXPONENT = 480;

/**
 * Thin singular value decomposition of a `[m, n]` matrix. u's columns and vt's rows are orthonormal even where singular
 * values are zero; the entry of largest magnitude in each column of u is positive, so equal input gives equal output.
 * Singular values below 1e-285 times the largest entry are returned as zero. Throws `non-finite` for NaN and infinities,
 * naming the first.
 */
export function svdMatrix(a: Matrix): Svd {
  const workspace = openWorkspace();
  try {
    return runNow(jacobiSvd(a, workspace));
  } finally {
    workspace.close();
  }
}

/** The backend's workspace, or one on the host. */
export function openWorkspace(backend: Backend = getBackend()): Workspace {
  return backend.workspace?.() ?? new HostWorkspace();
}

/** The same in steps. */
export function* jacobiSvd(a: Matrix, workspace: Workspace): Steps<Svd> {
  const largest = checkFinite('svd', a);
  const tall = a.rows >= a.cols;
  const { u, s, vt } = yield* decomposeTall(tall ? a : transposeMatrix(a), largest, workspace);
  const out = tall ? { u, s, vt } : { u: transposeMatrix(vt), s, vt: transposeMatrix(u) };
  fixSigns(out);
  return out;
}

function* decomposeTall(a: Matrix, largest: number, workspace: Workspace): Steps<Svd> {
  const m = a.rows;
  const n = a.cols;
  const shift = largest > 0 ? SCALED_EXPONENT + exponentToOne(largest) : 0;
  const rowOrder = rowsBySize(a);
  const sorted = zeroMatrix(m, n);
  for (let i = 0; i < m; i++) sorted.data.set(a.data.subarray(rowOrder[i]! * n, (rowOrder[i]! + 1) * n), i * n);
  scaleByPowerOfTwo(sorted.data, shift);

  const { q, r, permutation } = yield* part(factorise(sorted, workspace, true), 0, 0.1);
  const { j, s, w } = yield* part(jacobi(r, workspace), 0.1, 1);
  scaleByPowerOfTwo(s, -shift);

  const order = Array.from(s.keys()).sort((x, y) => s[y]! - s[x]!);
  const jt = zeroMatrix(n, n);
  const vt = zeroMatrix(n, n);
  order.forEach((from, to) => {
    for (let i = 0; i < n; i++) {
      jt.data[i * n + to] = j.data[from * n + i]!;
      vt.data[to * n + permutation[i]!] = w.data[from * n + i]!;
    }
  });
  const sortedU = product(q, jt, workspace);
  const u = zeroMatrix(m, n);
  for (let i = 0; i < m; i++) u.data.set(sortedU.data.subarray(i * n, (i + 1) * n), rowOrder[i]! * n);
  return { u, s: Float64Array.from(order, (from) => s[from]!), vt };
}

function product(a: Matrix, b: Matrix, workspace: Workspace): Matrix {
  const [x, y] = [a, b].map(({ rows, cols, data }) => workspace.load({ dtype: 'f64', shape: [rows, cols], data }));
  const c = workspace.matrix(a.rows, b.cols);
  workspace.multiply(viewOf(c), x!, y!);
  const out = { ...c, data: c.data.slice() };
  for (const m of [x!, y!, c]) workspace.free(m);
  return out;
}

/** Row indices, those with the largest entries first. */
function rowsBySize({ rows, cols, data }: Matrix): number[] {
  const sizes = Array.from({ length: rows }, (_, i) => {
    let size = 0;
    for (let t = i * cols; t < (i + 1) * cols; t++) size = Math.max(size, Math.abs(data[t]!));
    return size;
  });
  return Array.from(sizes.keys()).sort((x, y) => sizes[y]! - sizes[x]!);
}

/** Makes the entry of largest magnitude in each column of u positive, its row of vt following. */
export function fixSigns({ u, s, vt }: Svd): void {
  const k = s.length;
  for (let c = 0; c < k; c++) {
    let pivot = 0;
    for (let i = 0; i < u.rows; i++) if (Math.abs(u.data[i * k + c]!) > Math.abs(pivot)) pivot = u.data[i * k + c]!;
    if (pivot >= 0) continue;
    for (let i = 0; i < u.rows; i++) u.data[i * k + c] = -u.data[i * k + c]!;
    for (let i = 0; i < vt.cols; i++) vt.data[c * vt.cols + i] = -vt.data[c * vt.cols + i]!;
  }
}
