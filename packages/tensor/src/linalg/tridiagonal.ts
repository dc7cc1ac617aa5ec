/**
 * Reduction of a symmetric matrix to tridiagonal form, A = Q T Qᵀ, by Householder reflections in panels.
 *
 * Reflection k turns row and column k into a multiple of two unit vectors, and changes the rest of the matrix by
 * A ← A − v wᵀ − w vᵀ. Done at once, that would move the whole matrix through memory twice for each k. In a panel of 32
 * reflections the change is put off: A stays as it was, the pairs (v, w) are kept, and whatever needs the current matrix
 * (the next row, the next product A v) is corrected by them. At the panel's end all pairs are subtracted in one product.
 * Half of the work remains a product of matrix and vector per reflection, which runs at the speed of memory.
 *
 * The reflections are applied to another matrix in blocks, as I − V T Vᵀ (the compact WY form), which needs nothing but
 * products of matrices.
 *
 * Sources: Golub & Van Loan, Matrix Computations (4th ed.), §8.3.1 and §5.1.7; Dongarra, Sorensen & Hammarling, Block
 * reduction of matrices to condensed forms for eigenvalue computations (1989).
 */
import type { Matrix } from './matrix.js';
import { reflector } from './qr.js';
import type { Steps } from './steps.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Reflections whose changes are put off and subtracted together. */
const PANEL = 32;
/** Reflections that are applied to another matrix together. */
const BLOCK = 64;

/** Q = H₀ H₁ … with Hₖ = I − τₖ v vᵀ, v being row k of `vectors`: zero up to column k, 1 in column k + 1. */
export interface Reflectors {
  vectors: Matrix;
  tau: Float64Array;
}

/** A = Q T Qᵀ. */
export interface Tridiagonal {
  /** `[n]`. */
  diagonal: Float64Array;
  /** `[n − 1]`. */
  offDiagonal: Float64Array;
  /** Q, in the memory of A. */
  reflectors: Reflectors;
}

/**
 * Tridiagonal form of a symmetric matrix, of which the upper triangle is read; the matrix is overwritten with the reflections. Expects
 * entries far enough from overflow that the sum of all squares is finite.
 */
export function* tridiagonalise(a: Matrix, workspace: Workspace): Steps<Tridiagonal> {
  const n = a.rows;
  const out: Tridiagonal = {
    diagonal: new Float64Array(n),
    offDiagonal: new Float64Array(Math.max(0, n - 1)),
    reflectors: { vectors: a, tau: new Float64Array(n) },
  };
  const panel = new Panel(a, workspace);
  try {
    for (let from = 0; from < n; from += PANEL) {
      yield { stage: 'tridiagonal', done: 1 - (1 - from / n) ** 3 };
      const to = Math.min(from + PANEL, n);
      panel.clear();
      for (let k = from; k < to; k++) reduceRow(a, k, panel, out);
      panel.subtractFrom(to);
    }
  } finally {
    panel.free();
  }
  return out;
}

/** Step k: row k of the current matrix gives T's entries and the reflection; v replaces the row. */
function reduceRow(a: Matrix, k: number, panel: Panel, { diagonal, offDiagonal, reflectors }: Tridiagonal): void {
  const n = a.rows;
  const row = k * n;
  panel.correctRow(k);
  diagonal[k] = a.data[row + k]!;
  a.data.fill(0, row, row + k + 1);
  if (k + 1 === n) return;
  const tau = reflector(a.data, row + k + 1, n - k - 1);
  offDiagonal[k] = a.data[row + k + 1]!;
  a.data[row + k + 1] = 1;
  reflectors.tau[k] = tau;
  panel.add(k, tau);
}

/**
 * The pairs (v, w) of one panel, stored both ways so that every product with them runs along rows: `columns` holds v₀, w₀,
 * v₁, w₁, … as columns, and `rows` holds w₀, v₀, w₁, v₁, … as rows. The sum of all v wᵀ + w vᵀ is then `columns · rows`.
 */
class Panel {
  private readonly columns: Matrix;
  private readonly rows: Matrix;
  private readonly coefficients: Matrix;
  private readonly product: Matrix;
  /** Twice the number of pairs. */
  private filled = 0;

  constructor(
    private readonly a: Matrix,
    private readonly workspace: Workspace,
  ) {
    const width = 2 * Math.min(PANEL, a.rows);
    this.columns = workspace.matrix(a.rows, width);
    this.rows = workspace.matrix(width, a.rows);
    this.coefficients = workspace.matrix(1, width);
    this.product = workspace.matrix(1, a.rows);
  }

  free(): void {
    for (const m of [this.columns, this.rows, this.coefficients, this.product]) this.workspace.free(m);
  }

  clear(): void {
    this.filled = 0;
  }

  /** Row k of A, from the diagonal on, becomes that of the current matrix. */
  correctRow(k: number): void {
    if (this.filled === 0) return;
    const { a, coefficients, product, rows } = this;
    for (let j = 0; j < this.filled; j++) coefficients.data[j] = rows.data[j * rows.cols + k]!;
    this.combine(k);
    const at = k * a.cols + k;
    for (let i = 0; i < a.rows - k; i++) a.data[at + i] = a.data[at + i]! - product.data[i]!;
  }

