/** Elementwise kernels. Tasks are blocks of BLOCK elements; the last lanes of a tensor go through a padded vector. */
import { float, int, ptr } from './control';
import { constant, exp4, expWith, sigmoid4 } from './exponential';
import { loadTail, madd, storeTail } from './simd';

export const BLOCK: i32 = 1024;

// @ts-ignore: decorator
@inline
function unary4(op: i32, x: v128): v128 {
  switch (op) {
    case 0: return f32x4.neg(x);
    case 1: return f32x4.abs(x);
    case 2: return exp4(x);
    case 3: return f32x4.sqrt(x);
    case 4: return f32x4.div(f32x4.splat(1), f32x4.sqrt(x));
    case 5: return f32x4.mul(x, x);
    case 6: return sigmoid4(x);
    case 7: return f32x4.mul(x, sigmoid4(x));
    default: return f32x4.max(x, f32x4.splat(0));
  }
}

/** Slots: 0 y, 1 x, 2 n, 3 op (order of UNARY in the host's backends/wasm/index.ts). */
export function unary(begin: i32, end: i32): void {
  const y = ptr(0), x = ptr(1), op = int(3);
  const n = min(int(2), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 4 <= n; i += 4) v128.store(y + (<usize>i << 2), unary4(op, v128.load(x + (<usize>i << 2))));
  if (i < n) storeTail(y + (<usize>i << 2), unary4(op, loadTail(x + (<usize>i << 2), n - i)), n - i);
}

/** Slots: 0 y, 1 x, 2 n, 3 scale, 4 shift. */
export function affine(begin: i32, end: i32): void {
  const y = ptr(0), x = ptr(1);
  const scale = f32x4.splat(float(3)), shift = f32x4.splat(float(4));
  const n = min(int(2), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 4 <= n; i += 4) {
    v128.store(y + (<usize>i << 2), f32x4.add(f32x4.mul(v128.load(x + (<usize>i << 2)), scale), shift));
  }
  if (i < n) {
    storeTail(y + (<usize>i << 2), f32x4.add(f32x4.mul(loadTail(x + (<usize>i << 2), n - i), scale), shift), n - i);
  }
}

// @ts-ignore: decorator
@inline
function binary4(op: i32, a: v128, b: v128): v128 {
  switch (op) {
    case 0: return f32x4.add(a, b);
    case 1: return f32x4.sub(a, b);
    case 2: return f32x4.mul(a, b);
    case 3: return f32x4.div(a, b);
    case 4: return f32x4.max(a, b);
    default: return f32x4.min(a, b);
  }
}

/**
 * y[r, c] = op(a[r, c], b[r, c]) where each operand moves by its own row and column stride (0 or 1 for columns).
 * Slots: 0 y, 1 a, 2 b, 3 columns, 4 op, 5/6 row and column stride of a, 7/8 of b. Tasks are rows.
 */
export function binary(begin: i32, end: i32): void {
  const columns = int(3), op = int(4);
  const acs = int(6), bcs = int(8);
  for (let r = begin; r < end; r++) {
    const y = ptr(0) + (<usize>r * <usize>columns << 2);
    const a = ptr(1) + (<usize>r * <usize>int(5) << 2);
    const b = ptr(2) + (<usize>r * <usize>int(7) << 2);
    const a0 = acs ? f32x4.splat(0) : v128.load32_splat(a);
    const b0 = bcs ? f32x4.splat(0) : v128.load32_splat(b);
    let i = 0;
    for (; i + 4 <= columns; i += 4) {
      const o = <usize>i << 2;
      v128.store(y + o, binary4(op, acs ? v128.load(a + o) : a0, bcs ? v128.load(b + o) : b0));
    }
    if (i < columns) {
      const o = <usize>i << 2, rest = columns - i;
      storeTail(y + o, binary4(op, acs ? loadTail(a + o, rest) : a0, bcs ? loadTail(b + o, rest) : b0), rest);
    }
  }
}

/** y = silu(gate) · up. Slots: 0 y, 1 gate, 2 up, 3 n. */
export function swiglu(begin: i32, end: i32): void {
  const k0 = constant(0), k1 = constant(1), k2 = constant(2), k3 = constant(3), k4 = constant(4), k5 = constant(5);
  const k6 = constant(6), k7 = constant(7), k8 = constant(8), k9 = constant(9), one = constant(10);
  const y = ptr(0), gate = ptr(1), up = ptr(2);
  const n = min(int(3), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    const g = v128.load(gate + o);
    const e = expWith(f32x4.neg(f32x4.pmax(g, f32x4.splat(-88))), k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, one);
    v128.store(y + o, f32x4.mul(f32x4.div(g, f32x4.add(one, e)), v128.load(up + o)));
  }
  if (i < n) {
    const o = <usize>i << 2;
    storeTail(y + o, f32x4.mul(unary4(7, loadTail(gate + o, n - i)), loadTail(up + o, n - i)), n - i);
  }
}

