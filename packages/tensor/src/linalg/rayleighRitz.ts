/**
 * From a subspace to singular triplets: Rayleigh–Ritz against the matrix itself, and the certificate measured on it.
 *
 * For an orthonormal basis Y `[k, d]` of (about) a left singular subspace of B `[k, n]`, k ≤ n, the small decomposition
 * YᵀB = P S Vᵀ gives u = Y P with uᵀB = S Vᵀ to rounding; what is left over, B v − u s, is the residual.
 */
import type { DType } from '../dtype.js';
import { distanceFromIdentity, transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
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
  /** B v − u s `[k, d]`, in the workspace, if they were to be kept. */
  differences?: Matrix;
}

/**
 * Triplets of b in the span of the rows of y `[d, k]`, which are orthonormal and in the workspace; the results are on the host. Products
 * with B are with columns, which the kernels like better than rows as long as these.
 */
export function* rayleighRitz(b: View, y: Matrix, workspace: Workspace, keep = false): Steps<Triplets> {
  const projected = workspace.matrix(b.cols, y.rows);
  yield { stage: 'rayleigh-ritz', done: 0 };
  workspace.multiply(viewOf(projected), transposed(b), transposed(viewOf(y)));
  // (YᵀB)ᵀ = V S Pᵀ
  const { u: v, s, vt: pt } = yield* jacobiSvd(projected, workspace);
  const coordinates = transposed(workspace.load({ dtype: 'f64', shape: [pt.rows, pt.cols], data: pt.data }));
  const u = workspace.matrix(y.cols, y.rows);
  workspace.multiply(viewOf(u), transposed(viewOf(y)), coordinates);
  // Bᵀu without another product with B
  const image = workspace.matrix(b.cols, y.rows);
  workspace.multiply(viewOf(image), viewOf(projected), coordinates);
  for (const m of [coordinates, projected]) workspace.free(m);
  yield { stage: 'certificate', done: 0.8 };
  const host: Matrix = { ...u, data: u.data.slice() };
  const vt = transposeMatrix(v);
  const evidence = measure(b, host, s, vt, workspace, { image, keep });
  for (const m of [u, image]) workspace.free(m);
  return { u: host, s, vt, ...evidence };
}

interface MeasureOptions {
  /** Bᵀu `[n, d]`, computed unless it is given, and overwritten. */
  image?: Matrix;
  /** Whether to keep the differences. */
  keep?: boolean;
}

/** Residuals and orthogonality of triplets of b. */
export function measure(
  b: View,
  u: Matrix,
  s: Float64Array,
  vt: Matrix,
  workspace: Workspace,
  { image, keep = false }: MeasureOptions = {},
): Pick<Triplets, 'residuals' | 'orthogonality' | 'differences'> {
  const [x, y] = [u, vt].map(({ rows, cols, data }) => workspace.load({ dtype: 'f64', shape: [rows, cols], data }));
  const d = s.length;
  const product = (left: View, right: View): Matrix => {
    const out = workspace.matrix(left.rows, right.cols);
    workspace.multiply(viewOf(out), left, right);
    return out;
  };
  // B v against u s, and Bᵀu against v s
  const bv = product(b, transposed(y!));
  const right = distances(bv, s, viewOf(u));
  if (!keep) workspace.free(bv);
  const own = image ?? product(transposed(b), x!);
  const left = distances(own, s, transposed(viewOf(vt)));
  if (!image) workspace.free(own);
  const orthogonality = orthogonalityOf([transposed(x!), y!], workspace);
  for (const m of [x!, y!]) workspace.free(m);
  const residuals = Float64Array.from({ length: d }, (_, i) => Math.max(left[i]!, right[i]!));
  return { residuals, orthogonality, ...(keep ? { differences: bv } : {}) };
}

/** Largest entry of |X Xᵀ − I| among matrices X of orthonormal rows. */
export function orthogonalityOf(matrices: readonly View[], workspace: Workspace): number {
  let worst = 0;
  for (const x of matrices) {
    const gram = workspace.matrix(x.rows, x.rows);
    workspace.multiply(viewOf(gram), x, transposed(x));
    worst = Math.max(worst, distanceFromIdentity(gram));
    workspace.free(gram);
  }
  return worst;
}

/** a ← a − b · diag(s), both `[n, d]`; returns the norms of the columns. */
function distances(a: Matrix, s: Float64Array, b: View): Float64Array {
  const squares = new Float64Array(s.length);
  for (let i = 0, t = 0; i < a.rows; i++) {
    let at = b.at + i * b.rowStride;
    for (let j = 0; j < s.length; j++, t++, at += b.colStride) {
      const difference = a.data[t]! - s[j]! * b.data[at]!;
      a.data[t] = difference;
      squares[j] = squares[j]! + difference * difference;
    }
  }
  return squares.map(Math.sqrt);
}

/** Differences below this share of ‖A‖ are within the rounding of the input. */
function roundingOf(dtype: DType): number {
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
  // of all residuals together, which is what the theorem takes
  const all = Math.sqrt(residuals.reduce((sum, x) => sum + x * x, 0)) / unit;
  const angle = gap === Infinity ? 0 : gap === 0 ? 1 : Math.min(1, all / gap);
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
