/**
 * The wasm backend: AssemblyScript kernels over one shared memory, the default on a CPU.
 *
 * Hot kernels are jobs of assembly/index.ts; the few that are not (layout moves, log, tanh, 16-bit encoding) are plain
 * loops over the same memory. What each kernel means is written in backend.ts and, readably, in backends/gpu.
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
  Recording,
  ReduceOp,
  SgdSpec,
  Shape4,
  Storage,
  UnaryOp,
} from '../../backend.js';
import { allocHost, bytesPerElement, convertHost, hostLength } from '../../dtype.js';
import type { DType, HostArray } from '../../dtype.js';
import { TensorError } from '../../errors.js';
import type { Workspace } from '../../linalg/workspace.js';
import { Allocator } from './allocator.js';
import { Recorder } from './recorder.js';
import { WasmRuntime } from './runtime.js';
import type { WasmOptions } from './runtime.js';
import { WasmWorkspace } from './workspace.js';

export type { WasmOptions } from './runtime.js';

/** Numbers of the jobs in assembly/index.ts. */
const JOBS = {
  gemm: 0,
  gemv: 1,
  attention: 2,
  attentionGrad: 3,
  unary: 4,
  affine: 5,
  binary: 6,
  swiglu: 7,
  swigluGrad: 8,
  axpy: 9,
  scaleBy: 10,
  adamw: 11,
  sgd: 12,
  fromBf16: 13,
  softmax: 14,
  softmaxGrad: 15,
  logSoftmax: 16,
  logSoftmaxGrad: 17,
  argmax: 18,
  rmsNorm: 19,
  rmsNormGradInput: 20,
  rmsNormGradWeight: 21,
  crossEntropy: 22,
  crossEntropyGrad: 23,
  sumRows: 24,
  sumColumns: 25,
  rope: 26,
  scatterAddRows: 27,
  attentionFew: 28,
  crossEntropyUpdate: 29,
  squaredNorm: 30,
  gatherRows: 31,
  writeRows: 32,
  dequantizeRows: 33,
} as const;

const UNARY: Partial<Record<UnaryOp, number>> = {
  neg: 0,
  abs: 1,
  exp: 2,
  sqrt: 3,
  rsqrt: 4,
  square: 5,
  sigmoid: 6,
  silu: 7,
  relu: 8,
};
const UNARY_LOOP: Partial<Record<UnaryOp, (x: number) => number>> = { log: Math.log, tanh: Math.tanh };
const BINARY: Record<BinaryOp, number> = { add: 0, sub: 1, mul: 2, div: 3, max: 4, min: 5 };
const TYPES: Partial<Record<DType, number>> = { f32: 0, bf16: 1, f16: 2, int8: 3 };

const BLOCK = 1024; // elements of an elementwise task (assembly/elementwise.ts)
const TILE_ROWS = 6;
const TILE_COLUMNS = 8;
const TERM = 9; // first slot of the terms of a matrix product, and slots of each (assembly/gemm.ts)
const TERM_SLOTS = 9;
const QUERY_BLOCK = 96; // queries of an attention task, a multiple of TILE_ROWS
const GRAD_BLOCK = 48; // queries whose scores the gradient of attention holds at once
const FEW_QUERIES = 4; // so many read keys and values in place
const FEW_ROWS = 4; // products with so many rows read the other operand in place

/** Work below which a second thread costs more than it saves, in elements touched. */
const WORTH = 16_384;
const rowGrain = (columns: number) => Math.max(1, Math.ceil(WORTH / Math.max(1, columns)));

/** A block of wasm memory. `at` is its address; a freed block has address 0. */
interface Block extends Storage {
  at: number;
  /** The recording it was made in, which keeps its memory. */
  owner?: Recorder;
}

/** Creates a wasm backend with its own memory and threads. */
export function createWasmBackend(options: WasmOptions = {}): WasmBackend {
  return new WasmBackend(new WasmRuntime(options));
}

export class WasmBackend implements Backend {
  readonly name = 'wasm';
  readonly synchronous = true;
  private liveBytes = 0;
  private liveBuffers = 0;
  private peakBytes = 0;

  constructor(private readonly runtime: WasmRuntime) {}

  /** Threads in use, and which build of the kernels. */
  get threads(): number {
    return this.runtime.threads;
  }
  get build(): 'relaxed' | 'strict' {
    return this.runtime.build;
  }
  /** Resolves when all threads have started; work may begin before. */
  ready(): Promise<void> {
    return this.runtime.ready();
  }
  /** Ends the threads. */
  close(): Promise<void> {
    return this.runtime.close();
  }

