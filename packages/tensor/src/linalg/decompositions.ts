/**
 * The decompositions a user asks for: whole, singular values only, or the largest, smallest or any other r triplets.
 *
 * Here the input is checked, the method chosen, the result certified, held against what was asked for, and cached. The methods
 * see b `[k, n]` with k ≤ n: the matrix or its transpose, in its own type.
 */
import { convertHost } from '../dtype.js';
import { TensorError } from '../errors.js';
import { fingerprint } from '../hash.js';
import type { HostTensor } from '../host.js';
import { Tensor } from '../tensor.js';
import { fitsGolubKahan, leadingTriplets, suitsGolubKahan } from './leading.js';
import { matrixFromHost, transposeMatrix } from './matrix.js';
import { fitsShiftInvert, minorTriplets, suitsShiftInvert } from './minor.js';
import { certify, largest, measure, slice } from './rayleighRitz.js';
import { exponentToOne, largestMagnitude, scaleByPowerOfTwo } from './scaling.js';
import { part, runSteps, type Steps } from './steps.js';
import type { Method, Subspace, SubspaceOptions } from './subspace.js';
import { fixSigns, jacobiSvd, openWorkspace, type Svd } from './svd.js';
import { tridiagonalSingularValues, tridiagonalSvd } from './tridiagonalSvd.js';
import { DECOMPOSABLE, transposed, type View, type Workspace } from './workspace.js';

/** What can be decomposed: a matrix in f32, f64, bf16 or f16, from 1 × 1 on, all of whose entries are finite. */
export type MatrixInput = Tensor | HostTensor;

/** Changes when results may: part of the key of cached ones. */
const VERSION = 2;
/** Residual that is acceptable unless the caller says otherwise. */
const TOLERANCE = 1e-7;
/** What a matrix is called unless the caller says otherwise. */
const NAME = 'matrix';
/** Shorter sides from which the tridiagonal form pays. */
const LARGE = 96;
/** Shorter sides up to which a full decomposition takes about a second. */
const CHEAP = 1024;

/**
 * The r largest triplets (PiSSA's).
 * @throws TensorError as `windowSubspace`
 */
export function leadingSubspace(a: MatrixInput, r: number, options?: SubspaceOptions): Promise<Subspace> {
  return windowSubspace(a, 0, r, options);
}

/**
 * The r smallest triplets (MiLoRA's), by shift-invert Lanczos where that is faster than a full decomposition.
 * @throws TensorError as `windowSubspace`
 */
export function minorSubspace(a: MatrixInput, r: number, options?: SubspaceOptions): Promise<Subspace> {
  const k = Math.min(...a.shape);
  return windowSubspace(a, k - r, k, options);
}

/** The whole thin decomposition, k = min(m, n) triplets. */
export function svd(a: MatrixInput, options?: SubspaceOptions): Promise<Subspace> {
  return windowSubspace(a, 0, Math.min(...a.shape), options);
}

/**
 * Triplets `from … to − 1` of a `[m, n]`, counted from the largest. The entry of largest magnitude in each column of u is positive.
 * Equal input gives equal output, for any number of threads.
 *
 * @throws TensorError `shape`, `dtype`, `non-finite` for input that cannot be decomposed, `window` unless 0 ≤ from < to ≤ min(m, n),
 *   `tolerance` when the residual or the angle asked for cannot be had; the signal's reason when it aborts
 */
export async function windowSubspace(
  a: MatrixInput,
  from: number,
  to: number,
  options: SubspaceOptions = {},
): Promise<Subspace> {
  const host = a instanceof Tensor ? await a.toHost() : a;
  const name = options.name ?? NAME;
  checkMatrix(host, name);
  const k = Math.min(...host.shape);
  if (!(Number.isInteger(from) && Number.isInteger(to) && from >= 0 && from < to && to <= k)) {
    const window = `${from} to ${to}`;
    throw new TensorError('window', `${name}: expected a window 0 ≤ from < to ≤ ${k} of whole numbers, got ${window}`);
  }
  const key = options.cache && `${await fingerprint(host)} ${from}-${to} ${options.method ?? 'auto'} v${VERSION}`;
  const known = key && (await options.cache!.get(key));
  if (known && isGoodEnough(known, options)) return known;
  const result = await runSteps(decompose(host, from, to, options), options);
  if (!isGoodEnough(result, options)) refuse(result, name, options);
  if (key) await options.cache!.set(key, result);
  return result;
}

/** Singular values, descending, with a bound on their absolute error. */
export interface SingularValues {
  s: Float64Array;
  /** About the most that any of them is off. */
  error: number;
  method: Method;
}

