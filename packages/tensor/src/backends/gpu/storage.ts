import type { MemoryInfo, Storage } from '../../backend.js';
import { bytesPerElement, type DType, type HostArray } from '../../dtype.js';
import { TensorError } from '../../errors.js';
import type { Eventual } from './kernel.js';

/** Memory of the gpu backend: a host array in the type of its dtype, or the promise of one on webgpu. */
export class GpuStorage implements Storage {
  readonly bytes: number;

  constructor(
    /** Undefined once freed. */
    public data: Eventual<HostArray> | undefined,
    readonly dtype: DType,
    readonly length: number,
  ) {
    this.bytes = length * bytesPerElement(dtype);
  }
}

/** Keeps the books: what lives, and how much at most. */
export class Memory {
  #liveBytes = 0;
  #liveBuffers = 0;
  #peakBytes = 0;

  constructor(readonly owner: string) {}

  allocate(data: Eventual<HostArray>, dtype: DType, length: number): GpuStorage {
    const storage = new GpuStorage(data, dtype, length);
    this.#liveBytes += storage.bytes;
    this.#liveBuffers += 1;
    this.#peakBytes = Math.max(this.#peakBytes, this.#liveBytes);
    return storage;
  }

  free(x: Storage): void {
    this.dataOf(x);
    this.#liveBytes -= x.bytes;
    this.#liveBuffers -= 1;
    (x as GpuStorage).data = undefined;
  }

  /** The contents of a storage. Throws when it is freed or not one of ours. */
  dataOf(x: Storage): Eventual<HostArray> {
    const data = this.storageOf(x).data;
    if (data === undefined) {
      throw new TensorError('disposed', `${this.owner}: expected a live storage, got one that was freed`);
    }
    return data;
  }

  storageOf(x: Storage): GpuStorage {
    if (x instanceof GpuStorage) return x;
    throw new TensorError('wrong-backend', `${this.owner}: expected a storage of this backend, got another's`);
  }

  /** Host arrays come and go with their storages, so nothing is reserved beyond what lives. */
  info(): MemoryInfo {
    return {
      liveBytes: this.#liveBytes,
      liveBuffers: this.#liveBuffers,
      peakBytes: this.#peakBytes,
      reservedBytes: this.#liveBytes,
    };
  }

  resetPeak(): void {
    this.#peakBytes = this.#liveBytes;
  }
}