  // ---- memory ----
  /** A block for a kernel's result. Operands that were freed are refused first, so that a refusal leaves nothing behind. */
  private result(elements: number, operands: readonly Storage[], bytesEach = 4): Block {
    for (const operand of operands) this.at(operand);
    return this.alloc(elements, bytesEach);
  }

  private alloc(elements: number, bytesEach = 4): Block {
    const bytes = elements * bytesEach;
    const { recorder: owner } = this.runtime;
    if (owner) {
      const block = { at: owner.alloc(Allocator.rounded(bytes)), bytes: Allocator.rounded(bytes), owner };
      this.made.push(block);
      return block;
    }
    const block: Block = { at: this.runtime.allocator.alloc(bytes), bytes: Allocator.rounded(bytes) };
    this.count(block.bytes);
    return block;
  }

  private count(bytes: number): void {
    this.liveBytes += bytes;
    this.liveBuffers++;
    if (this.liveBytes > this.peakBytes) this.peakBytes = this.liveBytes;
  }

  private discount(bytes: number): void {
    this.liveBytes -= bytes;
    this.liveBuffers--;
  }

  private at(x: Storage): number {
    const { at } = x as Block;
    if (at === 0) throw new TensorError('disposed', 'wasm: expected live memory, got memory that was freed');
    if (this.runtime.recorder) this.note(x as Block, this.runtime.recorder);
    return at;
  }

  private note(block: Block, recorder: Recorder): void {
    recorder.use(block.at);
    if (block.owner !== recorder) this.inputs.add(block);
  }

  /** For kernels that are no job: they would be missing from a replay. */
  private notRecorded(kernel: string): void {
    if (this.runtime.recorder) {
      throw new TensorError(
        'capture',
        `capture: expected kernels that can be recorded, got ${kernel}; call it before or after`,
      );
    }
  }

  private view(x: Storage, dtype: DType, length: number): HostArray {
    const { buffer } = this.runtime.memory;
    const at = this.at(x);
    switch (dtype) {
      case 'f32':
        return new Float32Array(buffer, at, length);
      case 'f64':
        return new Float64Array(buffer, at, length);
      case 'i32':
        return new Int32Array(buffer, at, length);
      case 'bf16':
      case 'f16':
        return new Uint16Array(buffer, at, length);
      case 'int8':
        return new Int8Array(buffer, at, length);
    }
  }

  private floats(x: Storage, length: number): Float32Array {
    const at = this.at(x) / 4;
    return this.runtime.f32.subarray(at, at + length);
  }

  private ints(x: Storage, length: number): Int32Array {
    const at = this.at(x) / 4;
    return this.runtime.i32.subarray(at, at + length);
  }

  upload(data: HostArray, dtype: DType): Storage {
    this.notRecorded('upload');
    const block = this.alloc(data.length, bytesPerElement(dtype));
    this.view(block, dtype, data.length).set(data);
    return block;
  }

  readSync(x: Storage, dtype: DType, length: number): HostArray {
    if (dtype === 'i32') return this.runtime.i32.slice(this.at(x) / 4, this.at(x) / 4 + length);
    const out = allocHost(dtype, length);
    out.set(this.view(x, dtype, length));
    return out;
  }

  async read(x: Storage, dtype: DType, length: number): Promise<HostArray> {
    return this.readSync(x, dtype, length);
  }

  assign(x: Storage, data: HostArray, dtype: DType): Storage {
    this.notRecorded('assign');
    // small tensors are overwritten and read at every step of decoding: a view made for it would cost more than the copy
    if (dtype === 'i32') this.runtime.i32.set(data as Int32Array, this.at(x) / 4);
    else this.view(x, dtype, data.length).set(data);
    return x;
  }

  free(x: Storage): void {
    const block = x as Block;
    if (block.owner?.disposed) return;
    if (block.owner) {
      // its memory belongs to the recording, in which later commands may use it again
      if (this.runtime.recorder === block.owner) block.owner.free(this.at(block));
      else this.at(block);
    } else {
      this.runtime.allocator.free(this.at(block));
      this.discount(block.bytes);
    }
    block.at = 0;
  }

  workspace(): Workspace {
    this.notRecorded('linear algebra');
    const sizes = new Map<number, number>();
    return new WasmWorkspace(this.runtime, {
      alloc: (bytes) => {
        const at = this.runtime.allocator.alloc(bytes);
        sizes.set(at, Allocator.rounded(bytes));
        this.count(sizes.get(at)!);
        return at;
      },
      free: (at) => {
        this.runtime.allocator.free(at);
        this.discount(sizes.get(at)!);
        sizes.delete(at);
      },
    });
  }

