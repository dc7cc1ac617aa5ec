/**
 * The GPU.js backend. The kernels next to this file are the readable definition of every kernel in the contract
 * (`../../backend.ts`); here they get their shapes, and composed ones are put together from several.
 *
 * Storages are host arrays: GPU.js copies arguments in and results out on every call. It computes in f32 only, so ids travel
 * as f32 (exact below 2^24), bf16 and f16 as the numbers of their bit patterns, and f64 is converted on the host.
 */
import type {
  AdamWPart,
  AdamWSpec,
  AttentionSpec,
  Backend,
  BinaryOp,
  MatmulSpec,
  MatmulTerm,
  MemoryInfo,
  ReduceOp,
  SgdSpec,
  Shape4,
  Storage,
  UnaryOp,
} from '../../backend.js';
import { allocHost, convertHost, hostLength, int8Parts, type DType, type HostArray } from '../../dtype.js';
import { TensorError } from '../../errors.js';
import * as attention from './attention.js';
import * as bits from './bits.js';
import * as elementwise from './elementwise.js';
import { KernelRunner, whenReady, type Eventual, type GpuMode, type View } from './kernel.js';
import * as layout from './layout.js';
import { matmulKernels } from './matmul.js';
import { rope } from './rope.js';
import * as rows from './rows.js';
import { Memory } from './storage.js';
import * as update from './update.js';

export type { GpuMode } from './kernel.js';

/**
 * A backend that runs GPU.js kernels.
 *
 * @param mode `cpu` (plain JavaScript), `webasm`, `webgl2`, or `webgpu` (results are promises: `readSync` throws).
 * @throws TensorError `backend-unavailable` when this machine lacks what the mode needs.
 */
export function createGpuBackend(mode: GpuMode): Backend {
  return new GpuBackend(mode);
}

/** Up to here reductions take one pass; longer ones take two (see `rows.sumStep`). */
const LONG_SUM = 1024;
/** `strided` divides the index of a plane, which must stay exact in f32. */
const MAX_PLANES = 2 ** 22;

type Floats = Eventual<Float32Array>;

class GpuBackend implements Backend {
  readonly name: string;
  readonly synchronous: boolean;
  readonly #memory: Memory;
  readonly #gpu: KernelRunner;

  constructor(mode: GpuMode) {
    this.name = `gpu/${mode}`;
    this.synchronous = mode !== 'webgpu';
    this.#memory = new Memory(this.name);
    this.#gpu = new KernelRunner(mode);
  }

  // ---- memory ----

  upload(data: HostArray, dtype: DType): Storage {
    const copy = allocHost(dtype, data.length);
    copy.set(data);
    return this.#memory.allocate(copy, dtype, data.length);
  }

  async read(x: Storage, _dtype: DType, length: number): Promise<HostArray> {
    return (await this.#memory.dataOf(x)).slice(0, length);
  }

  readSync(x: Storage, _dtype: DType, length: number): HostArray {
    const data = this.#memory.dataOf(x);
    if (data instanceof Promise) {
      throw new TensorError('asynchronous', `${this.name}: expected a synchronous backend for readSync; use read`);
    }
    return data.slice(0, length);
  }

  assign(x: Storage, data: HostArray, _dtype: DType): Storage {
    this.#memory.storageOf(x).data = data.slice();
    return x;
  }

  free(x: Storage): void {
    this.#memory.free(x);
  }

  memory(): MemoryInfo {
    return this.#memory.info();
  }

  resetPeak(): void {
    this.#memory.resetPeak();
  }

  /** A storage as an argument of a kernel, innermost size first. */
  #view(x: Storage, ...size: number[]): View {
    return { data: whenReady(this.#memory.dataOf(x), toFloats), size };
  }

  /** A new f32 storage. */
  #store(data: Floats, length: number): Storage {
    return this.#memory.allocate(data, 'f32', length);
  }

  /** Puts new contents into an existing storage: all an in-place update needs, since kernels read contents when called. */
  #replace(x: Storage, data: Floats): Storage {
    this.#memory.storageOf(x).data = data;
    return x;
  }

  // ---- elementwise ----

