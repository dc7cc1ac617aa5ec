/**
 * Attention with one window of keys per query, forward and backward, on the register tiles of `gemm.ts`.
 *
 * Six queries at a time meet the keys that their windows hold: their scores are rows in scratch, which the softmax turns
 * into probabilities in place, so memory grows with the number of keys and not with its square (Dao et al. 2022, without
 * the split over keys: six rows of scores fit the cache). The backward pass recomputes the probabilities from the saved
 * log-sum-exp. Keys and values are packed once for all queries of a head; heads that share keys read them in place.
 *
 * Slots: 0 q, 1 k, 2 v, 3 ranges, 4 out, 5 lse, 6 batch, 7 T, 8 S, 9 H, 10 G, 11 D, 12 scale, 13 block of queries,
 * and for the gradient 14 dout, 15 dq, 16 dk, 17 dv.
 */
import { float, int, ptr, scratch } from './control';
import { MR, NR, packA, packB, scaleBlock, tile, tileAdd, tileRows } from './gemm';
import { expClamped4, log1, madd, max4, sum4 } from './simd';

const LOWEST: f32 = -f32.MAX_VALUE * 2; // −Infinity
const F32: i32 = 0;
const STEP_A: usize = <usize>MR << 2;
const STEP_B: usize = <usize>NR << 2;
const ALIGN: i32 = 24; // both sides of a tile divide it

// @ts-ignore: decorator
@inline
function roundUp(n: i32, to: i32): i32 {
  return ((n + to - 1) / to) * to;
}

// @ts-ignore: decorator
@inline
function at(p: usize, index: i32): usize {
  return p + (<usize>index << 2);
}

/** Smallest start of the windows that are not empty, of `count` queries; S when all are. */
function lowest(windows: usize, count: i32, keys: i32): i32 {
  let s = keys;
  for (let i = 0; i < count; i++) {
    const start = load<i32>(windows + (<usize>i << 3));
    if (load<i32>(windows + (<usize>i << 3), 4) > start) s = min(s, start);
  }
  return s;
}

/** Largest end of the windows that are not empty; 0 when all are. */
function highest(windows: usize, count: i32): i32 {
  let e = 0;
  for (let i = 0; i < count; i++) {
    const end = load<i32>(windows + (<usize>i << 3), 4);
    if (end > load<i32>(windows + (<usize>i << 3))) e = max(e, end);
  }
  return e;
}

/** In place on row[0 … n − 1]: e^(row − shift) on [from, to), 0 elsewhere. Returns the sum. */
function exponentials(row: usize, n: i32, from: i32, to: i32, shift: f32): f32 {
  if (from > 0) memory.fill(row, 0, <usize>from << 2);
  if (to < n) memory.fill(at(row, to), 0, <usize>(n - to) << 2);
  const sh = f32x4.splat(shift);
  let acc = f32x4.splat(0), acc2 = acc;
  let j = from;
  for (; j + 8 <= to; j += 8) {
    const p = at(row, j);
    const e = expClamped4(f32x4.sub(v128.load(p), sh)), f = expClamped4(f32x4.sub(v128.load(p, 16), sh));
    v128.store(p, e);
    v128.store(p, f, 16);
    acc = f32x4.add(acc, e);
    acc2 = f32x4.add(acc2, f);
  }
  let sum = sum4(f32x4.add(acc, acc2));
  for (; j < to; j++) {
    const p = at(row, j);
    const e = f32x4.extract_lane(expClamped4(f32x4.splat(load<f32>(p) - shift)), 0);
    store<f32>(p, e);
    sum += e;
  }
  return sum;
}

function largest(row: usize, from: i32, to: i32): f32 {
  let j = from;
  let v = f32x4.splat(LOWEST);
  for (; j + 4 <= to; j += 4) v = f32x4.pmax(v, v128.load(at(row, j)));
  let best = max4(v);
  for (; j < to; j++) best = max(best, load<f32>(at(row, j)));
  return best;
}