  /** Storages from outside that the recording in progress reads or updates. */
  private inputs = new Set<Block>();
  /** Storages made in it. */
  private made: Block[] = [];

  capture(fn: () => void): Recording {
    const { runtime } = this;
    this.notRecorded('capture');
    const recorder = new Recorder((bytes) => {
      const at = runtime.allocator.alloc(bytes);
      this.count(bytes);
      return at;
    });
    const made: Block[] = (this.made = []);
    const freeMemory = (): void => {
      recorder.disposed = true;
      for (const block of made) block.at = 0;
      for (const [at, bytes] of recorder.memory) {
        runtime.allocator.free(at);
        this.discount(bytes);
      }
    };
    runtime.recorder = recorder;
    this.inputs = new Set();
    try {
      fn();
    } catch (error) {
      freeMemory();
      throw error;
    } finally {
      runtime.recorder = undefined;
    }
    const inputs = [...this.inputs];
    const list = runtime.writeCommands(recorder.commands);
    const count = recorder.commands.length;
    let live = true;
    const refuse = (what: string): never => {
      throw new TensorError('disposed', `replay: expected ${what}`);
    };
    return {
      replay: () => {
        if (!live) refuse('a live recording, got one that was disposed');
        for (const input of inputs) if (input.at === 0) refuse('its inputs to live, got memory that was freed');
        runtime.replay(list, count);
      },
      dispose: () => {
        if (!live) return;
        live = false;
        runtime.allocator.free(list);
        freeMemory();
      },
    };
  }

  memory(): MemoryInfo {
    return {
      liveBytes: this.liveBytes,
      liveBuffers: this.liveBuffers,
      peakBytes: this.peakBytes,
      reservedBytes: this.runtime.reservedBytes,
    };
  }

  resetPeak(): void {
    this.peakBytes = this.liveBytes;
  }

  /** Sets integer arguments from slot 0 on. */
  private args(...values: number[]): WasmRuntime {
    for (let i = 0; i < values.length; i++) this.runtime.int(i, values[i]!);
    return this.runtime;
  }

  // ---- elementwise ----
  fill(n: number, value: number): Storage {
    this.notRecorded('fill');
    const y = this.alloc(n);
    this.floats(y, n).fill(value);
    return y;
  }

  unary(op: UnaryOp, x: Storage, n: number): Storage {
    const y = this.result(n, [x]);
    const code = UNARY[op];
    if (code === undefined) {
      this.notRecorded(op);
      const from = this.floats(x, n);
      const to = this.floats(y, n);
      const f = UNARY_LOOP[op]!;
      for (let i = 0; i < n; i++) to[i] = f(from[i]!);
    } else {
      this.args(y.at, this.at(x), n, code).run(JOBS.unary, Math.ceil(n / BLOCK), WORTH / BLOCK);
    }
    return y;
  }

  affine(x: Storage, n: number, scale: number, shift: number): Storage {
    const y = this.result(n, [x]);
    const call = this.args(y.at, this.at(x), n);
    call.float(3, scale);
    call.float(4, shift);
    call.run(JOBS.affine, Math.ceil(n / BLOCK), WORTH / BLOCK);
    return y;
  }

  binary(op: BinaryOp, a: Storage, b: Storage, shape: Shape4, aStrides: Shape4, bStrides: Shape4): Storage {
    const n = shape[0] * shape[1] * shape[2] * shape[3];
    const y = this.result(n, [a, b]);
    const rows = mergeRows(shape, aStrides, bStrides);
    if (rows) {
      const [count, columns, ars, acs, brs, bcs] = rows;
      this.args(y.at, this.at(a), this.at(b), columns, BINARY[op], ars, acs, brs, bcs);
      this.runtime.run(JOBS.binary, count, rowGrain(columns));
      return y;
    }
    this.notRecorded(`${op} over such strides`);
    const f = BINARY_LOOP[op];
    const [from, other, to] = [this.runtime.f32, this.runtime.f32, this.floats(y, n)];
    const [a0, b0] = [this.at(a) / 4, this.at(b) / 4];
    let i = 0;
    for (let p = 0; p < shape[0]; p++)
      for (let q = 0; q < shape[1]; q++)
        for (let r = 0; r < shape[2]; r++) {
          let x = a0 + p * aStrides[0] + q * aStrides[1] + r * aStrides[2];
          let z = b0 + p * bStrides[0] + q * bStrides[1] + r * bStrides[2];
          for (let s = 0; s < shape[3]; s++, x += aStrides[3], z += bStrides[3]) to[i++] = f(from[x]!, other[z]!);
        }
    return y;
  }

