/**
 * Tensor: a shape, a dtype, and memory on a backend.
 *
 * Dense and row-major. `reshape` shares the memory, which is freed with its last tensor. A tensor belongs to the scope it
 * was made in (scope.ts) and is freed with it unless it is returned or kept; a FinalizationRegistry catches strays.
 */
import type { Backend, Storage } from './backend.js';
import { getBackend } from './context.js';
import { allocHost, convertHost, hostLength } from './dtype.js';
import type { DType, HostArray, HostArrayOf } from './dtype.js';
import { TensorError } from './errors.js';
import { sizeOf } from './host.js';
import type { HostTensor } from './host.js';
import { adopt, release } from './scope.js';
import type { Owned } from './scope.js';

/** Memory shared by a tensor and its reshapes. */
class Handle {
  references = 1;
  constructor(
    readonly backend: Backend,
    public storage: Storage,
  ) {}

  drop(): void {
    if (--this.references === 0) this.backend.free(this.storage);
  }
}

const strays = new FinalizationRegistry<Handle>((handle) => handle.drop());

/** Numbers, flat or nested, or a typed array. */
export type TensorData = number | readonly NestedNumbers[] | HostArray;
export type NestedNumbers = number | readonly NestedNumbers[];

export interface TensorOptions<D extends DType = DType> {
  /** Default f32, or that of the typed array given. */
  dtype?: D;
  /** Default: `getBackend()`. */
  backend?: Backend;
}

export class Tensor implements Owned {
  /** @internal */
  owner: Set<Owned> | undefined;
  private handle: Handle | undefined;
  private isStray = false;
  readonly size: number;

  private constructor(
    readonly shape: readonly number[],
    readonly dtype: DType,
    handle: Handle,
  ) {
    this.size = sizeOf(shape);
    this.handle = handle;
    adopt(this);
  }

  /** Wraps storage that a kernel returned; for ops. */
  static wrap(shape: readonly number[], dtype: DType, storage: Storage, backend: Backend): Tensor {
    return new Tensor(shape, dtype, new Handle(backend, storage));
  }

  /** Copies host memory onto a backend. Throws when the data does not fill the shape. */
  static fromHost(host: HostTensor, backend: Backend = getBackend()): Tensor {
    const length = hostLength(host.dtype, host.shape);
    if (host.shape.some((d) => !Number.isInteger(d) || d < 0) || host.data.length !== length) {
      throw new TensorError(
        'shape',
        `tensor: expected ${length} elements for shape [${host.shape.join(', ')}], got ${host.data.length}`,
      );
    }
    return Tensor.wrap([...host.shape], host.dtype, backend.upload(host.data, host.dtype), backend);
  }

  /** The memory behind the tensor; for ops and backends. Throws when the tensor was disposed. */
  get storage(): Storage {
    return this.live().storage;
  }

  get backend(): Backend {
    return this.live().backend;
  }

  get disposed(): boolean {
    return this.handle === undefined;
  }

  /** Whether another tensor (a reshape) uses the same memory: then it must not be changed in place. */
  get shared(): boolean {
    return this.live().references > 1;
  }

  get rank(): number {
    return this.shape.length;
  }

  /** Bytes of the memory behind it. */
  get bytes(): number {
    return this.storage.bytes;
  }

  private live(): Handle {
    if (!this.handle) {
      throw new TensorError(
        'disposed',
        `tensor: expected a live tensor, got one of shape [${this.shape.join(', ')}] that was freed. ` +
          'Return it from its scope, or keep() it.',
      );
    }
    return this.handle;
  }

  /** Puts the result of an update kernel in place of the memory; reshapes of this tensor see it too. */
  replaceStorage(storage: Storage): void {
    const handle = this.live();
    if (storage !== handle.storage) {
      handle.backend.free(handle.storage);
      handle.storage = storage;
    }
  }

  /** Overwrites the elements with as many of the host's. */
  assign(data: HostArray): void {
    const length = hostLength(this.dtype, this.shape);
    if (data.length !== length) {
      throw new TensorError(
        'shape',
        `assign: expected ${length} elements as in [${this.shape.join(', ')}], got ${data.length}`,
      );
    }
    this.replaceStorage(this.backend.assign(this.storage, data, this.dtype));
  }

  /** The same memory under another shape; one size may be −1. Throws when the sizes differ. */
  reshape(...shape: readonly number[]): Tensor {
    const open = shape.indexOf(-1);
    const known = shape.reduce((n, d) => (d === -1 ? n : n * d), 1);
    const full = open < 0 ? [...shape] : shape.map((d, i) => (i === open ? this.size / known : d));
    if (sizeOf(full) !== this.size || full.some((d) => !Number.isInteger(d) || d < 0)) {
      throw new TensorError(
        'shape',
        `reshape: expected ${this.size} elements as in [${this.shape.join(', ')}], got shape [${shape.join(', ')}]`,
      );
    }
    if (this.dtype === 'int8' && full.at(-1) !== this.shape.at(-1)) {
      throw new TensorError(
        'shape',
        `reshape: expected rows of ${this.shape.at(-1)} to stay with int8, got [${full.join(', ')}]`,
      );
    }
    const handle = this.live();
    handle.references++;
    return new Tensor(full, this.dtype, handle);
  }

