/** Kernels over the rows of a matrix [R, C]: one task is one row, unless said otherwise. */
import { float, int, ptr } from './control';
import { expClamped4, exponentialsOfRow } from './exponential';
import { F32, I8, loadAs, scalesOf } from './gemm';
import { loadTail, log1, madd, max4, storeTail, sum4 } from './simd';

const LOWEST: f32 = -f32.MAX_VALUE * 2; // −Infinity

function rowMax(x: usize, n: i32): f32 {
  let v = f32x4.splat(LOWEST);
  let i = 0;
  for (; i + 4 <= n; i += 4) v = f32x4.pmax(v, v128.load(x + (<usize>i << 2)));
  let best = max4(v);
  for (; i < n; i++) best = max(best, load<f32>(x + (<usize>i << 2)));
  return best;
}

/** Σ e^(x − shift) with x ≤ shift. */
function rowExpSum(x: usize, n: i32, shift: f32): f32 {
  const sh = f32x4.splat(shift);
  let acc = f32x4.splat(0);
  let i = 0;
  for (; i + 4 <= n; i += 4) acc = f32x4.add(acc, expClamped4(f32x4.sub(v128.load(x + (<usize>i << 2)), sh)));
  let sum = sum4(acc);
  for (; i < n; i++) sum += f32x4.extract_lane(expClamped4(f32x4.splat(load<f32>(x + (<usize>i << 2)) - shift)), 0);
  return sum;
}

/** y = x·scale + shift over one row. */
function rowAffine(y: usize, x: usize, n: i32, scale: f32, shift: f32): void {
  const s = f32x4.splat(scale), t = f32x4.splat(shift);
  let i = 0;
  for (; i + 4 <= n; i += 4) v128.store(y + (<usize>i << 2), f32x4.add(f32x4.mul(v128.load(x + (<usize>i << 2)), s), t));
  if (i < n) storeTail(y + (<usize>i << 2), f32x4.add(f32x4.mul(loadTail(x + (<usize>i << 2), n - i), s), t), n - i);
}

/** Slots: 0 y, 1 x, 2 columns. */
export function softmax(begin: i32, end: i32): void {
  const n = int(2);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    const sum = exponentialsOfRow(ptr(0) + o, ptr(1) + o, n, rowMax(ptr(1) + o, n));
    rowAffine(ptr(0) + o, ptr(0) + o, n, 1 / sum, 0);
  }
}

/** Slots: 0 y, 1 x, 2 columns. */
export function logSoftmax(begin: i32, end: i32): void {
  const n = int(2);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    const top = rowMax(ptr(1) + o, n);
    const sum = rowExpSum(ptr(1) + o, n, top);
    const less = log1(sum);
    // subtract the maximum first: x − top is exact for near neighbours, x − (top + log) is not
    for (let i = 0; i < n; i++) {
      const at = o + (<usize>i << 2);
      store<f32>(ptr(0) + at, load<f32>(ptr(1) + at) - top - less);
    }
  }
}

/** Slots: 0 dx, 1 dy, 2 y, 3 columns. dx = y·(dy − Σ dy·y). */
export function softmaxGrad(begin: i32, end: i32): void {
  const n = int(3);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    const dy = ptr(1) + o, y = ptr(2) + o;
    let total: f32 = 0;
    for (let i = 0; i < n; i++) total += load<f32>(dy + (<usize>i << 2)) * load<f32>(y + (<usize>i << 2));
    for (let i = 0; i < n; i++) {
      const at = <usize>i << 2;
      store<f32>(ptr(0) + o + at, load<f32>(y + at) * (load<f32>(dy + at) - total));
    }
  }
}

/** Slots: 0 dx, 1 dy, 2 y, 3 columns. dx = dy − e^y · Σ dy. */
export function logSoftmaxGrad(begin: i32, end: i32): void {
  const n = int(3);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    let total: f32 = 0;
    for (let i = 0; i < n; i++) total += load<f32>(ptr(1) + o + (<usize>i << 2));
    const t = f32x4.splat(total);
    for (let i = 0; i < n; i += 4) {
      const at = o + (<usize>i << 2), rest = n - i;
      const y = rest >= 4 ? v128.load(ptr(2) + at) : loadTail(ptr(2) + at, rest);
      const dy = rest >= 4 ? v128.load(ptr(1) + at) : loadTail(ptr(1) + at, rest);
      const dx = f32x4.sub(dy, f32x4.mul(expClamped4(y), t));
      if (rest >= 4) v128.store(ptr(0) + at, dx);
      else storeTail(ptr(0) + at, dx, rest);
    }
  }
}

