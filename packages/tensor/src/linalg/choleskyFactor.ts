/**
 * G + δI = L Lᵀ for a symmetric positive definite G, blocked and in place. What is left of G is read and written once for two blocks.
 *
 * Source: Golub & Van Loan, Matrix Computations (4th ed.), §4.2.5.
 */
import type { Matrix } from './matrix.js';
import type { Steps } from './steps.js';
import { invertBlock, TRIANGULAR_BLOCK as BLOCK } from './substitution.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

export interface CholeskyFactor {
  /** `[n, n]`, with rows that may be longer: L on and below the diagonal; above it what was there. */
  l: Matrix;
  /** `[n, 96]`: the inverse of each diagonal block of L. */
  inverses: Matrix;
}

/**
 * Overwrites the lower triangle of g `[n, n]`, whose rows may be longer, with the factor of g + δI. Undefined when a pivot is not
 * positive: the triangle is then destroyed, and the matrix not positive definite to working accuracy, which is that of float32 when
 * `single`.
 */
export function* choleskyFactor(
  g: Matrix,
  delta: number,
  workspace: Workspace,
  single = false,
): Steps<CholeskyFactor | undefined> {
  const { rows: n, cols: step } = g;
  for (let i = 0; i < n; i++) g.data[i * step + i] = g.data[i * step + i]! + delta;
  const inverses = workspace.matrix(n, BLOCK);
  const panel = workspace.matrix(n, BLOCK);
  let definite = true;
  let done = 0; // columns whose product is in what lies right and below
  for (let k = 0; k < n && definite; k += BLOCK) {
    yield { stage: 'cholesky', done: 1 - (1 - k / n) ** 3 };
    const size = Math.min(BLOCK, n - k);
    const rest = n - k - size;
    // this block's columns, less the product of the one before it
    const [own, others] = [viewOf(g, k, done, size, k - done), viewOf(g, k + size, done, rest, k - done)];
    workspace.multiply(viewOf(g, k, k, size, size), own, transposed(own), { sign: -1, only: 'lower', single });
    workspace.multiply(viewOf(g, k + size, k, rest, size), others, transposed(own), { sign: -1, single });
    definite = factoriseBlock(g, k, size) && invertBlock(g, k, size, inverses);
    if (!definite || rest === 0) continue;
    // the panel below: L = A·L_kk⁻ᵀ
    for (let i = 0; i < rest; i++) {
      const row = (k + size + i) * step + k;
      panel.data.set(g.data.subarray(row, row + size), i * BLOCK);
      g.data.fill(0, row, row + size);
    }
    const l = viewOf(g, k + size, k, rest, size);
    workspace.multiply(l, viewOf(panel, 0, 0, rest, size), transposed(viewOf(inverses, k, 0, size, size)));
    if (done === k && rest > BLOCK) continue;
    const ready = viewOf(g, k + size, done, rest, k + size - done);
    workspace.multiply(viewOf(g, k + size, k + size, rest, rest), ready, transposed(ready), {
      sign: -1,
      only: 'lower',
      single,
    });
    done = k + size;
  }
  workspace.free(panel);
  if (definite) return { l: g, inverses };
  workspace.free(inverses);
  return undefined;
}

/** The unblocked factorisation of a diagonal block; false when a pivot is not positive. */
function factoriseBlock({ data, cols: step }: Matrix, at: number, size: number): boolean {
  for (let i = 0; i < size; i++) {
    const row = (at + i) * step + at;
    for (let j = 0; j <= i; j++) {
      const other = (at + j) * step + at;
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
