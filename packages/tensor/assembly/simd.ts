/** Vector helpers. RELAXED is set by the build: 1 uses fused multiply-add, 0 keeps to standard SIMD. */

// @ts-ignore: decorator
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  // @ts-ignore: RELAXED comes from the command line of the compiler
  if (RELAXED) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

// @ts-ignore: decorator
@inline
export function sum4(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}

// @ts-ignore: decorator
@inline
export function max4(v: v128): f32 {
  return max(max(f32x4.extract_lane(v, 0), f32x4.extract_lane(v, 1)), max(f32x4.extract_lane(v, 2), f32x4.extract_lane(v, 3)));
}

/**
 * e^x with a relative error near 1e-7, for arguments from −87 to 88; others are taken as the nearer end, NaN stays.
 * pmin and pmax are one instruction where min and max are seven.
 */
// @ts-ignore: decorator
@inline
export function expClamped4(x: v128): v128 {
  return expNegative4(f32x4.pmin(x, f32x4.splat(88)));
}

/**
 * The same for arguments up to 88, as they are in a softmax.
 *
 * x = n·ln 2 + r with |r| ≤ ln 2 / 2 (Cody & Waite reduction), 1 + r + r²·p(r) for e^r with the p of degree 4 whose largest
 * relative error is least (3e-9), and 2^n added to the exponent bits. Adding 1.5·2²³ rounds to an integer and leaves it
 * in the low bits, which spares the conversions.
 */
// @ts-ignore: decorator
@inline
export function expNegative4(x: v128): v128 {
  const xc = f32x4.pmax(x, f32x4.splat(-87));
  const shifted = madd(xc, f32x4.splat(1.44269504), f32x4.splat(12582912));
  const n = f32x4.sub(shifted, f32x4.splat(12582912));
  let r = madd(n, f32x4.splat(-0.693359375), xc);
  r = madd(n, f32x4.splat(2.12194440e-4), r);
  let p = f32x4.splat(1.38145394e-3);
  p = madd(p, r, f32x4.splat(8.36874545e-3));
  p = madd(p, r, f32x4.splat(4.16683890e-2));
  p = madd(p, r, f32x4.splat(1.66665211e-1));
  p = madd(p, r, f32x4.splat(4.99999940e-1));
  p = madd(p, f32x4.mul(r, r), f32x4.add(r, f32x4.splat(1)));
  return i32x4.add(p, i32x4.shl(shifted, 23));
}

/** e^x: overflow gives Infinity, underflow 0. */
// @ts-ignore: decorator
@inline
export function exp4(x: v128): v128 {
  const over = f32x4.gt(x, f32x4.splat(88.72283));
  const under = f32x4.lt(x, f32x4.splat(-87));
  // between 88 and the overflow: e^88 · e^(x − 88)
  const high = f32x4.pmax(f32x4.sub(x, f32x4.splat(88)), f32x4.splat(0));
  const y = f32x4.mul(expClamped4(x), expClamped4(high));
  return v128.andnot(v128.bitselect(f32x4.splat(f32.MAX_VALUE * 2), y, over), under);
}

/** 1 / (1 + e^−x). */
// @ts-ignore: decorator
@inline
export function sigmoid4(x: v128): v128 {
  const one = f32x4.splat(1);
  return f32x4.div(one, f32x4.add(one, expClamped4(f32x4.neg(x))));
}

/** The first `count` (1–3) lanes at `p`, the rest zero. */
// @ts-ignore: decorator
@inline
export function loadTail(p: usize, count: i32): v128 {
  let v = f32x4.splat(0);
  v = v128.load32_lane(p, v, 0);
  if (count > 1) v = v128.load32_lane(p, v, 1, 4);
  if (count > 2) v = v128.load32_lane(p, v, 2, 8);
  return v;
}

// @ts-ignore: decorator
@inline
export function storeTail(p: usize, v: v128, count: i32): void {
  v128.store32_lane(p, v, 0);
  if (count > 1) v128.store32_lane(p, v, 1, 4);
  if (count > 2) v128.store32_lane(p, v, 2, 8);
}

/** ln x for positive x: x = 2^e·m with m in [√½, √2), then the series of artanh((m − 1)/(m + 1)), in f64. */
export function log1(x: f32): f32 {
  const bits = reinterpret<u64>(<f64>x);
  let e = <i32>(bits >> 52) - 1023;
  let m = reinterpret<f64>((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    e++;
  }
  const s = (m - 1) / (m + 1), z = s * s;
  const series = 1 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13 + z / 15))))));
  return <f32>(<f64>e * 0.6931471805599453 + 2 * s * series);
}
