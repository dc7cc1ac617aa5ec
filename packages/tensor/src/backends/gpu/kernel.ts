/**
 * Runs kernels: builds each one for the sizes it is called with, keeps it, and moves flat arrays in and out of GPU.js.
 *
 * Kernels are built for fixed sizes (constants, arguments and result), which every mode compiles best; building one costs
 * 1 – 2 ms. They are driven synchronously except on webgpu, where results are promises.
 */
import { GPU, Input, type IGPUKernelSettings } from 'gpu.js';
import { TensorError } from '../../errors.js';
import type { Thread } from './thread.js';

/** Where GPU.js runs the kernels: JavaScript, WebAssembly, a WebGL 2 context or a WebGPU device. */
export type GpuMode = 'cpu' | 'webasm' | 'webgl2' | 'webgpu';

/** A value that an asynchronous device may still owe. */
export type Eventual<T> = T | Promise<T>;

/** `f(value)` now or once it is there. */
export function whenReady<T, U>(value: Eventual<T>, f: (value: T) => Eventual<U>): Eventual<U> {
  if (!(value instanceof Promise)) return f(value);
  const result = value.then(f);
  // a failure is reported by whoever reads the result, not as an unhandled rejection
  result.catch(() => undefined);
  return result;
}

/** Memory seen as an array of up to three dimensions, innermost first as GPU.js counts them. */
export interface View {
  data: Eventual<Float32Array>;
  size: readonly number[];
}

type Arguments<A extends unknown[]> = { [I in keyof A]: A[I] extends number ? number : View };
type AnyKernel = (this: Thread<never>, ...args: never[]) => number;

/** GPU.js's kernel, with the members used here. */
interface BuiltKernel {
  (...args: (Input | number)[]): Eventual<Nested>;
  kernel: { constructor: { mode: string }; fallbackReason?: string | null };
  destroy(): void;
}
type Nested = Float32Array | Nested[];

/** Built kernels kept; the least recently used goes first. On webasm each one reserves 10 GB of address space. */
const CACHE_SIZE = 256;

export class KernelRunner {
  readonly #gpu: GPU & { kernels?: unknown[] };
  readonly #built = new Map<string, BuiltKernel>();
  readonly #ids = new Map<AnyKernel, number>();
  /** Settles when the device is known to exist; undefined when that was known at once. */
  readonly #device: Promise<void> | undefined;

