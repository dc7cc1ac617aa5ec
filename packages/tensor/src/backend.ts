/**
 * The backend contract: every kernel, its shapes and its exact meaning.
 *
 * Two backends fulfil it: `gpu` (GPU.js: the readable definition of every kernel) and `wasm` (AssemblyScript, the default
 * on a CPU). One property-test suite runs every kernel here on every backend against float64 references.
 *
 * Conventions
 * - All tensors are dense and row-major. Sizes are plain numbers; 0 is allowed wherever a reference loop would allow it.
 * - Unless a kernel says otherwise, operands and results are f32. A kernel never checks shapes: the ops in `src/ops` do.
 * - A kernel returns *new* storage, except the update kernels (`crossEntropyUpdate`, `axpy`, `write`, `writeRows`, `scaleBy`, `adamw`, `sgd`): they return the storages that
 *   replace their first operands, which may be the very same storage, updated in place. The caller drops the old ones if
 *   they differ.
 * - Calls are synchronous; on an asynchronous device a storage is a promise of resident memory, and only `read` waits.
 * - Shape letters: N elements, R rows, C columns, B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head size.
 */
import type { DType, HostArray } from './dtype.js';
import type { Workspace } from './linalg/workspace.js';

/** Memory owned by a backend. Opaque to everyone else. */
export interface Storage {
  /** Bytes held, for accounting. */
  readonly bytes: number;
}

/** Kernel calls that a backend has recorded. */
export interface Recording {
  /** Runs them again on the same storages. Throws `disposed` when one of them was freed. */
  replay(): void;
  /** Frees the recording and every storage that was made in it. */
  dispose(): void;
}

/** What a backend holds at the moment. */
export interface MemoryInfo {
  /** Bytes in live storages. */
  liveBytes: number;
  /** Number of live storages. */
  liveBuffers: number;
  /** Highest `liveBytes` since the start or the last `resetPeak()`. */
  peakBytes: number;
  /** Bytes reserved from the system for all of it. */
  reservedBytes: number;
}

export type UnaryOp =
  'neg' | 'abs' | 'exp' | 'log' | 'sqrt' | 'rsqrt' | 'square' | 'sigmoid' | 'tanh' | 'silu' | 'relu';
export type BinaryOp = 'add' | 'sub' | 'mul' | 'div' | 'max' | 'min';
export type ReduceOp = 'sum' | 'max';

/** C[b] = alpha · op(A[b]) · op(B[b]) + beta · C[b]. */
export interface MatmulSpec {
  batch: number;
  /** Rows of the result. */
  m: number;
  /** Columns of the result. */
  n: number;
  /** The contracted size. */
  k: number;
  /** A is stored `[m, k]`, or `[k, m]` when transposed. */
  transposeA: boolean;
  /** B is stored `[k, n]`, or `[n, k]` when transposed. */
  transposeB: boolean;
  /** Elements from one A to the next: m·k, or 0 when all batches share it. */
  strideA: number;
  /** Elements from one B to the next: k·n, or 0 when all batches share it. */
  strideB: number;
  /** Storage of B: f32, bf16, f16, or int8 when B is transposed and shared. A is f32. */
  dtypeB: DType;
  alpha: number;
}

/** One more product that is added to a matmul without a batch: alpha · A · op(B), A `[m, k]`, B `[k, n]` or, transposed, `[n, k]`. */
export interface MatmulTerm {
  a: Storage;
  b: Storage;
  k: number;
  transposeB: boolean;
  dtypeB: DType;
  alpha: number;
}

/** Shapes of attention: q and out `[B, T, H, D]`, k and v `[B, S, G, D]`, log-sum-exp `[B, H, T]`. */
export interface AttentionSpec {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Multiplies q·k before the softmax, usually 1/√D. */
  scale: number;
}

