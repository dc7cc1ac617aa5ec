/**
 * The r smallest singular triplets: the Krylov method on an inverse, where they are the largest.
 *
 * For B `[k, n]`, k ≤ n (A or its transpose), the inverse is one of two.
 *
 * - A large square B: B⁻¹ itself, by LU with partial pivoting.
 * - Otherwise L⁻¹ with L Lᵀ = B Bᵀ − μI, by Cholesky's factorisation of the Gram matrix, which is summed in float64: a float32 Gram
 *   matrix rounds the squares of the small singular values away. Where all singular values keep a distance from zero, as those of
 *   wide matrices do, a shift μ just below the smallest eigenvalue pulls the wanted ones apart, and the Krylov method needs a
 *   fraction of the vectors. A square matrix like that goes this way as well.
 *
 * Only the *subspace* comes from there: Rayleigh–Ritz against B itself gives the triplets.
 *
 * Sources: Ericsson & Ruhe, The spectral transformation Lanczos method (1980); Parlett, The Symmetric Eigenvalue Problem (1980).
 */
import { convertHost } from '../dtype.js';
import { choleskyFactor, type CholeskyFactor } from './choleskyFactor.js';
import { golubKahan, type KrylovSpace, type Operator, type Ritz } from './golubKahan.js';
import { gramMatrix, paddedMatrix } from './gram.js';
import { luFactor, type LuFactor } from './lu.js';
import { dot, type Matrix } from './matrix.js';
import { largest, rayleighRitz, type Triplets } from './rayleighRitz.js';
import { corrected, type NearInverse } from './refinement.js';
import { part, type Steps } from './steps.js';
import { mirror, substitute, type Triangle } from './substitution.js';
import { viewOf, type View, type Workspace } from './workspace.js';

/** Vectors in a block of the Krylov space. */
const BLOCK = 16;
/** Triplets found beyond those asked for: the first tells the gap. */
const GUARDS = 4;
/** Residual of the inverse's triplets, relative to each. */
const TOLERANCE = 1e-9;
/** Rows from which LU pays: it saves half of the factorisation, but solving takes twice the work. */
const LU = 1536;
/** Blocks after which it is decided whether to shift. */
const LOOK = 5;
/** Times that a factor is given up for one with a better shift. */
const MOST_SHIFTS = 2;
/**
 * Rows from which a Gram matrix in float32 pays, and how much longer they must be for one: the smallest singular value of a matrix of
 * independent entries is then more than a twentieth of the largest.
 */
const [SINGLE, WIDE] = [1024, 1.25];
/** As `TOLERANCE`, for an inverse in float32. */
const SINGLE_TOLERANCE = 1e-6;
/** Residuals, relative to ‖B‖, that are not corrected any more, and that are acceptable after so many corrections. */
const [REFINED, ACCEPTED, MOST_CORRECTIONS] = [4e-10, 1e-9, 3];
/** Residual, of the inverse's triplet, up to which an eigenvector beyond the subspace serves the correction. */
const KNOWN = 2e-4;
/** Rows of a matrix that tell whether it is one for float32, and the least shift that stands out of what underflows there. */
const [SAMPLE, SMALLEST] = [256, 1e-25];

/** The minor triplets, with `guards` more than asked for before them. */
export interface Minor {
  triplets: Triplets;
  guards: number;
  /** The largest norm of a row of B: a lower bound of ‖B‖. */
  size: number;
}

/** Whether the Krylov space is small against the matrix: else a full decomposition is as fast. */
export function suitsShiftInvert(k: number, r: number): boolean {
  return k >= Math.max(192, 4 * (r + GUARDS) + 176);
}

/** Whether there is room for a Krylov space at all. */
export function fitsShiftInvert(k: number, r: number): boolean {
  return r + GUARDS + 4 * BLOCK <= k;
}

function mostVectors(r: number): number {
  return Math.ceil((4 * (r + GUARDS) + 208) / BLOCK) * BLOCK;
}

export interface MinorOptions {
  /** Rows from which square matrices take LU. */
  luFrom?: number;
  /** Rows from which wide matrices take a Gram matrix in float32 first. */
  singleFrom?: number;
}

