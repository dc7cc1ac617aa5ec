/**
 * Attention with one window of keys per query, forward and backward, on the register tiles of `gemm.ts`.
 *
 * Eight queries at a time meet the keys that their windows hold. Their scores stand as [keys][8 queries] in scratch, a query in
 * each lane, and the softmax turns them into probabilities in place; so memory grows with the number of keys and not with
 * its square (Dao et al. 2022, without the split over keys: a column of scores fits the cache). The backward pass recomputes the
 * probabilities from the saved log-sum-exp. Heads that share keys read them in place; keys and values are packed once per head.
 *
 * Slots: 0 q, 1 k, 2 v, 3 ranges, 4 out, 5 lse, 6 batch, 7 T, 8 S, 9 H, 10 G, 11 D, 12 scale, 13 block of queries,
 * and for the gradient 14 dout, 15 dq, 16 dk, 17 dv.
 */
import { float, int, ptr, scratch } from './control';
import { MR, NR, STEP_A, STEP_B, packA, packB, tile, tile4, tileRowsAdd } from './gemm';
import { exponentials, exponentialsOfRow } from './exponential';
import { log1, madd, max4, sum4 } from './simd';

const LOWEST: f32 = -f32.MAX_VALUE * 2; // −Infinity
const F32: i32 = 0;

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

// What eight queries see, with keys counted from a base: their windows in memory at `seen` (eight starts, eight ends), and the
// keys [allFrom, allTo) that all of them see, where nothing needs a mask.
let allFrom: i32 = 0;
let allTo: i32 = 0;

function look(seen: usize, windows: usize, rows: i32, base: i32): void {
  allFrom = 0;
  allTo = i32.MAX_VALUE;
  for (let i = 0; i < NR; i++) {
    let from = 0, to = i32.MAX_VALUE; // lanes without a query see zeros
    if (i < rows) {
      from = load<i32>(windows + (<usize>i << 3)) - base;
      to = load<i32>(windows + (<usize>i << 3), 4) - base;
      if (to <= from) from = to = 0;
      allFrom = max(allFrom, from);
      allTo = min(allTo, to);
    }
    store<i32>(at(seen, i), from);
    store<i32>(at(seen, i + NR), to);
  }
}

/** Lanes of key `s` that see it, of the first four queries (`half` = 0) or the others (16). */
// @ts-ignore: decorator
@inline
function visible(seen: usize, half: usize, s: i32): v128 {
  const key = i32x4.splat(s);
  return v128.and(i32x4.ge_s(key, v128.load(seen + half)), i32x4.lt_s(key, v128.load(seen + half, STEP_B)));
}

/** Whether key `s` needs a mask. */
// @ts-ignore: decorator
@inline
function atEdge(s: i32): bool {
  return s < allFrom || s >= allTo;
}

/** Scores that a query does not see become −Infinity; then the largest score of each query, 0 where it sees none. */
function tops(scores: usize, n: i32, seen: usize, top: usize): void {
  const none = f32x4.splat(LOWEST);
  let a = none, b = none;
  for (let s = 0; s < n; s++) {
    let x = v128.load(scores), y = v128.load(scores, 16);
    if (atEdge(s)) {
      x = v128.bitselect(x, none, visible(seen, 0, s));
      y = v128.bitselect(y, none, visible(seen, 16, s));
      v128.store(scores, x);
      v128.store(scores, y, 16);
    }
    a = f32x4.pmax(a, x);
    b = f32x4.pmax(b, y);
    scores += STEP_B;
  }
  v128.store(top, v128.andnot(a, f32x4.eq(a, none)));
  v128.store(top, v128.andnot(b, f32x4.eq(b, none)), 16);
}

/** Rows of eight, `step` bytes apart: zero where a query does not see the key. */
function mask(rows: usize, step: usize, n: i32, seen: usize): void {
  for (let s = 0; s < n; s++) {
    if (s == allFrom && allFrom < allTo) s = min(n, allTo);
    if (s >= n) break;
    const p = rows + <usize>s * step;
    v128.store(p, v128.and(v128.load(p), visible(seen, 0, s)));
    v128.store(p, v128.and(v128.load(p, 16), visible(seen, 16, s)), 16);
  }
}

