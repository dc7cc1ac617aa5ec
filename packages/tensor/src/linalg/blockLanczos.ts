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
import { TensorError } from '../errors.js';
import { Philox } from '../random.js';
import { norm, type Matrix } from './matrix.js';
import type { Steps } from './steps.js';
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
  /** Asked after each block with the Ritz values (descending) and their residuals when they are computed: true gives up. */
  stop?: (values: Float64Array, residuals: Float64Array) => boolean;
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
  /** `[d, d]`: column i gives Ritz vector i in the basis, values descending. */
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
    orthogonalise(y, basis, d, projected, workspace);
    r = orthonormalise(y, basis, d, scale, random, workspace);
    const full = d + block > most || blocks >= patience;
    yield { stage: 'krylov', done: Math.min(0.99, d / (last.dimension === 0 ? 5 * wanted : next)) };
    if (d < next && !full) continue;

    const pairs = yield* ritzPairs(projected, basis, d, r, block, workspace);
    const worst = worstResidual(pairs, wanted);
    const given = options.stop?.(pairs.values, pairs.residuals) === true;
    if (worst <= tolerance || given || blocks >= patience) {
      workspace.free(y);
      workspace.free(projected);
      return { ...pairs, converged: worst <= tolerance };
    }
    next = predict(last, d, worst, tolerance, block);
    last = { dimension: d, worst };
    if (full) {
      d = yield* restart(pairs, Math.min(wanted + KEPT_BLOCKS * block, d - block), projected, workspace);
      next = d + Math.max(2 * block, (most - d) >> 1);
      last = { dimension: d, worst };
    }
    workspace.free(pairs.coordinates);
  }
}

/** A random orthonormal block. */
function startBlock(y: Matrix, basis: Matrix, random: Philox, workspace: Workspace): Matrix {
  y.data.set(random.normalArray(y.data.length));
  return orthonormalise(y, basis, 0, 1, random, workspace);
}

/** Writes the columns of y as rows from d on. */
function storeBlock(y: Matrix, basis: Matrix, d: number): void {
  const { rows: n, cols: b, data } = y;
  for (let c = 0; c < b; c++) {
    const row = (d + c) * n;
    for (let i = 0; i < n; i++) basis.data[row + i] = data[i * b + c]!;
  }
}

/** Takes the basis out of y, twice; the coefficients are the last columns of the projected operator. */
function orthogonalise(y: Matrix, basis: Matrix, d: number, projected: Matrix | undefined, workspace: Workspace): void {
  if (d === 0) return;
  const b = y.cols;
  const v = viewOf(basis, 0, 0, d);
  const sum = new Float64Array(d * b);
  for (let pass = 0; pass < 2; pass++) {
    const c = workspace.matrix(d, b);
    workspace.multiply(viewOf(c), v, viewOf(y));
    workspace.multiply(viewOf(y), transposed(v), viewOf(c), { sign: -1 });
    for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + c.data[i]!;
    workspace.free(c);
  }
  if (!projected) return;
  const width = projected.cols;
  for (let i = 0; i < d; i++) {
    for (let c = 0; c < b; c++) {
      const j = d - b + c;
      // inside the diagonal block both triangles come along: their mean is symmetric
      const value = i < d - b ? sum[i * b + c]! : (sum[i * b + c]! + sum[j * b + (i - d + b)]!) / 2;
      projected.data[i * width + j] = value;
      projected.data[j * width + i] = value;
    }
  }
}

/** Vectors whose size falls below this share of the block's are what rounding left of nothing. */
const NOTHING = 1e-14;

/**
 * Makes the columns of y orthonormal by Cholesky QR, repeated until they are, and returns the triangular factor `[b, b]`. Columns
 * that depend on others are replaced by random ones, orthogonal to the basis, with zeros in the factor: the space found is then
 * invariant, and the search goes on outside of it.
 */