export interface AdamWSpec {
  lr: number;
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  /** 1 − beta1^step and 1 − beta2^step, step counted from 1. */
  biasCorrection1: number;
  biasCorrection2: number;
}

/** A parameter of `n` elements with its gradient and moments. */
export interface AdamWPart {
  p: Storage;
  g: Storage;
  m: Storage;
  v: Storage;
  n: number;
}

export interface SgdSpec {
  lr: number;
  momentum: number;
  dampening: number;
  weightDecay: number;
  nesterov: boolean;
}

export interface Backend {
  /** `wasm`, `gpu/cpu`, `gpu/webasm`, `gpu/webgl2`, `gpu/webgpu`. */
  readonly name: string;
  /** Whether `readSync` works. */
  readonly synchronous: boolean;

  // ---- memory ----
  /** Copies host data in. */
  upload(data: HostArray, dtype: DType): Storage;
  /** Copies `length` elements out. */
  read(x: Storage, dtype: DType, length: number): Promise<HostArray>;
  readSync(x: Storage, dtype: DType, length: number): HostArray;
  /** Overwrites the elements of x with as many from the host (an update kernel). */
  assign(x: Storage, data: HostArray, dtype: DType): Storage;
  free(x: Storage): void;
  memory(): MemoryInfo;
  /** Memory and operations of linear algebra in float64 (src/linalg), where the backend has them; else they run on the host. */
  workspace?(): Workspace;
  resetPeak(): void;
  /**
   * Runs `fn` as usual and records its kernel calls. A replay gives what `fn` would give if it were run again: on what is then in
   * the storages it reads, into the storages it made, which live as long as the recording. Not every backend has it, and not
   * every kernel can be recorded: the others throw `capture`, as does `upload`, since inputs must exist before.
   */
  capture?(fn: () => void): Recording;

  // ---- elementwise ----
  /** y[i] = value. */
  fill(n: number, value: number): Storage;
  /** y[i] = op(x[i]); silu(x) = x·sigmoid(x). */
  unary(op: UnaryOp, x: Storage, n: number): Storage;
  /** y[i] = scale · x[i] + shift. */
  affine(x: Storage, n: number, scale: number, shift: number): Storage;
  /**
   * y = op(a, b) with broadcasting: `shape` is the result's, of rank exactly 4 (leading ones); `aStrides` and `bStrides`
   * are element strides per dimension, 0 where the operand is broadcast.
   */
  binary(op: BinaryOp, a: Storage, b: Storage, shape: Shape4, aStrides: Shape4, bStrides: Shape4): Storage;
  /** y = silu(gate) · up over N elements (the SwiGLU of LLaMA's MLP). */
  swiglu(gate: Storage, up: Storage, n: number): Storage;
  /** Derivatives of `swiglu`: dgate = dy·up·σ(g)(1 + g(1 − σ(g))), dup = dy·silu(gate). */
  swigluGrad(dy: Storage, gate: Storage, up: Storage, n: number): { gate: Storage; up: Storage };
  /** Converts N elements: between f32 and bf16 / f16 (nearest even), f32 and i32 (truncating), and f32 and f64. */
  cast(x: Storage, n: number, from: DType, to: DType): Storage;
  /** x `[R, C]` in int8 (see DType): scale[r] = max|x[r]| / 127, q = x / scale[r] to the nearest whole number. x is finite. */
  quantizeRows(x: Storage, rows: number, columns: number): Storage;
  /** y = scale[r] · q[r, c] `[R, C]` of int8 x. */
  dequantizeRows(x: Storage, rows: number, columns: number): Storage;

