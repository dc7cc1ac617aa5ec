/**
 * The largest singular triplets of an operator by block Golub–Kahan bidiagonalisation with full reorthogonalisation and thick
 * restart. All Krylov methods here are this one: on B itself for the leading triplets, on an inverse for the minor ones.
 *
 * From a random block V₀ two orthonormal bases grow in turn: U_j from Op·V_j and V_{j+1} from Opᵀ·U_j, each made orthogonal to
 * what is there. Op·V = U·C holds to rounding with a small C (upper triangular, but for a border after a restart), whose triplets
 * (p, s, q) give those of the operator: u = U p, v = V q. What is left over, Opᵀu − s v, lies in the block of V that comes next:
 * its size is ‖R·(last entries of p)‖, R being that block's triangular factor. This is block Lanczos on OpᵀOp without the squares,
 * which would leave half of the digits to the small ones among the values. One step from a random start is the randomised method of
 * Halko, Martinsson & Tropp (2011); the steps that follow get more out of the same number of products.
 *
 * Sources: Golub, Luk & Overton, A block Lanczos method for computing the singular values and vectors of a matrix (1981); Baglama &
 * Reichel, Augmented implicitly restarted Lanczos bidiagonalization methods (2005).
 */
import { Philox } from '../random.js';
import { orthogonalise, orthonormalise, startBlock, storeBlock } from './blockVectors.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
import type { Steps } from './steps.js';
import { jacobiSvd, type Svd } from './svd.js';
import { symmetricEigen } from './symmetricEigen.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

/** A matrix `[rows, cols]` that is known by its products with blocks of vectors, which are columns. */
export interface Operator {
  rows: number;
  cols: number;
  /** out `[rows, b]` ← Op · x; out is zero before. */
  times(out: Matrix, x: Matrix): void;
  /** out `[cols, b]` ← Opᵀ · x; out is zero before. */
  transposedTimes(out: Matrix, x: Matrix): void;
}

export interface KrylovOptions {
  /** Triplets wanted. */
  wanted: number;
  /** Vectors in a block. */
  block: number;
  /** Triplets beyond those that are wanted to be told as well as they are: a block by default. */
  spare?: number;
  /** Vectors at most before a restart: at least wanted + 3 blocks, and a block less than the operator's shorter side. */
  most: number;
  /** Residual of every wanted triplet, relative to its own singular value or to the largest. */
  tolerance: number;
  relativeTo: 'own' | 'largest';
  /** Blocks at most. */
  patience: number;
  /** The operator is exact to float32 only: blocks are made orthogonal to the bases once rather than twice where that will do. */
  single?: boolean;
  /** A block costs far more than a look at the convergence, which is then not put off. */
  eager?: boolean;
  /** A look at the values after so many blocks: true gives up. */
  look?: { blocks: number; leave(seen: Ritz): boolean };
}

/** Singular values, descending, and the residual of each, absolute. */
export interface Ritz {
  s: Float64Array;
  residuals: Float64Array;
}

/** What was found; `free` gives back its memory. */
export interface KrylovSpace extends Ritz {
  converged: boolean;
  /** Vectors in each basis. */
  dimension: number;
  /** Rows: the `count` first right singular vectors, in the workspace. */
  rightVectors(count: number): Matrix;
  /** The same on the left; their products are zero only up to rounding of s₁² / s², unlike those of right vectors. */
  leftVectors(count: number): Matrix;
  free(): void;
}

