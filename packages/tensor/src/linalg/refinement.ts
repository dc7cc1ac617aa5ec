/**
 * Makes triplets exact that come from an inexact inverse: Newton's correction of a whole invariant subspace, by an inner iteration.
 *
 * For eigenpairs (λ, x) of G = B Bᵀ that are a little off, with residual r = Gx − λx, the correction d solves (G − λI)d = r outside of
 * the subspace, and x − d is as good as the square of what x was. No product with G is needed for d, which need not be exact: with
 * T ≈ (G − μI)⁻¹ it is (I − (λ − μ)T)d = T r, whose eigenvalues lie between 0 and 1 and are far from zero once the next
 * eigenvectors beyond the subspace, which T's Krylov space has told as well, are divided out directly. Chebyshev's iteration does the
 * rest.
 *
 * Sources: Dongarra, Moler & Wilkinson, Improving the accuracy of computed eigenvalues and eigenvectors (1983); Sleijpen & van der
 * Vorst, A Jacobi–Davidson iteration method (1996); Saad, Numerical Methods for Large Eigenvalue Problems (2011), §4.4.
 */
import { Philox } from '../random.js';
import { orthogonalise, orthonormalise } from './blockVectors.js';
import type { Matrix } from './matrix.js';
import type { Triplets } from './rayleighRitz.js';
import type { Steps } from './steps.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

/** Relative size of the error that the inner iteration leaves. */
const INNER = 1e-3;
/** Inner steps at most: as many do where the next values stand a hundredth of the distance away. */
const MOST = 16;

/** An inverse T `[k, k]` of G − μI, up to rounding. */
export interface NearInverse {
  shift: number;
  /** out ← T x, for columns x `[k, b]`, whatever out holds. */
  times(out: Matrix, x: Matrix): void;
  /** Rows: orthonormal eigenvectors, those of the subspace first, and about their eigenvalues, of T, descending. */
  vectors: Matrix;
  values: Float64Array;
}

/**
 * Vectors `[d, k]`, orthonormal rows, of the d smallest triplets of B, from triplets that are nearly those, and from their differences
 * B v − u s `[k, d]`, which are overwritten.
 */
export function* corrected(
  { u, s }: Pick<Triplets, 'u' | 's'>,
  differences: Matrix,
  inverse: NearInverse,
  workspace: Workspace,
): Steps<Matrix> {
  const { rows: k, cols: d } = u;
  const { shift, vectors, values } = inverse;
  const distances = s.map((x) => x * x - shift);
  const basis = workspace.matrix(vectors.rows, k);
  const x = workspace.matrix(k, d);
  x.data.set(u.data);
  basis.data.set(vectors.data);
  workspace.transpose(viewOf(basis, 0, 0, d), viewOf(x));

  // G u − u s²
  const r = differences;
  for (let i = 0; i < r.data.length; i++) r.data[i] = r.data[i]! * s[i % d]!;
  const known = orthogonalise(r, basis, basis.rows, workspace);
  // along the eigenvectors that are known outside of the subspace
  const along = workspace.matrix(basis.rows - d, d);
  for (let j = 0; j < along.rows; j++) {
    const distance = 1 / values[d + j]!;
    for (let t = 0; t < d; t++) along.data[j * d + t] = known[(d + j) * d + t]! / (distance - distances[t]!);
  }
  workspace.multiply(viewOf(x), transposed(viewOf(basis, d)), viewOf(along), { sign: -1 });

  // and in the rest
  const rest = yield* chebyshev(r, distances, 1 / values[values.length - 1]!, basis, inverse, workspace);
  for (let i = 0; i < x.data.length; i++) x.data[i] = x.data[i]! - rest.data[i]!;
  for (const m of [rest, along]) workspace.free(m);
  orthonormalise(x, basis, 0, 1, new Philox(0), workspace);
  const rows = workspace.matrix(d, k);
  workspace.transpose(viewOf(rows), viewOf(x));
  for (const m of [x, basis]) workspace.free(m);
  return rows;
}

/** Columns y with (I − distance·T) y = T r outside of the basis, where T's eigenvalues are at most 1 / `least`. */
function* chebyshev(
  r: Matrix,
  distances: Float64Array,
  least: number,
  basis: Matrix,
  inverse: NearInverse,
  workspace: Workspace,
): Steps<Matrix> {
  const { rows: k, cols: d } = r;
  // the operator's eigenvalues lie between `low` and 1
  const low = distances.map((distance) => Math.max(1e-2, 1 - distance / least));
  const [middle, half] = [low.map((x) => (1 + x) / 2), low.map((x) => (1 - x) / 2)];
  const rate = Math.max(...low.map((x) => (1 - Math.sqrt(x)) / (1 + Math.sqrt(x))));
  const steps = Math.min(MOST, Math.ceil(Math.log(2 / INNER) / -Math.log(rate)));
  const y = workspace.matrix(k, d);
  const step = workspace.matrix(k, d);
  const image = workspace.matrix(k, d);
  const left = workspace.matrix(k, d);
  inverse.times(left, r);
  orthogonalise(left, basis, basis.rows, workspace);
  const rho = half.map((x, t) => x / middle[t]!);
  for (let i = 0; i < left.data.length; i++) step.data[i] = left.data[i]! / middle[i % d]!;
  for (let n = 1; ; n++) {
    yield { stage: 'refinement', done: n / steps };
    for (let i = 0; i < y.data.length; i++) y.data[i] = y.data[i]! + step.data[i]!;
    if (n === steps) break;
    inverse.times(image, step);
    orthogonalise(image, basis, basis.rows, workspace);
    for (let t = 0; t < d; t++) {
      const before = rho[t]!;
      const now = 1 / ((2 * middle[t]!) / half[t]! - before);
      rho[t] = now;
      for (let i = t; i < left.data.length; i += d) {
        left.data[i] = left.data[i]! - step.data[i]! + distances[t]! * image.data[i]!;
        step.data[i] = now * before * step.data[i]! + ((2 * now) / half[t]!) * left.data[i]!;
      }
    }
  }
  for (const m of [step, image, left]) workspace.free(m);
  return y;
}
