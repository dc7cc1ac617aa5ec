/**
 * QR factorisation by Householder reflections, with column pivoting for the SVD.
 *
 * Column k is mapped onto a multiple of the k-th unit vector by H = I − τ v vᵀ, and H is applied to the columns right of
 * it; Q is the product of the reflections. With pivoting, the column with the largest remaining norm comes next, so that
 * the diagonal of R falls and shows the rank. Columns are stored contiguously (the transposed matrix), so every inner
 * loop runs along memory.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §5.2 and §5.4.2; the update of the remaining norms follows
 * Drmač & Bujanović, On the failure of rank-revealing QR factorization software (2008).
 */
import { norm, transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
import { runNow, type Steps } from './steps.js';
import { HostWorkspace, viewOf, type Workspace } from './workspace.js';

/** A = q · r: q `[m, k]` has orthonormal columns, r `[k, n]` is upper triangular with a diagonal ≥ 0; k = min(m, n). */
export interface Qr {
  q: Matrix;
  r: Matrix;
}

/** As `Qr`, of A with its columns reordered: column j of q · r is column `permutation[j]` of A. */
export interface PivotedQr extends Qr {
  permutation: Int32Array;
}

/** Thin QR factorisation of a `[m, n]` matrix. */
export function qr(a: Matrix): Qr {
  const { q, r } = runNow(factorise(a, new HostWorkspace(), false));
  return { q, r };
}

/** Thin QR factorisation with column pivoting: the diagonal of r does not increase. */
export function qrPivoted(a: Matrix): PivotedQr {
  return runNow(factorise(a, new HostWorkspace(), true));
}

/** Vectors shorter than this may have subnormal entries that matter. */
const TINY = 2 ** -900;

/** The same in a workspace; q and r are on the host. */
export function* factorise(a: Matrix, workspace: Workspace, pivoting: boolean): Steps<PivotedQr> {
  const m = a.rows;
  const n = a.cols;
  const steps = Math.min(m, n);
  const columnsOfA = workspace.matrix(n, m);
  const x = columnsOfA.data; // column j is x[j m … j m + m − 1]; below the diagonal it ends as v
  x.set(transposeMatrix(a).data);
  const tau = new Float64Array(steps);
  const diagonal = new Float64Array(steps);
  const permutation = Int32Array.from({ length: n }, (_, j) => j);
  const remaining = pivoting ? new RemainingNorms(x, m, n) : undefined;

  for (let k = 0; k < steps; k++) {
    if (k % 16 === 0) yield { stage: 'qr', done: (k / steps) * (2 - k / steps) };
    if (remaining) {
      const pivot = remaining.largest(k);
      swapStretches(x, k * m, pivot * m, m);
      swapEntries(permutation, k, pivot);
      remaining.swap(k, pivot);
    }
    const at = k * m + k;
    tau[k] = reflector(x, at, m - k);
    diagonal[k] = x[at]!;
    x[at] = 1; // v's first entry, while it is applied
    workspace.reflectRows(viewOf(columnsOfA, k + 1, k), viewOf(columnsOfA, k, k, 1), tau[k]!);
    if (remaining) for (let j = k + 1; j < n; j++) remaining.drop(j, k);
  }

  const r = zeroMatrix(steps, n);
  for (let j = 0; j < n; j++) {
    for (let i = 0; i < Math.min(j, steps); i++) r.data[i * n + j] = x[j * m + i]!;
    if (j < steps) r.data[j * n + j] = diagonal[j]!;
  }

  // Q's columns, contiguous: the reflections applied, last first, to the first unit vectors
  const columns = workspace.matrix(steps, m);
  for (let k = steps - 1; k >= 0; k--) {
    columns.data[k * m + k] = 1;
    workspace.reflectRows(viewOf(columns, k, k), viewOf(columnsOfA, k, k, 1), tau[k]!);
  }
  for (let k = 0; k < steps; k++) {
    if (diagonal[k]! >= 0) continue;
    for (let j = k; j < n; j++) r.data[k * n + j] = -r.data[k * n + j]!;
    for (let i = 0; i < m; i++) columns.data[k * m + i] = -columns.data[k * m + i]!;
  }
  const q = transposeMatrix(columns);
  workspace.free(columns);
  workspace.free(columnsOfA);
  return { q, r, permutation };
}

/**
 * Overwrites the vector x at `at` with [β, v₁, v₂, …] where (I − τ v vᵀ) x = β e₁ and v₀ = 1, and returns τ. β has the
 * sign opposite to x₀, so that nothing cancels.
 */
export function reflector(x: Float64Array, at: number, length: number): number {
  if (norm(x, at + 1, length - 1) === 0) return 0;
  // subnormal numbers have too few digits to compute with; between two scalings they are ordinary ones
  const scale = norm(x, at, length) < TINY ? 2 ** 600 : 1;
  const first = x[at]! * scale;
  for (let i = at; i < at + length; i++) x[i] = x[i]! * scale;
  const beta = first > 0 ? -norm(x, at, length) : norm(x, at, length);
  for (let i = at + 1; i < at + length; i++) x[i] = x[i]! / (first - beta);
  x[at] = beta / scale;
  return (beta - first) / beta;
}

/** Norms of what is left of each column below the rows already reduced. */
class RemainingNorms {
  private readonly current: Float64Array;
  /** The norm when it was last computed from the entries; the drop since then bounds the error of `current`. */
  private readonly computed: Float64Array;

  constructor(
    private readonly x: Float64Array,
    private readonly m: number,
    n: number,
  ) {
    this.current = Float64Array.from({ length: n }, (_, j) => norm(x, j * m, m));
    this.computed = this.current.slice();
  }

  /** The column from k on with the largest norm; the first of equals. */
  largest(k: number): number {
    let best = k;
    for (let j = k + 1; j < this.current.length; j++) if (this.current[j]! > this.current[best]!) best = j;
    return best;
  }

  swap(i: number, j: number): void {
    swapEntries(this.current, i, j);
    swapEntries(this.computed, i, j);
  }

  /** Takes row k out of column j's norm, or computes the norm anew once the subtractions have eaten half the digits. */
  drop(j: number, k: number): void {
    if (this.current[j] === 0) return;
    const kept = Math.max(0, 1 - (this.x[j * this.m + k]! / this.current[j]!) ** 2);
    if (kept * (this.current[j]! / this.computed[j]!) ** 2 > Math.sqrt(Number.EPSILON)) {
      this.current[j] = this.current[j]! * Math.sqrt(kept);
    } else {
      this.current[j] = this.computed[j] = norm(this.x, j * this.m + k + 1, this.m - k - 1);
    }
  }
}

function swapEntries(x: Float64Array | Int32Array, i: number, j: number): void {
  const keep = x[i]!;
  x[i] = x[j]!;
  x[j] = keep;
}

function swapStretches(x: Float64Array, i: number, j: number, length: number): void {
  if (i === j) return;
  for (let t = 0; t < length; t++) swapEntries(x, i + t, j + t);
}
