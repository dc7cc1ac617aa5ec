/**
 * Products of a few rows with stored weights, as in decoding: Y[m, n] = alpha · X[m, k] · W[n, k]ᵀ (+ Y). Every weight is read
 * once per call, and reading is what it costs, so the loops are built to keep memory busy.
 *
 * Four rows of W share the loads of x, in eight independent sums. From main memory that alone is slow: four short streams
 * defeat the prefetching of the hardware. So each step also touches the next four rows in the order in which they lie in
 * memory, which is one long stream (twice the speed where a weight is one byte). Long rows of f32 and bf16 do without both, one
 * at a time: they need fewer instructions per byte, so that sharing would not pay (a tenth faster at k = 288).
 *
 * int8 weights meet x in integers: x = s·(h + l / 2Q) with whole h and l of at most Q, two products of 16-bit integers instead of
 * four conversions and two products of floats. With Q near 2¹⁵ that holds x to 2⁻³¹ of its largest entry, finer than f32 does.
 */
import { float, int, ptr, scratch } from './control';
import { BF16, F32, I8, loadAs, scalesOf } from './gemm';
import { madd } from './simd';

const ROWS: i32 = 4; // rows of W at a time: one task
const LONG: i32 = 256; // rows of f32 and bf16 from this length on are read one at a time
const SUMS: usize = 128; // bytes of the eight sums of four rows

/** Sums of x[0 … k) with four rows of W, k rounded down to a multiple of 4; `next` is touched as far as the rows reach. */
function dotF32(x: usize, k: i32, w: usize, step: usize, next: usize, out: usize): void {
  let s0 = f32x4.splat(0), s1 = s0, s2 = s0, s3 = s0, t0 = s0, t1 = s0, t2 = s0, t3 = s0;
  let p0 = w, p1 = p0 + step, p2 = p1 + step, p3 = p2 + step;
  let touched = 0;
  for (const end = x + (<usize>(k >> 3) << 5); x < end; x += 32) {
    const v = v128.load(x), u = v128.load(x, 16);
    s0 = madd(v128.load(p0), v, s0); s1 = madd(v128.load(p1), v, s1);
    s2 = madd(v128.load(p2), v, s2); s3 = madd(v128.load(p3), v, s3);
    t0 = madd(v128.load(p0, 16), u, t0); t1 = madd(v128.load(p1, 16), u, t1);
    t2 = madd(v128.load(p2, 16), u, t2); t3 = madd(v128.load(p3, 16), u, t3);
    p0 += 32; p1 += 32; p2 += 32; p3 += 32;
    touched ^= load<i32>(next) ^ load<i32>(next, 64);
    next += 128;
  }
  if (k & 4) {
    const v = v128.load(x);
    s0 = madd(v128.load(p0), v, s0); s1 = madd(v128.load(p1), v, s1);
    s2 = madd(v128.load(p2), v, s2); s3 = madd(v128.load(p3), v, s3);
  }
  store8(out, s0, s1, s2, s3, t0, t1, t2, t3, touched);
}

/** The same with bf16, k rounded down to a multiple of 8. Of a pair of weights in 32 bits the first is shifted up, the second masked. */
function dotBf16(x: usize, k: i32, w: usize, step: usize, next: usize, out: usize): void {
  let s0 = f32x4.splat(0), s1 = s0, s2 = s0, s3 = s0, t0 = s0, t1 = s0, t2 = s0, t3 = s0;
  let p0 = w, p1 = p0 + step, p2 = p1 + step, p3 = p2 + step;
  const upper = i32x4.splat(<i32>0xffff0000);
  let touched = 0;
  for (const end = x + (<usize>(k >> 3) << 5); x < end; x += 32) {
    const v = v128.load(x), u = v128.load(x, 16);
    const even = v128.shuffle<i32>(v, u, 0, 2, 4, 6), odd = v128.shuffle<i32>(v, u, 1, 3, 5, 7);
    let c = v128.load(p0);
    s0 = madd(i32x4.shl(c, 16), even, s0); t0 = madd(v128.and(c, upper), odd, t0);
    c = v128.load(p1);
    s1 = madd(i32x4.shl(c, 16), even, s1); t1 = madd(v128.and(c, upper), odd, t1);
    c = v128.load(p2);
    s2 = madd(i32x4.shl(c, 16), even, s2); t2 = madd(v128.and(c, upper), odd, t2);
    c = v128.load(p3);
    s3 = madd(i32x4.shl(c, 16), even, s3); t3 = madd(v128.and(c, upper), odd, t3);
    p0 += 16; p1 += 16; p2 += 16; p3 += 16;
    touched ^= load<i32>(next);
    next += 64;
  }
  store8(out, s0, s1, s2, s3, t0, t1, t2, t3, touched);
}

