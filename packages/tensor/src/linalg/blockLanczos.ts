/**
 * Block Lanczos with full reorthogonalisation and thick restart: the largest eigenvalues of a symmetric operator, and vectors.
 *
 * The space grows by a block of vectors at a time: Y = Op(last block), made orthogonal to all vectors so far (twice, so that it
 * is orthogonal to rounding) and within itself. The coefficients of the first step are the projected operator H = Vᵀ Op V, the
 * triangular factor R of the second gives the residual of a Ritz pair (θ, V z): ‖R·(last entries of z)‖. When the space is full,
 * it is cut down to its best Ritz vectors and goes on from there.
 *
 * Sources: Golub & Underwood, The block Lanczos method for computing eigenvalues (1977); Wu & Simon, Thick-restart Lanczos method
 * for large symmetric eigenvalue problems (2000).
 */
import { Philox } from '../random.js';
import { orthogonalise, orthonormalise, startBlock, storeBlock } from './blockVectors.js';
import { norm, type Matrix } from './matrix.js';
import { part, type Steps } from './steps.js';
import { symmetricEigen } from './symmetricEigen.js';
import { transposed, viewOf, type Workspace } from './workspace.js';

/** A symmetric operator on vectors of `size` numbers. */
export interface Operator {
  size: number;
  /** x `[size, b]` ← Op x. */
  apply(x: Matrix): void;
}

export interface LanczosOptions {
  /** Pairs wanted. */
  wanted: number;
  /** Residual of the wanted pairs, relative to each eigenvalue. */
  tolerance: number;
  /** Vectors in a block. */
  block?: number;
  /** Vectors at most before a restart; at least wanted + 3 blocks, and room for one block less than the operator's size. */
  most: number;
  /** Blocks multiplied at most. */
  patience?: number;
  seed?: number;
  /** A look at the Ritz values after so many blocks: true gives up. */
  look?: { blocks: number; leave(pairs: Pick<RitzPairs, 'values' | 'residuals'>): boolean };
}

export interface RitzPairs {
  /** Descending. */
  values: Float64Array;
  /** Residual of each, absolute. */
  residuals: Float64Array;
  /** `[d, size]` rows: the basis V. */
  basis: Matrix;
  /** Vectors in use. */
  dimension: number;
  /** `[d, p]`: column i gives Ritz vector i in the basis. */
  coordinates: Matrix;
  converged: boolean;
}

/** Vectors left over at a restart besides the wanted ones, in blocks. */
const KEPT_BLOCKS = 1;

/** The largest eigenvalues of an operator. The basis and the coordinates returned are the caller's to free. */
export function* blockLanczos(operator: Operator, options: LanczosOptions, workspace: Workspace): Steps<RitzPairs> {
  const { wanted, tolerance, seed = 0, patience = 1000, block = 16 } = options;
  const n = operator.size;
  const most = Math.min(options.most, n - block);
  const random = new Philox(seed);
  const basis = workspace.matrix(most + block, n);
  const projected = workspace.matrix(most + block, most + block);
  const y = workspace.matrix(n, block);
  let d = 0;
  let r = startBlock(y, basis, random, workspace);
  let next = Math.min(most, wanted + Math.max(2 * block, wanted >> 1));
  let last = { dimension: 0, worst: 1 };
  for (let blocks = 1; ; blocks++) {
    // y is the next block of the basis
    storeBlock(y, basis, d);
    d += block;
    operator.apply(y);
    const scale = norm(y.data, 0, y.data.length);
    store(projected, orthogonalise(y, basis, d, workspace), d, block);
    r = orthonormalise(y, basis, d, scale, random, workspace);
    const full = d + block > most || blocks >= patience;
    const done = Math.min(0.99, d / (last.dimension === 0 ? 5 * wanted : next));
    yield { stage: 'krylov', done };
    const looking = blocks === options.look?.blocks;
    if (d < next && !full && !looking) continue;

    const kept = Math.min(wanted + KEPT_BLOCKS * block, d - block);
    const count = Math.max(kept, Math.min(wanted, d));
    const pairs = yield* part(ritzPairs(projected, basis, d, r, count, workspace), done, done);
    const worst = worstResidual(pairs, wanted);
    const leave = looking && options.look!.leave(pairs);
    if (worst <= tolerance || leave || blocks >= patience) {
      workspace.free(y);
      workspace.free(projected);
      return { ...pairs, converged: worst <= tolerance };
    }
    if (worst < Infinity) {
      next = predict(last, d, worst, tolerance, block);
      last = { dimension: d, worst };
    }
    if (full) {
      d = yield* part(restart(pairs, kept, projected, workspace), done, done);
      next = d + Math.max(2 * block, (most - d) >> 1);
      last = { dimension: d, worst };
    }
    workspace.free(pairs.coordinates);
  }
}