  swiglu(gate: Storage, up: Storage, n: number): Storage {
    const y = this.result(n, [gate, up]);
    this.args(y.at, this.at(gate), this.at(up), n).run(JOBS.swiglu, Math.ceil(n / BLOCK), WORTH / BLOCK / 4);
    return y;
  }

  swigluGrad(dy: Storage, gate: Storage, up: Storage, n: number): { gate: Storage; up: Storage } {
    const [dgate, dup] = [this.result(n, [dy, gate, up]), this.result(n, [dy, gate, up])];
    this.args(dgate.at, dup.at, this.at(dy), this.at(gate), this.at(up), n);
    this.runtime.run(JOBS.swigluGrad, Math.ceil(n / BLOCK), WORTH / BLOCK / 4);
    return { gate: dgate, up: dup };
  }

  cast(x: Storage, n: number, from: DType, to: DType): Storage {
    const y = this.result(n, [x], bytesPerElement(to));
    if (from === 'bf16' && to === 'f32') {
      this.args(y.at, this.at(x), n).run(JOBS.fromBf16, Math.ceil(n / BLOCK), WORTH / BLOCK);
    } else {
      this.notRecorded(`a cast from ${from} to ${to}`);
      this.view(y, to, n).set(convertHost(this.view(x, from, n), from, to));
    }
    return y;
  }

  quantizeRows(x: Storage, rows: number, columns: number): Storage {
    this.notRecorded('quantizeRows');
    const shape = [rows, columns];
    const length = hostLength('int8', shape);
    const y = this.result(length, [x], 1);
    this.view(y, 'int8', length).set(convertHost(this.floats(x, rows * columns), 'f32', 'int8', shape));
    return y;
  }

  dequantizeRows(x: Storage, rows: number, columns: number): Storage {
    const y = this.result(rows * columns, [x]);
    this.args(y.at, this.at(x), 0, columns, TYPES.int8!, rows).run(JOBS.dequantizeRows, rows, rowGrain(columns));
    return y;
  }

