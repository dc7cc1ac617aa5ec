import { TensorError } from './errors.js';

/**
 * Element types. Arithmetic happens in f32; i32 holds ids and positions; f64 holds results of linalg; bf16, f16 (kept as raw
 * 16-bit patterns) and int8 are storage formats that `cast`, `matmul` and `gatherRows` read.
 *
 * int8 is symmetric with one scale per row: x[r, c] ≈ scale[r] · q[r, c], q whole from −127 to 127, scale[r] = max|x[r]| / 127.
 * Its memory, on the host and on a backend, holds q row by row and then, from the next multiple of 4 bytes on, the scales in f32.
 */
export type DType = 'f32' | 'f64' | 'i32' | 'bf16' | 'f16' | 'int8';

/** Host memory of a tensor. bf16 and f16 are raw bits in a Uint16Array, int8 is its bytes with the scales behind them. */
export type HostArray = Float32Array | Float64Array | Int32Array | Uint16Array | Int8Array;

/** The host array type of each dtype. */
export interface HostArrayOf {
  f32: Float32Array;
  f64: Float64Array;
  i32: Int32Array;
  bf16: Uint16Array;
  f16: Uint16Array;
  int8: Int8Array;
}

const BYTES: Record<DType, number> = { f32: 4, f64: 8, i32: 4, bf16: 2, f16: 2, int8: 1 };

/** Bytes of one element. */
export function bytesPerElement(dtype: DType): number {
  return BYTES[dtype];
}

/** Entries of the host array of a tensor: its elements, and with int8 the bytes of the scales. */
export function hostLength(dtype: DType, shape: readonly number[]): number {
  const size = shape.reduce((a, b) => a * b, 1);
  return dtype === 'int8' ? scalesAt(size) + 4 * rowsOf(shape) : size;
}

const scalesAt = (size: number): number => Math.ceil(size / 4) * 4;
const rowsOf = (shape: readonly number[]): number => shape.slice(0, -1).reduce((a, b) => a * b, 1);

/** A zeroed host array of `length` elements of `dtype`. */
export function allocHost<D extends DType>(dtype: D, length: number): HostArrayOf[D];
export function allocHost(dtype: DType, length: number): HostArray {
  switch (dtype) {
    case 'f32':
      return new Float32Array(length);
    case 'f64':
      return new Float64Array(length);
    case 'i32':
      return new Int32Array(length);
    case 'bf16':
    case 'f16':
      return new Uint16Array(length);
    case 'int8':
      return new Int8Array(length);
  }
}

const scratchFloat = new Float32Array(1);
const scratchBits = new Uint32Array(scratchFloat.buffer);

function bitsOf(x: number): number {
  scratchFloat[0] = x;
  return scratchBits[0]!;
}

function floatOf(bits: number): number {
  scratchBits[0] = bits;
  return scratchFloat[0]!;
}

/** bf16 bits → number: bf16 is the upper half of an f32. */
export function bf16ToNumber(bits: number): number {
  return floatOf((bits << 16) >>> 0);
}

/** number → bf16 bits, round to nearest even, NaN kept quiet (as PyTorch). */
export function numberToBf16(x: number): number {
  if (Number.isNaN(x)) return 0x7fc0;
  const bits = bitsOf(x);
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** f16 (IEEE 754 binary16) bits → number. */
export function f16ToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** number → f16 bits, round to nearest even, overflow to infinity. */
export function numberToF16(x: number): number {
  if (Number.isNaN(x)) return 0x7e00;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const a = Math.abs(x);
  if (a >= 65520) return sign | 0x7c00;
  if (a < 2 ** -14) return sign | roundHalfEven(a * 2 ** 24);
  const exponent = Math.floor(Math.log2(a));
  // log2 may round up just below a power of two
  const e = 2 ** exponent > a ? exponent - 1 : exponent;
  return sign | (((e + 15) << 10) + roundHalfEven((a / 2 ** e - 1) * 1024));
}

function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/**
 * Converts host data between dtypes, with rounding to nearest even for the 16-bit formats and int8, and truncation for i32.
 * Rows of int8 are those of `shape`, which it needs. Throws `dtype` when int8 meets values that are not finite.
 */
export function convertHost<D extends DType>(
  data: HostArray,
  from: DType,
  to: D,
  shape?: readonly number[],
): HostArrayOf[D];
export function convertHost(data: HostArray, from: DType, to: DType, shape?: readonly number[]): HostArray {
  if (from === to) return data;
  if (from === 'int8') return convertHost(dequantize(data as Int8Array, shape), 'f32', to);
  if (to === 'int8') return quantize(convertHost(data, from, 'f32'), shape);
  const out = allocHost(to, data.length);
  const decode = from === 'bf16' ? bf16ToNumber : from === 'f16' ? f16ToNumber : undefined;
  const encode = to === 'bf16' ? numberToBf16 : to === 'f16' ? numberToF16 : undefined;
  for (let i = 0; i < data.length; i++) {
    const x = decode ? decode(data[i]!) : data[i]!;
    out[i] = encode ? encode(x) : x;
  }
  return out;
}

/** The q and the scales of int8 data, as views. */
export function int8Parts(data: Int8Array, shape: readonly number[] = []): { q: Int8Array; scales: Float32Array } {
  const size = shape.reduce((a, b) => a * b, 1);
  if (shape.length === 0 || data.length !== hostLength('int8', shape)) {
    throw new TensorError('dtype', `int8: expected the shape of ${data.length} bytes, got [${shape.join(', ')}]`);
  }
  return {
    q: data.subarray(0, size),
    scales: new Float32Array(data.buffer, data.byteOffset + scalesAt(size), rowsOf(shape)),
  };
}

function dequantize(data: Int8Array, shape: readonly number[] | undefined): Float32Array {
  const { q, scales } = int8Parts(data, shape);
  const columns = shape!.at(-1)!;
  return Float32Array.from(q, (v, i) => scales[Math.floor(i / columns)]! * v);
}

function quantize(x: Float32Array, shape: readonly number[] = [x.length]): Int8Array {
  const data = new Int8Array(hostLength('int8', shape));
  const { q, scales } = int8Parts(data, shape);
  const columns = shape.at(-1)!;
  for (let r = 0; r < scales.length; r++) {
    let top = 0;
    for (let i = r * columns; i < (r + 1) * columns; i++) {
      const size = Math.abs(x[i]!);
      if (!(size < Infinity)) throw new TensorError('dtype', `int8: expected finite values, got ${x[i]} at entry ${i}`);
      if (size > top) top = size;
    }
    scales[r] = top / 127;
    const scale = scales[r]!;
    for (let i = r * columns; i < (r + 1) * columns; i++) {
      // a scale near the smallest numbers is rounded, or even 0
      q[i] = scale === 0 ? 0 : Math.max(-127, Math.min(127, roundHalfEven(x[i]! / scale)));
    }
  }
  return data;
}