/** Index of the first largest entry. Slots: 0 y (i32), 1 x, 2 columns. */
export function argmax(begin: i32, end: i32): void {
  const n = int(2);
  for (let r = begin; r < end; r++) {
    const x = ptr(1) + ((<usize>r * <usize>n) << 2);
    const top = rowMax(x, n);
    let i = 0;
    while (i < n - 1 && load<f32>(x + (<usize>i << 2)) != top) i++;
    store<i32>(ptr(0) + (<usize>r << 2), i);
  }
}

/** Slots: 0 y, 1 inv, 2 x, 3 weight, 4 columns, 5 eps. */
export function rmsNorm(begin: i32, end: i32): void {
  const n = int(4), w = ptr(3);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    const x = ptr(2) + o, y = ptr(0) + o;
    let acc = f32x4.splat(0);
    let i = 0;
    for (; i + 4 <= n; i += 4) {
      const v = v128.load(x + (<usize>i << 2));
      acc = madd(v, v, acc);
    }
    let sum = sum4(acc);
    for (; i < n; i++) sum += load<f32>(x + (<usize>i << 2)) * load<f32>(x + (<usize>i << 2));
    const inv: f32 = 1 / sqrt<f32>(sum / <f32>n + float(5));
    store<f32>(ptr(1) + (<usize>r << 2), inv);
    const s = f32x4.splat(inv);
    for (i = 0; i + 4 <= n; i += 4) {
      const at = <usize>i << 2;
      v128.store(y + at, f32x4.mul(f32x4.mul(v128.load(x + at), s), v128.load(w + at)));
    }
    for (; i < n; i++) {
      const at = <usize>i << 2;
      store<f32>(y + at, load<f32>(x + at) * inv * load<f32>(w + at));
    }
  }
}

/** dx = inv·(dy·w − x·inv²·mean(dy·w·x)). Slots: 0 dx, 1 dy, 2 x, 3 weight, 4 inv, 5 columns. */
export function rmsNormGradInput(begin: i32, end: i32): void {
  const n = int(5), w = ptr(3);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    const dy = ptr(1) + o, x = ptr(2) + o, dx = ptr(0) + o;
    let acc = f32x4.splat(0);
    let i = 0;
    for (; i + 4 <= n; i += 4) {
      const at = <usize>i << 2;
      acc = madd(f32x4.mul(v128.load(dy + at), v128.load(w + at)), v128.load(x + at), acc);
    }
    let sum = sum4(acc);
    for (; i < n; i++) {
      const at = <usize>i << 2;
      sum += load<f32>(dy + at) * load<f32>(w + at) * load<f32>(x + at);
    }
    const inv = load<f32>(ptr(4) + (<usize>r << 2));
    const factor: f32 = -(sum / <f32>n) * inv * inv;
    const s = f32x4.splat(inv), f = f32x4.splat(factor);
    for (i = 0; i + 4 <= n; i += 4) {
      const at = <usize>i << 2;
      const t = madd(v128.load(x + at), f, f32x4.mul(v128.load(dy + at), v128.load(w + at)));
      v128.store(dx + at, f32x4.mul(t, s));
    }
    for (; i < n; i++) {
      const at = <usize>i << 2;
      store<f32>(dx + at, (load<f32>(x + at) * factor + load<f32>(dy + at) * load<f32>(w + at)) * inv);
    }
  }
}

/** dw[c] = Σ_r dy·x·inv. Tasks are groups of 4 columns. Slots: 0 dw, 1 dy, 2 x, 3 inv, 4 rows, 5 columns. */
export function rmsNormGradWeight(begin: i32, end: i32): void {
  const rows = int(4), n = int(5);
  for (let task = begin; task < end; task++) {
    const c = task * 4, rest = n - c;
    let acc = f32x4.splat(0);
    for (let r = 0; r < rows; r++) {
      const o = (<usize>r * <usize>n + <usize>c) << 2;
      const dy = rest >= 4 ? v128.load(ptr(1) + o) : loadTail(ptr(1) + o, rest);
      const x = rest >= 4 ? v128.load(ptr(2) + o) : loadTail(ptr(2) + o, rest);
      acc = madd(f32x4.mul(dy, x), v128.load32_splat(ptr(3) + (<usize>r << 2)), acc);
    }
    if (rest >= 4) v128.store(ptr(0) + (<usize>c << 2), acc);
    else storeTail(ptr(0) + (<usize>c << 2), acc, rest);
  }
}

