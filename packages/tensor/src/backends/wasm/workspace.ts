/** The workspace of linear algebra in wasm memory: matrices that scripts and kernels see alike, and jobs of assembly/dense.ts. */
import { bytesPerElement, hostLength, type DType, type HostArray } from '../../dtype.js';
import { TensorError } from '../../errors.js';
import type { HostTensor } from '../../host.js';
import type { Matrix } from '../../linalg/matrix.js';
import { checkProduct, type MultiplyOptions, type View, type Workspace } from '../../linalg/workspace.js';
import type { WasmRuntime } from './runtime.js';

/** Numbers of the jobs in assembly/index.ts. */
const JOBS = {
  multiply: 34,
  rowsTimes: 35,
  reflectRows: 36,
  jacobiRound: 37,
  transpose: 38,
  symmetricTimes: 39,
  sumPartial: 40,
  multiplySingle: 41,
  checkFinite: 42,
};
const TYPES: Partial<Record<DType, number>> = { f32: 0, bf16: 1, f16: 2, f64: 4 };
const [MR, STRIP, TRANSPOSED, SUM_BLOCK, CHECKED] = [6, 16, 32, 256, 65536];
/** Columns of a tile in float64 and in float32. */
const [NR, NR_SINGLE] = [4, 8];
/** Work below which a second thread costs more than it saves, in multiply-adds. */
const WORTH = 8192;

/** What a workspace takes from the backend: memory that is accounted for. */
export interface WorkspaceMemory {
  alloc(bytes: number): number;
  free(at: number): void;
}

export class WasmWorkspace implements Workspace {
  private readonly live = new Set<number>();

  constructor(
    private readonly runtime: WasmRuntime,
    private readonly memory: WorkspaceMemory,
  ) {
    runtime.ensureDenseScratch();
  }

  matrix(rows: number, cols: number, zero = true): Matrix {
    const data = this.array('f64', rows * cols) as Float64Array;
    if (zero) data.fill(0);
    return { rows, cols, data };
  }

  load({ data, dtype, shape }: HostTensor): View {
    const [rows, cols] = shape as [number, number];
    const copy = this.array(dtype, hostLength(dtype, shape));
    copy.set(data);
    return { dtype, data: copy, at: 0, rows, cols, rowStride: cols, colStride: 1 };
  }

  rounded({ rows, cols, data }: Matrix): View {
    const copy = this.array('f32', rows * cols);
    copy.set(data);
    return { dtype: 'f32', data: copy, at: 0, rows, cols, rowStride: cols, colStride: 1 };
  }

  private array(dtype: DType, length: number): HostArray {
    const at = this.memory.alloc(length * bytesPerElement(dtype));
    this.live.add(at);
    // the memory is shared: growing it leaves older views of it valid
    const { buffer } = this.runtime.memory;
    if (dtype === 'f64') return new Float64Array(buffer, at, length);
    return dtype === 'f32' ? new Float32Array(buffer, at, length) : new Uint16Array(buffer, at, length);
  }

  free({ data }: { data: HostArray }): void {
    if (!this.live.delete(data.byteOffset)) {
      throw new TensorError('disposed', 'workspace: expected a live matrix of this workspace, got another');
    }
    this.memory.free(data.byteOffset);
  }

  close(): void {
    for (const at of this.live) this.memory.free(at);
    this.live.clear();
  }

