/**
 * The r smallest singular triplets by shift-invert block Lanczos.
 *
 * For B `[k, n]`, k ≤ n (A or its transpose), the smallest singular values are the square roots of the smallest eigenvalues of
 * the Gram matrix G = B Bᵀ, and those the largest of (G − μI)⁻¹. G is summed in float64: a float32 Gram matrix rounds the
 * squares of the small singular values away. Cholesky's factor makes the inverse a pair of substitutions. A shift μ just below
 * the smallest eigenvalue pulls the wanted ones apart where they all lie at a distance from zero (wide matrices); where they
 * start near zero it is not needed. What the Gram matrix still costs in accuracy, Rayleigh–Ritz against B itself restores:
 * only the *subspace* comes from G, and its error is ε‖G‖ over the gap between the squares.
 *
 * Sources: Parlett, The Symmetric Eigenvalue Problem (1980), on shift-invert; Ericsson & Ruhe, The spectral transformation
 * Lanczos method (1980).
 */
import { blockLanczos, type Operator, type RitzPairs } from './blockLanczos.js';
import { gramMatrix } from './gram.js';
import { factorise, mirrorFactor, solve, type Factor } from './shiftInvert.js';
import { rayleighRitz, type Triplets } from './rayleighRitz.js';
import { part, type Steps } from './steps.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Vectors in a block of the Krylov space. */
const BLOCK = 16;
/** Triplets found beyond those asked for: the first tells the gap. */
export const GUARDS = 4;
/** Blocks after which it is decided whether to shift. */
const LOOK = 5;
/** Residual of the Ritz pairs of the inverse, relative to each. */
const TOLERANCE = 1e-8;

/** The minor triplets, `GUARDS` more than asked for, or undefined when the Gram matrix is not positive definite enough. */
export interface Minor {
  triplets: Triplets;
  /** The largest norm of a row of B: a lower bound of ‖B‖. */
  size: number;
  shifted: boolean;
  dimension: number;
}

/** Whether the Krylov space is small against the matrix: else a full decomposition is as fast. */
export function suitsShiftInvert(k: number, r: number): boolean {
  return k >= 192 && mostVectors(r) + BLOCK <= k;
}

/** Whether there is room for a Krylov space at all: see `LanczosOptions.most`. */
export function fitsShiftInvert(k: number, r: number): boolean {
  return r + GUARDS + 4 * BLOCK <= k;
}

const mostVectors = (r: number): number => Math.ceil((4 * (r + GUARDS) + 160) / BLOCK) * BLOCK;

export function* minorTriplets(b: View, r: number, workspace: Workspace): Steps<Minor | undefined> {
  const k = b.rows;
  const wanted = r + GUARDS;
  const gram = yield* part(gramMatrix(b, workspace), 0, 0.5);
  const diagonal = Float64Array.from({ length: k }, (_, i) => gram.data[i * k + i]!);
  const trace = diagonal.reduce((x, y) => x + y, 0);
  // enough to make a singular matrix definite in spite of rounding, and nothing against eigenvalues that can be told from it
  const ridge = 4 * Number.EPSILON * trace;
  workspace.mirror(gram, 'lower'); // kept there in case the factor is to be made again
  const unshifted = yield* part(factorise(gram, ridge, workspace), 0.5, 0.65);
  if (!unshifted) return undefined;
  let factor: Factor | undefined = unshifted;
  const lanczos = { wanted, tolerance: TOLERANCE, block: BLOCK, most: mostVectors(r), patience: 60 + wanted };
  const operatorOf = (f: Factor): Operator => ({
    size: k,
    apply: (x) => {
      solve(f, x, workspace);
    },
  });

  // a look at the lower end of the spectrum tells whether a shift pays
  let shift = 0;
  const look = {
    blocks: LOOK,
    leave: (seen: Pick<RitzPairs, 'values' | 'residuals'>): boolean => {
      shift = shiftOf(seen, ridge, trace);
      if (shift === 0) mirrorFactor(unshifted, workspace);
      return shift > 0;
    },
  };
  let pairs = yield* part(blockLanczos(operatorOf(factor), { ...lanczos, look }, workspace), 0.65, 0.8);
  if (shift > 0) {
    for (const m of [pairs.basis, pairs.coordinates, factor.inverses]) workspace.free(m);
    workspace.mirror(gram, 'upper');
    for (let i = 0; i < k; i++) gram.data[i * k + i] = diagonal[i]!;
    factor = yield* part(factorise(gram, -shift, workspace), 0.7, 0.8);
    if (!factor) return undefined;
    mirrorFactor(factor, workspace);
    pairs = yield* part(blockLanczos(operatorOf(factor), lanczos, workspace), 0.8, 0.95);
  }
  workspace.free(factor.inverses);
  workspace.free(gram);
  const y = workspace.matrix(wanted, k);
  const { basis, coordinates, dimension } = pairs;
  workspace.multiply(
    viewOf(y),
    transposed(viewOf(coordinates, 0, 0, dimension, wanted)),
    viewOf(basis, 0, 0, dimension),
  );
  workspace.free(basis);
  workspace.free(coordinates);
  const triplets = yield* part(rayleighRitz(b, y, workspace), 0.95, 1);
  workspace.free(y);
  return { triplets, size: Math.sqrt(diagonal.reduce((x, y) => Math.max(x, y), 0)), shifted: shift > 0, dimension };
}

/** A shift safely below the smallest eigenvalue, or 0 when none would help. */
function shiftOf({ values, residuals }: Pick<RitzPairs, 'values' | 'residuals'>, ridge: number, trace: number): number {
  const [smallest, other] = [1 / values[0]!, 1 / values[Math.min(values.length, 24) - 1]!];
  if (smallest < 0.2 * other) return 0;
  // 1/λ lies within the residual of the Ritz value
  const lowest = 1 / (values[0]! + residuals[0]!) - ridge;
  const shift = lowest - Math.max(0.02 * (other - smallest), 1e-13 * trace);
  return Math.max(0, shift);
}