/**
 * All singular values, no vectors. With `tolerance`, relative to the largest, the error is below that.
 * @throws TensorError as `windowSubspace`
 */
export async function singularValues(a: MatrixInput, options: SubspaceOptions = {}): Promise<SingularValues> {
  const host = a instanceof Tensor ? await a.toHost() : a;
  const name = options.name ?? NAME;
  checkMatrix(host, name);
  const result = await runSteps(values(host, options), options);
  const { tolerance } = options;
  if (tolerance !== undefined && result.error > tolerance * result.s[0]!) {
    const got = (result.error / result.s[0]!).toExponential(1);
    throw new TensorError('tolerance', `${name}: expected singular values within ${tolerance} · s₁, got ${got} · s₁`);
  }
  return result;
}

function* values(host: HostTensor, options: SubspaceOptions): Steps<SingularValues> {
  const workspace = openWorkspace(options.backend);
  try {
    const { b, exponent } = load(host, options.name ?? NAME, workspace);
    let result: SingularValues | undefined;
    if (options.method ? options.method === 'tridiagonal' : b.rows >= LARGE) {
      result = { ...(yield* tridiagonalSingularValues(b, workspace)), method: 'tridiagonal' };
    }
    if (!result || (!options.method && result.error > (options.tolerance ?? Infinity) * result.s[0]!)) {
      const { s } = yield* jacobiSvd(matrixOf(host, exponent), workspace);
      result = { s, error: 8 * Number.EPSILON * Math.sqrt(b.rows) * s[0]!, method: 'jacobi' };
    }
    scaleByPowerOfTwo(result.s, -exponent);
    return { ...result, error: result.error * 2 ** -exponent };
  } finally {
    workspace.close();
  }
}

/** Throws unless a tensor is a matrix that can be decomposed. */
function checkMatrix(host: HostTensor, name: string): void {
  const { shape, dtype } = host;
  if (shape.length !== 2 || shape.some((size) => size < 1)) {
    throw new TensorError('shape', `${name}: expected a matrix with at least one entry, got [${shape.join(', ')}]`);
  }
  if (!DECOMPOSABLE.includes(dtype)) {
    throw new TensorError('dtype', `${name}: expected ${DECOMPOSABLE.join(', ')}, got ${dtype}; cast it first`);
  }
}

/** Throws for the first entry that is not finite. */
function refuseNonFinite({ shape, dtype, data }: HostTensor, name: string): never {
  for (let i = 0; ; i++) {
    const value = convertHost(data.slice(i, i + 1), dtype, 'f64')[0]!;
    if (Number.isFinite(value)) continue;
    const where = `[${Math.floor(i / shape[1]!)}, ${i % shape[1]!}]`;
    throw new TensorError('non-finite', `${name}: expected finite entries, got ${value} at ${where}`);
  }
}

/** The matrix with its shorter side first, times 2^exponent: float64 may hold numbers whose squares it cannot. */
function load(host: HostTensor, name: string, workspace: Workspace): { b: View; exponent: number } {
  const a = workspace.load(host);
  if (!workspace.allFinite(a)) refuseNonFinite(host, name);
  let exponent = 0;
  if (host.dtype === 'f64') {
    exponent = exponentToOne(largestMagnitude(host.data as Float64Array));
    if (exponent !== 0) {
      // where the workspace shares its memory with the caller, on the host
      const own = a.data === host.data ? a.data.slice() : a.data;
      scaleByPowerOfTwo(own as Float64Array, exponent);
      a.data = own;
    }
  }
  return { b: a.rows <= a.cols ? a : transposed(a), exponent };
}

function matrixOf(host: HostTensor, exponent: number): ReturnType<typeof matrixFromHost> {
  const m = matrixFromHost(host);
  if (exponent === 0) return m;
  const data = m.data.slice();
  scaleByPowerOfTwo(data, exponent);
  return { ...m, data };
}

/** Tries the methods that suit the request, the fastest first, until one is good enough. */
function* decompose(host: HostTensor, from: number, to: number, options: SubspaceOptions): Steps<Subspace> {
  const workspace = openWorkspace(options.backend);
  try {
    const { b, exponent } = load(host, options.name ?? NAME, workspace);
    const tall = host.shape[0]! > host.shape[1]!;
    let best: Subspace | undefined;
    for (const method of options.method ? [options.method] : methodsFor(b.rows, from, to)) {
      const found = yield* attempt(method, b, host, exponent, from, to, options, workspace);
      if (found && !(best && best.certificate.residual <= found.certificate.residual)) best = found;
      if (best && isGoodEnough(best, options) && !isWorthMore(best, b.rows, options)) break;
    }
    if (!best) {
      throw new TensorError(
        'method',
        `${options.name ?? NAME}: expected a matrix and a window that suit the method ${options.method}, got others; leave the method out`,
      );
    }
    const { u, vt } = best;
    const result = { ...best, u: tall ? transposeMatrix(vt) : u, vt: tall ? transposeMatrix(u) : vt };
    fixSigns(result);
    scaleByPowerOfTwo(result.s, -exponent);
    return result;
  } finally {
    workspace.close();
  }
}