/** to[0 … n − 1] = from · factor. */
function scaled(to: usize, from: usize, n: i32, factor: f32): void {
  const f = f32x4.splat(factor);
  let j = 0;
  for (; j + 4 <= n; j += 4) v128.store(at(to, j), f32x4.mul(v128.load(at(from, j)), f));
  for (; j < n; j++) store<f32>(at(to, j), load<f32>(at(from, j)) * factor);
}

function dot(a: usize, b: usize, n: i32): f32 {
  let acc = f32x4.splat(0);
  let i = 0;
  for (; i + 4 <= n; i += 4) acc = madd(v128.load(at(a, i)), v128.load(at(b, i)), acc);
  let sum = sum4(acc);
  for (; i < n; i++) sum += load<f32>(at(a, i)) * load<f32>(at(b, i));
  return sum;
}

/** Four dot products of q with keys `step` bytes apart; n is a multiple of 4. */
function dot4(q: usize, key: usize, step: usize, n: i32): v128 {
  const k1 = key + step, k2 = k1 + step, k3 = k2 + step;
  let a = f32x4.splat(0), b = a, c = a, d = a;
  for (let o: usize = 0, end = <usize>n << 2; o < end; o += 16) {
    const v = v128.load(q + o);
    a = madd(v, v128.load(key + o), a);
    b = madd(v, v128.load(k1 + o), b);
    c = madd(v, v128.load(k2 + o), c);
    d = madd(v, v128.load(k3 + o), d);
  }
  const ab = f32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<i64>(ab, cd, 0, 2), v128.shuffle<i64>(ab, cd, 1, 3));
}

/** to[0 … 7] = factor · Σ p[j] · value[j], values `step` bytes apart, in four chains of additions. */
function mix8(to: usize, p: usize, n: i32, value: usize, step: usize, factor: v128): void {
  let s0 = f32x4.splat(0), s1 = s0, t0 = s0, t1 = s0, u0 = s0, u1 = s0, v0 = s0, v1 = s0;
  let j = 0;
  for (; j + 4 <= n; j += 4, p += 16) {
    let w = v128.load32_splat(p);
    s0 = madd(w, v128.load(value), s0); s1 = madd(w, v128.load(value, 16), s1); value += step;
    w = v128.load32_splat(p, 4);
    t0 = madd(w, v128.load(value), t0); t1 = madd(w, v128.load(value, 16), t1); value += step;
    w = v128.load32_splat(p, 8);
    u0 = madd(w, v128.load(value), u0); u1 = madd(w, v128.load(value, 16), u1); value += step;
    w = v128.load32_splat(p, 12);
    v0 = madd(w, v128.load(value), v0); v1 = madd(w, v128.load(value, 16), v1); value += step;
  }
  for (; j < n; j++, p += 4, value += step) {
    const w = v128.load32_splat(p);
    s0 = madd(w, v128.load(value), s0); s1 = madd(w, v128.load(value, 16), s1);
  }
  v128.store(to, f32x4.mul(f32x4.add(f32x4.add(s0, t0), f32x4.add(u0, v0)), factor));
  v128.store(to, f32x4.mul(f32x4.add(f32x4.add(s1, t1), f32x4.add(u1, v1)), factor), 16);
}

/** Scratch bytes of `attention` and `attentionFew`. */
export function attentionScratch(keys: i32, headDim: i32): usize {
  const ld = roundUp(keys, ALIGN), wide = roundUp(headDim, NR);
  return <usize>(roundUp(MR * headDim, 4) + ld * (headDim + wide) + MR * ld + MR * wide + MR) << 2;
}

