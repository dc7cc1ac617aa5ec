/**
 * Attention with one window of keys per query, forward and backward, built on the tile product of `gemm.ts`.
 * Queries go in blocks; the scores of a block live in scratch only, so memory grows with the number of keys, not its
 * square (Dao et al. 2022, without the split over keys: a row of scores fits the cache). The backward pass recomputes
 * the probabilities from the saved log-sum-exp. Heads that share keys read them in place.
 *
 * Slots: 0 q, 1 k, 2 v, 3 ranges, 4 out, 5 lse, 6 batch, 7 T, 8 S, 9 H, 10 G, 11 D, 12 scale, 13 block,
 * and for the gradient 14 dout, 15 dq, 16 dk, 17 dv.
 */
import { float, int, ptr, scratch } from './control';
import { product, productScratch } from './gemm';
import { expClamped4, log1, madd, max4, sum4 } from './simd';

/** Smallest start of the windows of `count` queries from `ranges`; `count` = 0 gives S. */
function lowest(ranges: usize, count: i32, keys: i32): i32 {
  let s = keys;
  for (let i = 0; i < count; i++) {
    const start = load<i32>(ranges + (<usize>i << 3));
    if (load<i32>(ranges + (<usize>i << 3), 4) > start) s = min(s, start);
  }
  return s;
}

function highest(ranges: usize, count: i32): i32 {
  let e = 0;
  for (let i = 0; i < count; i++) {
    const end = load<i32>(ranges + (<usize>i << 3), 4);
    if (end > load<i32>(ranges + (<usize>i << 3))) e = max(e, end);
  }
  return e;
}

/** In place on row[0 … n − 1]: e^(row − shift) on [from, to), 0 elsewhere. Returns the sum. */
function exponentials(row: usize, n: i32, from: i32, to: i32, shift: f32): f32 {
  if (from > 0) memory.fill(row, 0, <usize>from << 2);
  if (to < n) memory.fill(row + (<usize>to << 2), 0, <usize>(n - to) << 2);
  const sh = f32x4.splat(shift);
  let acc = f32x4.splat(0);
  let j = from;
  for (; j + 4 <= to; j += 4) {
    const p = row + (<usize>j << 2);
    const e = expClamped4(f32x4.sub(v128.load(p), sh));
    v128.store(p, e);
    acc = f32x4.add(acc, e);
  }
  let sum = sum4(acc);
  for (; j < to; j++) {
    const p = row + (<usize>j << 2);
    const e = f32x4.extract_lane(expClamped4(f32x4.splat(load<f32>(p) - shift)), 0);
    store<f32>(p, e);
    sum += e;
  }
  return sum;
}

function largest(row: usize, from: i32, to: i32): f32 {
  let best: f32 = -f32.MAX_VALUE * 2;
  let j = from;
  let v = f32x4.splat(best);
  for (; j + 4 <= to; j += 4) v = f32x4.pmax(v, v128.load(row + (<usize>j << 2)));
  best = max4(v);
  for (; j < to; j++) best = max(best, load<f32>(row + (<usize>j << 2)));
  return best;
}

/** Tasks: batch × heads × blocks of queries. */
export function attention(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11), block = int(13);
  const factor = float(12);
  const blocks = (T + block - 1) / block;
  const work = scratch();
  const inverses = work + productScratch();
  const scores = inverses + (<usize>block << 2);
  const qs = <isize>(H * D), ks = <isize>(G * D);
  for (let task = begin; task < end; task++) {
    const b = task / (H * blocks);
    const h = (task / blocks) % H;
    const t0 = (task % blocks) * block;
    const count = min(block, T - t0);
    const windows = ptr(3) + (<usize>(b * T + t0) << 3);
    const s0 = lowest(windows, count, S);
    const n = max(0, highest(windows, count) - s0);
    const q = ptr(0) + (<usize>((b * T + t0) * H * D + h * D) << 2);
    const out = ptr(4) + (<usize>((b * T + t0) * H * D + h * D) << 2);
    const lse = ptr(5) + (<usize>((b * H + h) * T + t0) << 2);
    const at = <usize>((b * S + s0) * G * D + (h / (H / G)) * D) << 2;
    product(count, n, D, q, qs, 1, ptr(1) + at, 1, ks, 0, scores, n, factor, false, work);
    for (let i = 0; i < count; i++) {
      const row = scores + (<usize>(i * n) << 2);
      const from = load<i32>(windows + (<usize>i << 3)) - s0;
      const to = load<i32>(windows + (<usize>i << 3), 4) - s0;
      if (to <= from) {
        memory.fill(row, 0, <usize>n << 2);
        store<f32>(lse + (<usize>i << 2), -f32.MAX_VALUE * 2);
        store<f32>(inverses + (<usize>i << 2), 0);
        continue;
      }
      const top = largest(row, from, to);
      const sum = exponentials(row, n, from, to, top);
      store<f32>(lse + (<usize>i << 2), top + log1(sum));
      store<f32>(inverses + (<usize>i << 2), 1 / sum);
    }
    product(count, D, n, scores, n, 1, ptr(2) + at, ks, 1, 0, out, qs, 1, false, work);
    // the softmax's denominator is applied to the D sums instead of the n probabilities
    for (let i = 0; i < count; i++) scale(out + ((<isize>i * qs) << 2), D, load<f32>(inverses + (<usize>i << 2)));
  }
}