  multiply(c: View, a: View, b: View, { sign = 1, only, single = false }: MultiplyOptions = {}): void {
    checkProduct(c, a, b);
    const [m, n, k] = [c.rows, c.cols, a.cols];
    if (m === 0 || n === 0 || k === 0) return;
    const strips = Math.ceil(n / STRIP);
    const wide = single ? NR_SINGLE : NR;
    const [byColumns, byRows] = [Math.ceil(n / wide), Math.ceil(m / MR)];
    const cut = only === 'lower' ? 2 : only === 'upper' ? 3 : byColumns * wide >= byRows * MR ? 0 : 1;
    const tasks = only ? Math.ceil(strips / 2) : cut === 0 ? byColumns : byRows;
    this.ints(0, at(c), c.rowStride, m, n, k);
    this.ints(5, at(a), a.rowStride, a.colStride, TYPES[a.dtype]!);
    this.ints(9, at(b), b.rowStride, b.colStride, TYPES[b.dtype]!, sign < 0 ? 1 : 0, cut, strips);
    this.run(single ? JOBS.multiplySingle : JOBS.multiply, tasks, (m * n * k) / tasks);
  }

  allFinite(a: View): boolean {
    const count = a.rows * a.cols;
    const tasks = Math.ceil(count / CHECKED);
    const flags = this.memory.alloc(tasks * 4);
    this.ints(0, at(a), count, TYPES[a.dtype]!, flags);
    this.run(JOBS.checkFinite, tasks, CHECKED);
    const { i32 } = this.runtime;
    let isFinite = true;
    for (let t = 0; t < tasks; t++) if (i32[flags / 4 + t] !== 0) isFinite = false;
    this.memory.free(flags);
    return isFinite;
  }

  transpose(to: View, from: View): void {
    this.ints(0, at(to), to.rowStride, at(from), from.rowStride, to.rows, to.cols);
    this.run(JOBS.transpose, Math.ceil(to.rows / TRANSPOSED), TRANSPOSED * to.cols);
  }

  rowsTimes(y: View, a: View, x: View): void {
    this.ints(0, at(y), at(a), a.rowStride, a.cols, at(x));
    this.run(JOBS.rowsTimes, a.rows, a.cols);
  }

  symmetricTimes(y: View, a: View, x: View): void {
    const n = a.rows;
    // as many as the size is worth, never as many as there are threads: the bits do not depend on those
    const chunks = Math.max(1, Math.min(16, Math.floor(n / 64)));
    const partial = this.memory.alloc(chunks * n * 8);
    this.ints(0, partial, at(a), a.rowStride, n, at(x), chunks);
    this.run(JOBS.symmetricTimes, chunks, (n * n) / chunks);
    this.ints(0, partial, at(y), 0, n, 0, chunks);
    this.run(JOBS.sumPartial, Math.ceil(n / SUM_BLOCK), SUM_BLOCK * chunks);
    this.memory.free(partial);
  }

  reflectRows(a: View, v: View, tau: number): void {
    this.ints(0, at(a), a.rowStride);
    this.runtime.double(2, tau);
    this.ints(4, at(v), a.cols);
    this.run(JOBS.reflectRows, a.rows, 2 * a.cols);
  }

  jacobiRound(x: Matrix, n: number, pairs: readonly number[], tolerance: number): number {
    const tasks = pairs.length / 2;
    const words = this.memory.alloc((pairs.length + tasks) * 4);
    const { i32 } = this.runtime;
    i32.set(pairs, words / 4);
    const counts = words / 4 + pairs.length;
    this.ints(0, x.data.byteOffset, x.cols, n, x.cols, x.rows, words);
    this.runtime.double(6, tolerance);
    this.ints(8, counts * 4);
    this.run(JOBS.jacobiRound, tasks, WORTH);
    let rotations = 0;
    for (let t = 0; t < tasks; t++) rotations += i32[counts + t]!;
    this.memory.free(words);
    return rotations;
  }

  private ints(slot: number, ...values: number[]): void {
    for (let i = 0; i < values.length; i++) this.runtime.int(slot + i, values[i]!);
  }

  private run(job: number, tasks: number, workOfTask: number): void {
    this.runtime.run(job, tasks, Math.max(1, Math.ceil(WORTH / workOfTask)));
  }
}

/** Address of a view's first entry. */
function at(v: View): number {
  return v.data.byteOffset + v.at * v.data.BYTES_PER_ELEMENT;
}
