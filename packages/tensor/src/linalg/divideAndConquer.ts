/**
 * Eigenvalues and vectors of a symmetric tridiagonal matrix by divide and conquer.
 *
 * T is torn in two: without the entry β between its halves, and with |β| taken from the two diagonal entries beside it,
 * T = diag(T₁, T₂) + |β| u uᵀ, where u has two entries ±1. When both halves are solved, Tᵢ = Qᵢ Dᵢ Qᵢᵀ, what remains is
 * the eigenproblem of D + |β| z zᵀ with z from the last row of Q₁ and the first of Q₂ (secular.ts). Its vectors, multiplied
 * by diag(Q₁, Q₂), are those of T.
 *
 * Much of D is often right already. Where an entry of z is negligible, the pair of value and vector stays as it is; where
 * two values nearly agree, a rotation of their vectors makes one of the two entries of z zero. Only the others enter the
 * product (deflation). That is why clusters, which trouble other methods, make this one fast.
 *
 * Vectors are kept as rows, so that rotations and copies run along memory; they become columns at the end.
 *
 * Sources: Cuppen, A divide and conquer method for the symmetric tridiagonal eigenproblem (1981); Gu & Eisenstat (1995);
 * Golub & Van Loan, Matrix Computations (4th ed.), §8.4; the use of the halves' zeros in the product follows Rutter, A
 * serial implementation of Cuppen's divide and conquer algorithm (1994).
 */
import type { Matrix } from './matrix.js';
import { exponentToOne, largestMagnitude, scaleByPowerOfTwo } from './scaling.js';
import { loewnerWeights, SecularEquation, secularVectors } from './secular.js';
import type { Steps } from './steps.js';
import { qlVectors, rotateRows } from './tridiagonalQl.js';
import { viewOf, type Workspace } from './workspace.js';

/** Matrices up to this size are solved by QL. */
const SMALL = 32;

/** T has norm about 1; parts of it that are smaller than this need not be resolved, and their squares might underflow. */
const TINY_PART = 2 ** -80;

/** A symmetric matrix's spectrum: column j of `vectors` `[n, n]` belongs to `values[j]`, which ascend. */
export interface Eigen {
  values: Float64Array;
  vectors: Matrix;
}

/**
 * Eigenvalues and vectors of the tridiagonal matrix with diagonal d `[n]` and off-diagonal e `[n − 1]`, all finite. The
 * vectors are the workspace's; the caller frees them. Throws `no-convergence` if an iteration does not end.
 */
export function* tridiagonalEigen(d: Float64Array, e: Float64Array, workspace: Workspace): Steps<Eigen> {
  const n = d.length;
  const exponent = exponentToOne(Math.max(largestMagnitude(d), largestMagnitude(e)));
  const q = workspace.matrix(n, n);
  try {
    const problem = new TornProblem(d.slice(), e.slice(), q, workspace);
    scaleByPowerOfTwo(problem.values, exponent);
    scaleByPowerOfTwo(problem.couplings, exponent);
    const merges = problem.tear(0, n);
    const work = merges.reduce((sum, [from, , to]) => sum + (to - from) ** 3, 1);
    let done = 0;
    for (const [from, middle, to] of merges) {
      yield { stage: 'divide and conquer', done: done / work };
      problem.merge(from, middle, to);
      done += (to - from) ** 3;
    }
    scaleByPowerOfTwo(problem.values, -exponent);
    const values = Float64Array.from(problem.order, (row) => problem.values[row]!);
    return { values, vectors: rowsAsColumns(q, problem.order, workspace) };
  } finally {
    workspace.free(q);
  }
}