/** row[0 … n − 1] times a factor. */
function scale(row: usize, n: i32, factor: f32): void {
  const f = f32x4.splat(factor);
  let j = 0;
  for (; j + 4 <= n; j += 4) v128.store(row + (<usize>j << 2), f32x4.mul(v128.load(row + (<usize>j << 2)), f));
  for (; j < n; j++) store<f32>(row + (<usize>j << 2), load<f32>(row + (<usize>j << 2)) * factor);
}

/** Tasks: batch × key/value heads, so that each task owns its part of dk and dv. */
export function attentionGrad(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11), block = int(13);
  const scale = float(12);
  const group = H / G;
  const work = scratch();
  const p = work + productScratch();
  const qs = <isize>(H * D), ks = <isize>(G * D);
  for (let task = begin; task < end; task++) {
    const b = task / G, g = task % G;
    const own = <usize>(b * S * G * D + g * D) << 2;
    for (let s = 0; s < S; s++) {
      const row = own + ((<usize>(s * G * D)) << 2);
      memory.fill(ptr(16) + row, 0, <usize>D << 2);
      memory.fill(ptr(17) + row, 0, <usize>D << 2);
    }
    for (let h = g * group; h < (g + 1) * group; h++) {
      for (let t0 = 0; t0 < T; t0 += block) {
        const count = min(block, T - t0);
        const windows = ptr(3) + (<usize>(b * T + t0) << 3);
        const s0 = lowest(windows, count, S);
        const n = max(0, highest(windows, count) - s0);
        const ds = p + (<usize>(block * S) << 2);
        const atQ = <usize>((b * T + t0) * H * D + h * D) << 2;
        const atK = own + (<usize>(s0 * G * D) << 2);
        const q = ptr(0) + atQ, dout = ptr(14) + atQ, out = ptr(4) + atQ;
        const lse = ptr(5) + (<usize>((b * H + h) * T + t0) << 2);
        product(count, n, D, q, qs, 1, ptr(1) + atK, 1, ks, 0, p, n, scale, false, work);
        product(count, n, D, dout, qs, 1, ptr(2) + atK, 1, ks, 0, ds, n, 1, false, work);
        for (let i = 0; i < count; i++) {
          const row = p + (<usize>(i * n) << 2), drow = ds + (<usize>(i * n) << 2);
          const from = load<i32>(windows + (<usize>i << 3)) - s0;
          const to = load<i32>(windows + (<usize>i << 3), 4) - s0;
          if (to <= from) {
            memory.fill(row, 0, <usize>n << 2);
            memory.fill(drow, 0, <usize>n << 2);
            continue;
          }
          exponentials(row, n, from, to, load<f32>(lse + (<usize>i << 2)));
          const delta = dot(dout + ((<isize>i * qs) << 2), out + ((<isize>i * qs) << 2), D);
          // ds = p ∘ (dp − delta) · scale
          const dl = f32x4.splat(delta), sc = f32x4.splat(scale);
          let j = 0;
          for (; j + 4 <= n; j += 4) {
            const o = <usize>j << 2;
            v128.store(drow + o, f32x4.mul(f32x4.mul(v128.load(row + o), f32x4.sub(v128.load(drow + o), dl)), sc));
          }
          for (; j < n; j++) {
            const o = <usize>j << 2;
            store<f32>(drow + o, load<f32>(row + o) * (load<f32>(drow + o) - delta) * scale);
          }
        }
        product(count, D, n, ds, n, 1, ptr(1) + atK, ks, 1, 0, ptr(15) + atQ, qs, 1, false, work);
        product(n, D, count, ds, 1, n, q, qs, 1, 0, ptr(16) + atK, ks, 1, true, work);
        product(n, D, count, p, 1, n, dout, qs, 1, 0, ptr(17) + atK, ks, 1, true, work);
      }
    }
  }
}

function dot(a: usize, b: usize, n: i32): f32 {
  let acc = f32x4.splat(0);
  let i = 0;
  for (; i + 4 <= n; i += 4) acc = madd(v128.load(a + (<usize>i << 2)), v128.load(b + (<usize>i << 2)), acc);
  let sum = sum4(acc);
  for (; i < n; i++) sum += load<f32>(a + (<usize>i << 2)) * load<f32>(b + (<usize>i << 2));
  return sum;
}
