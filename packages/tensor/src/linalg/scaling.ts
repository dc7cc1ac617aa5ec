/** Scaling by powers of two, which is exact: it keeps squares and products within the range of float64. */
import { TensorError } from '../errors.js';
import type { Matrix } from './matrix.js';

/** x ← x · 2^exponent, in two steps because the factor itself may be out of range. */
export function scaleByPowerOfTwo(x: Float64Array, exponent: number): void {
  if (exponent === 0) return;
  const half = Math.trunc(exponent / 2);
  const first = 2 ** half;
  const second = 2 ** (exponent - half);
  for (let i = 0; i < x.length; i++) x[i] = x[i]! * first * second;
}

/** Largest magnitude in x; NaN when there is one. */
export function largestMagnitude(x: Float64Array): number {
  let largest = 0;
  for (let i = 0; i < x.length; i++) {
    const size = Math.abs(x[i]!);
    if (!(size <= largest)) largest = size;
    if (size !== size) return size;
  }
  return largest;
}

/** The exponent that brings `largest` to between 1/2 and 2; 0 for zero. */
export function exponentToOne(largest: number): number {
  return largest > 0 ? -Math.floor(Math.log2(largest)) : 0;
}

/** The largest magnitude. Throws `non-finite` for the first NaN or infinity, naming its place. */
export function checkFinite(name: string, { data, cols }: Matrix): number {
  const largest = largestMagnitude(data);
  if (largest < Infinity) return largest;
  const i = data.findIndex((x) => !Number.isFinite(x));
  const where = `[${Math.floor(i / cols)}, ${i % cols}]`;
  throw new TensorError('non-finite', `${name}: expected finite entries, got ${data[i]} at ${where}`);
}