  // ---- layout ----
  permute(x: Storage, shape: Shape4, perm: Shape4): Storage {
    this.notRecorded('permute');
    const n = shape[0] * shape[1] * shape[2] * shape[3];
    const y = this.result(n, [x]);
    const strides = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1];
    const [s0, s1, s2, s3] = perm.map((d) => strides[d]!) as [number, number, number, number];
    const [n0, n1, n2, n3] = perm.map((d) => shape[d]!) as [number, number, number, number];
    const from = this.floats(x, n);
    const to = this.floats(y, n);
    let i = 0;
    for (let a = 0; a < n0; a++)
      for (let b = 0; b < n1; b++)
        for (let c = 0; c < n2; c++) {
          let at = a * s0 + b * s1 + c * s2;
          for (let d = 0; d < n3; d++, at += s3) to[i++] = from[at]!;
        }
    return y;
  }

  /** Copies `outer` runs of `run` floats, each operand advancing by its own step. */
  private copyRuns(to: number, toStep: number, from: number, fromStep: number, outer: number, run: number): void {
    this.notRecorded('slice, concat and write');
    const { u8 } = this.runtime;
    for (let i = 0; i < outer; i++) {
      const at = from + i * fromStep * 4;
      u8.copyWithin(to + i * toStep * 4, at, at + run * 4);
    }
  }

  slice(x: Storage, outer: number, n: number, inner: number, start: number, count: number): Storage {
    const y = this.result(outer * count * inner, [x]);
    this.copyRuns(y.at, count * inner, this.at(x) + start * inner * 4, n * inner, outer, count * inner);
    return y;
  }

  pad(x: Storage, outer: number, n: number, inner: number, before: number, total: number): Storage {
    const y = this.fill(outer * total * inner, 0);
    this.copyRuns(this.at(y) + before * inner * 4, total * inner, this.at(x), n * inner, outer, n * inner);
    return y;
  }

  concat(a: Storage, b: Storage, outer: number, na: number, nb: number, inner: number): Storage {
    const y = this.result(outer * (na + nb) * inner, [a, b]);
    this.copyRuns(y.at, (na + nb) * inner, this.at(a), na * inner, outer, na * inner);
    this.copyRuns(y.at + na * inner * 4, (na + nb) * inner, this.at(b), nb * inner, outer, nb * inner);
    return y;
  }

  gatherRows(table: Storage, dtype: DType, ids: Storage, count: number, rows: number, width: number): Storage {
    const y = this.result(count * width, [table, ids]);
    const call = this.args(y.at, this.at(table), this.at(ids), width, TYPES[dtype]!, rows);
    call.run(JOBS.gatherRows, count, rowGrain(width));
    return y;
  }

  scatterAddRows(dy: Storage, ids: Storage, count: number, rows: number, width: number): Storage {
    const y = this.fill(rows * width, 0);
    this.args(this.at(y), this.at(dy), this.at(ids), count, rows, width);
    this.runtime.run(JOBS.scatterAddRows, Math.ceil(width / 4), Math.ceil(WORTH / Math.max(1, count * 4)));
    return y;
  }

  // ---- reductions and rows ----
  reduce(op: ReduceOp, x: Storage, outer: number, n: number, inner: number): Storage {
    const y = this.result(outer * inner, [x]);
    if (op === 'sum' && inner === 1) {
      this.args(y.at, this.at(x), n).run(JOBS.sumRows, outer, rowGrain(n));
    } else if (op === 'sum') {
      this.args(y.at, this.at(x), n, inner);
      this.runtime.run(JOBS.sumColumns, outer * Math.ceil(inner / 4), rowGrain(4 * n));
    } else {
      this.notRecorded(op);
      const from = this.floats(x, outer * n * inner);
      const to = this.floats(y, outer * inner).fill(-Infinity);
      for (let o = 0; o < outer; o++)
        for (let j = 0; j < n; j++)
          for (let i = 0; i < inner; i++) {
            to[o * inner + i] = Math.max(to[o * inner + i]!, from[(o * n + j) * inner + i]!);
          }
    }
    return y;
  }

  squaredNorm(parts: readonly { x: Storage; n: number }[]): Storage {
    const { list, blocks } = this.list(parts, ({ x }) => [x]);
    const sums = this.alloc(blocks, 8);
    this.args(list.at, parts.length, sums.at).run(JOBS.squaredNorm, blocks, WORTH / BLOCK);
    const y = this.fill(
      1,
      (this.view(sums, 'f64', blocks) as Float64Array).reduce((a, b) => a + b, 0),
    );
    this.free(list);
    this.free(sums);
    return y;
  }

  argmax(x: Storage, rows: number, columns: number): Storage {
    const y = this.result(rows, [x]);
    this.args(y.at, this.at(x), columns).run(JOBS.argmax, rows, rowGrain(columns));
    return y;
  }

  softmax(x: Storage, rows: number, columns: number): Storage {
    const y = this.result(rows * columns, [x]);
    this.args(y.at, this.at(x), columns).run(JOBS.softmax, rows, rowGrain(columns * 4));
    return y;
  }

  softmaxGrad(dy: Storage, y: Storage, rows: number, columns: number): Storage {
    const dx = this.result(rows * columns, [dy, y]);
    this.args(dx.at, this.at(dy), this.at(y), columns).run(JOBS.softmaxGrad, rows, rowGrain(columns));
    return dx;
  }

  logSoftmax(x: Storage, rows: number, columns: number): Storage {
    const y = this.result(rows * columns, [x]);
    this.args(y.at, this.at(x), columns).run(JOBS.logSoftmax, rows, rowGrain(columns * 4));
    return y;
  }

  logSoftmaxGrad(dy: Storage, y: Storage, rows: number, columns: number): Storage {
    const dx = this.result(rows * columns, [dy, y]);
    this.args(dx.at, this.at(dy), this.at(y), columns).run(JOBS.logSoftmaxGrad, rows, rowGrain(columns * 4));
    return dx;
  }

  rmsNorm(x: Storage, weight: Storage, rows: number, columns: number, eps: number): { y: Storage; inv: Storage } {
    const [y, inv] = [this.result(rows * columns, [x, weight]), this.result(rows, [x, weight])];
    const call = this.args(y.at, inv.at, this.at(x), this.at(weight), columns);
    call.float(5, eps);
    call.run(JOBS.rmsNorm, rows, rowGrain(columns));
    return { y, inv };
  }

  rmsNormGradInput(dy: Storage, x: Storage, weight: Storage, inv: Storage, rows: number, columns: number): Storage {
    const dx = this.result(rows * columns, [dy, x, weight, inv]);
    this.args(dx.at, this.at(dy), this.at(x), this.at(weight), this.at(inv), columns);
    this.runtime.run(JOBS.rmsNormGradInput, rows, rowGrain(columns));
    return dx;
  }

  rmsNormGradWeight(dy: Storage, x: Storage, inv: Storage, rows: number, columns: number): Storage {
    const dw = this.result(columns, [dy, x, inv]);
    this.args(dw.at, this.at(dy), this.at(x), this.at(inv), rows, columns);
    this.runtime.run(JOBS.rmsNormGradWeight, Math.ceil(columns / 4), rowGrain(rows * 4));
    return dw;
  }

  crossEntropy(logits: Storage, labels: Storage, rows: number, columns: number): { loss: Storage; lse: Storage } {
    const [loss, lse] = [this.result(rows, [logits, labels]), this.result(rows, [logits, labels])];
    this.args(loss.at, lse.at, this.at(logits), this.at(labels), columns);
    this.runtime.run(JOBS.crossEntropy, rows, rowGrain(columns * 4));
    return { loss, lse };
  }

  crossEntropyGrad(
    dloss: Storage,
    logits: Storage,
    labels: Storage,
    lse: Storage,
    rows: number,
    columns: number,
  ): Storage {
    const dlogits = this.result(rows * columns, [dloss, logits, labels, lse]);
    this.args(dlogits.at, this.at(dloss), this.at(logits), this.at(labels), this.at(lse), columns);
    this.runtime.run(JOBS.crossEntropyGrad, rows, rowGrain(columns * 4));
    return dlogits;
  }

  // ---- matrix products and LLaMA ----
  /** `matmul` of a few rows with stored weights, whose rows are read in place; further products follow one by one. */
  private fewRows(
    a: Storage,
    b: Storage,
    spec: MatmulSpec,
    into: Storage | undefined,
    plus: readonly MatmulTerm[],
  ): Storage {
    const { m, n, k } = spec;
    const c = (into as Block | undefined) ?? this.result(m * n, [a, b]);
    if (m * n > 0) {
      this.runtime.ensureGemvScratch(m, k);
      const call = this.args(this.at(c), this.at(a), this.at(b), m, n, k, TYPES[spec.dtypeB]!, into ? 1 : 0);
      call.float(8, spec.alpha);
      call.run(JOBS.gemv, Math.ceil(n / 4), Math.max(1, Math.ceil(32_768 / (4 * m * k + 1))));
    }
    for (const term of plus) this.matmul(term.a, term.b, { ...spec, ...term }, c);
    return c;
  }

  /** Slots of one term. `columnsA` and `columnsB`: elements from one step of k to the next; 0 where k runs along rows. */
  private matmulTerm(
    first: number,
    a: Storage,
    b: Storage,
    k: number,
    columnsA: number,
    columnsB: number,
    dtypeB: DType,
    alpha: number,
  ): void {
    const call = this.runtime;
    call.int(first, this.at(a));
    call.int(first + 1, this.at(b));
    call.int(first + 2, k);
    call.int(first + 3, columnsA > 0 ? 1 : k);
    call.int(first + 4, columnsA > 0 ? columnsA : 1);
    call.int(first + 5, columnsB > 0 ? columnsB : 1);
    call.int(first + 6, columnsB > 0 ? 1 : k);
    call.int(first + 7, TYPES[dtypeB]!);
    call.float(first + 8, alpha);
  }

  matmul(a: Storage, b: Storage, spec: MatmulSpec, into?: Storage, plus: readonly MatmulTerm[] = []): Storage {
    const { batch, m, n, k, transposeA, transposeB, strideA, strideB } = spec;
    for (const term of plus) {
      this.at(term.a);
      this.at(term.b);
    }
    if (m <= FEW_ROWS && batch === 1 && transposeB && !transposeA) return this.fewRows(a, b, spec, into, plus);
    const c = (into as Block | undefined) ?? this.result(batch * m * n, [a, b]);
    if (batch * m * n === 0) return c;
    const call = this.args(this.at(c), m, n, into ? 1 : 0);
    call.int(6, 1 + plus.length);
    call.int(7, strideA);
    call.int(8, strideB);
    this.matmulTerm(TERM, a, b, k, transposeA ? m : 0, transposeB ? 0 : n, spec.dtypeB, spec.alpha);
    let first = TERM;
    for (const term of plus) {
      first += TERM_SLOTS;
      this.matmulTerm(first, term.a, term.b, term.k, 0, term.transposeB ? 0 : n, term.dtypeB, term.alpha);
    }
    // cut the longer side: each thread then packs its own part of it, and only the shorter operand twice
    const rows = m > n;
    const tiles = rows ? Math.ceil(m / TILE_ROWS) : Math.ceil(n / TILE_COLUMNS);
    call.int(4, rows ? 1 : 0);
    call.int(5, tiles);
    const perTile = (rows ? TILE_ROWS * n : TILE_COLUMNS * m) * k;
    call.run(JOBS.gemm, batch * tiles, Math.max(1, Math.ceil(65_536 / (perTile + 1))));
    return c;
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
    const y = this.result(tokens * heads * headDim, [x, positions, cos, sin]);
    const call = this.args(y.at, this.at(x), this.at(positions), this.at(cos), this.at(sin), heads, headDim);
    call.float(7, inverse ? -1 : 1);
    call.run(JOBS.rope, tokens, rowGrain(heads * headDim));
    return y;
  }

  private attentionArgs(
    q: Storage,
    k: Storage,
    v: Storage,
    ranges: Storage,
    out: Storage,
    lse: Storage,
    spec: AttentionSpec,
    block: number,
  ): WasmRuntime {
    const { batch, queries, keys, heads, kvHeads, headDim } = spec;
    const call = this.args(this.at(q), this.at(k), this.at(v), this.at(ranges), this.at(out), this.at(lse));
    [batch, queries, keys, heads, kvHeads, headDim].forEach((size, i) => call.int(6 + i, size));
    call.float(12, spec.scale);
    call.int(13, block);
    return call;
  }

  attention(q: Storage, k: Storage, v: Storage, ranges: Storage, spec: AttentionSpec): { out: Storage; lse: Storage } {
    const { batch, queries, heads, headDim, keys } = spec;
    const [out, lse] = [
      this.result(batch * queries * heads * headDim, [q, k, v, ranges]),
      this.result(batch * heads * queries, [q, k, v, ranges]),
    ];
    this.runtime.ensureAttentionScratch(keys, headDim);
    const call = this.attentionArgs(q, k, v, ranges, out, lse, spec, QUERY_BLOCK);
    const few = queries <= FEW_QUERIES;
    const tasks = batch * heads * (few ? queries : Math.ceil(queries / QUERY_BLOCK));
    const perTask = (few ? 1 : Math.min(queries, QUERY_BLOCK)) * keys * headDim;
    call.run(few ? JOBS.attentionFew : JOBS.attention, tasks, Math.max(1, Math.ceil(WORTH / (perTask + 1))));
    return { out, lse };
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
    const { batch, queries, keys, heads, kvHeads, headDim } = spec;
    const dq = this.result(batch * queries * heads * headDim, [dout, q, k, v, ranges, out, lse]);
    const perHead = batch * keys * heads * headDim;
    let [dk, dv] = [this.alloc(perHead), this.alloc(perHead)];
    this.runtime.ensureAttentionGradScratch(keys, headDim, GRAD_BLOCK);
    const call = this.attentionArgs(q, k, v, ranges, out, lse, spec, GRAD_BLOCK);
    [this.at(dout), dq.at, dk.at, dv.at].forEach((at, i) => call.int(14 + i, at));
    const perTask = queries * keys * headDim;
    call.run(JOBS.attentionGrad, batch * heads, Math.max(1, Math.ceil(WORTH / (perTask + 1))));
    if (heads !== kvHeads) {
      const summed = [dk, dv].map((of) => {
        const total = this.reduce('sum', of, batch * keys * kvHeads, heads / kvHeads, headDim) as Block;
        this.free(of);
        return total;
      });
      [dk, dv] = summed as [Block, Block];
    }
    return { q: dq, k: dk, v: dv };
  }

  // ---- updates ----
  crossEntropyUpdate(
    logits: Storage,
    labels: Storage,
    rows: number,
    columns: number,
    scale: number,
  ): { loss: Storage; logits: Storage } {
    const loss = this.result(rows, [logits, labels]);
    const call = this.args(loss.at, this.at(logits), this.at(labels), columns);
    call.float(4, scale);
    call.run(JOBS.crossEntropyUpdate, rows, rowGrain(columns * 4));
    return { loss, logits };
  }

  axpy(y: Storage, x: Storage, n: number, alpha: number): Storage {
    const call = this.args(this.at(y), this.at(x), n);
    call.float(3, alpha);
    call.run(JOBS.axpy, Math.ceil(n / BLOCK), WORTH / BLOCK);
    return y;
  }

  write(y: Storage, x: Storage, outer: number, n: number, inner: number, start: number, count: number): Storage {
    this.copyRuns(this.at(y) + start * inner * 4, n * inner, this.at(x), count * inner, outer, count * inner);
    return y;
  }

  writeRows(y: Storage, x: Storage, positions: Storage, batch: number, T: number, S: number, width: number): Storage {
    const call = this.args(this.at(y), this.at(x), this.at(positions), T, S, width);
    call.run(JOBS.writeRows, batch * T, rowGrain(width));
    return y;
  }

  scaleBy(y: Storage, factor: Storage, n: number): Storage {
    this.args(this.at(y), this.at(factor), n).run(JOBS.scaleBy, Math.ceil(n / BLOCK), WORTH / BLOCK);
    return y;
  }

  adamw(parts: readonly AdamWPart[], spec: AdamWSpec, factor?: Storage): AdamWPart[] {
    const scale = factor ? this.at(factor) : 0;
    const { list, blocks } = this.list(parts, ({ p, g, m, v }) => [p, g, m, v]);
    const call = this.args(list.at, parts.length, scale);
    const { lr, beta1, beta2, eps, weightDecay, biasCorrection1, biasCorrection2 } = spec;
    const hyper = [1 - lr * weightDecay, beta1, 1 - beta1, beta2, 1 - beta2, lr / biasCorrection1];
    [...hyper, Math.sqrt(biasCorrection2), eps].forEach((value, i) => call.float(5 + i, value));
    call.run(JOBS.adamw, blocks, WORTH / BLOCK / 4);
    this.free(list);
    return [...parts];
  }

  /** A list of parts for a job: elements, first block and addresses of each. */
  private list<Part extends { n: number }>(
    parts: readonly Part[],
    storages: (part: Part) => Storage[],
  ): { list: Block; blocks: number } {
    this.notRecorded('a step of an optimiser');
    let blocks = 0;
    const words = parts.flatMap((part) => {
      const first = blocks;
      blocks += Math.ceil(part.n / BLOCK);
      return [part.n, first, ...storages(part).map((x) => this.at(x))];
    });
    const list = this.alloc(words.length);
    this.ints(list, words.length).set(words);
    return { list, blocks };
  }

  sgd(p: Storage, g: Storage, buf: Storage, n: number, spec: SgdSpec): { p: Storage; buf: Storage } {
    const call = this.args(this.at(p), this.at(g), this.at(buf), n);
    [spec.lr, spec.momentum, 1 - spec.dampening, spec.weightDecay].forEach((value, i) => call.float(4 + i, value));
    call.int(8, spec.nesterov ? 1 : 0);
    call.run(JOBS.sgd, Math.ceil(n / BLOCK), WORTH / BLOCK / 4);
    return { p, buf };
  }
}