/** sums[d][8] = Σ over `depth` keys of packed[d][key] · columns[key][8]: D rows, of which the last panel may be short. */
function weigh(D: i32, depth: i32, packed: usize, panel: i32, columns: usize, step: usize, sums: usize): void {
  for (let d = 0; d < D; d += MR) {
    const from = at(packed, (d / MR) * panel), to = at(sums, d * NR);
    if (D - d <= 4) tile4(depth, from, STEP_A, columns, step, to, NR);
    else tile(depth, from, STEP_A, columns, step, to, NR);
  }
}

/** Rows of D numbers, `step` bytes apart, from columns [D][8] times a factor for each row. */
function writeRows(to: usize, step: usize, rows: i32, D: i32, columns: usize, factor: usize): void {
  const f = v128.load(factor), g = v128.load(factor, 16);
  let d = 0;
  for (; d + 4 <= D; d += 4) {
    const p = at(columns, d * NR);
    for (let half = 0; half < rows; half += 4) {
      const q = at(p, half), scale = half ? g : f;
      const a = f32x4.mul(v128.load(q), scale), b = f32x4.mul(v128.load(q, 32), scale);
      const c = f32x4.mul(v128.load(q, 64), scale), e = f32x4.mul(v128.load(q, 96), scale);
      const t0 = v128.shuffle<i32>(a, b, 0, 4, 1, 5), t1 = v128.shuffle<i32>(c, e, 0, 4, 1, 5);
      const t2 = v128.shuffle<i32>(a, b, 2, 6, 3, 7), t3 = v128.shuffle<i32>(c, e, 2, 6, 3, 7);
      let row = at(to, d) + <usize>half * step;
      v128.store(row, v128.shuffle<i64>(t0, t1, 0, 2));
      row += step;
      if (half + 1 < rows) v128.store(row, v128.shuffle<i64>(t0, t1, 1, 3));
      row += step;
      if (half + 2 < rows) v128.store(row, v128.shuffle<i64>(t2, t3, 0, 2));
      row += step;
      if (half + 3 < rows) v128.store(row, v128.shuffle<i64>(t2, t3, 1, 3));
    }
  }
  for (; d < D; d++) {
    for (let i = 0; i < rows; i++) {
      store<f32>(at(to, d) + <usize>i * step, load<f32>(at(columns, d * NR + i)) * load<f32>(at(factor, i)));
    }
  }
}

/** Scratch bytes of `attention` and `attentionFew`. */
export function attentionScratch(keys: i32, headDim: i32): usize {
  const n = roundUp(keys, MR), tall = roundUp(headDim, MR);
  return <usize>(n * (headDim + tall + NR) + NR * (headDim + tall) + 4 * NR) << 2;
}

/** Tasks: batch × heads × blocks of queries. */
export function attention(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11), block = int(13);
  const blocks = (T + block - 1) / block;
  const all = roundUp(S, MR), tall = roundUp(D, MR);
  const qs = <isize>(H * D), ks = <isize>(G * D);
  const seen = scratch();
  const top = at(seen, 2 * NR), sum = at(top, NR); // of each query
  const packedQ = at(sum, NR); // [D][8]
  const sums = at(packedQ, D * NR); // [D][8]
  const scores = at(sums, tall * NR); // [n][8]
  const packedK = at(scores, all * NR); // times the scale, [n / 6][D][6]
  const packedV = at(packedK, all * D); // [D / 6][n][6]
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
      packA(packedK, D * MR, at(ptr(1), own), ks, 1, n, D, float(12));
      packA(packedV, n * MR, at(ptr(2), own), 1, ks, D, n, 1);
    }
    for (let t = t0, last = min(T, t0 + block); t < last; t += NR) {
      const rows = min(NR, last - t);
      const here = windows + (<usize>t << 3);
      const lo = (max(0, lowest(here, rows, S) - s0) / MR) * MR;
      const m = max(0, highest(here, rows) - s0 - lo);
      const offset = (b * T + t) * H * D + h * D;
      packB(packedQ, D * NR, at(ptr(0), offset), 1, qs, D, rows, F32);
      for (let s = 0; s < m; s += MR) {
        tile(D, at(packedK, (lo + s) * D), STEP_A, packedQ, STEP_B, at(scores, s * NR), NR);
      }
      look(seen, here, rows, s0 + lo);
      tops(scores, m, seen, top);
      exponentials(scores, scores, STEP_B, m, top, sum);
      mask(scores, STEP_B, m, seen);
      weigh(D, m, at(packedV, lo * MR), n * MR, scores, STEP_B, sums);
      for (let i = 0; i < rows; i++) {
        const blind = load<i32>(at(seen, i + NR)) == 0, total = load<f32>(at(sum, i));
        store<f32>(at(ptr(5), (b * H + h) * T + t + i), blind ? LOWEST : load<f32>(at(top, i)) + log1(total));
        store<f32>(at(sum, i), blind ? 0 : 1 / total);
      }
      // the softmax's denominator is applied to the D sums instead of the probabilities
      writeRows(at(ptr(4), offset), <usize>qs << 2, rows, D, sums, sum);
    }
  }
}

