/**
 * Blocks of vectors: made orthogonal to a basis, and orthonormal within themselves.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §5.2.7–5.2.9 (Gram–Schmidt, twice) and Yamamoto et al., Roundoff error
 * analysis of the Cholesky QR2 algorithm (2015).
 */
import { TensorError } from '../errors.js';
import type { Philox } from '../random.js';
import { distanceFromIdentity, dot, identity, norm, transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

/** A random orthonormal block. */
export function startBlock(y: Matrix, basis: Matrix, random: Philox, workspace: Workspace): Matrix {
  y.data.set(random.normalArray(y.data.length));
  return orthonormalise(y, basis, 0, 1, random, workspace);
}

/** Writes the columns of y as rows of the basis, from d on. */
export function storeBlock(y: Matrix, basis: Matrix, d: number): void {
  const { rows: n, cols: b, data } = y;
  for (let c = 0; c < b; c++) {
    const row = (d + c) * n;
    for (let i = 0; i < n; i++) basis.data[row + i] = data[i * b + c]!;
  }
}

/** What must be left of vectors for one pass to have made them orthogonal to all but two digits. */
const PLENTY = 1e-2;

/**
 * Takes the first d rows of the basis out of the columns of y; returns the coefficients `[d, b]`. Twice, or with `twice` false only
 * when little is left after once.
 */
export function orthogonalise(y: Matrix, basis: Matrix, d: number, workspace: Workspace, twice = true): Float64Array {
  const sum = new Float64Array(d * y.cols);
  if (d === 0) return sum;
  const v = viewOf(basis, 0, 0, d);
  const c = workspace.matrix(d, y.cols);
  const before = twice ? undefined : columnSquares(y);
  for (let pass = 0; pass < 2; pass++) {
    c.data.fill(0);
    workspace.multiply(viewOf(c), v, viewOf(y));
    workspace.multiply(viewOf(y), transposed(v), viewOf(c), { sign: -1 });
    for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + c.data[i]!;
    if (before && columnSquares(y).every((square, j) => square > PLENTY ** 2 * before[j]!)) break;
  }
  workspace.free(c);
  return sum;
}

function columnSquares({ cols: b, data }: Matrix): Float64Array {
  const sums = new Float64Array(b);
  for (let i = 0; i < data.length; i += b) {
    for (let j = 0; j < b; j++) sums[j] = sums[j]! + data[i + j]! ** 2;
  }
  return sums;
}

/** Vectors whose size falls below this share of the block's are what rounding left of nothing. */
const NOTHING = 1e-14;

/**
 * Makes the columns of y, none longer than `scale`, orthonormal and returns the triangular factor `[b, b]`: y = (new y) · factor. A
 * column that depends on those before it is replaced by a random one, orthogonal to the basis, with zero on the factor's diagonal:
 * the space found is then invariant, and the search goes on outside of it.
 *
 * This is Cholesky QR, repeated until nothing changes, or Gram–Schmidt where the columns are too close to being dependent.
 */
export function orthonormalise(
  y: Matrix,
  basis: Matrix,
  d: number,
  scale: number,
  random: Philox,
  workspace: Workspace,
): Matrix {
  const b = y.cols;
  const total = identity(b);
  const gram = workspace.matrix(b, b);
  const inverse = workspace.matrix(b, b);
  const copy = workspace.matrix(y.rows, b);
  let isNormal = false;
  for (let pass = 0; pass < 4 && !isNormal; pass++) {
    gram.data.fill(0);
    workspace.multiply(viewOf(gram), transposed(viewOf(y)), viewOf(y));
    const floor = pass === 0 ? NOTHING * scale : 0;
    if (!cholesky(gram, floor * floor) || shrinks(gram)) break;
    isNormal = pass > 0 && distanceFromIdentity(gram) < 4 * b * Number.EPSILON;
    if (isNormal) break;
    invertUpper(gram, inverse);
    copy.data.set(y.data);
    y.data.fill(0);
    workspace.multiply(viewOf(y), viewOf(copy), viewOf(inverse));
    multiplyUpper(gram, total);
  }
  for (const m of [gram, inverse, copy]) workspace.free(m);
  if (isNormal) return total;
  multiplyUpper(gramSchmidt(y, basis, d, scale, random, workspace), total);
  // what is left of a column may again have a part in the basis
  orthogonalise(y, basis, d, workspace);
  multiplyUpper(gramSchmidt(y, basis, d, 1, random, workspace), total);
  return total;
}

/** Column by column, which loses nothing to squares; for the rest see `orthonormalise`. */
function gramSchmidt(y: Matrix, basis: Matrix, d: number, scale: number, random: Philox, workspace: Workspace): Matrix {
  const { rows: n, cols: b } = y;
  const q = transposeMatrix(y);
  const factor = zeroMatrix(b, b);
  for (let j = 0; j < b; j++) {
    const coefficients = takeOut(q, j);
    for (let i = 0; i < j; i++) factor.data[i * b + j] = coefficients[i]!;
    let size = norm(q.data, j * n, n);
    if (size > NOTHING * scale) {
      factor.data[j * b + j] = size;
    } else {
      const fresh = workspace.matrix(n, 1);
      fresh.data.set(random.normalArray(n));
      orthogonalise(fresh, basis, d, workspace);
      q.data.set(fresh.data, j * n);
      workspace.free(fresh);
      takeOut(q, j);
      size = norm(q.data, j * n, n);
      if (size < 1e-8) {
        throw new TensorError('no-convergence', `orthonormalise: expected room for ${d + b} vectors of ${n}, got none`);
      }
    }
    for (let t = j * n; t < (j + 1) * n; t++) q.data[t] = q.data[t]! / size;
  }
  y.data.set(transposeMatrix(q).data);
  return factor;
}

/** Takes the rows before row j out of it, twice; returns the coefficients. */
function takeOut({ cols: n, data: q }: Matrix, j: number): Float64Array {
  const sum = new Float64Array(j);
  for (let pass = 0; pass < 2; pass++) {
    for (let i = 0; i < j; i++) {
      const c = dot(q, i * n, j * n, n);
      sum[i] = sum[i]! + c;
      for (let t = 0; t < n; t++) q[j * n + t] = q[j * n + t]! - c * q[i * n + t]!;
    }
  }
  return sum;
}

/**
 * Overwrites s with R, s = RᵀR, upper triangular with zeros below; false when the remaining square of a column is below `floor` or
 * lost in the rounding of its own.
 */
function cholesky(s: Matrix, floor: number): boolean {
  const { rows: n, data } = s;
  for (let j = 0; j < n; j++) {
    const whole = data[j * n + j]!;
    for (let i = 0; i <= j; i++) {
      let sum = data[i * n + j]!;
      for (let t = 0; t < i; t++) sum -= data[t * n + i]! * data[t * n + j]!;
      if (i < j) data[i * n + j] = sum / data[i * n + i]!;
      else if (!(sum > floor && sum > 1e-13 * whole)) return false;
      else data[j * n + j] = Math.sqrt(sum);
    }
  }
  for (let i = 1; i < n; i++) data.fill(0, i * n, i * n + i);
  return true;
}

/** Whether a column of RᵀR's factor R lies mostly in the columns before it. */
function shrinks({ rows: n, data }: Matrix): boolean {
  for (let j = 0; j < n; j++) {
    let square = 0;
    for (let i = 0; i <= j; i++) square += data[i * n + j]! ** 2;
    if (data[j * n + j]! ** 2 < 1e-4 * square) return true;
  }
  return false;
}

/** out ← R⁻¹. */
function invertUpper({ rows: n, data: r }: Matrix, { data: out }: Matrix): void {
  out.fill(0);
  for (let j = 0; j < n; j++) {
    for (let i = j; i >= 0; i--) {
      let sum = i === j ? 1 : 0;
      for (let t = i + 1; t <= j; t++) sum -= r[i * n + t]! * out[t * n + j]!;
      out[i * n + j] = sum / r[i * n + i]!;
    }
  }
}

/** total ← R · total, both upper triangular. */
function multiplyUpper({ rows: n, data: r }: Matrix, { data: total }: Matrix): void {
  for (let j = 0; j < n; j++) {
    for (let i = 0; i <= j; i++) {
      let sum = 0;
      for (let t = i; t <= j; t++) sum += r[i * n + t]! * total[t * n + j]!;
      total[i * n + j] = sum;
    }
  }
}