  fill(n: number, value: number): Storage {
    return this.#store(this.#gpu.run(elementwise.fill, [n], {}, value), n);
  }

  unary(op: UnaryOp, x: Storage, n: number): Storage {
    return this.#store(this.#gpu.run(elementwise.unaryKernels[op], [n], {}, this.#view(x, n)), n);
  }

  affine(x: Storage, n: number, scale: number, shift: number): Storage {
    return this.#store(this.#gpu.run(elementwise.affine, [n], {}, this.#view(x, n), scale, shift), n);
  }

  binary(op: BinaryOp, a: Storage, b: Storage, shape: Shape4, aStrides: Shape4, bStrides: Shape4): Storage {
    const n = count(shape);
    const x = this.#strided(a, shape, aStrides);
    const y = this.#strided(b, shape, bStrides);
    return this.#store(this.#gpu.run(elementwise.binaryKernels[op], [n], {}, view(x, n), view(y, n)), n);
  }

  swiglu(gate: Storage, up: Storage, n: number): Storage {
    return this.#store(this.#gpu.run(elementwise.swiglu, [n], {}, this.#view(gate, n), this.#view(up, n)), n);
  }

  swigluGrad(dy: Storage, gate: Storage, up: Storage, n: number): { gate: Storage; up: Storage } {
    const [d, g, u] = [this.#view(dy, n), this.#view(gate, n), this.#view(up, n)];
    return {
      gate: this.#store(this.#gpu.run(elementwise.swigluGradGate, [n], {}, d, g, u), n),
      up: this.#store(this.#gpu.run(elementwise.swigluGradUp, [n], {}, g, d), n),
    };
  }

  cast(x: Storage, n: number, from: DType, to: DType): Storage {
    const data = this.#memory.dataOf(x);
    if (is16(from) && to === 'f32') return this.#store(this.#decode(this.#view(x, n), from), n);
    if (from === 'f32' && is16(to)) {
      const { powers, fraction, top } = bits.formats[to];
      const patterns = this.#gpu.run(
        bits.encode16,
        [n],
        { fraction, top },
        this.#view(x, n),
        view(powers, powers.length),
      );
      return this.#memory.allocate(
        whenReady(patterns, (p) => new Uint16Array(p)),
        to,
        n,
      );
    }
    // i32 and f64 exist on the host only
    return this.#memory.allocate(
      whenReady(data, (values) => convertHost(values.slice(0, n), from, to)),
      to,
      n,
    );
  }

  #decode(patterns: View, dtype: 'bf16' | 'f16'): Floats {
    const n = count(patterns.size);
    const { powers, fraction, top } = bits.formats[dtype];
    return this.#gpu.run(
      bits.decode16,
      [n],
      { fraction, top },
      { ...patterns, size: [n] },
      view(powers, powers.length),
    );
  }

  quantizeRows(x: Storage, rowCount: number, columns: number): Storage {
    const shape = [rowCount, columns];
    const matrix = this.#view(x, columns, rowCount);
    const scales = this.#gpu.run(rows.int8Scale, [rowCount], { columns }, matrix);
    const q = this.#gpu.run(rows.int8Round, [columns, rowCount], {}, matrix, view(scales, rowCount));
    const length = hostLength('int8', shape);
    const packed = whenReady(q, (whole) =>
      whenReady(scales, (scale) => {
        const data = new Int8Array(length);
        const parts = int8Parts(data, shape);
        parts.q.set(whole);
        parts.scales.set(scale);
        return data;
      }),
    );
    return this.#memory.allocate(packed, 'int8', length);
  }

  dequantizeRows(x: Storage, rowCount: number, columns: number): Storage {
    return this.#store(this.#scaled(x, rowCount, columns), rowCount * columns);
  }

  /** The numbers that int8 data stands for. */
  #scaled(x: Storage, rowCount: number, columns: number): Floats {
    const parts = whenReady(this.#memory.dataOf(x), (data) => int8Parts(data as Int8Array, [rowCount, columns]));
    const q = { data: whenReady(parts, (p) => toFloats(p.q)), size: [columns, rowCount] };
    const scales = { data: whenReady(parts, (p) => p.scales), size: [rowCount] };
    return this.#gpu.run(rows.scaleRows, [columns, rowCount], {}, q, scales);
  }

  // ---- layout ----

  permute(x: Storage, shape: Shape4, perm: Shape4): Storage {
    const strides = denseStrides(shape);
    const reorder = (of: Shape4): Shape4 => [of[perm[0]]!, of[perm[1]]!, of[perm[2]]!, of[perm[3]]!];
    return this.#store(this.#strided(x, reorder(shape), reorder(strides)), count(shape));
  }

  /** x read with the given strides, in the dense order of `shape`. */
  #strided(x: Storage, shape: Shape4, strides: Shape4): Floats {
    const { data } = this.#view(x);
    if (shape.every((size, d) => size === 1 || strides[d] === denseStrides(shape)[d])) return data;
    const [d0, d1, d2, d3] = shape;
    const [s0, s1, s2, s3] = strides;
    if (d0 * d1 > MAX_PLANES) {
      throw new TensorError(
        'too-large',
        `${this.name}: expected at most ${MAX_PLANES} planes, got shape [${shape.join(', ')}]`,
      );
    }
    const constants = { d1, s1, s2, s3, step0: s0 - d1 * s1 };
    return this.#gpu.run(layout.strided, [d3, d2, d0 * d1], constants, this.#view(x, this.#memory.storageOf(x).length));
  }

  slice(x: Storage, outer: number, n: number, inner: number, start: number, count: number): Storage {
    const width = count * inner;
    const y = this.#gpu.run(layout.slice, [width, outer], { start: start * inner }, this.#view(x, n * inner, outer));
    return this.#store(y, outer * width);
  }

  pad(x: Storage, outer: number, n: number, inner: number, before: number, total: number): Storage {
    const width = total * inner;
    const columns = { before: before * inner, end: (before + n) * inner };
    const y = this.#gpu.run(layout.pad, [width, outer], columns, this.#view(x, n * inner, outer));
    return this.#store(y, outer * width);
  }

  concat(a: Storage, b: Storage, outer: number, na: number, nb: number, inner: number): Storage {
    const [widthA, widthB] = [na * inner, nb * inner];
    const [left, right] = [this.#view(a, widthA, outer), this.#view(b, widthB, outer)];
    const y = this.#gpu.run(layout.concat, [widthA + widthB, outer], { widthA }, left, right);
    return this.#store(y, outer * (widthA + widthB));
  }

  gatherRows(table: Storage, dtype: DType, ids: Storage, count: number, rows: number, width: number): Storage {
    const size = [width, count];
    const from =
      dtype === 'int8' ? view(this.#scaled(table, rows, width), width, rows) : this.#view(table, width, rows);
    const found = this.#gpu.run(layout.gatherRows, size, {}, from, this.#view(ids, count));
    return this.#store(is16(dtype) ? this.#decode({ data: found, size }, dtype) : found, count * width);
  }

  scatterAddRows(dy: Storage, ids: Storage, count: number, rows: number, width: number): Storage {
    const args = [this.#view(dy, width, count), this.#view(ids, count)] as const;
    return this.#store(this.#gpu.run(layout.scatterAddRows, [width, rows], { count }, ...args), rows * width);
  }

  // ---- reductions and rows ----

  reduce(op: ReduceOp, x: Storage, outer: number, n: number, inner: number): Storage {
    if (n === 0) return this.fill(outer * inner, op === 'sum' ? 0 : -Infinity);
    const step = op === 'sum' ? rows.sumStep : rows.maxStep;
    const size = n > LONG_SUM ? Math.ceil(Math.sqrt(n)) : n;
    const blocks = Math.ceil(n / size);
    let y = this.#gpu.run(step, [inner, blocks, outer], { n, size }, this.#view(x, inner, n, outer));
    if (blocks > 1)
      y = this.#gpu.run(step, [inner, 1, outer], { n: blocks, size: blocks }, view(y, inner, blocks, outer));
    return this.#store(y, outer * inner);
  }

  squaredNorm(parts: readonly { x: Storage; n: number }[]): Storage {
    let total = this.fill(1, 0);
    for (const { x, n } of parts) {
      const squares = this.unary('square', x, n);
      const sum = this.reduce('sum', squares, 1, n, 1);
      const next = this.binary('add', total, sum, [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]);
      for (const used of [squares, sum, total]) this.free(used);
      total = next;
    }
    return total;
  }

  argmax(x: Storage, rowCount: number, columns: number): Storage {
    const index = this.#gpu.run(rows.argmax, [rowCount], { columns }, this.#view(x, columns, rowCount));
    return this.#memory.allocate(
      whenReady(index, (i) => new Int32Array(i)),
      'i32',
      rowCount,
    );
  }

  /** max[r] and Σ exp(x − max[r]) of each row: the two halves of every softmax. */
  #maxAndSum(x: View, rowCount: number, columns: number): { max: View; sum: View } {
    const max = view(
      columns === 0
        ? new Float32Array(rowCount).fill(-Infinity)
        : this.#gpu.run(rows.rowMax, [rowCount], { columns }, x),
      rowCount,
    );
    const sum = view(this.#gpu.run(rows.rowSumExp, [rowCount], { columns }, x, max), rowCount);
    return { max, sum };
  }

  softmax(x: Storage, rowCount: number, columns: number): Storage {
    return this.#fromMaxAndSum(rows.softmax, x, rowCount, columns);
  }

  logSoftmax(x: Storage, rowCount: number, columns: number): Storage {
    return this.#fromMaxAndSum(rows.logSoftmax, x, rowCount, columns);
  }

  #fromMaxAndSum(
    kernel: typeof rows.softmax | typeof rows.logSoftmax,
    x: Storage,
    rowCount: number,
    columns: number,
  ): Storage {
    const matrix = this.#view(x, columns, rowCount);
    const { max, sum } = this.#maxAndSum(matrix, rowCount, columns);
    return this.#store(this.#gpu.run(kernel, [columns, rowCount], {}, matrix, max, sum), rowCount * columns);
  }

  softmaxGrad(dy: Storage, y: Storage, rowCount: number, columns: number): Storage {
    const [d, v] = [this.#view(dy, columns, rowCount), this.#view(y, columns, rowCount)];
    const dot = view(this.#gpu.run(rows.rowDot, [rowCount], { columns }, d, v), rowCount);
    return this.#store(this.#gpu.run(rows.softmaxGrad, [columns, rowCount], {}, d, v, dot), rowCount * columns);
  }

  logSoftmaxGrad(dy: Storage, y: Storage, rowCount: number, columns: number): Storage {
    const [d, v] = [this.#view(dy, columns, rowCount), this.#view(y, columns, rowCount)];
    const sum = view(this.#gpu.run(rows.rowSum, [rowCount], { columns }, d), rowCount);
    return this.#store(this.#gpu.run(rows.logSoftmaxGrad, [columns, rowCount], {}, d, v, sum), rowCount * columns);
  }

  rmsNorm(x: Storage, weight: Storage, rowCount: number, columns: number, eps: number): { y: Storage; inv: Storage } {
    const matrix = this.#view(x, columns, rowCount);
    const inv = this.#gpu.run(rows.rmsInverse, [rowCount], { columns }, matrix, eps);
    const args = [matrix, view(inv, rowCount), this.#view(weight, columns)] as const;
    const y = this.#gpu.run(rows.rmsNorm, [columns, rowCount], {}, ...args);
    return { y: this.#store(y, rowCount * columns), inv: this.#store(inv, rowCount) };
  }

  rmsNormGradInput(dy: Storage, x: Storage, weight: Storage, inv: Storage, rowCount: number, columns: number): Storage {
    const [d, v] = [this.#view(dy, columns, rowCount), this.#view(x, columns, rowCount)];
    const w = this.#view(weight, columns);
    const mean = view(this.#gpu.run(rows.rmsNormGradMean, [rowCount], { columns }, d, v, w), rowCount);
    const args = [d, v, w, this.#view(inv, rowCount), mean] as const;
    return this.#store(this.#gpu.run(rows.rmsNormGradInput, [columns, rowCount], {}, ...args), rowCount * columns);
  }

  rmsNormGradWeight(dy: Storage, x: Storage, inv: Storage, rowCount: number, columns: number): Storage {
    const [d, v] = [this.#view(dy, columns, rowCount), this.#view(x, columns, rowCount)];
    const args = [d, v, this.#view(inv, rowCount)] as const;
    return this.#store(this.#gpu.run(rows.rmsNormGradWeight, [columns], { rows: rowCount }, ...args), columns);
  }

  crossEntropy(logits: Storage, labels: Storage, rowCount: number, columns: number): { loss: Storage; lse: Storage } {
    const matrix = this.#view(logits, columns, rowCount);
    const { max, sum } = this.#maxAndSum(matrix, rowCount, columns);
    const lse = this.#gpu.run(rows.logSumExp, [rowCount], {}, max, sum, -Infinity);
    const loss = this.#gpu.run(rows.crossEntropy, [rowCount], {}, matrix, this.#view(labels, rowCount), max, sum);
    return { loss: this.#store(loss, rowCount), lse: this.#store(lse, rowCount) };
  }

  crossEntropyGrad(
    dloss: Storage,
    logits: Storage,
    labels: Storage,
    lse: Storage,
    rowCount: number,
    columns: number,
  ): Storage {
    const matrix = this.#view(logits, columns, rowCount);
    const [d, l, s] = [this.#view(dloss, rowCount), this.#view(labels, rowCount), this.#view(lse, rowCount)];
    const dlogits = this.#gpu.run(rows.crossEntropyGrad, [columns, rowCount], {}, d, matrix, l, s);
    return this.#store(dlogits, rowCount * columns);
  }

  crossEntropyUpdate(
    logits: Storage,
    labels: Storage,
    rowCount: number,
    columns: number,
    scale: number,
  ): { loss: Storage; logits: Storage } {
    const { loss, lse } = this.crossEntropy(logits, labels, rowCount, columns);
    const weight = this.fill(rowCount, scale);
    const grad = this.crossEntropyGrad(weight, logits, labels, lse, rowCount, columns);
    this.free(weight);
    this.free(lse);
    return { loss, logits: grad };
  }

  // ---- matrix products and LLaMA ----

  matmul(a: Storage, b: Storage, spec: MatmulSpec, into?: Storage, plus: readonly MatmulTerm[] = []): Storage {
    let sum = this.#product(a, b, spec, into);
    for (const term of plus) {
      const { k, transposeB, dtypeB, alpha } = term;
      const more = { ...spec, k, transposeA: false, transposeB, strideA: 0, strideB: 0, dtypeB, alpha };
      const next = this.#product(term.a, term.b, more, sum);
      if (next !== sum && sum !== into) this.free(sum);
      sum = next;
    }
    return sum;
  }

  #product(a: Storage, b: Storage, spec: MatmulSpec, into: Storage | undefined): Storage {
    const { batch, m, n, k, transposeA, transposeB, strideA, strideB, dtypeB, alpha } = spec;
    const total = batch * m * n;
    const [layersA, layersB] = [strideA === 0 ? 1 : batch, strideB === 0 ? 1 : batch];
    const viewA = transposeA ? this.#view(a, m, k, layersA) : this.#view(a, k, m, layersA);
    const sizeB = transposeB ? [k, n, layersB] : [n, k, layersB];
    const floatB =
      dtypeB === 'int8'
        ? view(this.#scaled(b, n, k), ...sizeB)
        : is16(dtypeB)
          ? view(this.#decode(this.#view(b, ...sizeB), dtypeB), ...sizeB)
          : this.#view(b, ...sizeB);
    const constants = { k, stepA: strideA === 0 ? 0 : 1, stepB: strideB === 0 ? 0 : 1 };
    const kernel = matmulKernels[`${transposeA ? 'T' : 'N'}${transposeB ? 'T' : 'N'}`];
    const product = this.#gpu.run(kernel, [n, m, batch], constants, viewA, floatB, alpha);
    if (!into) return this.#store(product, total);
    return this.#replace(
      into,
      this.#gpu.run(elementwise.binaryKernels.add, [total], {}, this.#view(into, total), view(product, total)),
    );
  }

  rope(
    x: Storage,
    positions: Storage,
    cos: Storage,
    sin: Storage,
    tokens: number,
    heads: number,
    headDim: number,
    inverse: boolean,
  ): Storage {
    const half = headDim / 2;
    const maxPositions = this.#memory.storageOf(cos).length / half;
    const y = this.#gpu.run(
      rope,
      [headDim, heads, tokens],
      { half },
      this.#view(x, headDim, heads, tokens),
      this.#view(positions, tokens),
      this.#view(cos, half, maxPositions),
      this.#view(sin, half, maxPositions),
      inverse ? -1 : 1,
    );
    return this.#store(y, tokens * heads * headDim);
  }

  attention(q: Storage, k: Storage, v: Storage, ranges: Storage, spec: AttentionSpec): { out: Storage; lse: Storage } {
    const { batch, queries, keys, heads, kvHeads, headDim } = spec;
    const rowCount = batch * heads * queries;
    const constants = { heads, group: heads / kvHeads, queries, keys };
    const scores = this.#scores(q, k, ranges, spec);
    const { max, sum } = this.#maxAndSum(view(scores, keys, rowCount), rowCount, keys);
    const lse = this.#gpu.run(rows.logSumExp, [rowCount], {}, max, sum, -Infinity);
    const weights = this.#weights(scores, lse, spec);
    const values = this.#view(v, headDim, kvHeads, batch * keys);
    const out = this.#gpu.run(attention.attentionMix, [headDim, heads, batch * queries], constants, weights, values);
    return { out: this.#store(out, rowCount * headDim), lse: this.#store(lse, rowCount) };
  }

  attentionGrad(
    dout: Storage,
    q: Storage,
    k: Storage,
    v: Storage,
    ranges: Storage,
    out: Storage,
    lse: Storage,
    spec: AttentionSpec,
  ): { q: Storage; k: Storage; v: Storage } {
    const { batch, queries, keys, heads, kvHeads, headDim, scale } = spec;
    const [sizeQ, sizeK] = [batch * queries * heads * headDim, batch * keys * kvHeads * headDim];
    const [shapeQ, shapeK] = [
      [headDim, heads, batch * queries],
      [headDim, kvHeads, batch * keys],
    ] as const;
    const constants = { heads, group: heads / kvHeads, queries, keys };
    const [dOut, keyRows, valueRows] = [
      this.#view(dout, ...shapeQ),
      this.#view(k, ...shapeK),
      this.#view(v, ...shapeK),
    ];

    const weights = this.#weights(this.#scores(q, k, ranges, spec), this.#view(lse).data, spec);
    const delta = this.#gpu.run(
      attention.attentionDelta,
      [queries, heads, batch],
      { queries, headDim },
      dOut,
      this.#view(out, ...shapeQ),
    );
    const dScores = view(
      this.#gpu.run(
        attention.attentionGradScores,
        weights.size,
        { ...constants, headDim },
        weights,
        dOut,
        valueRows,
        view(delta, queries, batch * heads),
        scale,
      ),
      ...weights.size,
    );
    const dq = this.#gpu.run(attention.attentionMix, shapeQ, constants, dScores, keyRows);
    const dk = this.#gpu.run(attention.attentionMixBack, shapeK, constants, dScores, this.#view(q, ...shapeQ));
    const dv = this.#gpu.run(attention.attentionMixBack, shapeK, constants, weights, dOut);
    return { q: this.#store(dq, sizeQ), k: this.#store(dk, sizeK), v: this.#store(dv, sizeK) };
  }

  /** Scores of every query against every key, `[B·H, T, S]`. */
  #scores(q: Storage, k: Storage, ranges: Storage, spec: AttentionSpec): Floats {
    const { batch, queries, keys, heads, kvHeads, headDim, scale } = spec;
    return this.#gpu.run(
      attention.attentionScores,
      [keys, queries, batch * heads],
      { heads, group: heads / kvHeads, queries, keys, headDim },
      this.#view(q, headDim, heads, batch * queries),
      this.#view(k, headDim, kvHeads, batch * keys),
      this.#view(ranges, 2, queries, batch),
      scale,
      -Infinity,
    );
  }

  #weights(scores: Floats, lse: Floats, { batch, queries, keys, heads }: AttentionSpec): View {
    const size = [keys, queries, batch * heads];
    const args = [view(scores, ...size), view(lse, queries, batch * heads), -Infinity] as const;
    return view(this.#gpu.run(attention.attentionWeights, size, {}, ...args), ...size);
  }

  // ---- updates: new contents go into the very storage they replace ----

  axpy(y: Storage, x: Storage, n: number, alpha: number): Storage {
    return this.#replace(y, this.#gpu.run(update.axpy, [n], {}, this.#view(y, n), this.#view(x, n), alpha));
  }

  write(y: Storage, x: Storage, outer: number, n: number, inner: number, start: number, count: number): Storage {
    const columns = { start: start * inner, end: (start + count) * inner };
    const args = [this.#view(y, n * inner, outer), this.#view(x, count * inner, outer)] as const;
    return this.#replace(y, this.#gpu.run(layout.write, [n * inner, outer], columns, ...args));
  }

  writeRows(y: Storage, x: Storage, positions: Storage, batch: number, T: number, S: number, width: number): Storage {
    const args = [
      this.#view(y, width, batch * S),
      this.#view(x, width, batch * T),
      this.#view(positions, T, batch),
    ] as const;
    return this.#replace(y, this.#gpu.run(layout.writeRows, [width, batch * S], { T, S }, ...args));
  }

  scaleBy(y: Storage, factor: Storage, n: number): Storage {
    return this.#replace(y, this.#gpu.run(update.scaleBy, [n], {}, this.#view(y, n), this.#view(factor, 1)));
  }

  adamw(parts: readonly AdamWPart[], spec: AdamWSpec, factor?: Storage): AdamWPart[] {
    return parts.map((part) => this.#adamw(part, spec, factor));
  }

  #adamw({ p, g, m, v, n }: AdamWPart, spec: AdamWSpec, factor: Storage | undefined): AdamWPart {
    const { lr, beta1, beta2, eps, weightDecay, biasCorrection1, biasCorrection2 } = spec;
    const raw = this.#view(g, n);
    const grad = factor ? view(this.#gpu.run(update.scaleBy, [n], {}, raw, this.#view(factor, 1)), n) : raw;
    this.#replace(m, this.#gpu.run(update.adamFirstMoment, [n], {}, this.#view(m, n), grad, beta1, 1 - beta1));
    this.#replace(v, this.#gpu.run(update.adamSecondMoment, [n], {}, this.#view(v, n), grad, beta2, 1 - beta2));
    this.#replace(
      p,
      this.#gpu.run(
        update.adamParameter,
        [n],
        {},
        this.#view(p, n),
        this.#view(m, n),
        this.#view(v, n),
        1 - lr * weightDecay,
        lr / biasCorrection1,
        Math.sqrt(biasCorrection2),
        eps,
      ),
    );
    return { p, g, m, v, n };
  }

  sgd(p: Storage, g: Storage, buf: Storage, n: number, spec: SgdSpec): { p: Storage; buf: Storage } {
    const { lr, momentum, dampening, weightDecay, nesterov } = spec;
    const [param, grad] = [this.#view(p, n), this.#view(g, n)];
    const rest = 1 - dampening;
    this.#replace(
      buf,
      this.#gpu.run(update.sgdBuffer, [n], {}, this.#view(buf, n), grad, param, momentum, rest, weightDecay),
    );
    const updated = this.#view(buf, n);
    this.#replace(
      p,
      nesterov
        ? this.#gpu.run(update.sgdParameterNesterov, [n], {}, param, grad, updated, lr, momentum, weightDecay)
        : this.#gpu.run(update.sgdParameter, [n], {}, param, updated, lr),
    );
    return { p, buf };
  }
}

function view(data: Floats, ...size: number[]): View {
  return { data, size };
}

/** Ids and bit patterns as kernels take them. */
function toFloats(data: HostArray): Float32Array {
  return data instanceof Float32Array ? data : new Float32Array(data);
}

function is16(dtype: DType): dtype is 'bf16' | 'f16' {
  return dtype === 'bf16' || dtype === 'f16';
}

function count(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}

/** Strides of a dense row-major shape. */
function denseStrides([, d1, d2, d3]: Shape4): Shape4 {
  return [d1 * d2 * d3, d2 * d3, d3, 1];
}
