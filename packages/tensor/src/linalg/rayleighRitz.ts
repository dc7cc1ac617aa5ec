/**
 * From a subspace to singular triplets: Rayleigh–Ritz against the matrix itself, and the certificate measured on it.
 *
 * For an orthonormal basis Y `[k, d]` of (about) a left singular subspace of B `[k, n]`, k ≤ n, the small decomposition
 * YᵀB = P S Vᵀ gives u = Y P with uᵀB = S Vᵀ to rounding; what is left over, B v − s u, is the residual.
 */
import type { DType } from '../dtype.js';
import { zeroMatrix, type Matrix } from './matrix.js';
import type { Steps } from './steps.js';
import type { Certificate, Method } from './subspace.js';
import { jacobiSvd } from './svd.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Triplets in descending order with the residual of each, absolute. */
export interface Triplets {
  /** `[k, d]` */
  u: Matrix;
  s: Float64Array;
  /** `[d, n]` */
  vt: Matrix;
  residuals: Float64Array;
  /** Largest entry of |UᵀU − I| and |VᵀV − I|. */
  orthogonality: number;
}

/**
 * Triplets of b in the span of the rows of y `[d, k]`, which are orthonormal and in the workspace; the results are on the host.
 */
export function* rayleighRitz(b: View, y: Matrix, workspace: Workspace): Steps<Triplets> {
  const projected = workspace.matrix(y.rows, b.cols);
  yield { stage: 'rayleigh-ritz', done: 0 };
  workspace.multiply(viewOf(projected), viewOf(y), b);
  const { u: p, s, vt } = yield* jacobiSvd(projected, workspace);
  workspace.free(projected);
  const coordinates = workspace.load({ dtype: 'f64', shape: [p.rows, p.cols], data: p.data });
  const u = workspace.matrix(y.cols, y.rows);
  workspace.multiply(viewOf(u), transposed(viewOf(y)), coordinates);
  workspace.free(coordinates);
  yield { stage: 'certificate', done: 0.8 };
  const host: Matrix = { ...u, data: u.data.slice() };
  workspace.free(u);
  return { u: host, s, vt, ...measure(b, host, s, vt, workspace) };
}

/** Residuals and orthogonality of triplets of b. */
export function measure(
  b: View,
  u: Matrix,
  s: Float64Array,
  vt: Matrix,
  workspace: Workspace,
): { residuals: Float64Array; orthogonality: number } {
  const [x, y] = [u, vt].map(({ rows, cols, data }) => workspace.load({ dtype: 'f64', shape: [rows, cols], data }));
  const d = s.length;
  const squares = new Float64Array(d);
  // (B v − s u)ᵀ and (Bᵀu − s v)ᵀ, a row for each triplet
  for (const [product, from, other] of [
    [transposed(b), y!, u],
    [b, transposed(x!), vt],
  ] as const) {
    const left = workspace.matrix(d, product.cols);
    workspace.multiply(viewOf(left), from, product);
    const byRows = other === vt;
    for (let i = 0; i < d; i++) {
      let square = 0;
      for (let t = 0; t < left.cols; t++) {
        const value = byRows ? vt.data[i * vt.cols + t]! : u.data[t * d + i]!;
        square += (left.data[i * left.cols + t]! - s[i]! * value) ** 2;
      }
      squares[i] = Math.max(squares[i]!, square);
    }
    workspace.free(left);
  }
  const orthogonality = Math.max(
    distanceFromIdentity(transposed(x!), x!, workspace),
    distanceFromIdentity(y!, transposed(y!), workspace),
  );
  workspace.free(x!);
  workspace.free(y!);
  return { residuals: squares.map(Math.sqrt), orthogonality };
}

/** Largest entry of |a · b − I|. */
function distanceFromIdentity(a: View, b: View, workspace: Workspace): number {
  const product = workspace.matrix(a.rows, b.cols);
  workspace.multiply(viewOf(product), a, b);
  let most = 0;
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < b.cols; j++) {
      most = Math.max(most, Math.abs(product.data[i * product.cols + j]! - (i === j ? 1 : 0)));
    }
  }
  workspace.free(product);
  return most;
}

/** Differences below this share of ‖A‖ are within the rounding of the input. */
export function roundingOf(dtype: DType): number {
  // 16-bit weights are decomposed as they are, and as exactly as float32 ones
  return dtype === 'f64' ? 2 ** -50 : 2 ** -24;
}

/** A singular value and the most that it is off. */
export interface Neighbour {
  value: number;
  error: number;
}

/**
 * The certificate of a window with residuals, between neighbours outside, for a matrix of norm `size` (or a lower bound of it). The
 * vectors of the longer side have those of the null space for neighbours as well, at zero.
 */
export function certify(
  method: Method,
  { s, residuals, orthogonality }: Pick<Triplets, 's' | 'residuals' | 'orthogonality'>,
  neighbours: { above?: Neighbour | undefined; below?: Neighbour | undefined; square: boolean },
  size: number,
  dtype: DType,
): Certificate {
  const { above, below, square } = neighbours;
  const distances: Neighbour[] = [];
  if (above) distances.push({ value: above.value - s[0]!, error: above.error });
  if (below) distances.push({ value: s[s.length - 1]! - below.value, error: below.error });
  if (!square) distances.push({ value: s[s.length - 1]!, error: 0 });
  const unit = size > 0 ? size : 1; // of the zero matrix everything is zero
  const residual = largest(residuals) / unit;
  const gap = Math.max(0, Math.min(...distances.map(({ value, error }) => value - error)) / unit);
  const angle = gap === Infinity ? 0 : gap === 0 ? 1 : Math.min(1, residual / gap);
  const tied = Math.min(...distances.map(({ value }) => value)) <= roundingOf(dtype) * size;
  const verdict = tied ? 'tied' : angle <= DETERMINED ? 'determined' : 'sensitive';
  return { method, residual, orthogonality, gap, angle, verdict };
}

/** Angle bounds up to this are no matter of concern. */
const DETERMINED = 1e-5;

export function largest(values: Float64Array): number {
  return values.reduce((x, y) => Math.max(x, y), 0);
}

/** Columns `from … to − 1` of u, values and rows of vt. */
export function slice(
  { u, s, vt }: { u: Matrix; s: Float64Array; vt: Matrix },
  from: number,
  to: number,
): { u: Matrix; s: Float64Array; vt: Matrix } {
  const r = to - from;
  const columns = zeroMatrix(u.rows, r);
  for (let i = 0; i < u.rows; i++) {
    for (let j = 0; j < r; j++) columns.data[i * r + j] = u.data[i * u.cols + from + j]!;
  }
  return {
    u: columns,
    s: s.slice(from, to),
    vt: { rows: r, cols: vt.cols, data: vt.data.slice(from * vt.cols, to * vt.cols) },
  };
}
