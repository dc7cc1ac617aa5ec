/**
 * Blocks of vectors: made orthogonal to a basis, and orthonormal within themselves.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §5.2.7–5.2.9 (Gram–Schmidt, twice) and Yamamoto et al., Roundoff error
 * analysis of the Cholesky QR2 algorithm (2015).
 */
import { TensorError } from '../errors.js';
import type { Philox } from '../random.js';
import type { Matrix } from './matrix.js';
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

/** Takes the first d rows of the basis out of the columns of y, twice; returns the coefficients `[d, b]`. */
export function orthogonalise(y: Matrix, basis: Matrix, d: number, workspace: Workspace): Float64Array {
  const sum = new Float64Array(d * y.cols);
  if (d === 0) return sum;
  const v = viewOf(basis, 0, 0, d);
  const c = workspace.matrix(d, y.cols);
  for (let pass = 0; pass < 2; pass++) {
    c.data.fill(0);
    workspace.multiply(viewOf(c), v, viewOf(y));
    workspace.multiply(viewOf(y), transposed(v), viewOf(c), { sign: -1 });
    for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + c.data[i]!;
  }
  workspace.free(c);
  return sum;
}

/** Vectors whose size falls below this share of the block's are what rounding left of nothing. */
const NOTHING = 1e-14;

/**
 * Makes the columns of y, none longer than `scale`, orthonormal by Cholesky QR, repeated until they are, and returns the triangular
 * factor `[b, b]`: y = (new y) · factor. A column that depends on those before it is replaced by a random one, orthogonal to the
 * basis and with zero on the factor's diagonal: the space found is then invariant, and the search goes on outside of it.
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
  const total = workspace.matrix(b, b);
  for (let i = 0; i < b; i++) total.data[i * b + i] = 1;
  const gram = workspace.matrix(b, b);
  const inverse = workspace.matrix(b, b);
  const copy = workspace.matrix(y.rows, b);
  // what the factor says of replaced columns, until it is made
  const replaced = new Map<number, number[]>();
  // whether the columns still have their own lengths
  let raw = true;
  // every column may need one pass of its own
  const mostPasses = b + 12;
  for (let pass = 0; ; pass++) {
    if (pass === mostPasses)
      throw new TensorError(
        'no-convergence',
        `orthonormalise: expected an orthonormal block in ${mostPasses} passes, got none`,
      );
    gram.data.fill(0);
    workspace.multiply(viewOf(gram), transposed(viewOf(y)), viewOf(y));
    const floor = raw ? NOTHING * scale : 0;
    const bad = cholesky(gram, floor * floor);
    if (bad >= 0) {
      if (!replaced.has(bad))
        replaced.set(
          bad,
          Array.from({ length: bad }, (_, i) => gram.data[i * b + bad]!),
        );
      const fresh = random.normalArray(y.rows);
      const size = raw && scale > 0 ? scale / Math.sqrt(y.rows) : 1;
      for (let i = 0; i < y.rows; i++) y.data[i * b + bad] = fresh[i]! * size;
      orthogonalise(y, basis, d, workspace);
      continue;
    }
    const error = raw ? 1 : distanceFromIdentity(gram);
    if (error < 4 * b * Number.EPSILON) break;
    invertUpper(gram, inverse);
    copy.data.set(y.data);
    y.data.fill(0);
    workspace.multiply(viewOf(y), viewOf(copy), viewOf(inverse));
    for (const [c, above] of replaced) for (let i = 0; i <= c; i++) gram.data[i * b + c] = above[i] ?? 0;
    replaced.clear();
    // what was left of a column after those before it may again have a part in the basis
    if (raw && d > 0 && shrinks(gram)) orthogonalise(y, basis, d, workspace);
    multiplyUpper(gram, total);
    raw = false;
  }
  for (const m of [gram, inverse, copy]) workspace.free(m);
  const result: Matrix = { rows: b, cols: b, data: total.data.slice() };
  workspace.free(total);
  return result;
}

/**
 * Overwrites s with R, s = RᵀR, upper triangular with zeros below. Returns −1, or the first column whose remaining square is below
 * `floor` or lost in the rounding of its own.
 */
function cholesky(s: Matrix, floor: number): number {
  const { rows: n, data } = s;
  for (let j = 0; j < n; j++) {
    const whole = data[j * n + j]!;
    for (let i = 0; i <= j; i++) {
      let sum = data[i * n + j]!;
      for (let t = 0; t < i; t++) sum -= data[t * n + i]! * data[t * n + j]!;
      if (i < j) data[i * n + j] = sum / data[i * n + i]!;
      else if (!(sum > floor && sum > 1e-13 * whole)) return j;
      else data[j * n + j] = Math.sqrt(sum);
    }
  }
  for (let i = 1; i < n; i++) data.fill(0, i * n, i * n + i);
  return -1;
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

/** Largest entry of |R − I|. */
function distanceFromIdentity({ rows: n, data }: Matrix): number {
  let most = 0;
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) most = Math.max(most, Math.abs(data[i * n + j]! - (i === j ? 1 : 0)));
  }
  return most;
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