  /** The pair of reflection k, whose v is row k of A: w = τ A v − ½ τ² (vᵀ A v) v, A being the current matrix. */
  add(k: number, tau: number): void {
    const { a, columns, rows, filled } = this;
    const n = a.rows;
    const from = k + 1;
    const length = n - from;
    const v = k * n + from;
    const w = filled * n + from; // row 2j of `rows`
    if (tau === 0) {
      rows.data.fill(0, w, w + length);
    } else {
      this.timesCurrent(rows.data, w, k);
      for (let i = w; i < w + length; i++) rows.data[i] = tau * rows.data[i]!;
      const half = -0.5 * tau * innerProduct(rows.data, w, a.data, v, length);
      for (let i = 0; i < length; i++) rows.data[w + i] = rows.data[w + i]! + half * a.data[v + i]!;
    }
    rows.data.set(a.data.subarray(v, v + length), w + n);
    for (let i = 0, c = from * columns.cols + filled; i < length; i++, c += columns.cols) {
      columns.data[c] = a.data[v + i]!;
      columns.data[c + 1] = rows.data[w + i]!;
    }
    this.filled += 2;
  }

  /** out[at …] ← (current matrix right of and below k) · (v of row k). */
  private timesCurrent(out: Float64Array, at: number, k: number): void {
    const { a, rows, coefficients, product, filled, workspace } = this;
    const from = k + 1;
    const length = a.rows - from;
    const v = viewOf(a, k, from, 1, length);
    workspace.symmetricTimes(vector(product, length), viewOf(a, from, from), v);
    out.set(product.data.subarray(0, length), at);
    if (filled === 0) return;
    workspace.rowsTimes(vector(coefficients, filled), viewOf(rows, 0, from, filled, length), v);
    this.combine(from);
    for (let i = 0; i < length; i++) out[at + i] = out[at + i]! - product.data[i]!;
  }

  /** product ← rows `from …` of `columns` · coefficients */
  private combine(from: number): void {
    const { columns, coefficients, product, filled, workspace } = this;
    const length = columns.rows - from;
    const used = viewOf(columns, from, 0, length, filled);
    workspace.rowsTimes(vector(product, length), used, vector(coefficients, filled));
  }

  /** Brings the upper triangle of A from row `from` on up to date. */
  subtractFrom(from: number): void {
    const { a, columns, rows, filled } = this;
    if (from >= a.rows) return;
    const length = a.rows - from;
    const left = viewOf(columns, from, 0, length, filled);
    const right = viewOf(rows, 0, from, filled, length);
    this.workspace.multiply(viewOf(a, from, from), left, right, { sign: -1, only: 'upper' });
  }
}

/** Inner product of two stretches of length n. */
function innerProduct(x: Float64Array, i: number, y: Float64Array, j: number, n: number): number {
  let [s0, s1] = [0, 0];
  let t = 0;
  for (; t + 2 <= n; t += 2) {
    s0 += x[i + t]! * y[j + t]!;
    s1 += x[i + t + 1]! * y[j + t + 1]!;
  }
  if (t < n) s0 += x[i + t]! * y[j + t]!;
  return s0 + s1;
}

/** The first entries of a matrix of one row. */
function vector(m: Matrix, length: number): View {
  return viewOf(m, 0, 0, 1, length);
}

/** z ← Q · z, the last block of reflections first. */
export function* applyQ({ vectors, tau }: Reflectors, z: Matrix, workspace: Workspace): Steps<void> {
  const n = vectors.rows;
  const size = Math.min(BLOCK, n);
  const [inner, outer] = [workspace.matrix(size, z.cols), workspace.matrix(size, z.cols)];
  const [gram, t] = [workspace.matrix(size, size), workspace.matrix(size, size)];
  try {
    for (let from = Math.floor(Math.max(0, n - 2) / BLOCK) * BLOCK; from >= 0 && n > 1; from -= BLOCK) {
      const count = Math.min(BLOCK, n - 1 - from);
      const vt = viewOf(vectors, from, from + 1, count, n - from - 1);
      const below = viewOf(z, from + 1, 0);
      const head = (m: Matrix): View => viewOf(m, 0, 0, count);
      for (const m of [inner, outer, gram]) m.data.fill(0);
      workspace.multiply(viewOf(gram, 0, 0, count, count), vt, transposed(vt));
      blockFactor(gram, tau.subarray(from, from + count), t);
      workspace.multiply(head(inner), vt, below);
      workspace.multiply(head(outer), viewOf(t, 0, 0, count, count), head(inner));
      workspace.multiply(below, transposed(vt), head(outer), { sign: -1 });
      yield { stage: 'vectors', done: (1 - from / n) ** 2 };
    }
  } finally {
    for (const m of [inner, outer, gram, t]) workspace.free(m);
  }
}

/**
 * The upper triangular T with H₀ H₁ … = I − V T Vᵀ, from VᵀV and the τ: column j is τⱼ (eⱼ − T VᵀV eⱼ), of T the columns
 * before j.
 */
function blockFactor(gram: Matrix, tau: Float64Array, t: Matrix): void {
  const n = t.cols;
  t.data.fill(0);
  for (let j = 0; j < tau.length; j++) {
    for (let i = 0; i < j; i++) {
      let sum = 0;
      for (let k = i; k < j; k++) sum += t.data[i * n + k]! * gram.data[k * n + j]!;
      t.data[i * n + j] = -tau[j]! * sum;
    }
    t.data[j * n + j] = tau[j]!;
  }
}