function methodsFor(k: number, from: number, to: number): Method[] {
  const methods: Method[] = [];
  if (to === k && suitsShiftInvert(k, to - from)) methods.push('shift-invert');
  else if (from === 0 && suitsGolubKahan(k, to - from)) methods.push('golub-kahan');
  if (k >= LARGE) methods.push('tridiagonal');
  return [...methods, 'jacobi'];
}

/** One method's result for b; undefined when it is not for this matrix or window. */
function* attempt(
  method: Method,
  b: View,
  host: HostTensor,
  exponent: number,
  from: number,
  to: number,
  options: SubspaceOptions,
  workspace: Workspace,
): Steps<Subspace | undefined> {
  const k = b.rows;
  const square = k === b.cols;
  if (method === 'shift-invert') {
    const found = to === k && fitsShiftInvert(k, to - from) ? yield* minorTriplets(b, to - from, workspace) : undefined;
    if (!found) return undefined;
    const { triplets, guards, size } = found;
    const window = slice(triplets, guards, triplets.s.length);
    const above = { value: triplets.s[guards - 1]!, error: triplets.residuals[guards - 1]! };
    const evidence = { ...triplets, s: window.s, residuals: triplets.residuals.subarray(guards) };
    return { from, ...window, certificate: certify(method, evidence, { above, square }, size, host.dtype) };
  }
  if (method === 'golub-kahan') {
    if (from !== 0 || !fitsGolubKahan(k, to)) return undefined;
    const triplets = yield* leadingTriplets(b, to, options.tolerance ?? TOLERANCE / 10, workspace);
    const window = slice(triplets, 0, to);
    const below = { value: triplets.s[to]!, error: triplets.residuals[to]! };
    const evidence = { ...triplets, s: window.s, residuals: triplets.residuals.subarray(0, to) };
    return { from, ...window, certificate: certify(method, evidence, { below, square }, window.s[0]!, host.dtype) };
  }
  const whole = yield* part(
    method === 'tridiagonal' ? tridiagonalSvd(b, workspace) : jacobiOf(b, host, exponent, workspace),
    0,
    0.95,
  );
  if (!whole) return undefined;
  yield { stage: 'certificate', done: 0.95 };
  const window = slice(whole, from, to);
  const evidence = { s: window.s, ...measure(b, window.u, window.s, window.vt, workspace) };
  // what was left out is as exact as what was taken
  const error = largest(evidence.residuals);
  const above = from === 0 ? undefined : { value: whole.s[from - 1]!, error };
  const below = to === k ? undefined : { value: whole.s[to]!, error };
  return { from, ...window, certificate: certify(method, evidence, { above, below, square }, whole.s[0]!, host.dtype) };
}

/** The Jacobi path, of b rather than of the matrix. */
function* jacobiOf(b: View, host: HostTensor, exponent: number, workspace: Workspace): Steps<Svd> {
  const m = matrixOf(host, exponent);
  return yield* jacobiSvd(b.rows === m.rows ? m : transposeMatrix(m), workspace);
}

/** Whether an exact method may tell what a loose bound leaves open, at little cost. */
function isWorthMore({ certificate }: Subspace, k: number, { tolerance }: SubspaceOptions): boolean {
  return certificate.verdict === 'sensitive' && tolerance === undefined && k <= CHEAP;
}

function isGoodEnough(
  { certificate }: Subspace,
  { tolerance = TOLERANCE, angle = Infinity }: SubspaceOptions,
): boolean {
  return certificate.residual <= tolerance && certificate.angle <= angle;
}

function refuse({ certificate }: Subspace, name: string, { tolerance = TOLERANCE, angle }: SubspaceOptions): never {
  const { residual, gap, verdict } = certificate;
  const [what, wanted, got] =
    residual > tolerance ? ['a residual', tolerance, residual] : ['an angle', angle!, certificate.angle];
  const reason =
    residual > tolerance
      ? 'rounding does not allow less'
      : `the singular values next to the window are only ${gap.toExponential(1)} · ‖A‖ away (${verdict}): choose another rank`;
  throw new TensorError('tolerance', `${name}: expected ${what} ≤ ${wanted}, got ${got.toExponential(1)}; ${reason}`);
}