/** Column j of the result is row `order[j]` of q. */
function rowsAsColumns(q: Matrix, order: Int32Array, workspace: Workspace): Matrix {
  const n = q.rows;
  const out = workspace.matrix(n, n);
  const [x, y] = [q.data, out.data];
  const tile = 8; // entries of a cache line
  for (let i0 = 0; i0 < n; i0 += tile) {
    for (let j0 = 0; j0 < n; j0 += tile) {
      const [iEnd, jEnd] = [Math.min(i0 + tile, n), Math.min(j0 + tile, n)];
      for (let j = j0; j < jEnd; j++) {
        const row = order[j]! * n;
        for (let i = i0; i < iEnd; i++) y[i * n + j] = x[row + i]!;
      }
    }
  }
  return out;
}

/** Which columns of a row of q may be non-zero: those of the first half, of both, or of the second. */
const FIRST = 0;
const BOTH = 1;
const SECOND = 2;

/** The parts solved so far: value i and row i of q belong together, each part in its own rows and columns. */
class TornProblem {
  /** Rows by ascending value, within each part. */
  readonly order: Int32Array;
  private readonly z: Float64Array;
  /** For the rows of a merge: see FIRST, BOTH, SECOND. */
  private readonly reach: Uint8Array;

  constructor(
    readonly values: Float64Array,
    readonly couplings: Float64Array,
    private readonly q: Matrix,
    private readonly workspace: Workspace,
  ) {
    this.order = Int32Array.from({ length: values.length }, (_, i) => i);
    this.z = new Float64Array(values.length);
    this.reach = new Uint8Array(values.length);
  }

  /** Tears rows `from … to − 1` apart, solves the smallest parts, and returns the merges that remain, in order. */
  tear(from: number, to: number): [from: number, middle: number, to: number][] {
    const { values, couplings } = this;
    if (to - from <= SMALL) {
      // QL may overwrite the entries inside of the part; those between parts are still needed
      qlVectors(values, couplings, this.q, from, to);
      this.sort(from, to);
      return [];
    }
    const middle = (from + to) >> 1;
    const size = Math.abs(couplings[middle - 1]!);
    values[middle - 1] = values[middle - 1]! - size;
    values[middle] = values[middle]! - size;
    return [...this.tear(from, middle), ...this.tear(middle, to), [from, middle, to]];
  }

  private sort(from: number, to: number): void {
    const { values } = this;
    this.order.subarray(from, to).sort((i, j) => values[i]! - values[j]! || i - j);
  }

  /** Joins two solved parts. */
  merge(from: number, middle: number, to: number): void {
    const coupling = this.couplings[middle - 1]!;
    this.startWeights(from, middle, to, coupling < 0 ? -1 : 1);
    this.sort(from, to);
    const kept = this.deflate(from, to, 2 * Math.abs(coupling));
    if (kept.length > 0) this.solveKept(kept, from, middle, to, 2 * Math.abs(coupling));
    this.sort(from, to);
  }

  /** z, of length 1, and the reach of each row. */
  private startWeights(from: number, middle: number, to: number, sign: number): void {
    const { q, z, reach } = this;
    for (let i = from; i < to; i++) {
      const first = i < middle;
      z[i] = Math.SQRT1_2 * (first ? q.data[i * q.cols + middle - 1]! : sign * q.data[i * q.cols + middle]!);
      reach[i] = first ? FIRST : SECOND;
    }
  }

  /** Rows whose values change, ascending by value; the others have their final value and vector. */
  private deflate(from: number, to: number, rho: number): Int32Array {
    const { values, order, z, reach, q } = this;
    const kept = new Int32Array(to - from);
    let count = 0;
    let largest = Math.max(rho, TINY_PART);
    for (let i = from; i < to; i++) largest = Math.max(largest, Math.abs(values[i]!));
    const negligible = 4 * Number.EPSILON * largest;
    let before = -1; // the last row not deflated
    for (let t = from; t < to; t++) {
      const row = order[t]!;
      if (rho * Math.abs(z[row]!) <= negligible) continue;
      if (before >= 0) {
        const length = Math.sqrt(z[before]! * z[before]! + z[row]! * z[row]!);
        const [cosine, sine] = [z[row]! / length, z[before]! / length];
        const difference = values[row]! - values[before]!;
        if (Math.abs(difference * cosine * sine) <= negligible) {
          rotateRows(q, before, row, cosine, sine, from, to);
          z[row] = length;
          if (reach[row] !== reach[before]) reach[row] = BOTH;
          const low = values[before]!;
          values[before] = low + difference * sine * sine;
          values[row] = low + difference * cosine * cosine;
          count--;
        }
      }
      kept[count++] = before = row;
    }
    return kept.subarray(0, count);
  }

