/**
 * Full decomposition of large matrices: nearly orthogonal rows from the eigenvectors of the Gram matrix, made orthogonal to
 * rounding by one-sided Jacobi.
 *
 * B Bᵀ = V Λ Vᵀ (tridiagonal form, divide and conquer) makes the rows of X = VᵀB orthogonal up to ε·s₁²/(s_i·s_j). Jacobi's
 * quadratic convergence does the rest in a sweep or two, and its result does not depend on how good V was. Everything but the
 * reduction to tridiagonal form consists of matrix products. Small singular values get the absolute accuracy ε·s₁, not the relative
 * one of the Jacobi path, since the rows of X are sums in which larger parts cancel.
 */
import { gramMatrix } from './gram.js';
import { orthogonaliseRows, separate } from './jacobi.js';
import { zeroMatrix, type Matrix } from './matrix.js';
import { part, type Steps } from './steps.js';
import { mirror } from './substitution.js';
import type { Svd } from './svd.js';
import { symmetricEigen, symmetricValues } from './symmetricEigen.js';
import { viewOf, type View, type Workspace } from './workspace.js';

/** Squares of singular values this small against the largest lose their relative accuracy: that is for Jacobi alone. */
const GRADED = 1e-13;

/** The decomposition of b `[k, n]`, k ≤ n, on the host; undefined when it is graded too steeply. */
export function* tridiagonalSvd(b: View, workspace: Workspace): Steps<Svd | undefined> {
  const { rows: k, cols: n } = b;
  const gram = yield* part(gramMatrix(b, workspace), 0, 0.1);
  mirror(gram, 'lower', workspace);
  const { values, vectors } = yield* part(symmetricEigen(gram, workspace), 0.1, 0.5);
  workspace.free(gram);
  if (!(values[0]! > GRADED * values[k - 1]!)) {
    workspace.free(vectors);
    return undefined;
  }
  // [VᵀB | Vᵀ], the largest values first
  const x = workspace.matrix(k, n + k);
  for (let i = 0; i < k; i++) {
    for (let j = 0; j < k; j++) x.data[i * (n + k) + n + j] = vectors.data[j * k + k - 1 - i]!;
  }
  workspace.free(vectors);
  yield { stage: 'product', done: 0.55 };
  workspace.multiply(viewOf(x, 0, 0, k, n), viewOf(x, 0, n, k, k), b);
  yield* part(orthogonaliseRows(x, n, workspace, true), 0.6, 1);
  const { j, s, w } = separate(x, n);
  workspace.free(x);
  return inOrder(j, s, w);
}

/** u, s, vt of B = jᵀ diag(s) w, descending. */
function inOrder(j: Matrix, s: Float64Array, w: Matrix): Svd {
  const k = s.length;
  const order = Array.from(s.keys()).sort((p, q) => s[q]! - s[p]!);
  const u = zeroMatrix(k, k);
  const vt = zeroMatrix(k, w.cols);
  order.forEach((from, to) => {
    for (let i = 0; i < k; i++) u.data[i * k + to] = j.data[from * k + i]!;
    vt.data.set(w.data.subarray(from * w.cols, (from + 1) * w.cols), to * w.cols);
  });
  return { u, s: Float64Array.from(order, (from) => s[from]!), vt };
}

/** Singular values of b `[k, n]`, k ≤ n, descending, and a bound on their absolute error. */
export function* tridiagonalSingularValues(b: View, workspace: Workspace): Steps<{ s: Float64Array; error: number }> {
  const gram = yield* part(gramMatrix(b, workspace), 0, 0.3);
  mirror(gram, 'lower', workspace);
  const squares = yield* part(symmetricValues(gram, workspace), 0.3, 1);
  workspace.free(gram);
  const s = squares.map((x) => Math.sqrt(Math.max(0, x))).reverse();
  // squares are off by about ε‖G‖·√k: next to zero that is its root
  const off = 4 * Number.EPSILON * Math.sqrt(s.length) * s[0]! ** 2;
  const smallest = s[s.length - 1]!;
  return { s, error: off === 0 ? 0 : off / (smallest + Math.sqrt(smallest ** 2 + off)) };
}