  // ---- layout ----
  /** y[…] = x[…] with dimensions reordered: result dimension d is input dimension `perm[d]`. Rank exactly 4. */
  permute(x: Storage, shape: Shape4, perm: Shape4): Storage;
  /** x `[outer, n, inner]` → y `[outer, count, inner]`, columns start … start + count − 1. */
  slice(x: Storage, outer: number, n: number, inner: number, start: number, count: number): Storage;
  /** x `[outer, n, inner]` → y `[outer, total, inner]`, x at `before`, zeros elsewhere. The derivative of `slice`. */
  pad(x: Storage, outer: number, n: number, inner: number, before: number, total: number): Storage;
  /** a `[outer, na, inner]`, b `[outer, nb, inner]` → `[outer, na + nb, inner]`. */
  concat(a: Storage, b: Storage, outer: number, na: number, nb: number, inner: number): Storage;
  /** y[i, :] = table[ids[i], :]; table `[rows, width]` in f32, bf16, f16 or int8; ids i32 `[count]`, in range. y is f32. */
  gatherRows(table: Storage, dtype: DType, ids: Storage, count: number, rows: number, width: number): Storage;
  /** y `[rows, width]`, y[r, :] = Σ over i with ids[i] = r of dy[i, :], summed in the order of i. */
  scatterAddRows(dy: Storage, ids: Storage, count: number, rows: number, width: number): Storage;

  // ---- reductions and rows ----
  /** x `[outer, n, inner]` → y `[outer, inner]`. An empty sum is 0, an empty max is −Infinity. */
  reduce(op: ReduceOp, x: Storage, outer: number, n: number, inner: number): Storage;
  /** The sum of the squares of all elements of all parts, one f32: the square of a gradient's norm. */
  squaredNorm(parts: readonly { x: Storage; n: number }[]): Storage;
  /** Index (i32) of the first largest entry of each row of x `[R, C]`. */
  argmax(x: Storage, rows: number, columns: number): Storage;
  /** softmax of each row of x `[R, C]`, safe for large entries. */
  softmax(x: Storage, rows: number, columns: number): Storage;
  /** dx = y · (dy − Σ dy·y) per row. */
  softmaxGrad(dy: Storage, y: Storage, rows: number, columns: number): Storage;
  /** log softmax of each row. */
  logSoftmax(x: Storage, rows: number, columns: number): Storage;
  /** dx = dy − exp(y) · Σ dy per row. */
  logSoftmaxGrad(dy: Storage, y: Storage, rows: number, columns: number): Storage;
  /** y = x · inv · weight with inv[r] = 1 / √(mean(x[r]²) + eps); weight `[C]`. Returns y `[R, C]` and inv `[R]`. */
  rmsNorm(x: Storage, weight: Storage, rows: number, columns: number, eps: number): { y: Storage; inv: Storage };
  /** dx = inv · (dy·w − x · inv² · mean(dy·w·x)) per row. */
  rmsNormGradInput(dy: Storage, x: Storage, weight: Storage, inv: Storage, rows: number, columns: number): Storage;
  /** dw[c] = Σ_r dy[r, c] · x[r, c] · inv[r]. */
  rmsNormGradWeight(dy: Storage, x: Storage, inv: Storage, rows: number, columns: number): Storage;
  /**
   * Per row: loss = lse − logits[label], lse = log Σ exp(logits); loss is 0 where the label is negative (ignored).
   * logits `[R, C]`, labels i32 `[R]`. Returns loss `[R]` and lse `[R]`.
   */
  crossEntropy(logits: Storage, labels: Storage, rows: number, columns: number): { loss: Storage; lse: Storage };
  /** dlogits[r, c] = dloss[r] · (exp(logits − lse) − [c = label]), 0 in rows with a negative label. */
  crossEntropyGrad(
    dloss: Storage,
    logits: Storage,
    labels: Storage,
    lse: Storage,
    rows: number,
    columns: number,
  ): Storage;

