/**
 * bf16 and f16 in arithmetic: kernels have no access to the bits of a number, so 16-bit patterns travel as the whole numbers
 * 0 … 65535. A pattern is sign · 2¹⁵ + exponent · 2^f + fraction, with f = 7 fraction bits in bf16 and 10 in f16.
 *
 * `powers[e]` is the value of the leading 1 of numbers with exponent e. Exponent 0 (subnormal) shares the power of exponent 1
 * and lacks the leading 1; the last exponent stands for Infinity and NaN.
 */
import type { Thread, Vector } from './thread.js';

interface Format {
  /** 2^f: patterns per exponent. */
  fraction: number;
  /** The exponent of Infinity and NaN. */
  top: number;
  powers: Float32Array;
}

function format(fractionBits: number, exponentBits: number): Format {
  const top = 2 ** exponentBits - 1;
  const bias = 2 ** (exponentBits - 1) - 1;
  const powers = Float32Array.from({ length: top + 1 }, (_, e) => 2 ** (Math.max(e, 1) - bias));
  powers[top] = Infinity;
  return { fraction: 2 ** fractionBits, top, powers };
}

export const formats = { bf16: format(7, 8), f16: format(10, 5) };

/** y = ±(fraction / 2^f + 1) · powers[exponent], without the 1 when the exponent is 0. */
export function decode16(this: Thread<'fraction' | 'top'>, bits: Vector, powers: Vector): number {
  let sign = 1;
  let magnitude = bits[this.thread.x];
  if (magnitude >= 32768) {
    sign = -1;
    magnitude = magnitude - 32768;
  }
  const exponent = Math.floor(magnitude / this.constants.fraction);
  let significand = magnitude - exponent * this.constants.fraction;
  // Infinity · 0 = NaN
  if (exponent === this.constants.top && significand > 0) {
    return powers[exponent] * 0;
  }
  if (exponent > 0) {
    significand = significand + this.constants.fraction;
  }
  return sign * (significand / this.constants.fraction) * powers[exponent];
}

/**
 * The nearest pattern, ties to the even one: with e the exponent of x, |x| = q / 2^f · powers[e] and the pattern is
 * (e − 1) · 2^f + round(q). A q that rounds up to the next power of two carries into the exponent by itself.
 */
export function encode16(this: Thread<'fraction' | 'top'>, x: Vector, powers: Vector): number {
  // only NaN differs from itself
  if (x[this.thread.x] !== x[this.thread.x]) {
    return this.constants.top * this.constants.fraction + this.constants.fraction / 2;
  }
  let sign = 0;
  if (x[this.thread.x] < 0 || 1 / x[this.thread.x] < 0) {
    sign = 32768;
  }
  // bisection for the largest e < top with powers[e] ≤ |x|
  let e = 1;
  let stride = 128;
  for (let i = 0; i < 8; i++) {
    if (e + stride < this.constants.top) {
      if (powers[e + stride] <= Math.abs(x[this.thread.x])) {
        e = e + stride;
      }
    }
    stride = stride / 2;
  }
  const q = (Math.abs(x[this.thread.x]) / powers[e]) * this.constants.fraction;
  let rounded = Math.floor(q);
  if (q - rounded > 0.5 || (q - rounded === 0.5 && rounded - 2 * Math.floor(rounded / 2) === 1)) {
    rounded = rounded + 1;
  }
  return sign + Math.min((e - 1) * this.constants.fraction + rounded, this.constants.top * this.constants.fraction);
}