/** Tasks: batch × heads × blocks of queries. */
export function attention(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11), block = int(13);
  const factor = float(12);
  const blocks = (T + block - 1) / block;
  const ld = roundUp(S, ALIGN), wide = roundUp(D, NR);
  const qs = <isize>(H * D), ks = <isize>(G * D);
  const packedQ = scratch();
  const packedK = at(packedQ, roundUp(MR * D, 4)); // [S / 8][D][8]
  const packedV = at(packedK, ld * D); // [D / 8][n][8]
  const scores = at(packedV, ld * wide); // [6][ld]
  const sums = at(scores, MR * ld); // [6][wide]
  const inverses = at(sums, MR * wide);
  let held = -1, s0 = 0, n = 0;
  for (let task = begin; task < end; task++) {
    const b = task / (H * blocks), h = (task / blocks) % H, nth = task % blocks;
    // first and last block in turn: under a causal mask every part of the tasks then has its share of the work
    const t0 = (nth & 1 ? blocks - 1 - (nth >> 1) : nth >> 1) * block;
    const g = h / (H / G);
    const windows = ptr(3) + (<usize>(b * T) << 3);
    if (held != b * G + g) {
      held = b * G + g;
      s0 = lowest(windows, T, S);
      n = max(0, highest(windows, T) - s0);
      const own = (b * S + s0) * G * D + g * D;
      packB(packedK, at(ptr(1), own), 1, ks, D, n, F32);
      packB(packedV, at(ptr(2), own), ks, 1, n, D, F32);
    }
    for (let t = t0, last = min(T, t0 + block); t < last; t += MR) {
      const rows = min(MR, last - t);
      const here = windows + (<usize>t << 3);
      const lo = (max(0, lowest(here, rows, S) - s0) / NR) * NR;
      const m = max(0, highest(here, rows) - s0 - lo);
      const offset = (b * T + t) * H * D + h * D;
      packA(packedQ, at(ptr(0), offset), qs, 1, rows, D);
      scaleBlock(packedQ, MR * D, factor);
      for (let j = 0; j < m; j += NR) {
        tile(D, packedQ, STEP_A, at(packedK, (lo + j) * D), STEP_B, at(scores, j), ld);
      }
      for (let i = 0; i < rows; i++) {
        const row = at(scores, i * ld);
        const from = load<i32>(here + (<usize>i << 3)) - s0 - lo;
        const to = load<i32>(here + (<usize>i << 3), 4) - s0 - lo;
        let lse = LOWEST, inverse: f32 = 0;
        if (to <= from) {
          memory.fill(row, 0, <usize>m << 2);
        } else {
          const top = largest(row, from, to);
          const sum = exponentials(row, m, from, to, top);
          lse = top + log1(sum);
          inverse = 1 / sum;
        }
        store<f32>(at(ptr(5), (b * H + h) * T + t + i), lse);
        store<f32>(at(inverses, i), inverse);
      }
      for (let d = 0; d < wide; d += NR) {
        tileRows(m, scores, ld, at(packedV, d * n + lo * NR), STEP_B, at(sums, d), wide);
      }
      // the softmax's denominator is applied to the D sums instead of the probabilities
      for (let i = 0; i < rows; i++) {
        scaled(at(ptr(4), offset + i * H * D), at(sums, i * wide), D, load<f32>(at(inverses, i)));
      }
    }
  }
}

/** The same for a few queries, as in decoding, where packing keys is not worth it. Tasks: batch × queries × heads. */
export function attentionFew(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11);
  const factor = float(12);
  const q = scratch(), scores = at(q, MR * D);
  for (let task = begin; task < end; task++) {
    const row = task / H, h = task % H, b = row / T, t = row % T;
    const from = load<i32>(ptr(3) + (<usize>row << 3));
    const n = load<i32>(ptr(3) + (<usize>row << 3), 4) - from;
    const out = at(ptr(4), task * D);
    const lse = at(ptr(5), (b * H + h) * T + t);
    if (n <= 0) {
      memory.fill(out, 0, <usize>D << 2);
      store<f32>(lse, LOWEST);
      continue;
    }
    const own = (b * S + from) * G * D + (h / (H / G)) * D;
    const step = <usize>(G * D) << 2;
    scaled(q, at(ptr(0), task * D), D, factor);
    let key = at(ptr(1), own);
    let first = 0;
    if ((D & 3) == 0) for (; first + 4 <= n; first += 4, key += 4 * step) v128.store(at(scores, first), dot4(q, key, step, D));
    for (let j = first; j < n; j++, key += step) store<f32>(at(scores, j), dot(q, key, D));
    const top = largest(scores, 0, n);
    const sum = exponentials(scores, n, 0, n, top);
    store<f32>(lse, top + log1(sum));
    const inverse = f32x4.splat(1 / sum);
    let d = 0;
    for (; d + 8 <= D; d += 8) mix8(at(out, d), scores, n, at(ptr(2), own + d), step, inverse);
    for (; d < D; d++) {
      let value = at(ptr(2), own + d);
      let s: f32 = 0;
      for (let j = 0; j < n; j++, value += step) s += load<f32>(at(scores, j)) * load<f32>(value);
      store<f32>(at(out, d), s / sum);
    }
  }
}

