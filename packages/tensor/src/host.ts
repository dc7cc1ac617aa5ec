import type { DType, HostArray } from './dtype.js';

/** A tensor in host memory: what files hold and what `Tensor.fromHost` takes. Row-major. */
export interface HostTensor {
  dtype: DType;
  shape: readonly number[];
  data: HostArray;
}

/** Random access to bytes: a file, a Blob, an HTTP resource with ranges, or memory. */
export interface ByteSource {
  /** For messages: the path or URL. */
  readonly name: string;
  readonly size: number;
  /** The bytes at `offset … offset + length − 1`. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** Named tensors that are read one at a time: a checkpoint on disk, sharded or not. */
export interface TensorSource {
  /** For messages. */
  readonly name: string;
  names(): string[];
  /** Shape and dtype without reading the data; undefined when absent. */
  info(name: string): { dtype: DType; shape: readonly number[] } | undefined;
  /** Reads one tensor. Throws when absent. */
  read(name: string): Promise<HostTensor>;
}

/** Number of elements of a shape; 1 for a scalar. */
export function sizeOf(shape: readonly number[]): number {
  let n = 1;
  for (const d of shape) n *= d;
  return n;
}
