/**
 * The r largest singular triplets by block Golub–Kahan bidiagonalisation with full reorthogonalisation and thick restart.
 *
 * From a random block V₀ two orthonormal bases grow in turn: U_j from B V_j and V_{j+1} from BᵀU_j, each made orthogonal to
 * what is there. B V = U C holds to rounding with a small C (upper triangular, but for a border after a restart), whose triplets
 * (p, s, q) give those of B: u = U p, v = V q. What is left over, Bᵀu − s v, lies in the block that comes next: its size is
 * ‖R·(last entries of p)‖, R being that block's triangular factor. B itself is never squared. One step from a random start is the
 * randomised method of Halko, Martinsson & Tropp (2011); the steps that follow make it a Krylov method, which gets more out
 * of the same number of products.
 *
 * Sources: Golub, Luk & Overton, A block Lanczos method for computing the singular values and vectors of a matrix (1981); Baglama &
 * Reichel, Augmented implicitly restarted Lanczos bidiagonalization methods (2005).
 */
import { Philox } from '../random.js';
import { orthogonalise, orthonormalise, startBlock, storeBlock } from './blockVectors.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
import { measure, type Triplets } from './rayleighRitz.js';
import { part, type Steps } from './steps.js';
import { jacobiSvd, type Svd } from './svd.js';
import { symmetricEigen } from './symmetricEigen.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Triplets found beyond those asked for: the first tells the gap. */
const GUARDS = 1;
/** Rounds at most; a round fills the bases once. */
const PATIENCE = 40;
/** Singular values up to this share of the largest have lost too many digits in their squares. */
const STEEP = 0.1;

/** Vectors in a block, and in a basis at most. */
function sizes(r: number, k: number): { block: number; most: number } {
  const block = r >= 32 && k >= 2048 ? 32 : 16;
  return { block, most: Math.ceil((2 * r + 96) / block) * block };
}

/** Whether the bases are small against the matrix: else a full decomposition is as fast. */
export function suitsGolubKahan(k: number, r: number): boolean {
  const { block, most } = sizes(r, k);
  return k >= 192 && most + block <= k / 2;
}

/** Whether there is room for the bases at all. */
export function fitsGolubKahan(k: number, r: number): boolean {
  const { block, most } = sizes(r, k);
  return most + block <= k;
}

export interface Leading {
  /** One more than asked for. */
  triplets: Triplets;
  converged: boolean;
}

/** The r largest triplets of b `[k, n]` and one more, with residuals up to `tolerance`·s₁ if that can be had. */
export function* leadingTriplets(b: View, r: number, tolerance: number, workspace: Workspace): Steps<Leading> {
  const wanted = r + GUARDS;
  const { block, most } = sizes(r, b.rows);
  const bases = new Bases(b, block, most, workspace);
  for (let rounds = 1; ;) {
    const done = Math.min(0.95, bases.dimension / most / 2);
    yield { stage: 'golub-kahan', done };
    bases.grow();
    const full = bases.dimension + block > most;
    if (!full && bases.dimension < wanted + 2 * block) continue;
    const small = yield* part(bases.triplets(wanted + block), done, done);
    const worst = bases.worstResidual(small, wanted);
    const converged = worst <= tolerance * small.s[0]!;
    if (converged || (full && ++rounds > PATIENCE)) {
      yield { stage: 'certificate', done: 0.95 };
      return { triplets: bases.extract(small, wanted), converged };
    }
    if (full) bases.restart(small, wanted + block);
  }
}

/** The two bases, rows `[most + b, …]`, and C with B V = U C. */
class Bases {
  dimension = 0;
  private readonly v: Matrix;
  private readonly u: Matrix;
  private readonly c: Matrix;
  /** The next block of V, columns, and its triangular factor. */
  private readonly next: Matrix;
  private factor: Matrix;
  private readonly image: Matrix;
  private readonly random = new Philox(0);

  constructor(
    private readonly b: View,
    private readonly block: number,
    most: number,
    private readonly workspace: Workspace,
  ) {
    this.v = workspace.matrix(most + block, b.cols);
    this.u = workspace.matrix(most + block, b.rows);
    this.c = workspace.matrix(most + block, most + block);
    this.next = workspace.matrix(b.cols, block);
    this.image = workspace.matrix(b.rows, block);
    this.factor = startBlock(this.next, this.v, this.random, workspace);
  }