/** Scratch bytes of `attentionGrad`. */
export function attentionGradScratch(keys: i32, headDim: i32, block: i32): usize {
  const ld = roundUp(keys, ALIGN), wide = roundUp(headDim, NR);
  return <usize>(roundUp(MR * headDim, 4) + MR * headDim + MR * wide + 2 * block * wide + ld * (2 * headDim + 3 * wide) + 2 * block * ld) << 2;
}

/** Tasks: batch × heads. Here dk and dv are `[B, S, H, D]`: what heads of a group have in common is summed afterwards. */
export function attentionGrad(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11), block = int(13);
  const scale = float(12);
  const ld = roundUp(S, ALIGN), wide = roundUp(D, NR);
  const qs = <isize>(H * D), ks = <isize>(G * D);
  const packedQ = scratch(), packedO = at(packedQ, roundUp(MR * D, 4)); // six queries and their dout, [D][6]
  const sums = at(packedO, MR * D); // [6][wide]
  const blockQ = at(sums, MR * wide), blockO = at(blockQ, block * wide); // a block of both, [D / 8][count][8]
  const packedK = at(blockO, block * wide), packedV = at(packedK, ld * D); // [S / 8][D][8]
  const rowsK = at(packedV, ld * D); // [D / 8][n][8]
  const dk = at(rowsK, ld * wide), dv = at(dk, ld * wide); // [n][wide]
  const p = at(dv, ld * wide), ds = at(p, block * ld); // [block][ld]
  for (let task = begin; task < end; task++) {
    const b = task / H, h = task % H;
    const windows = ptr(3) + (<usize>(b * T) << 3);
    const s0 = lowest(windows, T, S);
    const n = max(0, highest(windows, T) - s0);
    const own = (b * S + s0) * G * D + (h / (H / G)) * D;
    packB(packedK, at(ptr(1), own), 1, ks, D, n, F32);
    packB(packedV, at(ptr(2), own), 1, ks, D, n, F32);
    packB(rowsK, at(ptr(1), own), ks, 1, n, D, F32);
    memory.fill(dk, 0, <usize>(2 * ld * wide) << 2);
    for (let t0 = 0; t0 < T; t0 += block) {
      const count = min(block, T - t0);
      const inBlock = windows + (<usize>t0 << 3);
      const lo = (max(0, lowest(inBlock, count, S) - s0) / ALIGN) * ALIGN;
      const m = roundUp(max(0, highest(inBlock, count) - s0 - lo), ALIGN);
      const atBlock = (b * T + t0) * H * D + h * D;
      for (let i0 = 0; i0 < count; i0 += MR) {
        const rows = min(MR, count - i0);
        const here = inBlock + (<usize>i0 << 3);
        const first = (max(0, lowest(here, rows, S) - s0 - lo) / NR) * NR;
        const last = highest(here, rows) - s0 - lo;
        const offset = atBlock + i0 * H * D;
        packA(packedQ, at(ptr(0), offset), qs, 1, rows, D);
        scaleBlock(packedQ, MR * D, scale);
        packA(packedO, at(ptr(14), offset), qs, 1, rows, D);
        for (let j = first; j < last; j += NR) {
          tile(D, packedQ, STEP_A, at(packedK, (lo + j) * D), STEP_B, at(p, i0 * ld + j), ld);
          tile(D, packedO, STEP_A, at(packedV, (lo + j) * D), STEP_B, at(ds, i0 * ld + j), ld);
        }
        for (let i = 0; i < rows; i++) {
          const row = at(p, (i0 + i) * ld), drow = at(ds, (i0 + i) * ld);
          const from = load<i32>(here + (<usize>i << 3)) - s0 - lo;
          const to = load<i32>(here + (<usize>i << 3), 4) - s0 - lo;
          if (to <= from) {
            memory.fill(row, 0, <usize>m << 2);
            memory.fill(drow, 0, <usize>m << 2);
            continue;
          }
          exponentials(row, m, from, to, load<f32>(at(ptr(5), (b * H + h) * T + t0 + i0 + i)));
          const delta = dot(at(ptr(14), offset + i * H * D), at(ptr(4), offset + i * H * D), D);
          scoreGradients(drow, row, m, from, to, delta, scale);
        }
        const depth = max(0, last - first);
        for (let d = 0; d < wide; d += NR) {
          tileRows(depth, at(ds, i0 * ld + first), ld, at(rowsK, d * n + (lo + first) * NR), STEP_B, at(sums, d), wide);
        }
        for (let i = 0; i < rows; i++) {
          memory.copy(at(ptr(15), offset + i * H * D), at(sums, i * wide), <usize>D << 2);
        }
      }
      packB(blockQ, at(ptr(0), atBlock), qs, 1, count, D, F32);
      packB(blockO, at(ptr(14), atBlock), qs, 1, count, D, F32);
      let q0 = 0; // queries before it see nothing from key s on
      for (let s = 0; s < m; s += MR) {
        while (q0 < count && load<i32>(inBlock + (<usize>q0 << 3), 4) - s0 - lo <= s) q0++;
        const rows = count - q0;
        for (let d = 0; d < wide; d += NR) {
          const to = (lo + s) * wide + d, panel = d * count + q0 * NR;
          tileAdd(rows, at(ds, q0 * ld + s), <usize>ld << 2, at(blockQ, panel), STEP_B, at(dk, to), wide);
          tileAdd(rows, at(p, q0 * ld + s), <usize>ld << 2, at(blockO, panel), STEP_B, at(dv, to), wide);
        }
      }
    }
    for (let s = 0; s < S; s++) {
      const to = ((b * S + s) * H + h) * D, from = (s - s0) * wide;
      const bytes = <usize>D << 2;
      if (s < s0 || s >= s0 + n) {
        memory.fill(at(ptr(16), to), 0, bytes);
        memory.fill(at(ptr(17), to), 0, bytes);
      } else {
        memory.copy(at(ptr(16), to), at(dk, from), bytes);
        memory.copy(at(ptr(17), to), at(dv, from), bytes);
      }
    }
  }
}

/** ds = p ∘ (dp − delta) · scale on [from, to), 0 elsewhere; `ds` holds dp. */
function scoreGradients(ds: usize, p: usize, n: i32, from: i32, to: i32, delta: f32, scale: f32): void {
  if (from > 0) memory.fill(ds, 0, <usize>from << 2);
  if (to < n) memory.fill(at(ds, to), 0, <usize>(n - to) << 2);
  const dl = f32x4.splat(delta), sc = f32x4.splat(scale);
  let j = from;
  for (; j + 4 <= to; j += 4) {
    const o = <usize>j << 2;
    v128.store(ds + o, f32x4.mul(f32x4.mul(v128.load(p + o), f32x4.sub(v128.load(ds + o), dl)), sc));
  }
  for (; j < to; j++) {
    const o = <usize>j << 2;
    store<f32>(ds + o, load<f32>(p + o) * (load<f32>(ds + o) - delta) * scale);
  }
}
