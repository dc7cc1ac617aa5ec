/**
 * Singular subspaces with certificates: r singular triplets of a matrix, and measured evidence of how good they are.
 */
import type { Backend } from '../backend.js';
import type { Matrix } from './matrix.js';
import type { StepsOptions } from './steps.js';

/** How a result was computed. */
export type Method = 'jacobi' | 'tridiagonal' | 'shift-invert' | 'golub-kahan';

/** Evidence for a set of singular triplets, measured on the matrix itself. */
export interface Certificate {
  method: Method;
  /** Largest of ‖A v − s u‖ and ‖Aᵀu − s v‖ over the triplets, relative to ‖A‖. */
  residual: number;
  /** Largest entry of |UᵀU − I| and |VᵀV − I|. */
  orthogonality: number;
  /**
   * Distance from the singular values taken to the nearest one left out, relative to ‖A‖; Infinity when all are taken. The
   * longer side of a matrix that is not square has zeros besides, which are never taken.
   */
  gap: number;
  /**
   * Upper bound on the sine of the largest angle between the computed subspaces and the true ones (Wedin 1972):
   * residual / gap, at most 1.
   */
  angle: number;
  /**
   * `determined`: the angle bound is below 1e-5. `sensitive`: it is not, because the gap is small; another algorithm may find
   * vectors that differ by as much. `tied`: the gap is within the rounding of the input, so that no algorithm can tell which
   * triplets belong to the subspace.
   */
  verdict: 'determined' | 'sensitive' | 'tied';
}

/** Triplets `from … from + r − 1` of the descending order: A v = s u, Aᵀu = s v. */
export interface Subspace {
  /** Index of the first triplet taken, counted from the largest. */
  from: number;
  /** `[m, r]`, orthonormal columns. */
  u: Matrix;
  /** `[r]` descending. */
  s: Float64Array;
  /** `[r, n]`, orthonormal rows. */
  vt: Matrix;
  certificate: Certificate;
}

/** Results kept for another time. Implementations must cope with several processes that write the same key. */
export interface SubspaceCache {
  get(key: string): Promise<Subspace | undefined>;
  set(key: string, value: Subspace): Promise<void>;
}

export interface SubspaceOptions extends StepsOptions {
  /** What the matrix is called in messages. Default `matrix`. */
  name?: string;
  /** Default: the fastest that suits the shape and the request; another one where the result is not good enough. */
  method?: Method;
  /** Where to compute. Default: the default backend, or plain loops when it has no float64 kernels. */
  backend?: Backend;
  /** Largest residual (see `Certificate`) that is acceptable, an error otherwise. Default 1e-7, and none for `singularValues`. */
  tolerance?: number;
  /** Largest angle bound that is acceptable; an error otherwise. */
  angle?: number;
  /** Looked up before, written after. */
  cache?: SubspaceCache;
}
