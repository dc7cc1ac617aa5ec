/**
 * One-sided Jacobi: rotates pairs of rows of B until all rows are orthogonal. Then J B = diag(s) W with J the product of
 * the rotations, s the rows' norms and W orthonormal rows: the singular value decomposition B = Jᵀ diag(s) W.
 *
 * A pair (x, y) is rotated by the angle that makes x·y zero; what matters is the cosine |x·y| / (‖x‖‖y‖), never x·y
 * itself, and that is why tiny singular values come out with small *relative* error where the standard
 * bidiagonalisation only promises a small multiple of the largest. All pairs are visited row by row until a whole sweep
 * finds none to rotate; convergence is quadratic, and takes few sweeps when B is the triangular factor of a pivoted QR.
 *
 * Sources: Demmel & Veselić, Jacobi's method is more accurate than QR (1992); Drmač & Veselić, New fast and accurate
 * Jacobi SVD algorithm I–II (2008); Golub & Van Loan, Matrix Computations (4th ed.), §8.6.3.
 */
import { TensorError } from '../errors.js';
import { dot, norm, zeroMatrix, type Matrix } from './matrix.js';

/** B = jᵀ · diag(s) · w, in no particular order. */
export interface JacobiResult {
  /** `[k, k]` orthogonal. */
  j: Matrix;
  /** `[k]` singular values. */
  s: Float64Array;
  /** `[k, n]` with orthonormal rows. */
  w: Matrix;
  sweeps: number;
}

/** Rows with a smaller squared norm count as zero: the cosine of such a pair cannot be computed any more. */
const NEGLIGIBLE_SQUARE = 2 ** -960;
const MOST_SWEEPS = 60;

/**
 * Singular value decomposition of b `[k, n]` with k ≤ n. Expects entries far enough from overflow that the sum of all
 * squares is finite. Throws `no-convergence` after 60 sweeps (usual are 4 to 10).
 */
export function jacobi(b: Matrix): JacobiResult {
  const k = b.rows;
  const n = b.cols;
  const tolerance = Number.EPSILON * Math.max(8, Math.sqrt(n));

  // B and J side by side, so that one loop rotates both
  const width = n + k;
  const x = new Float64Array(k * width);
  for (let i = 0; i < k; i++) {
    x.set(b.data.subarray(i * n, (i + 1) * n), i * width);
    x[i * width + n + i] = 1;
  }

  const squares = new Float64Array(k);
  let sweeps = 0;
  for (let rotations = 1; rotations > 0; sweeps++) {
    if (sweeps === MOST_SWEEPS) {
      throw new TensorError('no-convergence', `jacobi: expected convergence in ${MOST_SWEEPS} sweeps, got none`);
    }
    for (let i = 0; i < k; i++) squares[i] = dot(x, i * width, i * width, n);
    rotations = sweep(x, squares, k, n, width, tolerance);
  }
  return { ...separate(x, squares, k, n, width), sweeps };
}

/** Visits every pair of rows once and returns how many it rotated. */
function sweep(x: Float64Array, squares: Float64Array, k: number, n: number, width: number, tolerance: number): number {
  let rotations = 0;
  for (let p = 0; p < k - 1; p++) {
    for (let q = p + 1; q < k; q++) {
      const pp = squares[p]!;
      const qq = squares[q]!;
      if (pp < NEGLIGIBLE_SQUARE || qq < NEGLIGIBLE_SQUARE) continue;
      const pq = dot(x, p * width, q * width, n);
      if (Math.abs(pq) <= tolerance * Math.sqrt(pp) * Math.sqrt(qq)) continue;

      const tangent = tangentOf((qq - pp) / (2 * pq));
      rotate(x, p * width, q * width, width, tangent);
      squares[p] = squareAfter(x, p * width, n, pp, -tangent * pq);
      squares[q] = squareAfter(x, q * width, n, qq, tangent * pq);
      rotations++;
    }
  }
  return rotations;
}

/** tan θ of the smaller of the two angles with cot 2θ = ζ that make a pair orthogonal. */
function tangentOf(zeta: number): number {
  const size = Math.abs(zeta);
  // for large ζ the square would overflow
  const tangent = size > 1e8 ? 0.5 / size : 1 / (size + Math.sqrt(1 + size * size));
  return zeta < 0 ? -tangent : tangent;
}

/**
 * Rows at p and q ← (cos · row p − sin · row q, sin · row p + cos · row q), written as a change of both (Rutishauser): the
 * rounding of cos and sin then hardly lengthens the rows, and J stays orthogonal over thousands of rotations.
 */
function rotate(x: Float64Array, p: number, q: number, width: number, tangent: number): void {
  const cosine = 1 / Math.sqrt(1 + tangent * tangent);
  const sine = cosine * tangent;
  const half = sine / (1 + cosine); // the tangent of half the angle
  for (let t = 0; t < width; t++) {
    const xp = x[p + t]!;
    const xq = x[q + t]!;
    x[p + t] = xp - sine * (xq + half * xp);
    x[q + t] = xq + sine * (xp - half * xq);
  }
}

/** The squared norm after a rotation changed it by `change`, from the entries where the subtraction loses digits. */
function squareAfter(x: Float64Array, at: number, n: number, before: number, change: number): number {
  const after = before + change;
  return after > 0.01 * before ? after : dot(x, at, at, n);
}

/** Splits the rotated [B | J] into s, w and j. */
function separate(
  x: Float64Array,
  squares: Float64Array,
  k: number,
  n: number,
  width: number,
): Omit<JacobiResult, 'sweeps'> {
  const j = zeroMatrix(k, k);
  const w = zeroMatrix(k, n);
  const s = new Float64Array(k);
  for (let i = 0; i < k; i++) {
    j.data.set(x.subarray(i * width + n, (i + 1) * width), i * k);
    if (squares[i]! < NEGLIGIBLE_SQUARE) continue;
    s[i] = norm(x, i * width, n);
    for (let t = 0; t < n; t++) w.data[i * n + t] = x[i * width + t]! / s[i]!;
  }
  completeRows(w, s);
  return { j, s, w };
}

/** Fills the rows of w that belong to zero singular values, so that all rows are orthonormal. */
function completeRows(w: Matrix, s: Float64Array): void {
  const n = w.cols;
  // how much of each unit vector the rows span already: the least covered one starts a new row
  const covered = new Float64Array(n);
  const cover = (row: number): void => {
    for (let t = 0; t < n; t++) covered[t] = covered[t]! + w.data[row * n + t]! ** 2;
  };
  const done: number[] = [];
  s.forEach((value, row) => {
    if (value > 0) done.push(row);
  });
  done.forEach(cover);
  for (let row = 0; row < w.rows; row++) {
    if (s[row]! > 0) continue;
    w.data[row * n + covered.indexOf(covered.reduce((a, b) => Math.min(a, b), Infinity))] = 1;
    // Gram–Schmidt, twice for orthogonality to rounding
    for (let pass = 0; pass < 2; pass++) {
      for (const other of done) {
        const overlap = dot(w.data, row * n, other * n, n);
        for (let t = 0; t < n; t++) w.data[row * n + t] = w.data[row * n + t]! - overlap * w.data[other * n + t]!;
      }
      const size = norm(w.data, row * n, n);
      for (let t = 0; t < n; t++) w.data[row * n + t] = w.data[row * n + t]! / size;
    }
    cover(row);
    done.push(row);
  }
}
