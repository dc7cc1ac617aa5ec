/**
 * The QL iteration for symmetric tridiagonal matrices: all eigenvalues in O(n²) operations, or eigenvalues and vectors in
 * O(n³), for the small matrices at the bottom of divide and conquer.
 *
 * T − σ = Q L gives a similar matrix L Q + σ, also tridiagonal, whose off-diagonal entry next to the shift σ is far
 * smaller. Once it is negligible, an eigenvalue stands alone on the diagonal. With the shifts of Wilkinson, the
 * eigenvalue of the leading 2 × 2 block nearer to its corner, that takes about two passes for each eigenvalue.
 *
 * Sources: Golub & Van Loan, Matrix Computations (4th ed.), §8.3; Parlett, The Symmetric Eigenvalue Problem (1998), §8.
 */
import { TensorError } from '../errors.js';
import type { Matrix } from './matrix.js';
import { exponentToOne, largestMagnitude, scaleByPowerOfTwo } from './scaling.js';

/** Passes for one eigenvalue; usual are two. */
const MOST_PASSES = 60;
/** Half the distance from 1 to the next number, squared. */
const UNIT_SQUARE = (Number.EPSILON / 2) ** 2;
/** Squares of off-diagonal entries that are negligible beside a matrix of norm 1, whatever their neighbours. */
const FLOOR = 2 ** -160;

/**
 * Eigenvalues, ascending, of the tridiagonal matrix with diagonal d `[n]` and off-diagonal e `[n − 1]`. Throws
 * `no-convergence` when an eigenvalue takes more than 60 passes.
 */
export function tridiagonalValues(d: Float64Array, e: Float64Array): Float64Array {
  const n = d.length;
  const values = d.slice();
  const squares = new Float64Array(n); // with a zero behind the last
  squares.set(e.subarray(0, Math.max(0, n - 1)));
  const exponent = exponentToOne(Math.max(largestMagnitude(values), largestMagnitude(squares)));
  scaleByPowerOfTwo(values, exponent);
  scaleByPowerOfTwo(squares, exponent);
  for (let i = 0; i < n; i++) squares[i] = squares[i]! * squares[i]!;

  for (let l = 0; l < n; l++) {
    for (let pass = 0; ; pass++) {
      const m = blockEnd(values, squares, l, n);
      if (m === l) break;
      checkPasses(pass, l);
      rootFreePass(values, squares, l, m);
    }
  }
  scaleByPowerOfTwo(values, -exponent);
  return values.sort();
}

/** The last row of the block that starts at l: the first whose off-diagonal entry to the next row is negligible. */
function blockEnd(d: Float64Array, squares: Float64Array, l: number, n: number): number {
  let m = l;
  while (m < n - 1 && squares[m]! > UNIT_SQUARE * Math.abs(d[m]! * d[m + 1]!) + FLOOR) m++;
  squares[m] = 0;
  return m;
}

function checkPasses(pass: number, l: number): void {
  if (pass < MOST_PASSES) return;
  throw new TensorError(
    'no-convergence',
    `tridiagonal QL: expected eigenvalue ${l} within ${MOST_PASSES} passes, got no convergence`,
  );
}

/** The eigenvalue of [[a, b], [b, c]] that is nearer to a; b is not zero. */
function wilkinsonShift(a: number, b: number, c: number): number {
  const half = (c - a) / (2 * b);
  const root = Math.sqrt(half * half + 1);
  return a - b / (half + (half < 0 ? -root : root));
}

/**
 * One QL pass over rows l to m that knows only the squares of the off-diagonal entries, so that no rotation needs a
 * square root (Pal, Walker & Kahan's form; Parlett, §8.15).
 */
function rootFreePass(d: Float64Array, squares: Float64Array, l: number, m: number): void {
  const shift = wilkinsonShift(d[l]!, Math.sqrt(squares[l]!), d[l + 1]!);
  let [cosine, sine] = [1, 0]; // the squares of both
  let gamma = d[m]! - shift;
  let p = gamma * gamma;
  for (let i = m - 1; i >= l; i--) {
    const square = squares[i]!;
    const r = p + square;
    if (i < m - 1) squares[i + 1] = sine * r;
    const before = cosine;
    cosine = r === 0 ? 1 : p / r;
    sine = r === 0 ? 0 : square / r;
    const old = gamma;
    gamma = cosine * (d[i]! - shift) - sine * old;
    d[i + 1] = old + (d[i]! - gamma);
    p = cosine === 0 ? before * square : (gamma * gamma) / cosine;
  }
  squares[l] = sine * p;
  d[l] = shift + gamma;
}

/**
 * Eigenvalues and vectors of rows `from … to − 1` of a tridiagonal matrix of norm about 1, on its own: d becomes the
 * eigenvalues, in no order, and row i of q (in columns `from … to − 1`) the vector of d[i]. `e[i]` couples i and i + 1 and
 * is overwritten; `e[to − 1]` is left alone. q must be zero there.
 */
export function qlVectors(d: Float64Array, e: Float64Array, q: Matrix, from: number, to: number): void {
  for (let i = from; i < to; i++) q.data[i * q.cols + i] = 1;
  for (let l = from; l < to; l++) {
    for (let pass = 0; ; pass++) {
      let m = l;
      while (m < to - 1 && e[m]! * e[m]! > UNIT_SQUARE * Math.abs(d[m]! * d[m + 1]!) + FLOOR) m++;
      if (m < to - 1) e[m] = 0;
      if (m === l) break;
      checkPasses(pass, l);
      implicitPass(d, e, q, l, m, from, to);
    }
  }
}

/** One implicit QL pass over rows l to m; the rotations are applied to columns `from … to − 1` of q's rows as well. */
function implicitPass(
  d: Float64Array,
  e: Float64Array,
  q: Matrix,
  l: number,
  m: number,
  from: number,
  to: number,
): void {
  let g = d[m]! - wilkinsonShift(d[l]!, e[l]!, d[l + 1]!);
  let [cosine, sine, moved] = [1, 1, 0];
  for (let i = m - 1; i >= l; i--) {
    const f = sine * e[i]!;
    const b = cosine * e[i]!;
    const r = Math.sqrt(f * f + g * g);
    if (i < m - 1) e[i + 1] = r;
    if (r === 0) {
      // the bulge has vanished: the block falls in two here
      d[i + 1] = d[i + 1]! - moved;
      return;
    }
    sine = f / r;
    cosine = g / r;
    const h = d[i + 1]! - moved;
    const s = (d[i]! - h) * sine + 2 * cosine * b;
    moved = sine * s;
    d[i + 1] = h + moved;
    g = cosine * s - b;
    rotateRows(q, i, i + 1, cosine, sine, from, to);
  }
  d[l] = d[l]! - moved;
  e[l] = g;
}

/** Rows i and j, in columns `from … to − 1`, become cosine · i − sine · j and sine · i + cosine · j. */
export function rotateRows(
  { data, cols }: Matrix,
  i: number,
  j: number,
  cosine: number,
  sine: number,
  from: number,
  to: number,
): void {
  const [x, y] = [i * cols, j * cols];
  for (let t = from; t < to; t++) {
    const a = data[x + t]!;
    const b = data[y + t]!;
    data[x + t] = cosine * a - sine * b;
    data[y + t] = sine * a + cosine * b;
  }
}