/** The r smallest triplets of b `[k, n]`; undefined when the matrix is too close to a singular one for its Gram matrix. */
export function* minorTriplets(
  b: View,
  r: number,
  workspace: Workspace,
  { luFrom = LU, singleFrom = SINGLE }: MinorOptions = {},
): Steps<Minor | undefined> {
  const wanted = r + GUARDS;
  const search = new Search(wanted, Math.min(mostVectors(r), b.rows - BLOCK), workspace);
  const byLu = b.rows === b.cols && b.rows >= luFrom;
  if (byLu) {
    const found = yield* search.byLu(b);
    if (found) return found;
  }
  if (b.rows >= singleFrom && b.cols >= WIDE * b.rows && (yield* isFarFromSingular(b, workspace))) {
    const found = yield* search.byCholesky(b, true);
    if (found) return found;
  }
  return yield* search.byCholesky(b, false);
}

class Search {
  constructor(
    private readonly wanted: number,
    private readonly most: number,
    private readonly workspace: Workspace,
  ) {}

  /** The Krylov space of an inverse `[k, k]`. */
  private krylov(
    inverse: Omit<Operator, 'rows' | 'cols'>,
    k: number,
    leave: (seen: Ritz) => boolean,
    single = false,
  ): Steps<KrylovSpace> {
    const { wanted, most, workspace } = this;
    const options = {
      wanted,
      most,
      block: BLOCK,
      ...(single ? { tolerance: SINGLE_TOLERANCE, spare: wanted } : { tolerance: TOLERANCE }),
      relativeTo: 'own' as const,
      patience: single ? Math.ceil(most / BLOCK) : 60 + wanted,
      look: { blocks: LOOK, leave },
    };
    return golubKahan({ rows: k, cols: k, ...inverse }, options, workspace);
  }

  /** By B⁻¹, for a square b; undefined when a shift is needed, and for zero. */
  *byLu(b: View): Steps<Minor | undefined> {
    const { workspace, wanted } = this;
    const { matrix, size } = copyOf(b, workspace);
    if (size === 0) {
      workspace.free(matrix);
      return undefined;
    }
    const factor = yield* part(luFactor(matrix, Number.EPSILON * size, workspace), 0, 0.5);
    let shift = false;
    const leave = (seen: Ritz): boolean => (shift = isFarFromZero(seen, 0.2));
    const space = yield* part(this.krylov(inverseOf(factor, workspace), b.rows, leave), 0.5, 0.9);
    const vectors = shift ? undefined : space.rightVectors(wanted);
    space.free();
    for (const m of [factor.lu, factor.transposed, factor.inversesL, factor.inversesUt]) workspace.free(m);
    return vectors && { triplets: yield* this.ritz(b, vectors, 0.9), guards: GUARDS, size };
  }

  /**
   * By the factor of the shifted Gram matrix; undefined when that is not positive definite. In single precision Gram matrix and factor
   * are those of a matrix nearby, and the triplets are corrected; undefined when that is too far away.
   */
  *byCholesky(b: View, single: boolean): Steps<Minor | undefined> {
    const { workspace, wanted } = this;
    const k = b.rows;
    const gram = yield* part(gramMatrix(b, workspace, { padded: true, single }), 0, 0.5);
    const diagonal = Float64Array.from({ length: k }, (_, i) => gram.data[i * gram.cols + i]!);
    const size = Math.sqrt(diagonal.reduce((x, y) => Math.max(x, y), 0));
    const trace = diagonal.reduce((x, y) => x + y, 0);
    let shift = guessShift(gram, k);
    if (single && shift === 0) {
      workspace.free(gram);
      return undefined;
    }
    mirror(gram, 'lower', workspace); // kept above the diagonal, in case the factor is to be made again
    for (let attempt = 0; ; attempt++) {
      if (attempt > 0) {
        mirror(gram, 'upper', workspace);
        for (let i = 0; i < k; i++) gram.data[i * gram.cols + i] = diagonal[i]!;
      }
      // enough to make a singular matrix definite in spite of rounding, and nothing against eigenvalues that can be told from it
      const delta = shift > 0 ? -shift : 4 * Number.EPSILON * trace;
      const factor = yield* part(choleskyFactor(gram, delta, workspace, single), 0.5, 0.65);
      if (!factor && (shift === 0 || single)) {
        workspace.free(gram);
        return undefined;
      }
      if (!factor) {
        shift = 0;
        continue;
      }
      let better = 0;
      let settled: View | undefined;
      const leave = (seen: Ritz): boolean => {
        // after a guess only if it was far off
        if (attempt < MOST_SHIFTS && isFarFromZero(seen, shift > 0 ? 0.75 : 0.2)) better = shiftOf(seen, -delta, trace);
        if (better > shift) return true;
        mirror(gram, 'lower', workspace);
        settled = { ...(single ? workspace.rounded(gram) : viewOf(gram)), cols: k };
        return false;
      };
      const inverse = inverseOfRoot(factor, () => settled, workspace);
      const space = yield* part(this.krylov(inverse, k, leave, single), 0.65, 0.9);
      // a space that has converged before the look is good as well
      const isGood = better <= shift;
      let triplets: Triplets | undefined;
      if (isGood && single) triplets = yield* part(this.refined(b, space, inverse, shift, size), 0.9, 1);
      const vectors = isGood && !single ? space.rightVectors(wanted) : undefined;
      space.free();
      workspace.free(factor.inverses);
      if (single && settled) workspace.free(settled);
      if (isGood) {
        workspace.free(gram);
        if (vectors) triplets = yield* this.ritz(b, vectors, 0.9);
        return triplets && { triplets, guards: GUARDS, size };
      }
      shift = better;
    }
  }