const BINARY_LOOP: Record<BinaryOp, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  max: Math.max,
  min: Math.min,
};

/** Rows, columns, and the row and column strides of two operands. */
type Rows = [count: number, columns: number, ars: number, acs: number, brs: number, bcs: number];

/**
 * Folds a rank-4 broadcast into rows × columns, when each operand moves through it by one row stride and a column stride
 * of 0 or 1. A long single row is cut so that threads can share it.
 */
function mergeRows(shape: Shape4, a: Shape4, b: Shape4): Rows | undefined {
  type Dim = { size: number; a: number; b: number };
  const dims: Dim[] = [];
  for (let d = 0; d < 4; d++) {
    if (shape[d] === 0) return [0, 0, 0, 0, 0, 0];
    if (shape[d] === 1) continue;
    const next: Dim = { size: shape[d]!, a: a[d]!, b: b[d]! };
    const last = dims.at(-1);
    if (last && last.a === next.a * next.size && last.b === next.b * next.size) {
      dims[dims.length - 1] = { size: last.size * next.size, a: next.a, b: next.b };
    } else {
      dims.push(next);
    }
  }
  if (dims.length > 2 || dims.some((dim, i) => i === dims.length - 1 && (dim.a > 1 || dim.b > 1))) return undefined;
  const [row, column] = dims.length === 2 ? dims : [{ size: 1, a: 0, b: 0 }, dims[0] ?? { size: 1, a: 0, b: 0 }];
  if (row!.size === 1 && column!.size >= 2 * BLOCK && column!.size % BLOCK === 0) {
    const { size, a: ac, b: bc } = column!;
    return [size / BLOCK, BLOCK, ac * BLOCK, ac, bc * BLOCK, bc];
  }
  return [row!.size, column!.size, row!.a, column!.a, row!.b, column!.b];
}
