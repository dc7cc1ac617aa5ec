/**
 * To and from scijs ndarray, the strided view of host memory: transpositions, slices and steps cost no copy there. ndarray
 * makes its view classes with `new Function`, which a page's content security policy may forbid; nothing else here uses it.
 * Source: https://github.com/scijs/ndarray
 */
import ndarray, { type NdArray } from 'ndarray';
import type { DType } from './dtype.js';
import { TensorError } from './errors.js';
import { sizeOf, type HostTensor } from './host.js';

/** The arrays a view of a host tensor can have. */
export type NdarrayData = Float32Array | Float64Array | Int32Array;

/**
 * A view of a host tensor's memory, not a copy. Throws `dtype` for bf16 and f16, whose raw bits would pass for whole
 * numbers: `convertHost` them to f32 first.
 */
export function toNdarray(host: HostTensor): NdArray<NdarrayData> {
  if (host.data instanceof Uint16Array || host.data instanceof Int8Array) {
    throw new TensorError(
      'dtype',
      `toNdarray: expected dtype f32, f64 or i32, got ${host.dtype}; convertHost makes f32`,
    );
  }
  return ndarray(host.data, [...host.shape]);
}

/**
 * The host tensor of a view: the same memory where the view is row-major already, a row-major copy otherwise. Throws
 * `dtype` unless the view is one of a Float32Array, Float64Array or Int32Array.
 */
export function fromNdarray(view: NdArray<NdarrayData>): HostTensor {
  const { data, shape, stride, offset } = view;
  const dtype = dtypeOf(data);
  const size = sizeOf(shape);
  if (isRowMajor(shape, stride)) return { dtype, shape: [...shape], data: data.subarray(offset, offset + size) };

  const out = new (data.constructor as new (length: number) => NdarrayData)(size);
  const index = shape.map(() => 0);
  let at = offset;
  for (let i = 0; i < size; i++) {
    out[i] = data[at]!;
    // the next index, the last dimension first
    for (let d = shape.length - 1; d >= 0; d--) {
      at += stride[d]!;
      index[d] = index[d]! + 1;
      if (index[d]! < shape[d]!) break;
      at -= stride[d]! * shape[d]!;
      index[d] = 0;
    }
  }
  return { dtype, shape: [...shape], data: out };
}

function dtypeOf(data: unknown): DType {
  if (data instanceof Float32Array) return 'f32';
  if (data instanceof Float64Array) return 'f64';
  if (data instanceof Int32Array) return 'i32';
  const got = (data as object | null)?.constructor?.name ?? typeof data;
  throw new TensorError('dtype', `fromNdarray: expected a Float32Array, Float64Array or Int32Array, got ${got}`);
}

function isRowMajor(shape: readonly number[], stride: readonly number[]): boolean {
  let expected = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    if (shape[d] !== 1 && stride[d] !== expected) return false;
    expected *= shape[d]!;
  }
  return true;
}
