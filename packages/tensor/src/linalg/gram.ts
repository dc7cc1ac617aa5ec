/**
 * The Gram matrix of the shorter side, in float64 whatever the type of the entries: products of float32 numbers are exact there, and
 * the squares of singular values down to 1e-7 of the largest survive. In float32 they would drown from 1e-3 on.
 */
import type { Matrix } from './matrix.js';
import type { Steps } from './steps.js';
import { transposed, viewOf, type View, type Workspace } from './workspace.js';

/** Multiply-adds between two steps, and the depth of a block in assembly/dense.ts, of which pieces are multiples. */
const [WORK, DEPTH] = [2e9, 320];

export interface GramOptions {
  /** Rows may be longer than k. */
  padded?: boolean;
  /** Summed up in float32 over pieces of the depth: where exactness comes later. */
  single?: boolean;
}

/** The lower triangle of b bᵀ, for b `[k, n]`; zeros above. */
export function* gramMatrix(b: View, workspace: Workspace, options: GramOptions = {}): Steps<Matrix> {
  const { padded = false, single = false } = options;
  const k = b.rows;
  const gram = padded ? paddedMatrix(k, k, workspace, true) : workspace.matrix(k, k);
  const square = viewOf(gram, 0, 0, k, k);
  const depth = Math.max(1, Math.ceil(WORK / b.rows ** 2 / DEPTH)) * DEPTH;
  for (let from = 0; from < b.cols; from += depth) {
    yield { stage: 'gram', done: from / b.cols };
    const piece: View = { ...b, at: b.at + from * b.colStride, cols: Math.min(depth, b.cols - from) };
    workspace.multiply(square, piece, transposed(piece), { only: 'lower', single });
  }
  return gram;
}

/** A matrix, of zeros or of anything, whose rows are a little longer where they would else be a power of two apart, and share their places in the caches. */
export function paddedMatrix(rows: number, cols: number, workspace: Workspace, zero: boolean): Matrix {
  return workspace.matrix(rows, cols % 256 === 0 ? cols + 8 : cols, zero);
}