/** Slots: 0 loss, 1 lse, 2 logits, 3 labels, 4 columns. */
export function crossEntropy(begin: i32, end: i32): void {
  const n = int(4);
  for (let r = begin; r < end; r++) {
    const x = ptr(2) + ((<usize>r * <usize>n) << 2);
    const label = load<i32>(ptr(3) + (<usize>r << 2));
    const top = rowMax(x, n);
    const less = log1(rowExpSum(x, n, top));
    store<f32>(ptr(1) + (<usize>r << 2), top + less);
    store<f32>(ptr(0) + (<usize>r << 2), label < 0 ? 0 : top - load<f32>(x + (<usize>label << 2)) + less);
  }
}

/** Slots: 0 dlogits, 1 dloss, 2 logits, 3 labels, 4 lse, 5 columns. */
export function crossEntropyGrad(begin: i32, end: i32): void {
  const n = int(5);
  for (let r = begin; r < end; r++) {
    const o = (<usize>r * <usize>n) << 2;
    const dx = ptr(0) + o, x = ptr(2) + o;
    const label = load<i32>(ptr(3) + (<usize>r << 2));
    const d = load<f32>(ptr(1) + (<usize>r << 2));
    if (label < 0 || d == 0) {
      memory.fill(dx, 0, <usize>n << 2);
      continue;
    }
    const scale = f32x4.splat(d), lse = v128.load32_splat(ptr(4) + (<usize>r << 2));
    let i = 0;
    for (; i + 4 <= n; i += 4) {
      const at = <usize>i << 2;
      v128.store(dx + at, f32x4.mul(expClamped4(f32x4.sub(v128.load(x + at), lse)), scale));
    }
    if (i < n) {
      const at = <usize>i << 2;
      storeTail(dx + at, f32x4.mul(expClamped4(f32x4.sub(loadTail(x + at, n - i), lse)), scale), n - i);
    }
    const hit = dx + (<usize>label << 2);
    store<f32>(hit, load<f32>(hit) - d);
  }
}

/** Loss, and the logits replaced by its derivative times scale. Slots: 0 loss, 1 logits, 2 labels, 3 columns, 4 scale. */
export function crossEntropyUpdate(begin: i32, end: i32): void {
  const n = int(3), scale = float(4);
  for (let r = begin; r < end; r++) {
    const x = ptr(1) + ((<usize>r * <usize>n) << 2);
    const label = load<i32>(ptr(2) + (<usize>r << 2));
    if (label < 0) {
      memory.fill(x, 0, <usize>n << 2);
      store<f32>(ptr(0) + (<usize>r << 2), 0);
      continue;
    }
    const hit = x + (<usize>label << 2);
    const top = rowMax(x, n), own = top - load<f32>(hit);
    const sum = exponentialsOfRow(x, x, n, top);
    store<f32>(ptr(0) + (<usize>r << 2), own + log1(sum));
    rowAffine(x, x, n, scale / sum, 0);
    store<f32>(hit, load<f32>(hit) - scale);
  }
}

/** Sum over the middle of [outer, n, inner] with inner = 1, in f64. Tasks are rows. Slots: 0 y, 1 x, 2 n. */
export function sumRows(begin: i32, end: i32): void {
  const n = int(2);
  for (let r = begin; r < end; r++) {
    const x = ptr(1) + ((<usize>r * <usize>n) << 2);
    let a = f64x2.splat(0), b = a;
    let i = 0;
    for (; i + 4 <= n; i += 4) {
      const v = v128.load(x + (<usize>i << 2));
      a = f64x2.add(a, f64x2.promote_low_f32x4(v));
      b = f64x2.add(b, f64x2.promote_low_f32x4(v128.shuffle<i64>(v, v, 1, 1)));
    }
    a = f64x2.add(a, b);
    let sum = f64x2.extract_lane(a, 0) + f64x2.extract_lane(a, 1);
    for (; i < n; i++) sum += <f64>load<f32>(x + (<usize>i << 2));
    store<f32>(ptr(0) + (<usize>r << 2), <f32>sum);
  }
}

/** The same with inner > 1. Tasks are outer × groups of 4 inner elements. Slots: 0 y, 1 x, 2 n, 3 inner. */
export function sumColumns(begin: i32, end: i32): void {
  const n = int(2), inner = int(3);
  const groups = (inner + 3) >> 2;
  for (let task = begin; task < end; task++) {
    const outer = task / groups, c = (task - outer * groups) * 4, rest = inner - c;
    let a = f64x2.splat(0), b = a;
    for (let i = 0; i < n; i++) {
      const at = ptr(1) + ((<usize>(outer * n + i) * <usize>inner + <usize>c) << 2);
      const v = rest >= 4 ? v128.load(at) : loadTail(at, rest);
      a = f64x2.add(a, f64x2.promote_low_f32x4(v));
      b = f64x2.add(b, f64x2.promote_low_f32x4(v128.shuffle<i64>(v, v, 1, 1)));
    }
    const sum = v128.shuffle<i64>(f32x4.demote_f64x2_zero(a), f32x4.demote_f64x2_zero(b), 0, 2);
    const y = ptr(0) + ((<usize>outer * <usize>inner + <usize>c) << 2);
    if (rest >= 4) v128.store(y, sum);
    else storeTail(y, sum, rest);
  }
}