  // ---- matrix products and LLaMA ----
  /**
   * The result is `[batch, m, n]`; see MatmulSpec. With `into`, the product is added to it and it is returned (an update kernel).
   * The products of `plus` (when batch is 1) are added too: a linear layer and its adapter in one.
   */
  matmul(a: Storage, b: Storage, spec: MatmulSpec, into?: Storage, plus?: readonly MatmulTerm[]): Storage;
  /**
   * Rotary embedding, half-split as in Hugging Face: x `[tokens, heads, D]`, positions i32 `[tokens]`, cos and sin
   * `[maxPositions, D/2]`. For j < D/2, with c, s at (position, j) and s negated when `inverse`:
   * y[j] = x[j]·c − x[j + D/2]·s and y[j + D/2] = x[j + D/2]·c + x[j]·s.
   */
  rope(
    x: Storage,
    positions: Storage,
    cos: Storage,
    sin: Storage,
    tokens: number,
    heads: number,
    headDim: number,
    inverse: boolean,
  ): Storage;
  /**
   * Attention with a window of keys per query: query (b, t) sees keys ranges[b, t, 0] … ranges[b, t, 1] − 1 (i32 `[B, T, 2]`).
   * Query head h reads key/value head floor(h / (H / G)). An empty window gives zeros and lse = −Infinity.
   * out = softmax(scale · q kᵀ) v; lse = the log-sum-exp of scale · q kᵀ.
   */
  attention(q: Storage, k: Storage, v: Storage, ranges: Storage, spec: AttentionSpec): { out: Storage; lse: Storage };
  /** Derivatives of `attention` with respect to q, k and v. */
  attentionGrad(
    dout: Storage,
    q: Storage,
    k: Storage,
    v: Storage,
    ranges: Storage,
    out: Storage,
    lse: Storage,
    spec: AttentionSpec,
  ): { q: Storage; k: Storage; v: Storage };

  // ---- updates: the returned storages replace the operands named in the result ----
  /**
   * Cross-entropy and its derivative in one, for logits that nobody needs afterwards: the loss of each row as `crossEntropy`
   * gives it, and logits ← scale · (softmax(logits) − [c = label]), 0 in rows with a negative label.
   */
  crossEntropyUpdate(
    logits: Storage,
    labels: Storage,
    rows: number,
    columns: number,
    scale: number,
  ): { loss: Storage; logits: Storage };
  /** y ← y + alpha · x. */
  axpy(y: Storage, x: Storage, n: number, alpha: number): Storage;
  /** y[:, start … start + count − 1, :] ← x; y `[outer, n, inner]`, x `[outer, count, inner]`. */
  write(y: Storage, x: Storage, outer: number, n: number, inner: number, start: number, count: number): Storage;
  /** y[b, positions[b, t], :] ← x[b, t, :]; y `[B, S, width]`, x `[B, T, width]`, positions i32 `[B, T]`, different within a b. */
  writeRows(y: Storage, x: Storage, positions: Storage, batch: number, T: number, S: number, width: number): Storage;
  /** y ← y · factor[0]; factor is one f32 on the device (gradient clipping without a read-back). */
  scaleBy(y: Storage, factor: Storage, n: number): Storage;
  /**
   * AdamW with decoupled decay, as PyTorch, over all parts in one pass: p ← p·(1 − lr·weightDecay); m ← β₁m + (1 − β₁)g;
   * v ← β₂v + (1 − β₂)g²; p ← p − lr/bc₁ · m / (√v/√bc₂ + eps). With `factor`, one f32 on the device, g is multiplied
   * by it first: clipping costs no pass of its own. Returns the parts with the storages that replace p, m and v.
   */
  adamw(parts: readonly AdamWPart[], spec: AdamWSpec, factor?: Storage): AdamWPart[];
  /** SGD as PyTorch: g ← g + weightDecay·p; buf ← momentum·buf + (1 − dampening)·g; p ← p − lr·(nesterov ? g + momentum·buf : buf). */
  sgd(p: Storage, g: Storage, buf: Storage, n: number, spec: SgdSpec): { p: Storage; buf: Storage };
}

/** Four sizes or strides, outermost first. */
export type Shape4 = readonly [number, number, number, number];
