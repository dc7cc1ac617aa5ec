/** The r largest singular triplets: the Krylov method on the matrix itself. */
import { golubKahan, type Operator } from './golubKahan.js';
import type { Matrix } from './matrix.js';
import { rayleighRitz, type Triplets } from './rayleighRitz.js';
import { part, type Steps } from './steps.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Triplets found beyond those asked for: the first tells the gap. */
const GUARDS = 1;
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

/** The r largest triplets of b `[k, n]` and one more, with residuals up to `tolerance`·s₁ if that can be had. */
export function* leadingTriplets(b: View, r: number, tolerance: number, workspace: Workspace): Steps<Triplets> {
  // Bᵀ, whose right vectors are those of the shorter side
  const operator: Operator = {
    rows: b.cols,
    cols: b.rows,
    times: (out: Matrix, x: Matrix) => {
      workspace.multiply(viewOf(out), transposed(b), viewOf(x));
    },
    transposedTimes: (out: Matrix, x: Matrix) => {
      workspace.multiply(viewOf(out), b, viewOf(x));
    },
  };
  const wanted = r + GUARDS;
  const options = { wanted, ...sizes(r), tolerance, relativeTo: 'largest' as const, patience: PATIENCE };
  const space = yield* part(golubKahan(operator, options, workspace), 0, 0.9);
  const y = space.rightVectors(wanted);
  space.free();
  const triplets = yield* part(rayleighRitz(b, y, workspace), 0.9, 1);
  workspace.free(y);
  return triplets;
}