  /** Triplets in the span of vectors, which are freed. */
  private *ritz(b: View, vectors: Matrix, from: number, keep = false): Steps<Triplets> {
    const triplets = yield* part(rayleighRitz(b, vectors, this.workspace, keep), from, 1);
    this.workspace.free(vectors);
    return triplets;
  }

  /** Triplets of b from the Krylov space of an inverse in single precision; undefined when they do not get exact. */
  private *refined(
    b: View,
    space: KrylovSpace,
    { times, transposedTimes }: Omit<Operator, 'rows' | 'cols'>,
    shift: number,
    size: number,
  ): Steps<Triplets | undefined> {
    const { workspace, wanted } = this;
    let known = wanted;
    while (known < space.s.length && space.residuals[known]! < KNOWN * space.s[known]!) known++;
    const half = workspace.matrix(b.rows, wanted);
    const inverse: NearInverse = {
      shift,
      vectors: space.rightVectors(known),
      values: space.s.slice(0, known).map((s) => s * s),
      times: (out, x) => {
        times(half, x);
        transposedTimes(out, half);
      },
    };
    let triplets = yield* part(this.ritz(b, space.rightVectors(wanted), 0, true), 0, 0.2);
    for (let n = 1; ; n++) {
      const worst = largest(triplets.residuals.subarray(GUARDS)) / size;
      const { differences, ...found } = triplets;
      const isDone = worst <= REFINED || n > MOST_CORRECTIONS;
      const better = isDone ? undefined : yield* corrected(triplets, differences!, inverse, workspace);
      workspace.free(differences!);
      if (better) triplets = yield* this.ritz(b, better, 0, true);
      else {
        for (const m of [half, inverse.vectors]) workspace.free(m);
        return worst <= ACCEPTED ? found : undefined;
      }
    }
  }
}

/** b in float64, and the largest norm of its rows. */
function copyOf(b: View, workspace: Workspace): { matrix: Matrix; size: number } {
  const matrix = paddedMatrix(b.rows, b.cols, workspace, false);
  let largest = 0;
  for (let i = 0; i < b.rows; i++) {
    const row = b.data.subarray(b.at + i * b.rowStride, b.at + i * b.rowStride + b.cols);
    const to = i * matrix.cols;
    matrix.data.set(row instanceof Uint16Array ? convertHost(row, b.dtype, 'f64') : row, to);
    largest = Math.max(largest, dot(matrix.data, to, to, b.cols));
  }
  return { matrix, size: Math.sqrt(largest) };
}