/** Coefficients `[d, b]` of the last block as the last columns, and rows, of the projected operator. */
function store({ data, cols: width }: Matrix, coefficients: Float64Array, d: number, b: number): void {
  for (let i = 0; i < d; i++) {
    for (let c = 0; c < b; c++) {
      const j = d - b + c;
      const own = coefficients[i * b + c]!;
      // inside the diagonal block both triangles come along: their mean is symmetric
      const value = i < d - b ? own : (own + coefficients[j * b + (i - d + b)]!) / 2;
      data[i * width + j] = value;
      data[j * width + i] = value;
    }
  }
}

/** The `count` largest eigenpairs of the projected operator, with residuals from the factor of the block that comes next. */
function* ritzPairs(
  projected: Matrix,
  basis: Matrix,
  d: number,
  r: Matrix,
  count: number,
  workspace: Workspace,
): Steps<Omit<RitzPairs, 'converged'>> {
  const h = workspace.matrix(d, d);
  for (let i = 0; i < d; i++) {
    h.data.set(projected.data.subarray(i * projected.cols, i * projected.cols + d), i * d);
  }
  const { values, vectors } = yield* symmetricEigen(h, workspace, count);
  workspace.free(h);
  // ascending so far
  for (let i = 0; i < d; i++) vectors.data.subarray(i * count, (i + 1) * count).reverse();
  return {
    values: values
      .subarray(d - count)
      .slice()
      .reverse(),
    residuals: Float64Array.from({ length: count }, (_, j) => residualOf(r, vectors, j)),
    basis,
    dimension: d,
    coordinates: vectors,
  };
}

/** ‖R·(last entries of column j)‖ */
function residualOf(r: Matrix, { rows: d, cols, data }: Matrix, j: number): number {
  const b = r.rows;
  let square = 0;
  for (let i = 0; i < b; i++) {
    let sum = 0;
    for (let t = i; t < b; t++) sum += r.data[i * b + t]! * data[(d - b + t) * cols + j]!;
    square += sum * sum;
  }
  return Math.sqrt(square);
}

function worstResidual(
  { values, residuals }: { values: Float64Array; residuals: Float64Array },
  wanted: number,
): number {
  let worst = values.length < wanted ? Infinity : 0;
  for (let i = 0; i < Math.min(wanted, values.length); i++)
    worst = Math.max(worst, residuals[i]! / Math.abs(values[i]!));
  return worst;
}

/** Where the residual is expected to be small enough: its logarithm falls about linearly. */
function predict(
  last: { dimension: number; worst: number },
  d: number,
  worst: number,
  tolerance: number,
  block: number,
): number {
  const slope = Math.log(last.worst / worst) / (d - last.dimension);
  const more = slope > 0 ? Math.log(worst / tolerance) / slope : Infinity;
  // not too far at once: convergence often speeds up
  return d + Math.max(block, Math.min(Math.ceil((0.8 * more) / block) * block, 6 * block));
}

/** Cuts the basis down to its `kept` best Ritz vectors; the next block stays. Returns the new dimension. */
function* restart(
  pairs: Omit<RitzPairs, 'converged'>,
  kept: number,
  projected: Matrix,
  workspace: Workspace,
): Steps<number> {
  const { basis, dimension, coordinates, values } = pairs;
  const best = workspace.matrix(kept, basis.cols);
  yield { stage: 'krylov', done: 0.5 };
  workspace.multiply(
    viewOf(best),
    transposed(viewOf(coordinates, 0, 0, dimension, kept)),
    viewOf(basis, 0, 0, dimension),
  );
  basis.data.set(best.data);
  workspace.free(best);
  projected.data.fill(0);
  for (let i = 0; i < kept; i++) projected.data[i * projected.cols + i] = values[i]!;
  return kept;
}