/**
 * Rotary embedding of one token's heads per task.
 * Slots: 0 y, 1 x, 2 positions, 3 cos, 4 sin, 5 heads, 6 D, 7 sign of the sine.
 */
export function rope(begin: i32, end: i32): void {
  const heads = int(5), D = int(6), half = D >> 1;
  const sign = float(7), sg = f32x4.splat(sign);
  for (let token = begin; token < end; token++) {
    const table = (<usize>load<i32>(ptr(2) + (<usize>token << 2)) * <usize>half) << 2;
    const cos = ptr(3) + table, sin = ptr(4) + table;
    for (let h = 0; h < heads; h++) {
      const o = (<usize>(token * heads + h) * <usize>D) << 2;
      const x = ptr(1) + o, y = ptr(0) + o, far = <usize>half << 2;
      let j = 0;
      for (; j + 4 <= half; j += 4) {
        const at = <usize>j << 2;
        const c = v128.load(cos + at), s = f32x4.mul(v128.load(sin + at), sg);
        const u = v128.load(x + at), v = v128.load(x + at + far);
        v128.store(y + at, f32x4.sub(f32x4.mul(u, c), f32x4.mul(v, s)));
        v128.store(y + at + far, f32x4.add(f32x4.mul(v, c), f32x4.mul(u, s)));
      }
      for (; j < half; j++) {
        const at = <usize>j << 2;
        const c = load<f32>(cos + at), s = load<f32>(sin + at) * sign;
        const u = load<f32>(x + at), v = load<f32>(x + at + far);
        store<f32>(y + at, u * c - v * s);
        store<f32>(y + at + far, v * c + u * s);
      }
    }
  }
}

/** y[r, :] = Σ over i with ids[i] = r of dy[i, :]; tasks are groups of 4 columns. Slots: 0 y, 1 dy, 2 ids, 3 count, 4 rows, 5 width. */
export function scatterAddRows(begin: i32, end: i32): void {
  const count = int(3), width = int(5);
  for (let task = begin; task < end; task++) {
    const c = task * 4, rest = width - c;
    for (let i = 0; i < count; i++) {
      const from = ptr(1) + ((<usize>i * <usize>width + <usize>c) << 2);
      const to = ptr(0) + ((<usize>load<i32>(ptr(2) + (<usize>i << 2)) * <usize>width + <usize>c) << 2);
      if (rest >= 4) v128.store(to, f32x4.add(v128.load(to), v128.load(from)));
      else storeTail(to, f32x4.add(loadTail(to, rest), loadTail(from, rest)), rest);
    }
  }
}

/** y[i, :] = table[ids[i], :]; tasks are ids. Slots: 0 y, 1 table, 2 ids, 3 width, 4 type, 5 rows of the table. */
export function gatherRows(begin: i32, end: i32): void {
  for (let i = begin; i < end; i++) rowAsF32(i, load<i32>(ptr(2) + (<usize>i << 2)));
}

/** y = table in f32; tasks are rows. Slots as `gatherRows`, without ids. */
export function dequantizeRows(begin: i32, end: i32): void {
  for (let i = begin; i < end; i++) rowAsF32(i, i);
}

function rowAsF32(i: i32, row: i32): void {
  const width = int(3), type = int(4);
  const y = ptr(0) + ((<usize>i * <usize>width) << 2);
  const first = <usize>row * <usize>width;
  if (type == F32) {
    memory.copy(y, ptr(1) + (first << 2), <usize>width << 2);
    return;
  }
  const scale: f32 = type == I8 ? load<f32>(scalesOf(ptr(1), int(5), width) + (<usize>row << 2)) : 1;
  const from = ptr(1) + (type == I8 ? first : first << 1);
  for (let c = 0; c < width; c++) store<f32>(y + (<usize>c << 2), loadAs(from, c, type) * scale);
}

/** y[b, positions[b, t], :] = x[b, t, :]; tasks are (b, t). Slots: 0 y, 1 x, 2 positions, 3 T, 4 S, 5 width. */
export function writeRows(begin: i32, end: i32): void {
  const T = int(3), S = int(4), bytes = <usize>int(5) << 2;
  for (let i = begin; i < end; i++) {
    const row = (i / T) * S + load<i32>(ptr(2) + (<usize>i << 2));
    memory.copy(ptr(0) + <usize>row * bytes, ptr(1) + <usize>i * bytes, bytes);
  }
}
