/** The r largest singular triplets: the Krylov method on the matrix itself. */
import { golubKahan, type Operator } from './golubKahan.js';
import { transposeMatrix, type Matrix } from './matrix.js';
import { orthogonalityOf, rayleighRitz, type Triplets } from './rayleighRitz.js';
import { part, type Steps } from './steps.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Triplets found beyond those asked for: the first tells the gap. */
const GUARDS = 1;
/** Residuals, relative to s₁, that products in float32 leave far below. */
const LOOSE = 1e-4;
/** The most, relative to s₁, that a product in float32 with a unit vector is off. */
const ROUNDING = 2 ** -20;
/** Share of s₁ from which the left vectors of a Krylov space are orthonormal enough. */
const STEEP = 1e-2;
/** Entries from which a block of products costs several times what the small decomposition does that tells how good it is. */
const HUGE = 2 ** 25;
/** Blocks multiplied at most. */
const PATIENCE = 400;

/** Vectors in a block, and in a basis at most. */
function sizes(r: number): { block: number; most: number } {
  const block = 16;
  return { block, most: Math.ceil((2 * r + 96) / block) * block };
}

/** Whether the bases are small against the matrix: else a full decomposition is as fast. */
export function suitsGolubKahan(k: number, r: number): boolean {
  const { block, most } = sizes(r);
  return k >= 192 && most + block <= k / 2;
}

/** Whether there is room for the bases at all. */
export function fitsGolubKahan(k: number, r: number): boolean {
  const { block, most } = sizes(r);
  return most + block <= k;
}

/**
 * The r largest triplets of b `[k, n]` and one more, with residuals up to `tolerance`·s₁ if that can be had. When float32 can tell such
 * residuals, products with b are computed in it.
 */
export function* leadingTriplets(b: View, r: number, tolerance: number, workspace: Workspace): Steps<Triplets> {
  const single = tolerance >= LOOSE;
  // Bᵀ, whose right vectors are those of the shorter side
  const operator: Operator = {
    rows: b.cols,
    cols: b.rows,
    times: (out: Matrix, x: Matrix) => {
      workspace.multiply(viewOf(out), transposed(b), viewOf(x), { single });
    },
    transposedTimes: (out: Matrix, x: Matrix) => {
      workspace.multiply(viewOf(out), b, viewOf(x), { single });
    },
  };
  const wanted = r + GUARDS;
  const { block, most } = sizes(r);
  const options = {
    // to few digits the gap is not told anyway
    wanted: single ? r : wanted,
    block,
    most,
    tolerance,
    relativeTo: 'largest' as const,
    patience: PATIENCE,
    single,
    eager: single && b.rows * b.cols >= HUGE,
  };
  const space = yield* part(golubKahan(operator, options, workspace), 0, 0.9);
  const y = space.rightVectors(wanted);
  // both sides are as good as they need be
  const x = single && space.s[wanted - 1]! >= STEEP * space.s[0]! ? space.leftVectors(wanted) : undefined;
  space.free();
  try {
    if (!x) return yield* part(rayleighRitz(b, y, workspace), 0.9, 1);
    // the method's own residuals are those of the matrix up to the rounding of its products
    yield { stage: 'certificate', done: 0.9 };
    const residuals = space.residuals.slice(0, wanted).map((size) => size + ROUNDING * space.s[0]!);
    const orthogonality = orthogonalityOf([viewOf(x), viewOf(y)], workspace);
    const vt = { ...x, data: x.data.slice() };
    return { u: transposeMatrix(y), s: space.s.slice(0, wanted), vt, residuals, orthogonality };
  } finally {
    workspace.free(y);
    if (x) workspace.free(x);
  }
}
