/**
 * Triangular systems with many right-hand sides, as products: the inverses of the diagonal blocks are made beforehand.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §3.1.4.
 */
import type { Matrix } from './matrix.js';
import { blockOf, transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Rows of a diagonal block, a multiple of the rows of a tile. */
export const TRIANGULAR_BLOCK = 96;
const BLOCK = TRIANGULAR_BLOCK;

/** A triangular matrix `[n, n]`. */
export interface Triangle {
  /** `[n, n]`, holds it on one side of its diagonal. In float32, products are summed up in float32 as well. */
  matrix: View;
  side: 'lower' | 'upper';
  /** The matrix holds its transpose, on the other side; slower. */
  acrossDiagonal?: boolean;
  /** `[n, 96]`: the inverses of the diagonal blocks, or their transposes. */
  inverses: Matrix;
  inversesTransposed: boolean;
}

/** x `[n, b]` ← T⁻¹ x. */
export function substitute(t: Triangle, x: Matrix, workspace: Workspace): void {
  const { matrix, side, acrossDiagonal = false, inverses, inversesTransposed } = t;
  const n = matrix.rows;
  const b = x.cols;
  const single = matrix.dtype === 'f32';
  const own = workspace.matrix(BLOCK, b);
  const last = Math.floor((n - 1) / BLOCK) * BLOCK;
  for (let step = 0; step <= last; step += BLOCK) {
    const k = side === 'lower' ? step : last - step;
    const size = Math.min(BLOCK, n - k);
    const rows = viewOf(x, k, 0, size);
    // minus what the rows solved so far contribute
    const [from, count] = side === 'lower' ? [0, k] : [k + size, n - k - size];
    const block = acrossDiagonal
      ? transposed(blockOf(matrix, from, k, count, size))
      : blockOf(matrix, k, from, size, count);
    workspace.multiply(rows, block, viewOf(x, from, 0, count), { sign: -1, single });
    multiplyInPlace(rows, x, inverses, k, size, inversesTransposed, own, workspace);
  }
  workspace.free(own);
}

function multiplyInPlace(
  rows: View,
  x: Matrix,
  inverses: Matrix,
  k: number,
  size: number,
  isTransposed: boolean,
  own: Matrix,
  workspace: Workspace,
): void {
  const entries = x.data.subarray(k * x.cols, (k + size) * x.cols);
  own.data.set(entries);
  entries.fill(0);
  const inverse = viewOf(inverses, k, 0, size, size);
  workspace.multiply(rows, isTransposed ? transposed(inverse) : inverse, viewOf(own, 0, 0, size));
}

/**
 * The inverse of the lower triangular block at (at, at), into rows `at …` of `inverses`; with `unit` its diagonal is taken for ones.
 * False when it overflows.
 */
export function invertBlock(
  { data, cols: step }: Matrix,
  at: number,
  size: number,
  inverses: Matrix,
  unit = false,
): boolean {
  const out = inverses.data;
  const width = inverses.cols;
  for (let i = 0; i < size; i++) {
    const row = (at + i) * step + at;
    const to = (at + i) * width;
    const pivot = unit ? 1 : 1 / data[row + i]!;
    if (!Number.isFinite(pivot)) return false;
    // row i of the inverse = −(row i, left of the diagonal) · (rows above of the inverse) / pivot
    for (let t = 0; t < i; t++) {
      const factor = data[row + t]! * -pivot;
      const from = (at + t) * width;
      for (let j = 0; j <= t; j++) out[to + j] = out[to + j]! + factor * out[from + j]!;
    }
    out[to + i] = pivot;
  }
  return true;
}

/** Copies one triangle of a square matrix, whose rows may be longer, onto the other, transposed. */
export function mirror(a: Matrix, from: 'lower' | 'upper', workspace: Workspace): void {
  const { rows: n, cols: step, data } = a;
  for (let k = 0; k < n; k += BLOCK) {
    const size = Math.min(BLOCK, n - k);
    const [below, right] = [viewOf(a, k + size, k, n - k - size, size), viewOf(a, k, k + size, size, n - k - size)];
    if (from === 'lower') workspace.transpose(right, below);
    else workspace.transpose(below, right);
    for (let i = k; i < k + size; i++) {
      for (let j = k; j < i; j++) {
        if (from === 'lower') data[j * step + i] = data[i * step + j]!;
        else data[i * step + j] = data[j * step + i]!;
      }
    }
  }
}