  /** Solves the rank-one problem of the kept rows and writes the new values and rows to the front of the part. */
  private solveKept(kept: Int32Array, from: number, middle: number, to: number, rho: number): void {
    const { q, workspace } = this;
    const k = kept.length;
    const { place, second, third } = this.placesByReach(kept);
    const vectors = workspace.matrix(k, k);
    const upper = workspace.matrix(Math.max(third, 1), middle - from);
    const lower = workspace.matrix(Math.max(k - second, 1), to - middle);
    try {
      const values = this.solveSecular(kept, rho, place, vectors);
      for (let i = 0; i < k; i++) {
        const row = kept[i]! * q.cols;
        const at = place[i]!;
        if (at < third) upper.data.set(q.data.subarray(row + from, row + middle), at * upper.cols);
        if (at >= second) lower.data.set(q.data.subarray(row + middle, row + to), (at - second) * lower.cols);
      }
      this.moveDeflated(kept, from, to);
      this.values.set(values, from);
      for (let j = from; j < from + k; j++) q.data.fill(0, j * q.cols + from, j * q.cols + to);
      const left = viewOf(q, from, from, k, middle - from);
      const right = viewOf(q, from, middle, k, to - middle);
      if (third > 0) workspace.multiply(left, viewOf(vectors, 0, 0, k, third), viewOf(upper, 0, 0, third));
      if (second < k) workspace.multiply(right, viewOf(vectors, 0, second), viewOf(lower, 0, 0, k - second));
    } finally {
      for (const m of [vectors, upper, lower]) workspace.free(m);
    }
  }

  /** A place for each kept row, those of equal reach together: BOTH begins at `second`, SECOND at `third`. */
  private placesByReach(kept: Int32Array): { place: Int32Array; second: number; third: number } {
    const counts = [0, 0, 0];
    for (const row of kept) counts[this.reach[row]!]!++;
    const [second, third] = [counts[FIRST]!, counts[FIRST]! + counts[BOTH]!];
    const next = [0, second, third];
    return { place: kept.map((row) => next[this.reach[row]!]!++), second, third };
  }

  /** The kept rows' new values; row j of `out` becomes the vector of value j, entry i in column `place[i]`. */
  private solveSecular(kept: Int32Array, rho: number, place: Int32Array, out: Matrix): Float64Array {
    const k = kept.length;
    const d = Float64Array.from(kept, (row) => this.values[row]!);
    const z = Float64Array.from(kept, (row) => this.z[row]!);
    const equation = new SecularEquation(d, z, k, rho);
    const values = new Float64Array(k);
    for (let j = 0; j < k; j++) values[j] = equation.zero(j, out.data, j * k);
    secularVectors(loewnerWeights(d, z, k, out.data, k), place, k, out.data, k);
    return values;
  }

  /** Moves the rows that are not kept, and their values, to the end of the part. */
  private moveDeflated(kept: Int32Array, from: number, to: number): void {
    const { q, values } = this;
    const isKept = new Uint8Array(to - from);
    for (const row of kept) isKept[row - from] = 1;
    let end = to;
    for (let row = to - 1; row >= from; row--) {
      if (isKept[row - from]) continue;
      end--;
      if (end === row) continue;
      values[end] = values[row]!;
      q.data.copyWithin(end * q.cols + from, row * q.cols + from, row * q.cols + to);
    }
  }
}