function orthonormalise(
  y: Matrix,
  basis: Matrix,
  d: number,
  scale: number,
  random: Philox,
  workspace: Workspace,
): Matrix {
  const b = y.cols;
  const total = workspace.matrix(b, b);
  for (let i = 0; i < b; i++) total.data[i * b + i] = 1;
  const gram = workspace.matrix(b, b);
  const inverse = workspace.matrix(b, b);
  const copy = workspace.matrix(y.rows, b);
  const replaced = new Set<number>();
  for (let pass = 0; ; pass++) {
    if (pass === 12) throw new TensorError('no-convergence', 'lanczos: expected an orthonormal block in 12 passes, got none');
    gram.data.fill(0);
    workspace.multiply(viewOf(gram), transposed(viewOf(y)), viewOf(y));
    const floor = pass === 0 || replaced.size > 0 ? NOTHING * scale : 0;
    const bad = cholesky(gram, floor * floor);
    if (bad >= 0) {
      // a new direction instead; what the factor says of this column stays, but it has no part in itself
      for (let i = 0; i < y.rows; i++) y.data[i * b + bad] = random.normal();
      orthogonalise(y, basis, d, undefined, workspace);
      replaced.add(bad);
      continue;
    }
    const error = pass === 0 ? 1 : distanceFromIdentity(gram);
    if (error < 4 * b * Number.EPSILON) break;
    invertUpper(gram, inverse);
    copy.data.set(y.data);
    y.data.fill(0);
    workspace.multiply(viewOf(y), viewOf(copy), viewOf(inverse));
    multiplyUpper(gram, total);
  }
  for (const m of [gram, inverse, copy]) workspace.free(m);
  for (const c of replaced) for (let j = c; j < b; j++) total.data[c * b + j] = 0;
  const result: Matrix = { rows: b, cols: b, data: total.data.slice() };
  workspace.free(total);
  return result;
}

/**
 * Overwrites s with R, s = RᵀR, upper triangular with zeros below. Returns −1, or the first column whose remaining square is below
 * `floor` or lost in the rounding of its own.
 */
function cholesky(s: Matrix, floor: number): number {
  const { rows: n, data } = s;
  for (let j = 0; j < n; j++) {
    const whole = data[j * n + j]!;
    for (let i = 0; i <= j; i++) {
      let sum = data[i * n + j]!;
      for (let t = 0; t < i; t++) sum -= data[t * n + i]! * data[t * n + j]!;
      if (i < j) data[i * n + j] = sum / data[i * n + i]!;
      else if (!(sum > floor && sum > 1e-13 * whole)) return j;
      else data[j * n + j] = Math.sqrt(sum);
    }
  }
  for (let i = 1; i < n; i++) data.fill(0, i * n, i * n + i);
  return -1;
}

/** Largest entry of |R − I|. */
function distanceFromIdentity({ rows: n, data }: Matrix): number {
  let most = 0;
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) most = Math.max(most, Math.abs(data[i * n + j]! - (i === j ? 1 : 0)));
  }
  return most;
}

/** out ← R⁻¹. */
function invertUpper({ rows: n, data: r }: Matrix, { data: out }: Matrix): void {
  out.fill(0);
  for (let j = 0; j < n; j++) {
    for (let i = j; i >= 0; i--) {
      let sum = i === j ? 1 : 0;
      for (let t = i + 1; t <= j; t++) sum -= r[i * n + t]! * out[t * n + j]!;
      out[i * n + j] = sum / r[i * n + i]!;
    }
  }
}

/** total ← R · total, both upper triangular. */
function multiplyUpper({ rows: n, data: r }: Matrix, { data: total }: Matrix): void {
  for (let j = 0; j < n; j++) {
    for (let i = 0; i <= j; i++) {
      let sum = 0;
      for (let t = i; t <= j; t++) sum += r[i * n + t]! * total[t * n + j]!;
      total[i * n + j] = sum;
    }
  }
}

/** Eigenpairs of the projected operator, with residuals from the factor of the block that comes next. */
function* ritzPairs(
  projected: Matrix,
  basis: Matrix,
  d: number,
  r: Matrix,
  block: number,
  workspace: Workspace,
): Steps<Omit<RitzPairs, 'converged'>> {
  const h = workspace.matrix(d, d);
  for (let i = 0; i < d; i++) {
    h.data.set(projected.data.subarray(i * projected.cols, i * projected.cols + d), i * d);
  }
  const { values, vectors } = yield* symmetricEigen(h, workspace);
  workspace.free(h);
  const coordinates = workspace.matrix(d, d);
  const residuals = new Float64Array(d);
  for (let i = 0; i < d; i++) {
    for (let j = 0; j < d; j++) coordinates.data[i * d + j] = vectors.data[i * d + d - 1 - j]!;
  }
  workspace.free(vectors);
  for (let j = 0; j < d; j++) {
    let square = 0;
    for (let i = 0; i < block; i++) {
      let sum = 0;
      for (let t = i; t < block; t++) sum += r.data[i * block + t]! * coordinates.data[(d - block + t) * d + j]!;
      square += sum * sum;
    }
    residuals[j] = Math.sqrt(square);
  }
  return { values: values.slice().reverse(), residuals, basis, dimension: d, coordinates };
}

function worstResidual({ values, residuals }: { values: Float64Array; residuals: Float64Array }, wanted: number): number {
  let worst = values.length < wanted ? Infinity : 0;
  for (let i = 0; i < Math.min(wanted, values.length); i++) worst = Math.max(worst, residuals[i]! / Math.abs(values[i]!));
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