/** Integer sums with h, then with l, of x as `split` wrote it. Weights past the end of a row meet zeros. */
function dotI8(x: usize, k: i32, w: usize, step: usize, next: usize, out: usize): void {
  let s0 = i32x4.splat(0), s1 = s0, s2 = s0, s3 = s0, t0 = s0, t1 = s0, t2 = s0, t3 = s0;
  let p0 = w, p1 = p0 + step, p2 = p1 + step, p3 = p2 + step;
  let touched = 0;
  for (const end = x + splitBytes(k); x < end; x += 32) {
    const h = v128.load(x), l = v128.load(x, 16);
    let c = v128.load8x8_s(p0);
    s0 = i32x4.add(s0, i32x4.dot_i16x8_s(c, h)); t0 = i32x4.add(t0, i32x4.dot_i16x8_s(c, l));
    c = v128.load8x8_s(p1);
    s1 = i32x4.add(s1, i32x4.dot_i16x8_s(c, h)); t1 = i32x4.add(t1, i32x4.dot_i16x8_s(c, l));
    c = v128.load8x8_s(p2);
    s2 = i32x4.add(s2, i32x4.dot_i16x8_s(c, h)); t2 = i32x4.add(t2, i32x4.dot_i16x8_s(c, l));
    c = v128.load8x8_s(p3);
    s3 = i32x4.add(s3, i32x4.dot_i16x8_s(c, h)); t3 = i32x4.add(t3, i32x4.dot_i16x8_s(c, l));
    p0 += 8; p1 += 8; p2 += 8; p3 += 8;
    touched ^= load<i32>(next);
    next += 32;
  }
  store8(out, s0, s1, s2, s3, t0, t1, t2, t3, touched);
}

/** Sums of x[0 … k) with one long row of f32, k rounded down to a multiple of 16: four lanes. */
function dotRowF32(x: usize, k: i32, w: usize, out: usize): void {
  let s0 = f32x4.splat(0), s1 = s0, s2 = s0, s3 = s0;
  for (const end = x + (<usize>(k >> 4) << 6); x < end; x += 64) {
    s0 = madd(v128.load(w), v128.load(x), s0);
    s1 = madd(v128.load(w, 16), v128.load(x, 16), s1);
    s2 = madd(v128.load(w, 32), v128.load(x, 32), s2);
    s3 = madd(v128.load(w, 48), v128.load(x, 48), s3);
    w += 64;
  }
  v128.store(out, f32x4.add(f32x4.add(s0, s1), f32x4.add(s2, s3)));
}

/** The same of bf16. */
function dotRowBf16(x: usize, k: i32, w: usize, out: usize): void {
  let s0 = f32x4.splat(0), s1 = s0, s2 = s0, s3 = s0;
  const upper = i32x4.splat(<i32>0xffff0000);
  for (const end = x + (<usize>(k >> 4) << 6); x < end; x += 64) {
    const a = v128.load(x), b = v128.load(x, 16), c = v128.load(x, 32), d = v128.load(x, 48);
    let p = v128.load(w);
    s0 = madd(i32x4.shl(p, 16), v128.shuffle<i32>(a, b, 0, 2, 4, 6), s0);
    s1 = madd(v128.and(p, upper), v128.shuffle<i32>(a, b, 1, 3, 5, 7), s1);
    p = v128.load(w, 16);
    s2 = madd(i32x4.shl(p, 16), v128.shuffle<i32>(c, d, 0, 2, 4, 6), s2);
    s3 = madd(v128.and(p, upper), v128.shuffle<i32>(c, d, 1, 3, 5, 7), s3);
    w += 32;
  }
  v128.store(out, f32x4.add(f32x4.add(s0, s1), f32x4.add(s2, s3)));
}