  constructor(readonly mode: GpuMode) {
    requireMode(mode);
    this.#gpu = new GPU({ mode });
    if (mode === 'webgpu') {
      this.#device = GPU.isWebGPUAvailable().then((available) => {
        if (!available) throw unavailable(mode, 'navigator.gpu without an adapter');
      });
      this.#device.catch(() => undefined);
    }
  }

  /**
   * Runs `kernel` once per cell of a result of `size` (innermost first) and returns the flat result.
   * GPU.js knows no size 0: an empty result takes no call, and an empty argument, whose loop runs zero times, gets a placeholder.
   */
  run<Constants extends string, A extends unknown[]>(
    kernel: (this: Thread<Constants>, ...args: A) => number,
    size: readonly number[],
    constants: Record<Constants, number>,
    ...args: Arguments<A>
  ): Eventual<Float32Array> {
    if (size.includes(0)) return new Float32Array(0);
    const values = args as (View | number)[];
    const source = kernel as unknown as AnyKernel;
    if (!this.#device && values.every(isReady)) return this.#call(source, size, constants, values);
    return whenReady(this.#settle(values), (ready) => this.#call(source, size, constants, ready));
  }

  async #settle(args: readonly (View | number)[]): Promise<(View | number)[]> {
    await this.#device;
    return Promise.all(
      args.map(async (arg) => (typeof arg === 'number' ? arg : { data: await arg.data, size: arg.size })),
    );
  }

  #call(
    kernel: AnyKernel,
    size: readonly number[],
    constants: Record<string, number>,
    args: readonly (View | number)[],
  ): Eventual<Float32Array> {
    const built = this.#build(kernel, size, constants, args);
    const inputs = args.map((arg) => (typeof arg === 'number' ? arg : toInput(arg)));
    return whenReady(built(...inputs), (result) => {
      this.#requireNoFallback(kernel.name, built);
      return flatten(result, size);
    });
  }

  #build(
    kernel: AnyKernel,
    size: readonly number[],
    constants: Record<string, number>,
    args: readonly (View | number)[],
  ): BuiltKernel {
    let id = this.#ids.get(kernel);
    if (id === undefined) this.#ids.set(kernel, (id = this.#ids.size));
    const sizes = args.map((arg) => (typeof arg === 'number' ? '' : arg.size.join('×')));
    const key = `${id}|${size.join('×')}|${Object.values(constants).join()}|${sizes.join()}`;

    let built = this.#built.get(key);
    if (built) {
      // a Map keeps the order of insertion: the first key is the least recently used
      this.#built.delete(key);
    } else {
      built = this.#gpu.createKernel(
        kernel as unknown as () => number,
        {
          output: [...size],
          constants,
          // without this GPU.js takes whole numbers for floats, and index arithmetic with them would round above 2^24
          constantTypes: Object.fromEntries(Object.keys(constants).map((name) => [name, 'Integer'])),
          precision: 'single',
          // the default of 1,000 silently cuts longer loops
          loopMaxIterations: 2 ** 31 - 1,
        } as IGPUKernelSettings,
      ) as unknown as BuiltKernel;
    }
    this.#built.set(key, built);
    if (this.#built.size > CACHE_SIZE) this.#evict();
    return built;
  }

  #evict(): void {
    const [key, oldest] = this.#built.entries().next().value!;
    this.#built.delete(key);
    // a WebGPU call may still be in flight: its garbage is collected by the runtime instead
    if (!this.#device) oldest.destroy();
    // GPU.js's own list would keep a cpu kernel alive
    const list = this.#gpu.kernels;
    const index = list?.indexOf(oldest.kernel) ?? -1;
    if (index >= 0) list?.splice(index, 1);
  }

  /** GPU.js answers some problems by quietly running a kernel in JavaScript. */
  #requireNoFallback(name: string, built: BuiltKernel): void {
    const mode = built.kernel.constructor.mode;
    if (mode === this.mode) return;
    throw new TensorError(
      'kernel-fallback',
      `gpu/${this.mode}: expected kernel ${name} to run in mode ${this.mode}, got ${mode} (${built.kernel.fallbackReason ?? 'no reason given'})`,
    );
  }
}

function requireMode(mode: GpuMode): void {
  const modes: Record<GpuMode, () => string | undefined> = {
    cpu: () => undefined,
    webasm: () => (typeof WebAssembly === 'undefined' ? 'no WebAssembly' : undefined),
    webgl2: () => (GPU.isWebGL2Supported ? undefined : 'no WebGL 2 context'),
    webgpu: () => (GPU.isWebGPUSupported ? undefined : 'no navigator.gpu'),
  };
  if (!Object.hasOwn(modes, mode)) {
    throw new TensorError('backend-unavailable', `gpu: expected mode ${Object.keys(modes).join(', ')}, got ${mode}`);
  }
  const missing = modes[mode]();
  if (missing) throw unavailable(mode, missing);
}

function unavailable(mode: GpuMode, found: string): TensorError {
  const device = mode === 'webgl2' ? 'a WebGL 2 context' : mode === 'webgpu' ? 'a WebGPU adapter' : 'WebAssembly';
  return new TensorError(
    'backend-unavailable',
    `gpu/${mode}: expected ${device}, got ${found}; use gpu/webasm, gpu/cpu or wasm here, or a browser with a graphics device`,
  );
}

function isReady(arg: View | number): boolean {
  return typeof arg === 'number' || !(arg.data instanceof Promise);
}

function toInput({ data, size }: View): Input {
  const length = size.reduce((a, b) => a * b, 1);
  const [values, shape] =
    length === 0 ? [new Float32Array(1), size.map(() => 1)] : [(data as Float32Array).subarray(0, length), [...size]];
  // the types ask for number[] and a tuple
  return new Input(values as unknown as number[], shape as [number]);
}

/** The cells of a result in order. GPU.js nests them by dimension; the innermost rows are Float32Arrays. */
function flatten(result: Nested, size: readonly number[]): Float32Array {
  if (result instanceof Float32Array) return result;
  const flat = new Float32Array(size.reduce((a, b) => a * b, 1));
  let offset = 0;
  const copy = (part: Nested): void => {
    if (!(part instanceof Float32Array)) return part.forEach(copy);
    flat.set(part, offset);
    offset += part.length;
  };
  copy(result);
  return flat;
}