// ---- a few queries, as in decoding: packing keys is not worth it ----

/** Largest of row[0 … n − 1]. */
function largest(row: usize, n: i32): f32 {
  let v = f32x4.splat(LOWEST);
  let j = 0;
  for (; j + 4 <= n; j += 4) v = f32x4.pmax(v, v128.load(at(row, j)));
  let best = max4(v);
  for (; j < n; j++) best = max(best, load<f32>(at(row, j)));
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

/** `attention` for a few queries. Tasks: batch × queries × heads. */
export function attentionFew(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11);
  const factor = float(12);
  const q = scratch(), scores = at(q, roundUp(D, 4));
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
    const top = largest(scores, n);
    const sum = exponentialsOfRow(scores, scores, n, top);
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

// ---- the gradient ----

/** ds = p ∘ (dp − delta) · scale for eight queries, in rows `step` bytes apart; `ds` holds dp. */
function scoreGradients(ds: usize, p: usize, step: usize, n: i32, delta: usize, scale: f32): void {
  const a = v128.load(delta), b = v128.load(delta, 16), f = f32x4.splat(scale);
  for (let s = 0; s < n; s++) {
    v128.store(ds, f32x4.mul(f32x4.mul(v128.load(p), f32x4.sub(v128.load(ds), a)), f));
    v128.store(ds, f32x4.mul(f32x4.mul(v128.load(p, 16), f32x4.sub(v128.load(ds, 16), b)), f), 16);
    p += step;
    ds += step;
  }
}

/** Zeroes rows [from, to) of eight columns. */
function zeroRows(p: usize, step: usize, from: i32, to: i32): void {
  for (let s = from; s < to; s++) {
    v128.store(p + <usize>s * step, f32x4.splat(0));
    v128.store(p + <usize>s * step, f32x4.splat(0), 16);
  }
}

function copy(to: usize, from: usize, n: i32): void {
  let j = 0;
  for (; j + 4 <= n; j += 4) v128.store(at(to, j), v128.load(at(from, j)));
  for (; j < n; j++) store<f32>(at(to, j), load<f32>(at(from, j)));
}

/** Scratch bytes of `attentionGrad`. */
export function attentionGradScratch(keys: i32, headDim: i32, block: i32): usize {
  const n = roundUp(keys, MR), tall = roundUp(headDim, MR), wide = roundUp(headDim, NR);
  return <usize>(5 * NR + 2 * NR * headDim + NR * tall + 2 * block * wide + n * (2 * headDim + tall + 2 * wide + 2 * block)) << 2;
}

/** Tasks: batch × heads. Here dk and dv are `[B, S, H, D]`: what heads of a group have in common is summed afterwards. */
export function attentionGrad(begin: i32, end: i32): void {
  const T = int(7), S = int(8), H = int(9), G = int(10), D = int(11), block = int(13);
  const all = roundUp(S, MR), tall = roundUp(D, MR), wide = roundUp(D, NR);
  const qs = <isize>(H * D), ks = <isize>(G * D);
  const step = <usize>block << 2;
  const seen = scratch();
  const lse = at(seen, 2 * NR), delta = at(lse, NR), ones = at(delta, NR); // of each query
  const packedQ = at(ones, NR), packedO = at(packedQ, D * NR); // eight queries and their dout, [D][8]
  const sums = at(packedO, D * NR); // [D][8]
  const blockQ = at(sums, tall * NR), blockO = at(blockQ, block * wide); // a block of both, [D / 8][count][8]
  const packedK = at(blockO, block * wide), packedV = at(packedK, all * D); // k times the scale, and v, [n / 6][D][6]
  const columnsK = at(packedV, all * D); // [D / 6][n][6]
  const dk = at(columnsK, all * tall), dv = at(dk, all * wide); // [n][wide]
  const p = at(dv, all * wide), ds = at(p, all * block); // [n][block]
  v128.store(ones, f32x4.splat(1));
  v128.store(ones, f32x4.splat(1), 16);
  for (let task = begin; task < end; task++) {
    const b = task / H, h = task % H;
    const windows = ptr(3) + (<usize>(b * T) << 3);
    const s0 = lowest(windows, T, S);
    const n = max(0, highest(windows, T) - s0);
    const own = (b * S + s0) * G * D + (h / (H / G)) * D;
    packA(packedK, D * MR, at(ptr(1), own), ks, 1, n, D, float(12));
    packA(packedV, D * MR, at(ptr(2), own), ks, 1, n, D, 1);
    packA(columnsK, n * MR, at(ptr(1), own), 1, ks, D, n, 1);
    memory.fill(dk, 0, <usize>(2 * all * wide) << 2);
    for (let t0 = 0; t0 < T; t0 += block) {
      const count = min(block, T - t0);
      const inBlock = windows + (<usize>t0 << 3);
      const lo = (max(0, lowest(inBlock, count, S) - s0) / MR) * MR;
      const m = roundUp(max(0, highest(inBlock, count) - s0 - lo), MR);
      const atBlock = (b * T + t0) * H * D + h * D;
      for (let i0 = 0; i0 < count; i0 += NR) {
        const rows = min(NR, count - i0);
        const here = inBlock + (<usize>i0 << 3);
        const first = (max(0, lowest(here, rows, S) - s0 - lo) / MR) * MR;
        const last = max(first, highest(here, rows) - s0 - lo);
        const offset = atBlock + i0 * H * D;
        const ps = at(p, i0), dss = at(ds, i0);
        packB(packedQ, D * NR, at(ptr(0), offset), 1, qs, D, rows, F32);
        packB(packedO, D * NR, at(ptr(14), offset), 1, qs, D, rows, F32);
        for (let s = first; s < last; s += MR) {
          tile(D, at(packedK, (lo + s) * D), STEP_A, packedQ, STEP_B, ps + <usize>s * step, block);
          tile(D, at(packedV, (lo + s) * D), STEP_A, packedO, STEP_B, dss + <usize>s * step, block);
        }
        for (let i = 0; i < NR; i++) {
          const there = offset + i * H * D;
          store<f32>(at(lse, i), i < rows ? load<f32>(at(ptr(5), (b * H + h) * T + t0 + i0 + i)) : 0);
          store<f32>(at(delta, i), i < rows ? dot(at(ptr(14), there), at(ptr(4), there), D) : 0);
        }
        if (m > 0) {
          const from = <usize>first * step;
          look(seen, here, rows, s0 + lo + first);
          exponentials(ps + from, ps + from, step, last - first, lse, 0);
          mask(ps + from, step, last - first, seen);
          scoreGradients(dss + from, ps + from, step, last - first, delta, float(12));
          zeroRows(ps, step, 0, first);
          zeroRows(dss, step, 0, first);
          zeroRows(ps, step, last, m);
          zeroRows(dss, step, last, m);
          weigh(D, last - first, at(columnsK, (lo + first) * MR), n * MR, dss + from, step, sums);
        } else {
          memory.fill(sums, 0, <usize>(D * NR) << 2);
        }
        writeRows(at(ptr(15), offset), <usize>qs << 2, rows, D, sums, ones);
      }
      packB(blockQ, count * NR, at(ptr(0), atBlock), qs, 1, count, D, F32);
      packB(blockO, count * NR, at(ptr(14), atBlock), qs, 1, count, D, F32);
      let q0 = 0; // queries before it see nothing from key s on
      for (let s = 0; s < m; s += MR) {
        while (q0 < count && load<i32>(inBlock + (<usize>q0 << 3), 4) - s0 - lo <= s) q0++;
        const row = <usize>s * step + (<usize>q0 << 2);
        for (let d = 0; d < wide; d += NR) {
          const to = (lo + s) * wide + d, panel = d * count + q0 * NR;
          tileRowsAdd(count - q0, ds + row, block, at(blockQ, panel), STEP_B, at(dk, to), wide);
          tileRowsAdd(count - q0, p + row, block, at(blockO, panel), STEP_B, at(dv, to), wide);
        }
      }
    }
    for (let s = 0; s < S; s++) {
      const to = ((b * S + s) * H + h) * D, from = (s - s0) * wide;
      if (s < s0 || s >= s0 + n) {
        memory.fill(at(ptr(16), to), 0, <usize>D << 2);
        memory.fill(at(ptr(17), to), 0, <usize>D << 2);
      } else {
        copy(at(ptr(16), to), at(dk, from), D);
        copy(at(ptr(17), to), at(dv, from), D);
      }
    }
  }
}