/** The largest triplets of an operator. Throws `no-convergence` only where a block of vectors cannot be made orthonormal. */
export function* golubKahan(operator: Operator, options: KrylovOptions, workspace: Workspace): Steps<KrylovSpace> {
  const {
    wanted,
    block,
    most,
    tolerance,
    relativeTo,
    patience,
    look,
    spare = block,
    single = false,
    eager = false,
  } = options;
  const bases = new Bases(operator, block, most, !single, workspace);
  const kept = wanted + spare;
  let next = eager ? wanted + 3 * block : Math.max(kept, 2 * wanted);
  let last: { dimension: number; worst: number } | undefined;
  for (let blocks = 1; ; blocks++) {
    yield { stage: 'krylov', done: Math.min(0.95, bases.dimension / (3 * wanted + 4 * block)) };
    bases.grow();
    const d = bases.dimension;
    const full = d + block > most;
    const looking = blocks === look?.blocks;
    if (d < next && !full && !looking && blocks < patience) continue;

    const small = yield* bases.triplets(Math.min(kept, d), full);
    const ritz = { s: small.s, residuals: bases.residuals(small) };
    const worst = worstOf(ritz, wanted, relativeTo);
    const converged = worst <= tolerance;
    if (converged || blocks >= patience || (looking && look!.leave(ritz))) {
      return {
        ...ritz,
        converged,
        dimension: d,
        rightVectors: (count) => bases.combine(bases.v, small.vt, count),
        leftVectors: (count) => bases.combine(bases.u, transposeMatrix(small.u), count),
        free: () => {
          bases.free();
        },
      };
    }
    if (worst < Infinity) {
      next = d + Math.min(6 * block, predict(last, d, worst, tolerance, block, eager));
      last = { dimension: d, worst };
    }
    if (full) {
      bases.restart(small, kept);
      next = kept + Math.max(2 * block, (most - kept) >> 1);
      last = { dimension: kept, worst };
    }
  }
}

function worstOf({ s, residuals }: Ritz, wanted: number, relativeTo: 'own' | 'largest'): number {
  if (s.length < wanted) return Infinity;
  let worst = 0;
  for (let i = 0; i < wanted; i++) {
    const unit = relativeTo === 'own' ? s[i]! : s[0]!;
    if (residuals[i]! > 0) worst = Math.max(worst, residuals[i]! / unit);
  }
  return worst;
}

/** How many vectors more are expected to make the residual small enough: its logarithm falls about linearly. */
function predict(
  last: { dimension: number; worst: number } | undefined,
  d: number,
  worst: number,
  tolerance: number,
  block: number,
  eager: boolean,
): number {
  // a digit in six blocks, until it is known
  const slope = last ? Math.log(last.worst / worst) / (d - last.dimension) : Math.LN10 / (6 * block);
  const more = slope > 0 ? Math.log(worst / tolerance) / slope : 4 * block;
  // less, since convergence speeds up; but a look may cost about as much as a block
  return Math.max(eager ? block : 2 * block, Math.ceil((0.6 * more) / block) * block);
}

/** The two bases, as rows, and C with Op·V = U·C. */
class Bases {
  dimension = 0;
  readonly v: Matrix;
  readonly u: Matrix;
  private readonly c: Matrix;
  /** The next block of V, columns, and its triangular factor. */
  private readonly next: Matrix;
  private factor: Matrix;
  private readonly image: Matrix;
  private readonly random = new Philox(0);

  constructor(
    private readonly operator: Operator,
    private readonly block: number,
    most: number,
    private readonly twice: boolean,
    private readonly workspace: Workspace,
  ) {
    const { rows, cols } = operator;
    this.v = workspace.matrix(most + block, cols);
    this.u = workspace.matrix(most + block, rows);
    this.c = workspace.matrix(most + block, most + block);
    this.next = workspace.matrix(cols, block);
    this.image = workspace.matrix(rows, block);
    this.factor = startBlock(this.next, this.v, this.random, workspace);
  }

  free(): void {
    for (const m of [this.v, this.u, this.c, this.next, this.image]) this.workspace.free(m);
  }

  /** Adds the next block to V, its image to U, and finds the block after it. */
  grow(): void {
    const { operator, block, workspace, dimension: d, next, image, c } = this;
    storeBlock(next, this.v, d);
    image.data.fill(0);
    operator.times(image, next);
    let scale = norm(image.data, 0, image.data.length);
    const above = orthogonalise(image, this.u, d, workspace, this.twice);
    const r = orthonormalise(image, this.u, d, scale, this.random, workspace);
    for (let j = 0; j < block; j++) {
      for (let i = 0; i < d; i++) c.data[i * c.cols + d + j] = above[i * block + j]!;
      for (let i = 0; i < block; i++) c.data[(d + i) * c.cols + d + j] = r.data[i * block + j]!;
    }
    storeBlock(image, this.u, d);
    this.dimension = d + block;
    next.data.fill(0);
    operator.transposedTimes(next, image);
    scale = norm(next.data, 0, next.data.length);
    orthogonalise(next, this.v, this.dimension, workspace, this.twice);
    this.factor = orthonormalise(next, this.v, this.dimension, scale, this.random, workspace);
  }

