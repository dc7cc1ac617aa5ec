/**
 * e^x, the hot one. x = n·ln 2 + r with |r| ≤ ln 2 / 2 (Cody & Waite reduction), 1 + r + r²·p(r) for e^r with the p of degree 4
 * whose largest relative error is least (3e-9), and 2^n added to the exponent bits. Adding 1.5·2²³ rounds to an integer and
 * leaves it in the low bits, which spares the conversions. The relative error is near 1e-7.
 *
 * V8 makes vector constants anew in every round of a loop, which costs more than the arithmetic. Hot loops therefore fetch
 * them from a table in memory before they start, and hand them to `expWith`; elsewhere `exp4` and its like will do.
 */
import { madd, sum4 } from './simd';

/** Where the table stands, in the control page. */
const TABLE: usize = 1024;

/** Fills the table. The host calls it once. */
export function setup(): void {
  store<f32>(TABLE, -87); // below, the result stays at e^−87
  store<f32>(TABLE, 1.44269504, 4); // 1 / ln 2
  store<f32>(TABLE, 12582912, 8); // 1.5·2²³
  store<f32>(TABLE, -0.693359375, 12); // −ln 2 in two parts
  store<f32>(TABLE, 2.12194440e-4, 16);
  store<f32>(TABLE, 1.38145394e-3, 20);
  store<f32>(TABLE, 8.36874545e-3, 24);
  store<f32>(TABLE, 4.16683890e-2, 28);
  store<f32>(TABLE, 1.66665211e-1, 32);
  store<f32>(TABLE, 4.99999940e-1, 36);
  store<f32>(TABLE, 1, 40);
}

/** Entry `i` of the table in all lanes. */
// @ts-ignore: decorator
@inline
export function constant(i: usize): v128 {
  return v128.load32_splat(TABLE + (i << 2));
}

/** e^x for x up to 88, with entries 0 … 10 of the table. */
// @ts-ignore: decorator
@inline
export function expWith(
  x: v128,
  k0: v128, k1: v128, k2: v128, k3: v128, k4: v128, k5: v128, k6: v128, k7: v128, k8: v128, k9: v128, one: v128,
): v128 {
  const xc = f32x4.pmax(x, k0);
  const shifted = madd(xc, k1, k2);
  const n = f32x4.sub(shifted, k2);
  const r = madd(n, k4, madd(n, k3, xc));
  let p = madd(k5, r, k6);
  p = madd(p, r, k7);
  p = madd(p, r, k8);
  p = madd(p, r, k9);
  p = madd(p, f32x4.mul(r, r), f32x4.add(r, one));
  return i32x4.add(p, i32x4.shl(shifted, 23));
}

/** e^x for x up to 88; larger ones are taken as 88, NaN stays. */
// @ts-ignore: decorator
@inline
export function expClamped4(x: v128): v128 {
  const xc = f32x4.pmin(x, f32x4.splat(88)); // pmin and pmax are one instruction where min and max are seven
  return expWith(
    xc,
    f32x4.splat(-87), f32x4.splat(1.44269504), f32x4.splat(12582912), f32x4.splat(-0.693359375),
    f32x4.splat(2.12194440e-4), f32x4.splat(1.38145394e-3), f32x4.splat(8.36874545e-3), f32x4.splat(4.16683890e-2),
    f32x4.splat(1.66665211e-1), f32x4.splat(4.99999940e-1), f32x4.splat(1),
  );
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

/**
 * `count` rows of eight, `step` bytes apart: y = e^(x − shift) with x ≤ shift, where `shift` is a row of eight; into `sums`, unless
 * it is 0, the sum of each column.
 */
export function exponentials(y: usize, x: usize, step: usize, count: i32, shift: usize, sums: usize): void {
  const k0 = constant(0), k1 = constant(1), k2 = constant(2), k3 = constant(3), k4 = constant(4), k5 = constant(5);
  const k6 = constant(6), k7 = constant(7), k8 = constant(8), k9 = constant(9), one = constant(10);
  for (let half: usize = 0; half < 32; half += 16) {
    const s = v128.load(shift + half);
    let from = x + half, to = y + half;
    let acc = f32x4.splat(0);
    for (let i = 0; i < count; i++) {
      const e = expWith(f32x4.sub(v128.load(from), s), k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, one);
      v128.store(to, e);
      acc = f32x4.add(acc, e);
      from += step;
      to += step;
    }
    if (sums) v128.store(sums + half, acc);
  }
}

/** y[0 … n − 1] = e^(x − shift) with x ≤ shift. Returns the sum. */
export function exponentialsOfRow(y: usize, x: usize, n: i32, shift: f32): f32 {
  const k0 = constant(0), k1 = constant(1), k2 = constant(2), k3 = constant(3), k4 = constant(4), k5 = constant(5);
  const k6 = constant(6), k7 = constant(7), k8 = constant(8), k9 = constant(9), one = constant(10);
  const s = f32x4.splat(shift);
  let acc = f32x4.splat(0);
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    const e = expWith(f32x4.sub(v128.load(x + o), s), k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, one);
    v128.store(y + o, e);
    acc = f32x4.add(acc, e);
  }
  let sum = sum4(acc);
  for (; i < n; i++) {
    const o = <usize>i << 2;
    const e = f32x4.extract_lane(expClamped4(f32x4.splat(load<f32>(x + o) - shift)), 0);
    store<f32>(y + o, e);
    sum += e;
  }
  return sum;
}