  /** Frees the memory now, unless a reshape still uses it. Freeing twice is harmless. */
  dispose(): void {
    if (!this.handle) return;
    if (this.isStray) strays.unregister(this);
    release(this);
    const handle = this.handle;
    this.handle = undefined;
    handle.drop();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Takes the tensor out of its scope: it lives until `dispose()` (or until it is garbage). */
  keep(): this {
    release(this);
    this.abandoned();
    return this;
  }

  /** @internal No scope frees it: the garbage collector must. */
  abandoned(): void {
    if (this.isStray || !this.handle) return;
    this.isStray = true;
    strays.register(this, this.handle, this);
  }

  /** Copies the elements to the host. Works on every backend. */
  async data(): Promise<HostArray> {
    return this.backend.read(this.storage, this.dtype, hostLength(this.dtype, this.shape));
  }

  /** The same at once; throws on asynchronous backends. */
  dataSync(): HostArray {
    return this.backend.readSync(this.storage, this.dtype, hostLength(this.dtype, this.shape));
  }

  /** Shape, dtype and elements on the host. */
  async toHost(): Promise<HostTensor> {
    return { shape: this.shape, dtype: this.dtype, data: await this.data() };
  }

  /** The only element of a tensor of size 1. */
  async item(): Promise<number> {
    if (this.size !== 1) throw new TensorError('shape', `item: expected one element, got shape [${this.shape}]`);
    return convertHost(await this.data(), this.dtype, 'f64', this.shape)[0]!;
  }
}

/** Makes a tensor from numbers; the shape is that of the nesting unless given. */
export function tensor(data: TensorData, shape?: readonly number[], options: TensorOptions = {}): Tensor {
  const natural = ArrayBuffer.isView(data) ? dtypeOf(data, options.dtype) : undefined;
  const dtype = options.dtype ?? natural ?? 'f32';
  const { flat, inferred } = flatten(data);
  const host = ArrayBuffer.isView(data) && natural === dtype ? data : encode(flat, dtype, shape ?? inferred);
  return Tensor.fromHost({ shape: shape ?? inferred, dtype, data: host }, options.backend);
}

function encode(flat: ArrayLike<number>, dtype: DType, shape: readonly number[]): HostArray {
  return convertHost(Float64Array.from(flat), 'f64', dtype, shape);
}

/** The dtype that a typed array holds; the raw bits of a 16-bit format hold what is `wanted`. */
function dtypeOf(data: HostArray, wanted: DType | undefined): DType {
  if (data instanceof Float64Array) return 'f64';
  if (data instanceof Int32Array) return 'i32';
  if (data instanceof Int8Array) return 'int8';
  if (data instanceof Uint16Array) {
    if (wanted === 'bf16' || wanted === 'f16') return wanted;
    throw new TensorError('dtype', `tensor: expected dtype bf16 or f16 with a Uint16Array, got ${wanted ?? 'none'}`);
  }
  return 'f32';
}

function flatten(data: TensorData): { flat: ArrayLike<number>; inferred: number[] } {
  if (typeof data === 'number') return { flat: [data], inferred: [] };
  if (ArrayBuffer.isView(data)) return { flat: data, inferred: [data.length] };
  const inferred: number[] = [];
  for (let level: NestedNumbers = data; typeof level !== 'number'; level = level[0]!) {
    inferred.push(level.length);
    if (level.length === 0) break;
  }
  const flat: number[] = [];
  const visit = (value: NestedNumbers, depth: number): void => {
    if (typeof value === 'number' ? depth !== inferred.length : value.length !== inferred[depth]) {
      throw new TensorError(
        'shape',
        `tensor: expected nested arrays of shape [${inferred.join(', ')}], got a ragged one`,
      );
    }
    if (typeof value === 'number') flat.push(value);
    else for (const inner of value) visit(inner, depth + 1);
  };
  visit(data, 0);
  return { flat, inferred };
}

/** A tensor filled with one value (f32). */
export function full(shape: readonly number[], value: number, options: { backend?: Backend } = {}): Tensor {
  const backend = options.backend ?? getBackend();
  return Tensor.wrap([...shape], 'f32', backend.fill(sizeOf(shape), value), backend);
}

export function zeros(shape: readonly number[], options: { backend?: Backend } = {}): Tensor {
  return full(shape, 0, options);
}

export function ones(shape: readonly number[], options: { backend?: Backend } = {}): Tensor {
  return full(shape, 1, options);
}

/** 32-bit whole numbers: ids, labels, positions. */
export function intTensor(
  data: ArrayLike<number>,
  shape?: readonly number[],
  options: { backend?: Backend } = {},
): Tensor {
  const host = allocHost('i32', data.length) as HostArrayOf['i32'];
  host.set(data);
  return Tensor.fromHost({ shape: shape ?? [data.length], dtype: 'i32', data: host }, options.backend);
}