  /**
   * The `count` largest triplets of C: by its Gram matrix, unless that would cost too many digits. The left vectors of small ones
   * are as orthogonal as the right ones only if asked for.
   */
  *triplets(count: number, orthogonal: boolean): Steps<Svd> {
    const { dimension: d, c, workspace } = this;
    const small = viewOf(c, 0, 0, d, d);
    const gram = workspace.matrix(d, d);
    workspace.multiply(viewOf(gram), transposed(small), small);
    const { values, vectors } = yield* symmetricEigen(gram, workspace, count);
    workspace.free(gram);
    if (values[d - count]! > SQUARABLE * values[d - 1]!) {
      const image = workspace.matrix(d, count);
      workspace.multiply(viewOf(image), small, viewOf(vectors));
      const svd = fromEigen(values, vectors, image);
      if (orthogonal && values[d - count]! < STEEP * values[d - 1]!) {
        // C Q = P S Wᵀ: the same triplets, with left vectors as orthogonal as the right ones
        const { u, s, vt: w } = yield* jacobiSvd({ ...image, data: image.data.slice() }, workspace);
        Object.assign(svd, { u, s, vt: multiplyMatrices(w, transposeMatrix(vectors)) });
      }
      for (const m of [vectors, image]) workspace.free(m);
      return svd;
    }
    workspace.free(vectors);
    const host = zeroMatrix(d, d);
    for (let i = 0; i < d; i++) host.data.set(c.data.subarray(i * c.cols, i * c.cols + d), i * d);
    const { u, s, vt } = yield* jacobiSvd(host, workspace);
    const first = zeroMatrix(d, count);
    for (let i = 0; i < d; i++) first.data.set(u.data.subarray(i * d, i * d + count), i * count);
    return { u: first, s: s.slice(0, count), vt: { rows: count, cols: d, data: vt.data.slice(0, count * d) } };
  }

  residuals({ u: p }: Svd): Float64Array {
    const { block, dimension: d, factor } = this;
    return Float64Array.from({ length: p.cols }, (_, j) => {
      let square = 0;
      for (let i = 0; i < block; i++) {
        let sum = 0;
        for (let t = i; t < block; t++) sum += factor.data[i * block + t]! * p.data[(d - block + t) * p.cols + j]!;
        square += sum * sum;
      }
      return Math.sqrt(square);
    });
  }

  /** Cuts both bases down to the best `kept` triplets; the next block stays. */
  restart(small: Svd, kept: number): void {
    for (const [basis, coordinates] of [
      [this.u, transposeMatrix(small.u)],
      [this.v, small.vt],
    ] as const) {
      const best = this.combine(basis, coordinates, kept);
      basis.data.set(best.data);
      this.workspace.free(best);
    }
    this.c.data.fill(0);
    for (let i = 0; i < kept; i++) this.c.data[i * this.c.cols + i] = small.s[i]!;
    this.dimension = kept;
  }

  /** Rows: the first `count` rows of coordinates times the basis. */
  combine(basis: Matrix, coordinates: Matrix, count: number): Matrix {
    const { workspace, dimension: d } = this;
    const data = coordinates.data.subarray(0, count * d);
    const picked = workspace.load({ dtype: 'f64', shape: [count, d], data });
    const out = workspace.matrix(count, basis.cols);
    workspace.multiply(viewOf(out), picked, viewOf(basis, 0, 0, d));
    workspace.free(picked);
    return out;
  }
}

/** Squares of singular values above this share of the largest keep enough digits for the right vectors, and for the left ones. */
const [SQUARABLE, STEEP] = [1e-8, 1e-4];

/** Triplets of C from the eigenpairs of CᵀC, of which the vectors of the largest values are given, and C times those vectors. */
function fromEigen(values: Float64Array, vectors: Matrix, image: Matrix): Svd {
  const { rows: d, cols: count } = vectors;
  const svd = { u: zeroMatrix(d, count), s: new Float64Array(count), vt: zeroMatrix(count, d) };
  for (let to = 0; to < count; to++) {
    const from = count - 1 - to;
    const s = Math.sqrt(values[d - 1 - to]!);
    svd.s[to] = s;
    for (let i = 0; i < d; i++) {
      svd.u.data[i * count + to] = image.data[i * count + from]! / s;
      svd.vt.data[to * d + i] = vectors.data[i * count + from]!;
    }
  }
  return svd;
}