/** Slots: 0 dgate, 1 dup, 2 dy, 3 gate, 4 up, 5 n. */
export function swigluGrad(begin: i32, end: i32): void {
  const k0 = constant(0), k1 = constant(1), k2 = constant(2), k3 = constant(3), k4 = constant(4), k5 = constant(5);
  const k6 = constant(6), k7 = constant(7), k8 = constant(8), k9 = constant(9), one = constant(10);
  const dgate = ptr(0), dup = ptr(1), dy = ptr(2), gate = ptr(3), up = ptr(4);
  const n = min(int(5), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    const d = v128.load(dy + o), g = v128.load(gate + o);
    const e = expWith(f32x4.neg(f32x4.pmax(g, f32x4.splat(-88))), k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, one);
    const s = f32x4.div(one, f32x4.add(one, e)), silu = f32x4.mul(g, s);
    v128.store(dgate + o, f32x4.mul(f32x4.mul(d, v128.load(up + o)), siluSlope(silu, s)));
    v128.store(dup + o, f32x4.mul(d, silu));
  }
  if (i < n) {
    const o = <usize>i << 2, rest = n - i;
    const d = loadTail(dy + o, rest), g = loadTail(gate + o, rest), s = sigmoid4(g), silu = f32x4.mul(g, s);
    storeTail(dgate + o, f32x4.mul(f32x4.mul(d, loadTail(up + o, rest)), siluSlope(silu, s)), rest);
    storeTail(dup + o, f32x4.mul(d, silu), rest);
  }
}

/** silu' = σ + silu·(1 − σ). */
// @ts-ignore: decorator
@inline
function siluSlope(silu: v128, s: v128): v128 {
  return madd(silu, f32x4.sub(f32x4.splat(1), s), s);
}

/** y ← y + alpha·x. Slots: 0 y, 1 x, 2 n, 3 alpha. */
export function axpy(begin: i32, end: i32): void {
  const y = ptr(0), x = ptr(1), alpha = f32x4.splat(float(3));
  const n = min(int(2), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    v128.store(y + o, f32x4.add(v128.load(y + o), f32x4.mul(alpha, v128.load(x + o))));
  }
  if (i < n) {
    const o = <usize>i << 2;
    storeTail(y + o, f32x4.add(loadTail(y + o, n - i), f32x4.mul(alpha, loadTail(x + o, n - i))), n - i);
  }
}

/** y ← y · factor[0]. Slots: 0 y, 1 factor, 2 n. */
export function scaleBy(begin: i32, end: i32): void {
  const y = ptr(0), factor = v128.load32_splat(ptr(1));
  const n = min(int(2), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 4 <= n; i += 4) v128.store(y + (<usize>i << 2), f32x4.mul(v128.load(y + (<usize>i << 2)), factor));
  if (i < n) storeTail(y + (<usize>i << 2), f32x4.mul(loadTail(y + (<usize>i << 2), n - i), factor), n - i);
}

/** A list of parts: each `words` long, with the number of its elements in word 0 and its first block in word 1. */
function partOf(list: usize, count: i32, words: i32, block: i32): usize {
  let part = list + (<usize>((count - 1) * words) << 2);
  while (load<i32>(part, 4) > block) part -= <usize>words << 2;
  return part;
}

/**
 * AdamW over a list of parts (n, first block, p, g, m, v); tasks are their blocks.
 * Slots: 0 list, 1 count, 2 factor of the gradients or 0, 5 1 − lr·decay, 6 β₁, 7 1 − β₁, 8 β₂, 9 1 − β₂, 10 lr/bc₁, 11 √bc₂, 12 eps.
 */
export function adamw(begin: i32, end: i32): void {
  for (let block = begin; block < end; block++) {
    const part = partOf(ptr(0), int(1), 6, block);
    const from = (block - load<i32>(part, 4)) * BLOCK;
    adamwBlock(from, min(load<i32>(part), from + BLOCK), load<usize>(part, 8), load<usize>(part, 12), load<usize>(part, 16), load<usize>(part, 20));
  }
}

