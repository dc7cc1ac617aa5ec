/**
 * The GPU.js backend. The kernels next to this file are the readable definition of every kernel in the contract
 * (`../../backend.ts`); here they get their shapes, and composed ones are put together from several.
 *
 * Storages are host arrays: GPU.js copies arguments in and results out on every call. It computes in f32 only, so ids travel
 * as f32 (exact below 2^24), bf16 and f16 as the numbers of their bit patterns, and f64 is converted on the host.
 */
import type {
  AdamWSpec,
  AttentionSpec,
  Backend,
  BinaryOp,
  MatmulSpec,
  MemoryInfo,
  ReduceOp,
  SgdSpec,
  Shape4,
  Storage,
  UnaryOp,
} from '../../backend.js';
import { allocHost, convertHost, type DType, type HostArray } from '../../dtype.js';
import { TensorError } from '../../errors.js';
import * as attention from './attention.js';
import * as bits from './bits.js';
import * as elementwise from './elementwise.js';
import { KernelRunner, whenReady, type Eventual, type GpuMode, type View } from './kernel.js';
import * as layout from './layout.js';
import { matmulKernels } from './matmul.js';
import { rope } from './rope.js';
import * as rows from './rows.js';
import { GpuStorage, Memory } from './storage.js';
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

/** Results up to here are summed in one pass; longer ones in two (see `rows.sumStep`). */
const LONG_SUM = 1024;
/** `strided` divides the index of a plane, which must stay exact in f32. */
const MAX_PLANES = 2 ** 22;

type Floats = Eventual<Float32Array>;

class GpuBackend implements Backend {
  readonly name: string;
  readonly synchronous: boolean;
  readonly #memory: Memory;
  readonly #runner: KernelRunner;
  /** Runs a kernel: result size innermost first, constants, arguments. */
  readonly #run: KernelRunner['run'];

  constructor(mode: GpuMode) {
    this.name = `gpu/${mode}`;
    this.synchronous = mode !== 'webgpu';
    this.#memory = new Memory(this.name);
    this.#runner = new KernelRunner(mode);
    this.#run = (kernel, size, constants, ...args) =>
      // nothing to compute: GPU.js knows no size 0
      size.includes(0) ? new Float32Array(0) : this.#runner.run(kernel, size, constants, ...args);
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
    return this.#store(this.#run(elementwise.fill, [n], {}, value), n);
  }

  unary(op: UnaryOp, x: Storage, n: number): Storage {
    return this.#store(this.#run(elementwise.unaryKernels[op], [n], {}, this.#view(x, n)), n);
  }

  affine(x: Storage, n: number, scale: number, shift: number): Storage {
    return this.#store(this.#run(elementwise.affine, [n], {}, this.#view(x, n), scale, shift), n);
  }

  binary(op: BinaryOp, a: Storage, b: Storage, shape: Shape4, aStrides: Shape4, bStrides: Shape4): Storage {
    const n = count(shape);
    const x = this.#strided(a, shape, aStrides);
    const y = this.#strided(b, shape, bStrides);
    return this.#store(this.#run(elementwise.binaryKernels[op], [n], {}, view(x, n), view(y, n)), n);
  }

  swiglu(gate: Storage, up: Storage, n: number): Storage {
    return this.#store(this.#run(elementwise.swiglu, [n], {}, this.#view(gate, n), this.#view(up, n)), n);
  }

  swigluGrad(dy: Storage, gate: Storage, up: Storage, n: number): { gate: Storage; up: Storage } {
    const [d, g, u] = [this.#view(dy, n), this.#view(gate, n), this.#view(up, n)];
    return {
      gate: this.#store(this.#run(elementwise.swigluGradGate, [n], {}, d, g, u), n),
      up: this.#store(this.#run(elementwise.swigluGradUp, [n], {}, g, d), n),
    };
  }

  cast(x: Storage, n: number, from: DType, to: DType): Storage {
    const data = this.#memory.dataOf(x);
    if (is16(from) && to === 'f32') return this.#store(this.#decode(this.#view(x, n), from), n);
    if (from === 'f32' && is16(to)) {
      const { units, fraction, top } = bits.formats[to];
      const patterns = this.#run(bits.encode16, [n], { fraction, top }, this.#view(x, n), view(units, units.length));
      return this.#memory.allocate(
        whenReady(patterns, (p) => Uint16Array.from(p)),
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
    const { units, fraction, top } = bits.formats[dtype];
    return this.#run(bits.decode16, [n], { fraction, top }, { ...patterns, size: [n] }, view(units, units.length));
  }

  // ---- layout ----

  permute(x: Storage, shape: Shape4, perm: Shape4): Storage {
    const strides = denseStrides(shape);
    const pick = (of: Shape4): Shape4 => [of[at(perm, 0)]!, of[at(perm, 1)]!, of[at(perm, 2)]!, of[at(perm, 3)]!];
    return this.#store(this.#strided(x, pick(shape), pick(strides)), count(shape));
  }
