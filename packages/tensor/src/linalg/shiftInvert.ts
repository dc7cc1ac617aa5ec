/**
 * (G + δI)⁻¹ X for a symmetric positive definite G, by a blocked Cholesky factorisation in place. The inverses of the factor's
 * diagonal blocks are kept, so that solving is products only.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §4.2.5 (block Cholesky) and §3.1.4 (block substitution).
 */
import type { Matrix } from './matrix.js';
import type { Steps } from './steps.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

/** Rows of a diagonal block, a multiple of the rows of a tile. */
const BLOCK = 96;

/** G + δI = L Lᵀ. */
export interface Factor {
  /** `[n, n]`: L below and on the diagonal; above it Lᵀ when `mirrored`, else what was there. */
  l: Matrix;
  mirrored: boolean;
  /** `[n, 96]`: the inverse of each diagonal block of L. */
  inverses: Matrix;
}

/**
 * Overwrites g, of which the lower triangle is read, with the factor of g + δI. Undefined when a pivot is not positive: g is
 * then destroyed, and not positive definite to working accuracy.
 */
export function* factorise(g: Matrix, delta: number, workspace: Workspace): Steps<Factor | undefined> {
  const n = g.rows;
  for (let i = 0; i < n; i++) g.data[i * n + i] = g.data[i * n + i]! + delta;
  const inverses = workspace.matrix(n, BLOCK);
  const panel = workspace.matrix(n, BLOCK);
  let definite = true;
  for (let k = 0; k < n && definite; k += BLOCK) {
    yield { stage: 'cholesky', done: 1 - (1 - k / n) ** 3 };
    const size = Math.min(BLOCK, n - k);
    definite = factoriseBlock(g, k, size) && invertBlock(g, k, size, inverses);
    const below = n - k - size;
    if (!definite || below === 0) continue;
    // the panel below: L = A·L_kk⁻ᵀ
    for (let i = 0; i < below; i++) {
      const row = (k + size + i) * n + k;
      panel.data.set(g.data.subarray(row, row + size), i * BLOCK);
      g.data.fill(0, row, row + size);
    }
    const l = viewOf(g, k + size, k, below, size);
    workspace.multiply(l, viewOf(panel, 0, 0, below, size), transposed(viewOf(inverses, k, 0, size, size)));
    workspace.multiply(viewOf(g, k + size, k + size), l, transposed(l), { sign: -1, lower: true });
  }
  workspace.free(panel);
  if (!definite) {
    workspace.free(inverses);
    return undefined;
  }
  return { l: g, mirrored: false, inverses };
}

/** The unblocked factorisation of a diagonal block; false when a pivot is not positive. */
function factoriseBlock({ data, cols: n }: Matrix, at: number, size: number): boolean {
  for (let i = 0; i < size; i++) {
    const row = (at + i) * n + at;
    for (let j = 0; j <= i; j++) {
      const other = (at + j) * n + at;
      let sum = data[row + j]!;
      for (let t = 0; t < j; t++) sum -= data[row + t]! * data[other + t]!;
      if (j < i) {
        data[row + j] = sum / data[other + j]!;
      } else {
        // the negation also catches NaN
        if (!(sum > 0)) return false;
        data[row + i] = Math.sqrt(sum);
      }
    }
  }
  return true;
}

/** The inverse of a lower triangular diagonal block, column by column; false when it overflows. */
function invertBlock({ data, cols: n }: Matrix, at: number, size: number, inverses: Matrix): boolean {
  const out = inverses.data;
  const width = inverses.cols;
  for (let i = 0; i < size; i++) {
    const row = (at + i) * n + at;
    const to = (at + i) * width;
    const pivot = 1 / data[row + i]!;
    if (!Number.isFinite(pivot)) return false;
    // row i of the inverse = −(row i of L, left of the diagonal) · (rows above of the inverse) / pivot
    for (let t = 0; t < i; t++) {
      const factor = data[row + t]! * -pivot;
      const from = (at + t) * width;
      for (let j = 0; j <= t; j++) out[to + j] = out[to + j]! + factor * out[from + j]!;
    }
    out[to + i] = pivot;
  }
  return true;
}

/** Copies Lᵀ above the diagonal: its rows are contiguous then, and solving is faster. */
export function mirrorFactor(factor: Factor, workspace: Workspace): void {
  workspace.mirror(factor.l, 'lower');
  factor.mirrored = true;
}

/** x `[n, b]` ← (L Lᵀ)⁻¹ x. */
export function solve({ l, mirrored, inverses }: Factor, x: Matrix, workspace: Workspace): void {
  const n = l.rows;
  const b = x.cols;
  const part = workspace.matrix(BLOCK, b);
  const last = Math.floor((n - 1) / BLOCK) * BLOCK;
  for (const forward of [true, false]) {
    for (let step = 0; step <= last; step += BLOCK) {
      const k = forward ? step : last - step;
      const size = Math.min(BLOCK, n - k);
      const rows = viewOf(x, k, 0, size);
      if (forward) workspace.multiply(rows, viewOf(l, k, 0, size, k), viewOf(x, 0, 0, k), { sign: -1 });
      else {
        const right = mirrored ? viewOf(l, k, k + size, size) : transposed(viewOf(l, k + size, k, n - k - size, size));
        workspace.multiply(rows, right, viewOf(x, k + size), { sign: -1 });
      }
      const own = x.data.subarray(k * b, (k + size) * b);
      part.data.set(own);
      own.fill(0);
      const inverse = viewOf(inverses, k, 0, size, size);
      workspace.multiply(rows, forward ? inverse : transposed(inverse), viewOf(part, 0, 0, size));
    }
  }
  workspace.free(part);
}
