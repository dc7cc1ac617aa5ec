/**
 * P B = L U with partial pivoting: half the work of a Gram matrix and its Cholesky factor, and the condition is not squared.
 *
 * Columns are factorised in panels, which are copied out of the matrix, and a panel in halves down to a few columns; the rest is
 * products. What is left of the matrix is read and written once for two panels.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §3.4; Toledo, Locality of reference in LU decomposition with partial
 * pivoting (1997).
 */
import type { Matrix } from './matrix.js';
import type { Steps } from './steps.js';
import { invertBlock, TRIANGULAR_BLOCK as BLOCK } from './substitution.js';
import { viewOf, type Workspace } from './workspace.js';

/** Columns that are factorised by plain loops: a line of the cache. */
const FEW = 8;

/** P B = L U: row i of P B is row `rows[i]` of B. */
export interface LuFactor {
  /** `[n, n]`, with rows that may be longer: U on and above the diagonal, L below it, its diagonal of ones left out. */
  lu: Matrix;
  /** The transpose of `lu`. */
  transposed: Matrix;
  rows: Int32Array;
  /** `[n, 96]`: the inverse of each diagonal block of L, and the transposed inverse of each of U. */
  inversesL: Matrix;
  inversesUt: Matrix;
}

/**
 * Overwrites b `[n, n]`, whose rows may be longer, with its factors. Pivots smaller than `least` are replaced by it: the factors are
 * then those of a matrix that differs from b by so much.
 */
export function* luFactor(b: Matrix, least: number, workspace: Workspace): Steps<LuFactor> {
  const n = b.rows;
  const rows = Int32Array.from({ length: n }, (_, i) => i);
  const inversesL = workspace.matrix(n, BLOCK);
  const copy = workspace.matrix(n, BLOCK);
  let done = 0; // rows and columns that are in what lies right and below
  for (let k = 0; k < n; k += BLOCK) {
    yield { stage: 'lu', done: 0.95 * (1 - (1 - k / n) ** 3) };
    const size = Math.min(BLOCK, n - k);
    const panel: Matrix = { rows: n - k, cols: BLOCK, data: copy.data };
    // the panel, less the product of the one before it
    const [left, up] = [viewOf(b, k, done, n - k, k - done), viewOf(b, done, k, k - done, size)];
    workspace.multiply(viewOf(b, k, k, n - k, size), left, up, { sign: -1 });
    copyPanel(b, k, size, panel, 'out');
    const pivots = new Int32Array(size);
    factoriseColumns(panel, 0, size, pivots, least, workspace);
    pivots.forEach((pivot, j) => {
      swapRows(b, k + j, k + pivot);
      [rows[k + j], rows[k + pivot]] = [rows[k + pivot]!, rows[k + j]!];
    });
    copyPanel(b, k, size, panel, 'back');
    invertBlock(b, k, size, inversesL, true);
    const right = n - k - size;
    if (right === 0) break;
    // U₁₂ = L₁₁⁻¹ A₁₂, and A₂₂ − L₂₁ U₁₂ after every second panel
    const above = viewOf(b, k, k + size, size, right);
    workspace.multiply(above, viewOf(b, k, done, size, k - done), viewOf(b, done, k + size, k - done, right), {
      sign: -1,
    });
    const before = workspace.matrix(size, right, false);
    for (let i = 0; i < size; i++) {
      const at = (k + i) * b.cols + k + size;
      before.data.set(b.data.subarray(at, at + right), i * right);
      b.data.fill(0, at, at + right);
    }
    workspace.multiply(above, viewOf(inversesL, k, 0, size, size), viewOf(before));
    workspace.free(before);
    if (done === k && right > BLOCK) continue;
    const ready = k + size - done;
    const [below, beside] = [viewOf(b, k + size, done, right, ready), viewOf(b, done, k + size, ready, right)];
    workspace.multiply(viewOf(b, k + size, k + size, right, right), below, beside, { sign: -1 });
    done = k + size;
  }
  workspace.free(copy);
  const ul = workspace.matrix(n, b.cols, false);
  workspace.transpose(viewOf(ul, 0, 0, n, n), viewOf(b, 0, 0, n, n));
  const inversesUt = workspace.matrix(n, BLOCK);
  for (let k = 0; k < n; k += BLOCK) invertBlock(ul, k, Math.min(BLOCK, n - k), inversesUt);
  return { lu: b, transposed: ul, rows, inversesL, inversesUt };
}

/** Copies columns k … of b, from row k on, into the panel, or back. */
function copyPanel(b: Matrix, k: number, size: number, panel: Matrix, direction: 'out' | 'back'): void {
  for (let i = 0; i < panel.rows; i++) {
    const at = (k + i) * b.cols + k;
    const to = i * panel.cols;
    if (direction === 'out') for (let j = 0; j < size; j++) panel.data[to + j] = b.data[at + j]!;
    else for (let j = 0; j < size; j++) b.data[at + j] = panel.data[to + j]!;
  }
}

function swapRows(m: Matrix, i: number, j: number): void {
  if (i === j) return;
  const { cols, data } = m;
  const keep = data.slice(i * cols, (i + 1) * cols);
  data.copyWithin(i * cols, j * cols, (j + 1) * cols);
  data.set(keep, j * cols);
}

/** Factorises columns from … to − 1 of a panel whose first `from` are done; rows are swapped whole, `pivots` tells with which. */
function factoriseColumns(
  panel: Matrix,
  from: number,
  to: number,
  pivots: Int32Array,
  least: number,
  workspace: Workspace,
): void {
  if (to - from <= FEW) {
    for (let j = from; j < to; j++) eliminate(panel, j, to, pivots, least);
    return;
  }
  const middle = from + Math.ceil((to - from) / 2 / FEW) * FEW;
  factoriseColumns(panel, from, middle, pivots, least, workspace);
  // the rows of U right of these columns, then what lies below
  const { cols: step, data } = panel;
  for (let i = from + 1; i < middle; i++) {
    for (let t = from; t < i; t++) {
      const factor = data[i * step + t]!;
      for (let j = middle; j < to; j++) data[i * step + j] = data[i * step + j]! - factor * data[t * step + j]!;
    }
  }
  const below = panel.rows - middle;
  workspace.multiply(
    viewOf(panel, middle, middle, below, to - middle),
    viewOf(panel, middle, from, below, middle - from),
    viewOf(panel, from, middle, middle - from, to - middle),
    { sign: -1 },
  );
  factoriseColumns(panel, middle, to, pivots, least, workspace);
}

/** Column j: the largest entry becomes the pivot, and the columns up to `to` lose what it explains. */
function eliminate(panel: Matrix, j: number, to: number, pivots: Int32Array, least: number): void {
  const { rows, cols: step, data } = panel;
  let pivot = j;
  for (let i = j + 1; i < rows; i++) {
    if (Math.abs(data[i * step + j]!) > Math.abs(data[pivot * step + j]!)) pivot = i;
  }
  pivots[j] = pivot;
  swapRows(panel, j, pivot);
  const own = j * step;
  if (Math.abs(data[own + j]!) < least) data[own + j] = data[own + j]! < 0 ? -least : least;
  const inverse = 1 / data[own + j]!;
  for (let i = j + 1; i < rows; i++) {
    const at = i * step;
    const factor = data[at + j]! * inverse;
    data[at + j] = factor;
    for (let t = j + 1; t < to; t++) data[at + t] = data[at + t]! - factor * data[own + t]!;
  }
}
