/**
 * Element types. Arithmetic happens in f32; i32 holds ids and positions; f64 holds results of linalg; bf16 and f16 are
 * storage formats (kept as raw 16-bit patterns) that `cast`, `matmul` and `gatherRows` read.
 */
export type DType = 'f32' | 'f64' | 'i32' | 'bf16' | 'f16';

/** Host memory of a tensor. bf16 and f16 are raw bits in a Uint16Array. */
export type HostArray = Float32Array | Float64Array | Int32Array | Uint16Array;

/** The host array type of each dtype. */
export interface HostArrayOf {
  f32: Float32Array;
  f64: Float64Array;
  i32: Int32Array;
  bf16: Uint16Array;
  f16: Uint16Array;
}

const BYTES: Record<DType, number> = { f32: 4, f64: 8, i32: 4, bf16: 2, f16: 2 };

/** Bytes of one element. */
export function bytesPerElement(dtype: DType): number {
  return BYTES[dtype];
}

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
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

/** Converts host data between dtypes, with rounding to nearest even for the 16-bit formats and truncation for i32. */
export function convertHost<D extends DType>(data: HostArray, from: DType, to: D): HostArrayOf[D];
export function convertHost(data: HostArray, from: DType, to: DType): HostArray {
  if (from === to) return data;
  const out = allocHost(to, data.length);
  const decode = from === 'bf16' ? bf16ToNumber : from === 'f16' ? f16ToNumber : undefined;
  const encode = to === 'bf16' ? numberToBf16 : to === 'f16' ? numberToF16 : undefined;
  for (let i = 0; i < data.length; i++) {
    const x = decode ? decode(data[i]!) : data[i]!;
    out[i] = encode ? encode(x) : x;
  }
  return out;
}
