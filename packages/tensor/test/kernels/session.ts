import type { Backend, Storage } from '../../src/backend.js';
import type { DType, HostArray } from '../../src/dtype.js';

/** One kernel call on a backend: uploads operands, keeps them to see that the call leaves them alone, and frees everything. */
export class Session {
  readonly #operands: { storage: Storage; dtype: DType; data: HostArray; replaced: boolean }[] = [];

  constructor(readonly backend: Backend) {}

  upload(data: HostArray, dtype: DType, replaced = false): Storage {
    const storage = this.backend.upload(data, dtype);
    this.#operands.push({ storage, dtype, data, replaced });
    return storage;
  }

  f32(data: Float32Array): Storage {
    return this.upload(data, 'f32');
  }

  i32(data: Int32Array): Storage {
    return this.upload(data, 'i32');
  }

  /** An operand that an update kernel may overwrite. */
  state(data: Float32Array): Storage {
    return this.upload(data, 'f32', true);
  }

  /** Names of operands that changed although the kernel only reads them. */
  async changedOperands(): Promise<number[]> {
    const changed: number[] = [];
    for (const [i, { storage, dtype, data, replaced }] of this.#operands.entries()) {
      if (replaced) continue;
      const now = await this.backend.read(storage, dtype, data.length);
      if (now.length !== data.length || !now.every((x, j) => Object.is(x, data[j]))) changed.push(i);
    }
    return changed;
  }

  /** Frees operands and results, each storage once. */
  free(results: Storage[]): void {
    for (const storage of new Set([...this.#operands.map((o) => o.storage), ...results])) this.backend.free(storage);
  }
}