function adamwBlock(from: i32, to: i32, ps: usize, gs: usize, ms: usize, vs: usize): void {
  const keep = f32x4.splat(float(5)), b1 = f32x4.splat(float(6)), c1 = f32x4.splat(float(7));
  const b2 = f32x4.splat(float(8)), c2 = f32x4.splat(float(9)), step = f32x4.splat(float(10));
  const root = f32x4.splat(float(11)), eps = f32x4.splat(float(12));
  const factor = ptr(2) ? v128.load32_splat(ptr(2)) : f32x4.splat(1);
  for (let i = from; i < to; i += 4) {
    const o = <usize>i << 2;
    const whole = i + 4 <= to;
    let p = whole ? v128.load(ps + o) : loadTail(ps + o, to - i);
    const g = f32x4.mul(whole ? v128.load(gs + o) : loadTail(gs + o, to - i), factor);
    let m = whole ? v128.load(ms + o) : loadTail(ms + o, to - i);
    let v = whole ? v128.load(vs + o) : loadTail(vs + o, to - i);
    m = f32x4.add(f32x4.mul(b1, m), f32x4.mul(c1, g));
    v = f32x4.add(f32x4.mul(b2, v), f32x4.mul(c2, f32x4.mul(g, g)));
    const denominator = f32x4.add(f32x4.div(f32x4.sqrt(v), root), eps);
    p = f32x4.sub(f32x4.mul(p, keep), f32x4.mul(step, f32x4.div(m, denominator)));
    if (whole) {
      v128.store(ps + o, p);
      v128.store(ms + o, m);
      v128.store(vs + o, v);
    } else {
      storeTail(ps + o, p, to - i);
      storeTail(ms + o, m, to - i);
      storeTail(vs + o, v, to - i);
    }
  }
}

/** Sum of squares of each block of a list of parts (n, first block, x), in f64. Slots: 0 list, 1 count, 2 sums (f64). */
export function squaredNorm(begin: i32, end: i32): void {
  for (let block = begin; block < end; block++) {
    const part = partOf(ptr(0), int(1), 3, block);
    let i = (block - load<i32>(part, 4)) * BLOCK;
    const to = min(load<i32>(part), i + BLOCK), x = load<usize>(part, 8);
    let a = f64x2.splat(0), b = a;
    for (; i < to; i += 4) {
      const at = x + (<usize>i << 2), v = i + 4 <= to ? v128.load(at) : loadTail(at, to - i);
      const lo = f64x2.promote_low_f32x4(v), hi = f64x2.promote_low_f32x4(v128.shuffle<i64>(v, v, 1, 1));
      a = f64x2.add(a, f64x2.mul(lo, lo));
      b = f64x2.add(b, f64x2.mul(hi, hi));
    }
    a = f64x2.add(a, b);
    store<f64>(ptr(2) + (<usize>block << 3), f64x2.extract_lane(a, 0) + f64x2.extract_lane(a, 1));
  }
}

/** SGD. Slots: 0 p, 1 g, 2 buf, 3 n, 4 lr, 5 momentum, 6 1 − dampening, 7 weight decay, 8 nesterov. */
export function sgd(begin: i32, end: i32): void {
  const lr = f32x4.splat(float(4)), mu = f32x4.splat(float(5)), fresh = f32x4.splat(float(6)), decay = f32x4.splat(float(7));
  const n = min(int(3), end * BLOCK);
  for (let i = begin * BLOCK; i < n; i += 4) {
    const o = <usize>i << 2;
    const whole = i + 4 <= n;
    let p = whole ? v128.load(ptr(0) + o) : loadTail(ptr(0) + o, n - i);
    let g = whole ? v128.load(ptr(1) + o) : loadTail(ptr(1) + o, n - i);
    let buf = whole ? v128.load(ptr(2) + o) : loadTail(ptr(2) + o, n - i);
    g = f32x4.add(g, f32x4.mul(decay, p));
    buf = f32x4.add(f32x4.mul(mu, buf), f32x4.mul(fresh, g));
    const d = int(8) ? f32x4.add(g, f32x4.mul(mu, buf)) : buf;
    p = f32x4.sub(p, f32x4.mul(lr, d));
    if (whole) {
      v128.store(ptr(0) + o, p);
      v128.store(ptr(2) + o, buf);
    } else {
      storeTail(ptr(0) + o, p, n - i);
      storeTail(ptr(2) + o, buf, n - i);
    }
  }
}

/** bf16 → f32. Slots: 0 y, 1 x, 2 n. */
export function fromBf16(begin: i32, end: i32): void {
  const y = ptr(0), x = ptr(1);
  const n = min(int(2), end * BLOCK);
  let i = begin * BLOCK;
  for (; i + 8 <= n; i += 8) {
    const v = v128.load(x + (<usize>i << 1));
    v128.store(y + (<usize>i << 2), i32x4.shl(i32x4.extend_low_i16x8_u(v), 16));
    v128.store(y + (<usize>i << 2), i32x4.shl(i32x4.extend_high_i16x8_u(v), 16), 16);
  }
  for (; i < n; i++) store<u32>(y + (<usize>i << 2), <u32>load<u16>(x + (<usize>i << 1)) << 16);
}