  /** Adds the next block to V, its image to U, and finds the block after it. */
  grow(): void {
    const { b, block, workspace, dimension: d, next, image } = this;
    storeBlock(next, this.v, d);
    image.data.fill(0);
    workspace.multiply(viewOf(image), b, viewOf(next));
    let scale = norm(image.data, 0, image.data.length);
    const above = orthogonalise(image, this.u, d, workspace);
    const r = orthonormalise(image, this.u, d, scale, this.random, workspace);
    for (let j = 0; j < block; j++) {
      for (let i = 0; i < d; i++) this.c.data[i * this.c.cols + d + j] = above[i * block + j]!;
      for (let i = 0; i < block; i++) this.c.data[(d + i) * this.c.cols + d + j] = r.data[i * block + j]!;
    }
    storeBlock(image, this.u, d);
    this.dimension = d + block;
    next.data.fill(0);
    workspace.multiply(viewOf(next), transposed(b), viewOf(image));
    scale = norm(next.data, 0, next.data.length);
    orthogonalise(next, this.v, this.dimension, workspace);
    this.factor = orthonormalise(next, this.v, this.dimension, scale, this.random, workspace);
  }

  /** The `count` largest triplets of C. */
  *triplets(count: number): Steps<Svd> {
    const { dimension: d, c, workspace } = this;
    const small = viewOf(c, 0, 0, d, d);
    // as in tridiagonalSvd.ts; the large triplets lose nothing by squaring
    const gram = workspace.matrix(d, d);
    workspace.multiply(viewOf(gram), transposed(small), small);
    const { values, vectors } = yield* symmetricEigen(gram, workspace, count);
    workspace.free(gram);
    const image = workspace.matrix(d, count);
    workspace.multiply(viewOf(image), small, viewOf(vectors));
    const svd = { u: zeroMatrix(d, count), s: new Float64Array(count), vt: zeroMatrix(count, d) };
    for (let to = 0; to < count; to++) {
      const from = count - 1 - to;
      const s = (svd.s[to] = Math.sqrt(Math.max(0, values[d - 1 - to]!)));
      for (let i = 0; i < d; i++) {
        svd.u.data[i * count + to] = image.data[i * count + from]! / s;
        svd.vt.data[to * d + i] = vectors.data[i * count + from]!;
      }
    }
    if (!(svd.s[count - 1]! > STEEP * svd.s[0]!)) {
      // C Q = P S Wᵀ: the same triplets, without the square
      const { u, s, vt: w } = yield* jacobiSvd({ ...image, data: image.data.slice() }, workspace);
      Object.assign(svd, { u, s, vt: multiplyMatrices(w, transposeMatrix(vectors)) });
    }
    for (const m of [vectors, image]) workspace.free(m);
    return svd;
  }

  worstResidual({ u: p }: Svd, wanted: number): number {
    const { block, dimension: d, factor } = this;
    let worst = 0;
    for (let j = 0; j < wanted; j++) {
      let square = 0;
      for (let i = 0; i < block; i++) {
        let sum = 0;
        for (let t = i; t < block; t++) sum += factor.data[i * block + t]! * p.data[(d - block + t) * p.cols + j]!;
        square += sum * sum;
      }
      worst = Math.max(worst, Math.sqrt(square));
    }
    return worst;
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
  private combine(basis: Matrix, coordinates: Matrix, count: number): Matrix {
    const { workspace, dimension: d } = this;
    const data = coordinates.data.subarray(0, count * d);
    const picked = workspace.load({ dtype: 'f64', shape: [count, d], data });
    const out = workspace.matrix(count, basis.cols);
    workspace.multiply(viewOf(out), picked, viewOf(basis, 0, 0, d));
    workspace.free(picked);
    return out;
  }

  /** Triplets of B on the host; the bases are freed. */
  extract(small: Svd, count: number): Triplets {
    const { workspace } = this;
    const [ut, vt] = [this.combine(this.u, transposeMatrix(small.u), count), this.combine(this.v, small.vt, count)];
    for (const m of [this.u, this.v, this.c, this.next, this.image]) workspace.free(m);
    const u = transposeMatrix(ut);
    const host: Matrix = { ...vt, data: vt.data.slice() };
    workspace.free(ut);
    workspace.free(vt);
    const s = small.s.slice(0, count);
    return { u, s, vt: host, ...measure(this.b, u, s, host, workspace) };
  }
}
