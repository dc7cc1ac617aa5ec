/**
 * One-sided Jacobi: rotates pairs of rows of B until all rows are orthogonal. Then J B = diag(s) W with J the product of
 * the rotations, s the rows' norms and W orthonormal rows: the singular value decomposition B = Jᵀ diag(s) W.
 *
 * A pair (x, y) is rotated by the angle that makes x·y zero; what matters is the cosine |x·y| / (‖x‖‖y‖), never x·y
 * itself, and that is why tiny singular values come out with small *relative* error where the standard
 * bidiagonalisation only promises a small multiple of the largest. All pairs are visited, in blocks that can be worked on at
 * the same time, until a whole sweep finds none to rotate; convergence is quadratic, and takes few sweeps when B is the
 * triangular factor of a pivoted QR.
 *
 * Sources: Demmel & Veselić, Jacobi's method is more accurate than QR (1992); Drmač & Veselić, New fast and accurate
 * Jacobi SVD algorithm I–II (2008); Golub & Van Loan, Matrix Computations (4th ed.), §8.6.3.
 */
import { TensorError } from '../errors.js';
import { dot, norm, zeroMatrix, type Matrix } from './matrix.js';
import { JACOBI_BLOCK, NEGLIGIBLE_SQUARE } from './rotations.js';
import type { Steps } from './steps.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

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

const MOST_SWEEPS = 60;
/** Sweeps that are expected, for the progress. */
const USUAL_SWEEPS = 7;

/**
 * Singular value decomposition of b `[k, n]` with k ≤ n. Expects entries far enough from overflow that the sum of all
 * squares is finite. Throws `no-convergence` after 60 sweeps (usual are 4 to 10).
 */
export function* jacobi(b: Matrix, workspace: Workspace): Steps<JacobiResult> {
  const { rows: k, cols: n } = b;
  // B and J side by side, so that one loop rotates both
  const x = workspace.matrix(k, n + k);
  for (let i = 0; i < k; i++) {
    x.data.set(b.data.subarray(i * n, (i + 1) * n), i * x.cols);
    x.data[i * x.cols + n + i] = 1;
  }
  const sweeps = yield* orthogonaliseRows(x, n, workspace);
  const result = separate(x, n);
  workspace.free(x);
  return { ...result, sweeps };
}

/**
 * Rotates the rows of x until their first n columns are orthogonal to each other: cosines up to ε·max(8, √n). Each sweep visits
 * the pairs of blocks that are not yet so, by the inner products of all rows; `nearly` says that this pays from the first on. Returns
 * the number of sweeps.
 */
export function* orthogonaliseRows(x: Matrix, n: number, workspace: Workspace, nearly = false): Steps<number> {
  const tolerance = Number.EPSILON * Math.max(8, Math.sqrt(n));
  const blocks = Math.ceil(x.rows / JACOBI_BLOCK);
  const rounds = roundsOf(blocks);
  for (let sweeps = 0; sweeps < MOST_SWEEPS; sweeps++) {
    const open = sweeps > 0 || nearly ? openPairs(x, n, tolerance, workspace) : undefined;
    if (open?.size === 0) return sweeps;
    let rotations = 0;
    for (const [i, round] of rounds.entries()) {
      const pairs = open ? round.filter(([p, q]) => open.has(p * blocks + q)) : round;
      if (pairs.length === 0) continue;
      yield { stage: 'jacobi', done: Math.min(0.99, (sweeps + i / rounds.length) / USUAL_SWEEPS) };
      rotations += workspace.jacobiRound(x, n, pairs.flat(), tolerance);
    }
    // what the two ways of summing up differ by may leave pairs open in which there is nothing to rotate
    if (rotations === 0) return sweeps + 1;
  }
  throw new TensorError('no-convergence', `jacobi: expected convergence in ${MOST_SWEEPS} sweeps, got none`);
}

/** Pairs of blocks p ≤ q, as p·blocks + q, with rows that are not orthogonal to each other. */
function openPairs(x: Matrix, n: number, tolerance: number, workspace: Workspace): Set<number> {
  const k = x.rows;
  const blocks = Math.ceil(k / JACOBI_BLOCK);
  const gram = workspace.matrix(k, k);
  const rows = viewOf(x, 0, 0, k, n);
  workspace.multiply(viewOf(gram), rows, transposed(rows), { only: 'lower' });
  // of rows that count as zero the bound is infinite
  const bounds = Float64Array.from({ length: k }, (_, i) => {
    const square = gram.data[i * k + i]!;
    return square < NEGLIGIBLE_SQUARE ? Infinity : Math.sqrt(square);
  });
  const open = new Set<number>();
  for (let i = 0; i < k; i++) {
    const q = Math.floor(i / JACOBI_BLOCK);
    const bound = tolerance * bounds[i]!;
    for (let j = 0; j < i; j++) {
      // the negation also catches NaN
      if (!(Math.abs(gram.data[i * k + j]!) <= bound * bounds[j]!)) open.add(Math.floor(j / JACOBI_BLOCK) * blocks + q);
    }
  }
  workspace.free(gram);
  return open;
}

/**
 * A sweep: every block with itself, then every two blocks once, in rounds of pairs that have no block in common (the
 * tournament of Brent & Luk 1985: one block stays, the others go round).
 */
function roundsOf(blocks: number): [number, number][][] {
  const rounds = [Array.from({ length: blocks }, (_, p): [number, number] => [p, p])];
  const seats = Array.from({ length: blocks + (blocks % 2) }, (_, p) => p);
  for (let round = 1; round < seats.length; round++) {
    const pairs: [number, number][] = [];
    for (let t = 0; t < seats.length / 2; t++) {
      const [p, q] = [seats[t]!, seats[seats.length - 1 - t]!];
      // with an odd number one rests
      if (Math.max(p, q) < blocks) pairs.push([Math.min(p, q), Math.max(p, q)]);
    }
    rounds.push(pairs);
    seats.splice(1, 0, seats.pop()!);
  }
  return rounds;
}

/** Splits the rotated [B | J], B of n columns, into s, w and j. */
export function separate({ rows: k, cols: width, data: x }: Matrix, n: number): Omit<JacobiResult, 'sweeps'> {
  const j = zeroMatrix(k, width - n);
  const w = zeroMatrix(k, n);
  const s = new Float64Array(k);
  for (let i = 0; i < k; i++) {
    j.data.set(x.subarray(i * width + n, (i + 1) * width), i * j.cols);
    if (dot(x, i * width, i * width, n) < NEGLIGIBLE_SQUARE) continue;
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