// @ts-ignore: decorator
@inline
function store8(to: usize, a: v128, b: v128, c: v128, d: v128, e: v128, f: v128, g: v128, h: v128, touched: i32): void {
  v128.store(to, a); v128.store(to, b, 16); v128.store(to, c, 32); v128.store(to, d, 48);
  v128.store(to, e, 64); v128.store(to, f, 80); v128.store(to, g, 96); v128.store(to, h, 112);
  store<i32>(to, touched, SUMS); // or the engine would see that nobody wants it
}

// @ts-ignore: decorator
@inline
function splitBytes(k: i32): usize {
  return <usize>((k + 7) >> 3) << 5;
}

/** Largest whole number that k products with 127 and sums of a quarter of them may have as a factor. */
function largestPart(k: i32): f32 {
  return <f32>min(32767, 0x7fffffff / (127 * max(1, (k + 3) / 4)));
}

/** Writes x as [h × 8][l × 8] for every 8 entries, filled up with zeros; returns s. x that is not finite makes s NaN. */
function split(to: usize, x: usize, k: i32, Q: f32): f32 {
  let top: f32 = 0;
  let finite = true;
  for (let i = 0; i < k; i++) {
    const v = abs(load<f32>(x + (<usize>i << 2)));
    if (!(v < Infinity)) finite = false;
    top = max(top, v);
  }
  memory.fill(to, 0, splitBytes(k));
  if (!finite) return NaN;
  if (top == 0) return 0;
  const up: f32 = min<f32>(Q / top, 1e38), q = f32x4.splat(Q), down = f32x4.splat(-Q), twice = f32x4.splat(2 * Q);
  const u = f32x4.splat(up);
  let i = 0;
  for (; i + 8 <= k; i += 8) {
    const a = f32x4.mul(v128.load(x), u), b = f32x4.mul(v128.load(x, 16), u);
    const ha = f32x4.pmin(f32x4.pmax(f32x4.nearest(a), down), q), hb = f32x4.pmin(f32x4.pmax(f32x4.nearest(b), down), q);
    const la = f32x4.nearest(f32x4.mul(f32x4.sub(a, ha), twice)), lb = f32x4.nearest(f32x4.mul(f32x4.sub(b, hb), twice));
    v128.store(to, i16x8.narrow_i32x4_s(i32x4.trunc_sat_f32x4_s(ha), i32x4.trunc_sat_f32x4_s(hb)));
    v128.store(to, i16x8.narrow_i32x4_s(i32x4.trunc_sat_f32x4_s(la), i32x4.trunc_sat_f32x4_s(lb)), 16);
    x += 32;
    to += 32;
  }
  for (; i < k; i++) {
    const a = load<f32>(x) * up;
    const h = min(max(nearest(a), -Q), Q);
    store<i16>(to, <i16>h);
    store<i16>(to, <i16>nearest((a - h) * 2 * Q), 16);
    x += 4;
    to += 2;
  }
  return 1 / up;
}

/** The sums of four vectors. */
// @ts-ignore: decorator
@inline
function sums(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<i64>(ab, cd, 0, 2), v128.shuffle<i64>(ab, cd, 1, 3));
}

/** The eight sums of four rows as four numbers. Of integer sums the second four count 1 / 2Q. */
function collect(from: usize, type: i32, less: f32): v128 {
  const s0 = v128.load(from), s1 = v128.load(from, 16), s2 = v128.load(from, 32), s3 = v128.load(from, 48);
  const t0 = v128.load(from, 64), t1 = v128.load(from, 80), t2 = v128.load(from, 96), t3 = v128.load(from, 112);
  if (type != I8) return sums(f32x4.add(s0, t0), f32x4.add(s1, t1), f32x4.add(s2, t2), f32x4.add(s3, t3));
  const l = f32x4.splat(less);
  return sums(whole(s0, t0, l), whole(s1, t1, l), whole(s2, t2, l), whole(s3, t3, l));
}

// @ts-ignore: decorator
@inline
function whole(h: v128, l: v128, less: v128): v128 {
  return f32x4.add(f32x4.convert_i32x4_s(h), f32x4.mul(f32x4.convert_i32x4_s(l), less));
}