/** B⁻¹ = U⁻¹ L⁻¹ P. */
function inverseOf(f: LuFactor, workspace: Workspace): Omit<Operator, 'rows' | 'cols'> {
  const n = f.lu.rows;
  const triangles: Record<'l' | 'u' | 'ut' | 'lt', Triangle> = {
    l: { matrix: viewOf(f.lu, 0, 0, n, n), side: 'lower', inverses: f.inversesL, inversesTransposed: false },
    u: { matrix: viewOf(f.lu, 0, 0, n, n), side: 'upper', inverses: f.inversesUt, inversesTransposed: true },
    ut: { matrix: viewOf(f.transposed, 0, 0, n, n), side: 'lower', inverses: f.inversesUt, inversesTransposed: false },
    lt: { matrix: viewOf(f.transposed, 0, 0, n, n), side: 'upper', inverses: f.inversesL, inversesTransposed: true },
  };
  return {
    times: (out, x) => {
      const b = x.cols;
      f.rows.forEach((from, to) => out.data.set(x.data.subarray(from * b, (from + 1) * b), to * b));
      substitute(triangles.l, out, workspace);
      substitute(triangles.u, out, workspace);
    },
    transposedTimes: (out, x) => {
      const b = x.cols;
      const y = workspace.matrix(x.rows, b);
      y.data.set(x.data);
      substitute(triangles.ut, y, workspace);
      substitute(triangles.lt, y, workspace);
      f.rows.forEach((to, from) => out.data.set(y.data.subarray(from * b, (from + 1) * b), to * b));
      workspace.free(y);
    },
  };
}

/** L⁻¹, where L Lᵀ is the Gram matrix, whatever the results hold before. L and Lᵀ are read from both sides of the diagonal of `settled` once there is one. */
function inverseOfRoot(
  { l, inverses }: CholeskyFactor,
  settled: () => View | undefined,
  workspace: Workspace,
): Omit<Operator, 'rows' | 'cols'> {
  const at = viewOf(l, 0, 0, l.rows, l.rows);
  return {
    times: (out, x) => {
      out.data.set(x.data);
      const matrix = settled() ?? at;
      substitute({ matrix, side: 'lower', inverses, inversesTransposed: false }, out, workspace);
    },
    transposedTimes: (out, x) => {
      out.data.set(x.data);
      const matrix = settled();
      const where = { matrix: matrix ?? at, acrossDiagonal: !matrix };
      substitute({ ...where, side: 'upper', inverses, inversesTransposed: true }, out, workspace);
    },
  };
}

/** Whether the smallest singular values lie close together compared with their distance from zero, or from the shift. */
function isFarFromZero({ s }: Ritz, share: number): boolean {
  return (s[Math.min(24, s.length) - 1]! / s[0]!) ** 2 > share;
}

/** A shift safely below the smallest eigenvalue of the Gram matrix, of which `now` is subtracted already; 0 when there is no room. */
function shiftOf({ s, residuals }: Ritz, now: number, trace: number): number {
  // no singular value of the inverse is larger than this
  const lowest = 1 / (s[0]! + residuals[0]!) ** 2;
  const spread = 1 / s[Math.min(24, s.length) - 1]! ** 2 - lowest;
  return Math.max(0, now + lowest - Math.max(0.02 * spread, 1e-13 * trace));
}

/**
 * A shift below where the eigenvalues of a matrix of independent entries begin (Marchenko & Pastur 1967), told by the mean and the
 * mean square of the eigenvalues: 0 when those spread too widely. Weights have tails, which make the guess lower than need be; when it is
 * too high the factorisation fails, and is made again. The Gram matrix may be that of a sample of the k rows.
 */
function guessShift(gram: Matrix, k: number): number {
  const { rows, cols: step, data } = gram;
  let [trace, squares, products] = [0, 0, 0];
  for (let i = 0; i < rows; i++) {
    const own = data[i * step + i]!;
    trace += own;
    squares += own ** 2;
    products += 2 * dot(data, i * step, i * step, i);
  }
  const mean = trace / rows;
  // the variance of the eigenvalues over the square of their mean
  const pairs = rows > 1 ? (products / rows / (rows - 1)) * (k - 1) : 0;
  const ratio = (squares / rows + pairs) / mean ** 2 - 1;
  return ratio >= 0 && ratio < 0.8 ? 0.985 * mean * (1 - Math.sqrt(ratio)) ** 2 : 0;
}

/** Whether the smallest singular values seem to be far enough from zero, compared with the largest, for a Gram matrix in float32. */
function* isFarFromSingular(b: View, workspace: Workspace): Steps<boolean> {
  const rows = Math.min(SAMPLE, b.rows);
  const sample: View = { ...b, rows, rowStride: b.rowStride * Math.floor(b.rows / rows) };
  const gram = yield* part(gramMatrix(sample, workspace, { single: true }), 0, 0.01);
  const shift = guessShift(gram, b.rows);
  workspace.free(gram);
  return shift > SMALLEST;
}