/** Four dot products of one x with rows of W. */
function four(x: usize, k: i32, w: usize, step: usize, next: usize, type: i32, less: f32, work: usize): v128 {
  let done = k;
  if (k >= LONG && (type == F32 || type == BF16)) {
    // by hand: memory.fill is a call out of wasm
    const zero = f32x4.splat(0);
    v128.store(work, zero, 64); v128.store(work, zero, 80); v128.store(work, zero, 96); v128.store(work, zero, 112);
    for (let to = work, end = work + SUMS / 2; to < end; to += 16, w += step) {
      if (type == F32) dotRowF32(x, k, w, to);
      else dotRowBf16(x, k, w, to);
    }
    w -= 4 * step;
    done = k & ~15;
  } else if (type == I8) dotI8(x, k, w, step, next, work);
  else if (type == BF16) {
    dotBf16(x, k, w, step, next, work);
    done = k & ~7;
  } else if (type == F32) {
    dotF32(x, k, w, step, next, work);
    done = k & ~3;
  } else {
    memory.fill(work, 0, SUMS);
    done = 0;
  }
  const y = collect(work, type, less);
  if (done == k) return y;
  v128.store(work, y);
  for (let r: usize = 0; r < 4; r++) {
    let sum = load<f32>(work + (r << 2));
    for (let i = done; i < k; i++) sum += loadAs(w + r * step, i, type) * load<f32>(x + (<usize>i << 2));
    store<f32>(work + (r << 2), sum);
  }
  return v128.load(work);
}

/** Scratch bytes of `gemv`. */
export function gemvScratch(m: i32, k: i32): usize {
  return SUMS + 16 + <usize>m * (splitBytes(k) + 16) + (<usize>k << 4); // the last for touching nothing of use
}

/** The job. Slots: 0 y, 1 x, 2 w, 3 m, 4 n, 5 k, 6 type of w, 7 accumulate, 8 alpha. Tasks are groups of four rows of W. */
export function gemv(begin: i32, end: i32): void {
  const y = ptr(0), x = ptr(1), w = ptr(2);
  const m = int(3), n = int(4), k = int(5), type = int(6);
  const accumulate = int(7) != 0, alpha = float(8);
  const row = <usize>k << (type == F32 ? 2 : type == I8 ? 0 : 1); // bytes
  const work = scratch(), parts = work + SUMS + 16;
  const Q = largestPart(k);
  const less: f32 = 1 / (2 * Q);
  const each = type == I8 ? splitBytes(k) + 16 : <usize>k << 2;
  const from = type == I8 ? parts + 16 : x;
  const scales = type == I8 ? scalesOf(w, n, k) : 0;
  if (type == I8) {
    for (let r = 0; r < m; r++) {
      const part = parts + <usize>r * each;
      store<f32>(part, split(part + 16, x + (<usize>(r * k) << 2), k, Q));
    }
  }
  for (let task = begin; task < end; task++) {
    const j = task * ROWS, live = min(ROWS, n - j);
    const group = w + <usize>j * row;
    const next = j + 2 * ROWS <= n && task + 1 < end ? group + ROWS * row : live == ROWS ? group : work;
    for (let r = 0; r < m; r++) {
      const v = from + <usize>r * each;
      const factor: f32 = type == I8 ? alpha * load<f32>(v - 16) : alpha;
      const to = y + (<usize>(r * n + j) << 2);
      if (live == ROWS) {
        let sum = f32x4.mul(four(v, k, group, row, r ? group : next, type, less, work), f32x4.splat(factor));
        if (type == I8) sum = f32x4.mul(sum, v128.load(scales + (<usize>j << 2)));
        v128.store(to, accumulate ? f32x4.add(v128.load(to), sum) : sum);
      } else {
        for (let i: usize = 0; i < <usize>live; i++) {
          // the same row four times, since there are not four
          let sum = f32x4.extract_lane(four(v, k, group + i * row, 0, work, type, less, work), 0) * factor;
          if (type == I8) sum *= load<f32>(scales + ((<usize>j + i) << 2));
          const at = to + (i << 2);
          store<f32>(at, accumulate ? load<f32>(at) + sum : sum);
        }
      }
    }
  }
}
