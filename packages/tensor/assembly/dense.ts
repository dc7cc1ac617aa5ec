/**
 * Linear algebra in double precision: products, products with a vector, reflections and Jacobi rotations of rows.
 *
 * The product is that of gemm.ts with tiles of 6 × 4 doubles, so the comments on tiles there hold here as well. Operands may be
 * f32, bf16 or f16: they are widened while they are packed. Every element of C is summed up in the same order wherever the matrix
 * is cut.
 */
import { double, int, ptr, scratch } from './control';
import { F32, BF16, half } from './gemm';

const MR: i32 = 6;
const NR: i32 = 4;
const STEP_A: usize = <usize>MR << 3;
const STEP_B: usize = <usize>NR << 3;
const MC: i32 = 96; // rows of A packed at once: MC·KC·8 = 240 KiB, in the level-2 cache
const KC: i32 = 320; // depth of a block: a panel of A is KC·MR·8 = 15 KiB, one of B 10 KiB, in the level-1 cache
const NC: i32 = 1024; // columns of B packed at once: 2.5 MiB
export const F64: i32 = 4;
export const STRIP: i32 = 16; // columns of a task of a lower triangle

/** Scratch bytes of `multiply`: one packed block of A, one of B, one tile. That of single.ts takes less. */
export function denseScratch(): usize {
  return <usize>((MC + NC) * KC + MR * NR) << 3;
}

// @ts-ignore: decorator
@inline
function madd64(a: v128, b: v128, c: v128): v128 {
  // @ts-ignore: RELAXED comes from the command line of the compiler
  if (RELAXED) return f64x2.relaxed_madd(a, b, c);
  return f64x2.add(f64x2.mul(a, b), c);
}

// @ts-ignore: decorator
@inline
function sum2(v: v128): f64 {
  return f64x2.extract_lane(v, 0) + f64x2.extract_lane(v, 1);
}

/** Numbers of a type as doubles; bf16 and f16 go by the names of the integers of their size, u16 and i16. */
// @ts-ignore: decorator
@inline
function load1<T>(p: usize): f64 {
  if (isFloat<T>()) return <f64>load<T>(p);
  const bits = <u32>load<u16>(p);
  return <f64>(isSigned<T>() ? half(bits) : reinterpret<f32>(bits << 16));
}

/** Two neighbours. */
// @ts-ignore: decorator
@inline
function load2<T>(p: usize): v128 {
  if (isFloat<T>()) return sizeof<T>() == 8 ? v128.load(p) : f64x2.promote_low_f32x4(v128.load64_zero(p));
  return f64x2.replace_lane(f64x2.splat(load1<T>(p)), 1, load1<T>(p + 2));
}

/** Two lines of a panel that run along memory. */
// @ts-ignore: decorator
@inline
function packTwo<T>(p: usize, at: usize, other: usize, depth: i32, bytes: usize, signs: v128): void {
  let k = 0;
  for (; k + 2 <= depth; k += 2) {
    const a = f64x2.mul(load2<T>(at), signs), b = f64x2.mul(load2<T>(at + other), signs);
    v128.store(p, v128.shuffle<f64>(a, b, 0, 2));
    v128.store(p + bytes, v128.shuffle<f64>(a, b, 1, 3));
    p += 2 * bytes;
    at += 2 * sizeof<T>();
  }
  if (k < depth) {
    const sign = f64x2.extract_lane(signs, 0);
    store<f64>(p, load1<T>(at) * sign);
    store<f64>(p, load1<T>(at + other) * sign, 8);
  }
}

/**
 * Panels [side][depth] of a matrix whose lines lie side by side: `along` is the step from one of the panel's lines to the next, `down`
 * that along the depth, in elements. Lines beyond the last are zero.
 */
function packAs<T>(to: usize, from: usize, along: isize, down: isize, lines: i32, depth: i32, side: i32, sign: f64): void {
  const bytes = <usize>side << 3, panel = <usize>depth * bytes, width = <isize>sizeof<T>();
  const signs = f64x2.splat(sign);
  let i = 0;
  if (along == 1) {
    // many panels at a time: rows may lie a page apart each, and are read the faster the longer the pieces are
    while (i + side <= lines) {
      const group = min(32, (lines - i) / side);
      let source = from + <isize>i * width;
      for (let k = 0; k < depth; k++) {
        let p = to + <usize>k * bytes, at = source;
        for (let q = 0; q < group; q++) {
          v128.store(p, f64x2.mul(load2<T>(at), signs));
          v128.store(p, f64x2.mul(load2<T>(at + 2 * width), signs), 16);
          if (side == MR) v128.store(p, f64x2.mul(load2<T>(at + 4 * width), signs), 32);
          p += panel;
          at += <isize>side * width;
        }
        source += down * width;
      }
      to += <usize>group * panel;
      i += group * side;
    }
  }
  for (; i < lines; i += side) {
    const live = min(side, lines - i);
    let r = 0;
    if (down == 1) for (; r + 2 <= live; r += 2) packTwo<T>(to + (<usize>r << 3), from + <isize>(i + r) * along * width, along * width, depth, bytes, signs);
    for (; r < side; r++) {
      let p = to + (<usize>r << 3), at = from + <isize>(i + r) * along * width;
      const step = r < live ? down * width : 0;
      const factor = r < live ? sign : 0;
      if (r >= live) at = from; // what is there is finite, or the product is not
      for (let k = 0; k < depth; k++, p += bytes, at += step) store<f64>(p, load1<T>(at) * factor);
    }
    to += panel;
  }
}

function pack(to: usize, from: usize, along: isize, down: isize, lines: i32, depth: i32, side: i32, type: i32, sign: f64): void {
  if (type == F64) packAs<f64>(to, from, along, down, lines, depth, side, sign);
  else if (type == F32) packAs<f32>(to, from, along, down, lines, depth, side, sign);
  else if (type == BF16) packAs<u16>(to, from, along, down, lines, depth, side, sign);
  else packAs<i16>(to, from, along, down, lines, depth, side, sign);
}

/** One 6 × 4 tile, added to what C holds. Row k of the panels lies at a + k·stepA and b + k·32. */
function tile(depth: i32, a: usize, stepA: usize, b: usize, c: usize, ldc: usize): void {
  const q1 = c + ldc, q2 = q1 + ldc, q3 = q2 + ldc, q4 = q3 + ldc, q5 = q4 + ldc;
  let c00 = v128.load(c), c01 = v128.load(c, 16), c10 = v128.load(q1), c11 = v128.load(q1, 16);
  let c20 = v128.load(q2), c21 = v128.load(q2, 16), c30 = v128.load(q3), c31 = v128.load(q3, 16);
  let c40 = v128.load(q4), c41 = v128.load(q4, 16), c50 = v128.load(q5), c51 = v128.load(q5, 16);
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load64_splat(a);
    c00 = madd64(x, b0, c00); c01 = madd64(x, b1, c01);
    x = v128.load64_splat(a, 8);
    c10 = madd64(x, b0, c10); c11 = madd64(x, b1, c11);
    x = v128.load64_splat(a, 16);
    c20 = madd64(x, b0, c20); c21 = madd64(x, b1, c21);
    x = v128.load64_splat(a, 24);
    c30 = madd64(x, b0, c30); c31 = madd64(x, b1, c31);
    x = v128.load64_splat(a, 32);
    c40 = madd64(x, b0, c40); c41 = madd64(x, b1, c41);
    x = v128.load64_splat(a, 40);
    c50 = madd64(x, b0, c50); c51 = madd64(x, b1, c51);
    a += stepA;
    b += STEP_B;
  }
  v128.store(c, c00); v128.store(c, c01, 16); c += ldc;
  v128.store(c, c10); v128.store(c, c11, 16); c += ldc;
  v128.store(c, c20); v128.store(c, c21, 16); c += ldc;
  v128.store(c, c30); v128.store(c, c31, 16); c += ldc;
  v128.store(c, c40); v128.store(c, c41, 16); c += ldc;
  v128.store(c, c50); v128.store(c, c51, 16);
}

/** The same with rows of A in place that run along k: row r starts at a + r·lda. */
function tileRows(depth: i32, a: usize, lda: usize, b: usize, c: usize, ldc: usize): void {
  const q1 = c + ldc, q2 = q1 + ldc, q3 = q2 + ldc, q4 = q3 + ldc, q5 = q4 + ldc;
  let c00 = v128.load(c), c01 = v128.load(c, 16), c10 = v128.load(q1), c11 = v128.load(q1, 16);
  let c20 = v128.load(q2), c21 = v128.load(q2, 16), c30 = v128.load(q3), c31 = v128.load(q3, 16);
  let c40 = v128.load(q4), c41 = v128.load(q4, 16), c50 = v128.load(q5), c51 = v128.load(q5, 16);
  let a1 = a + lda, a2 = a1 + lda, a3 = a2 + lda, a4 = a3 + lda, a5 = a4 + lda;
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load64_splat(a);
    c00 = madd64(x, b0, c00); c01 = madd64(x, b1, c01);
    x = v128.load64_splat(a1);
    c10 = madd64(x, b0, c10); c11 = madd64(x, b1, c11);
    x = v128.load64_splat(a2);
    c20 = madd64(x, b0, c20); c21 = madd64(x, b1, c21);
    x = v128.load64_splat(a3);
    c30 = madd64(x, b0, c30); c31 = madd64(x, b1, c31);
    x = v128.load64_splat(a4);
    c40 = madd64(x, b0, c40); c41 = madd64(x, b1, c41);
    x = v128.load64_splat(a5);
    c50 = madd64(x, b0, c50); c51 = madd64(x, b1, c51);
    a += 8; a1 += 8; a2 += 8; a3 += 8; a4 += 8; a5 += 8;
    b += STEP_B;
  }
  v128.store(c, c00); v128.store(c, c01, 16); c += ldc;
  v128.store(c, c10); v128.store(c, c11, 16); c += ldc;
  v128.store(c, c20); v128.store(c, c21, 16); c += ldc;
  v128.store(c, c30); v128.store(c, c31, 16); c += ldc;
  v128.store(c, c40); v128.store(c, c41, 16); c += ldc;
  v128.store(c, c50); v128.store(c, c51, 16);
}

/** Copies part of a tile. */
function copyTile(to: usize, ldt: usize, from: usize, ldf: usize, high: i32, wide: i32): void {
  for (let r = 0; r < high; r++) {
    for (let q: usize = 0; q < <usize>wide << 3; q += 8) store<f64>(to + q, load<f64>(from + q));
    to += ldt;
    from += ldf;
  }
}

/** The part of a tile in scratch on one side of the diagonal, which starts `ahead` columns right of the tile's first entry. */
function copyTriangle(to: usize, ldt: usize, from: usize, high: i32, wide: i32, ahead: i32, upper: bool): void {
  for (let r = 0; r < high; r++) {
    const first = upper ? max(0, r + ahead) : 0, last = upper ? wide : min(wide, r + ahead + 1);
    for (let q = first; q < last; q++) store<f64>(to + (<usize>q << 3), load<f64>(from + (<usize>q << 3)));
    to += ldt;
    from += STEP_B;
  }
}

// ---- C ← C ± A·B ----
// Slots: 0 c, 1 elements from one row of C to the next, 2 m, 3 n, 4 k, 5 a, 6 ars, 7 acs, 8 type of a, 9 b, 10 brs, 11 bcs, 12 type of b,
// 13 subtract, 14 cut (0 columns in strips of 4, 1 rows in strips of 6, 2 a lower triangle, 3 an upper one, in pairs of strips), 15 strips.

function multiplyPart(i: i32, rows: i32, j: i32, columns: i32): void {
  const c = ptr(0), ldc = <usize>int(1) << 3, k = int(4), lower = int(14) == 2, upper = int(14) == 3;
  const a = ptr(5), ars = <isize>int(6), acs = <isize>int(7), typeA = int(8), shiftA = shiftOf(typeA);
  const b = ptr(9), brs = <isize>int(10), bcs = <isize>int(11), typeB = int(12), shiftB = shiftOf(typeB);
  const packedA = scratch(), packedB = packedA + (<usize>(MC * KC) << 3), edge = packedB + (<usize>(NC * KC) << 3);
  const sign: f64 = int(13) ? -1 : 1;
  // a narrow B is not worth packing A
  const inPlace = typeA == F64 && acs == 1 && int(3) <= 8 * NR && !lower && !upper;
  for (let j0 = j; j0 < j + columns; j0 += NC) {
    const nc = min(NC, j + columns - j0);
    const start = lower ? max(i, j0 / MR * MR) : i, stop = upper ? min(i + rows, j0 + nc) : i + rows;
    for (let k0 = 0; k0 < k; k0 += KC) {
      const kc = min(KC, k - k0);
      pack(packedB, b + ((<isize>k0 * brs + <isize>j0 * bcs) << shiftB), bcs, brs, nc, kc, NR, typeB, sign);
      for (let i0 = start; i0 < stop; i0 += MC) {
        const mc = min(MC, stop - i0);
        const direct = inPlace ? mc - (mc % MR) : 0;
        const blockA = a + ((<isize>i0 * ars + <isize>k0 * acs) << shiftA);
        if (direct < mc) {
          pack(packedA, blockA + (<isize>direct * ars << shiftA), ars, acs, mc - direct, kc, MR, typeA, 1);
        }
        for (let q = 0; q < nc; q += NR) {
          const panelB = packedB + (<usize>(q * kc) << 3), wide = min(NR, nc - q);
          for (let r = 0; r < mc; r += MR) {
            const high = min(MR, mc - r);
            if (lower && i0 + r + high <= j0 + q || upper && i0 + r >= j0 + q + wide) continue;
            const at = c + <usize>(i0 + r) * ldc + (<usize>(j0 + q) << 3);
            const panelA = packedA + (<usize>((r - direct) * kc) << 3);
            if (r < direct) {
              if (wide == NR) tileRows(kc, blockA + (<usize>(<isize>r * ars) << 3), <usize>ars << 3, panelB, at, ldc);
              else {
                copyTile(edge, STEP_B, at, ldc, high, wide);
                tileRows(kc, blockA + (<usize>(<isize>r * ars) << 3), <usize>ars << 3, panelB, edge, STEP_B);
                copyTile(at, ldc, edge, STEP_B, high, wide);
              }
            } else if (wide == NR && high == MR && !(lower && i0 + r < j0 + q + NR - 1 || upper && i0 + r + MR - 1 > j0 + q)) {
              tile(kc, panelA, STEP_A, panelB, at, ldc);
            } else {
              copyTile(edge, STEP_B, at, ldc, high, wide);
              tile(kc, panelA, STEP_A, panelB, edge, STEP_B);
              if (lower || upper) copyTriangle(at, ldc, edge, high, wide, i0 + r - (j0 + q), upper);
              else copyTile(at, ldc, edge, STEP_B, high, wide);
            }
          }
        }
      }
    }
  }
}

/** Tasks are strips of C; strip t of a lower triangle comes with the one as far from the other end, which makes them equally long. */
export function multiply(begin: i32, end: i32): void {
  const m = int(2), n = int(3), cut = int(14);
  if (cut == 0) return multiplyPart(0, m, begin * NR, min(n, end * NR) - begin * NR);
  if (cut == 1) return multiplyPart(begin * MR, min(m, end * MR) - begin * MR, 0, n);
  const strips = int(15), mirrored = max(strips - end, end);
  multiplyPart(0, m, begin * STRIP, min(n, end * STRIP) - begin * STRIP);
  if (mirrored < strips - begin) multiplyPart(0, m, mirrored * STRIP, min(n, (strips - begin) * STRIP) - mirrored * STRIP);
}

// @ts-ignore: decorator
@inline
export function shiftOf(type: i32): usize {
  return type == F64 ? 3 : type == F32 ? 2 : 1;
}

// ---- to ← fromᵀ ----
// Slots: 0 to, 1 elements from row to row, 2 from, 3 elements from row to row, 4 rows of to, 5 columns. Tasks are strips of HIGH rows.

// a tile: what it writes of a row is a line of the cache, what it reads several
const HIGH: i32 = 32, WIDE: i32 = 8;

/** Rows i … and columns j … of `to`, by way of scratch: rows of a large matrix may share their place in the cache. */
function transposeTile(i: i32, j: i32): void {
  const high = min(HIGH, int(4) - i), wide = min(WIDE, int(5) - j), buffer = scratch();
  const ldt = <usize>int(1) << 3, ldf = <usize>int(3) << 3;
  const to = ptr(0) + <usize>i * ldt + (<usize>j << 3), from = ptr(2) + <usize>j * ldf + (<usize>i << 3);
  for (let r = 0; r < wide; r++) {
    for (let c = 0; c < high; c++) {
      store<f64>(buffer + (<usize>(c * WIDE + r) << 3), load<f64>(from + <usize>r * ldf + (<usize>c << 3)));
    }
  }
  for (let r = 0; r < high; r++) {
    const row = to + <usize>r * ldt, own = buffer + (<usize>(r * WIDE) << 3);
    for (let c = 0; c < wide; c++) store<f64>(row + (<usize>c << 3), load<f64>(own + (<usize>c << 3)));
  }
}

export function transpose(begin: i32, end: i32): void {
  for (let t = begin; t < end; t++) {
    for (let j = 0; j < int(5); j += WIDE) transposeTile(t * HIGH, j);
  }
}

// ---- entries ----
// Slots: 0 entries, 1 how many, 2 type, 3 for each task whether it met one that is not finite. Tasks are CHECKED entries each.

const CHECKED: i32 = 65536;

/** Lanes all of whose bits of the exponent are set, as those of infinities and NaN are. */
// @ts-ignore: decorator
@inline
function notFinite(v: v128, type: i32): v128 {
  if (type == F32) {
    const mask = i32x4.splat(0x7f800000);
    return i32x4.eq(v128.and(v, mask), mask);
  }
  if (type == F64) {
    const mask = i64x2.splat(0x7ff0000000000000);
    return i64x2.eq(v128.and(v, mask), mask);
  }
  const mask = i16x8.splat(type == BF16 ? 0x7f80 : 0x7c00);
  return i16x8.eq(v128.and(v, mask), mask);
}

export function checkFinite(begin: i32, end: i32): void {
  const type = int(2), shift = shiftOf(type), zero = i32x4.splat(0);
  for (let t = begin; t < end; t++) {
    const first = t * CHECKED, count = min(CHECKED, int(1) - first);
    let p = ptr(0) + (<usize>first << shift);
    const stop = p + (<usize>count << shift);
    let seen = zero;
    for (; p + 16 <= stop; p += 16) seen = v128.or(seen, notFinite(v128.load(p), type));
    // the rest, one by one beside zeros
    for (; p < stop; p += <usize>1 << shift) {
      const v = shift == 3 ? v128.load64_zero(p) : shift == 2 ? v128.load32_zero(p) : i16x8.replace_lane(zero, 0, load<i16>(p));
      seen = v128.or(seen, notFinite(v, type));
    }
    store<i32>(ptr(3) + (<usize>t << 2), v128.any_true(seen) ? 1 : 0);
  }
}

// ---- rows and vectors ----

function dot(a: usize, b: usize, n: i32): f64 {
  let s0 = f64x2.splat(0), s1 = s0, s2 = s0, s3 = s0;
  let t = 0;
  for (; t + 8 <= n; t += 8) {
    s0 = madd64(v128.load(a), v128.load(b), s0);
    s1 = madd64(v128.load(a, 16), v128.load(b, 16), s1);
    s2 = madd64(v128.load(a, 32), v128.load(b, 32), s2);
    s3 = madd64(v128.load(a, 48), v128.load(b, 48), s3);
    a += 64;
    b += 64;
  }
  let sum = sum2(f64x2.add(f64x2.add(s0, s1), f64x2.add(s2, s3)));
  for (; t < n; t++, a += 8, b += 8) sum += load<f64>(a) * load<f64>(b);
  return sum;
}

/** y[i] = a[i] · x. Slots: 0 y, 1 a, 2 elements from row to row, 3 columns, 4 x. Tasks are rows. */
export function rowsTimes(begin: i32, end: i32): void {
  const y = ptr(0), a = ptr(1), step = <usize>int(2) << 3, n = int(3), x = ptr(4);
  for (let i = begin; i < end; i++) store<f64>(y + (<usize>i << 3), dot(a + <usize>i * step, x, n));
}

/** First row of chunk t of `chunks` parts of an upper triangle with about as many entries each. */
function chunkStart(t: i32, chunks: i32, n: i32): i32 {
  return t >= chunks ? n : <i32>(<f64>n * (1 - Math.sqrt(1 - <f64>t / <f64>chunks))) & ~3;
}

/**
 * Part of a · x for a symmetric a: what the rows of a chunk contribute, in a row of its own. Every entry above the diagonal counts
 * twice. Slots: 0 partial sums [chunks, n], 1 a, 2 elements from row to row, 3 n, 4 x, 5 chunks. Tasks are chunks.
 */
export function symmetricTimes(begin: i32, end: i32): void {
  const step = <usize>int(2) << 3, n = int(3), x = ptr(4), chunks = int(5);
  for (let t = begin; t < end; t++) {
    const y = ptr(0) + (<usize>(t * n) << 3), from = chunkStart(t, chunks, n), to = chunkStart(t + 1, chunks, n);
    memory.fill(y + (<usize>from << 3), 0, <usize>(n - from) << 3);
    let i = from;
    for (; i + 4 <= to; i += 4) fourRows(y, ptr(1) + <usize>i * step, step, x, i, n);
    for (; i < to; i++) {
      const row = ptr(1) + <usize>i * step;
      corner(y, row, step, x, i, 1);
      const factor = load<f64>(x + (<usize>i << 3));
      let sum: f64 = 0;
      for (let j = <usize>(i + 1) << 3; j < <usize>n << 3; j += 8) {
        const value = load<f64>(row + j);
        sum += value * load<f64>(x + j);
        store<f64>(y + j, load<f64>(y + j) + factor * value);
      }
      store<f64>(y + (<usize>i << 3), load<f64>(y + (<usize>i << 3)) + sum);
    }
  }
}

/** The square of `size` rows at the diagonal. */
function corner(y: usize, row: usize, step: usize, x: usize, i: i32, size: i32): void {
  for (let r = i; r < i + size; r++, row += step) {
    for (let j = r; j < i + size; j++) {
      const value = load<f64>(row + (<usize>j << 3)), at = y + (<usize>r << 3), other = y + (<usize>j << 3);
      store<f64>(at, load<f64>(at) + value * load<f64>(x + (<usize>j << 3)));
      if (j > r) store<f64>(other, load<f64>(other) + value * load<f64>(x + (<usize>r << 3)));
    }
  }
}

function fourRows(y: usize, row: usize, step: usize, x: usize, i: i32, n: i32): void {
  corner(y, row, step, x, i, 4);
  const own = <usize>i << 3, x0 = load<f64>(x + own), x1 = load<f64>(x + own, 8), x2 = load<f64>(x + own, 16), x3 = load<f64>(x + own, 24);
  const f0 = f64x2.splat(x0), f1 = f64x2.splat(x1), f2 = f64x2.splat(x2), f3 = f64x2.splat(x3);
  let s0 = f64x2.splat(0), s1 = s0, s2 = s0, s3 = s0;
  const first = <usize>(i + 4) << 3;
  let p = y + first, q = x + first, a0 = row + first, a1 = a0 + step, a2 = a1 + step, a3 = a2 + step;
  let j = i + 4;
  for (; j + 2 <= n; j += 2) {
    const v = v128.load(q);
    let sum = v128.load(p), a = v128.load(a0);
    s0 = madd64(a, v, s0); sum = madd64(a, f0, sum);
    a = v128.load(a1);
    s1 = madd64(a, v, s1); sum = madd64(a, f1, sum);
    a = v128.load(a2);
    s2 = madd64(a, v, s2); sum = madd64(a, f2, sum);
    a = v128.load(a3);
    s3 = madd64(a, v, s3); sum = madd64(a, f3, sum);
    v128.store(p, sum);
    p += 16; q += 16; a0 += 16; a1 += 16; a2 += 16; a3 += 16;
  }
  let t0 = sum2(s0), t1 = sum2(s1), t2 = sum2(s2), t3 = sum2(s3);
  if (j < n) {
    const v = load<f64>(q), b0 = load<f64>(a0), b1 = load<f64>(a1), b2 = load<f64>(a2), b3 = load<f64>(a3);
    store<f64>(p, load<f64>(p) + (b0 * x0 + b1 * x1 + (b2 * x2 + b3 * x3)));
    t0 += b0 * v; t1 += b1 * v; t2 += b2 * v; t3 += b3 * v;
  }
  p = y + own;
  store<f64>(p, load<f64>(p) + t0); store<f64>(p, load<f64>(p, 8) + t1, 8);
  store<f64>(p, load<f64>(p, 16) + t2, 16); store<f64>(p, load<f64>(p, 24) + t3, 24);
}

/** y = the sum of the chunks' parts. Slots as above, but 1 y. Tasks are blocks of 256 entries. */
export function sumPartial(begin: i32, end: i32): void {
  const partial = ptr(0), y = ptr(1), n = int(3), chunks = int(5);
  for (let j = begin * 256; j < min(n, end * 256); j++) {
    let sum: f64 = 0;
    for (let t = 0; t < chunks && chunkStart(t, chunks, n) <= j; t++) sum += load<f64>(partial + (<usize>(t * n + j) << 3));
    store<f64>(y + (<usize>j << 3), sum);
  }
}

/** a[i] −= tau · (a[i] · v) · v. Slots: 0 a, 1 elements from row to row, 2 and 3 tau, 4 v, 5 columns. Tasks are rows. */
export function reflectRows(begin: i32, end: i32): void {
  const step = <usize>int(1) << 3, tau = double(2), n = int(5);
  for (let i = begin; i < end; i++) {
    let p = ptr(0) + <usize>i * step, v = ptr(4);
    const factor = -tau * dot(p, v, n), f = f64x2.splat(factor);
    let t = 0;
    for (; t + 4 <= n; t += 4) {
      v128.store(p, madd64(f, v128.load(v), v128.load(p)));
      v128.store(p, madd64(f, v128.load(v, 16), v128.load(p, 16)), 16);
      p += 32;
      v += 32;
    }
    for (; t < n; t++, p += 8, v += 8) store<f64>(p, load<f64>(p) + factor * load<f64>(v));
  }
}

// ---- one-sided Jacobi on pairs of row blocks ----
// Slots: 0 x, 1 elements from row to row, 2 columns of inner products, 3 columns, 4 rows, 5 pairs of blocks, 6 and 7 tolerance, 8 rotations of each pair. A block has BLOCK rows, and both blocks of a pair together at most PAIR.

const BLOCK: i32 = 12;
const PAIR: i32 = 2 * BLOCK;
const CHUNK: i32 = 128; // columns rotated at once
const NEGLIGIBLE: f64 = 1.0261342003245941e-289; // 2^-960, as in linalg/jacobi.ts

/** Address of row r of a pair, or 0 beyond the last row. */
// @ts-ignore: decorator
@inline
function rowAt(first: i32, second: i32, r: i32): usize {
  const row = r < BLOCK ? first * BLOCK + r : second * BLOCK + r - BLOCK;
  return row < int(4) ? ptr(0) + (<usize>row * <usize>int(1) << 3) : 0;
}

/** Rows of both blocks, from column `from`, as panels of `side` rows; missing rows are zero. */
function packPair(to: usize, first: i32, second: i32, from: i32, depth: i32, side: i32): void {
  const bytes = <usize>side << 3;
  for (let r = 0; r < PAIR; r++) {
    const row = rowAt(first, second, r);
    let p = to + (<usize>(r / side * side * depth + r % side) << 3), at = row + (<usize>from << 3);
    if (row == 0) for (let k = 0; k < depth; k++, p += bytes) store<f64>(p, 0);
    else for (let k = 0; k < depth; k++, p += bytes, at += 8) store<f64>(p, load<f64>(at));
  }
}

/** The matrix of inner products of a pair's rows, [PAIR, PAIR], in full. */
function innerProducts(g: usize, first: i32, second: i32, panels: usize): void {
  const n = int(2), ld = <usize>PAIR << 3;
  const other = panels + (<usize>(PAIR * KC) << 3);
  memory.fill(g, 0, <usize>(PAIR * PAIR) << 3);
  for (let k0 = 0; k0 < n; k0 += KC) {
    const kc = min(KC, n - k0);
    packPair(panels, first, second, k0, kc, MR);
    packPair(other, first, second, k0, kc, NR);
    for (let i = 0; i < PAIR; i += MR) {
      for (let j = 0; j < i + MR; j += NR) {
        tile(kc, panels + (<usize>(i * kc) << 3), STEP_A, other + (<usize>(j * kc) << 3), g + <usize>i * ld + (<usize>j << 3), ld);
      }
    }
  }
  for (let i = 0; i < PAIR; i++) {
    for (let j = 0; j < i; j++) store<f64>(g + <usize>j * ld + (<usize>i << 3), load<f64>(g + <usize>i * ld + (<usize>j << 3)));
  }
}

/** Two rows of PAIR numbers ← (cos · p − sin · q, sin · p + cos · q), as in linalg/jacobi.ts. */
function turn(p: usize, q: usize, sine: f64, half: f64): void {
  const s = f64x2.splat(sine), minus = f64x2.splat(-sine), h = f64x2.splat(half), minusHalf = f64x2.splat(-half);
  for (let t = 0; t < PAIR; t += 2, p += 16, q += 16) {
    const x = v128.load(p), y = v128.load(q);
    v128.store(p, madd64(minus, madd64(h, x, y), x));
    v128.store(q, madd64(s, madd64(minusHalf, y, x), y));
  }
}

/** Rotates the pairs of a matrix of inner products once; the rotations gather in j. Returns how many there were. */
function rotatePairs(g: usize, j: usize, inside: bool, tolerance: f64): i32 {
  const ld = <usize>PAIR << 3;
  let rotations = 0;
  const last = inside ? BLOCK : PAIR;
  for (let p = 0; p < BLOCK; p++) {
    for (let q = inside ? p + 1 : BLOCK; q < last; q++) {
      const rowP = g + <usize>p * ld, rowQ = g + <usize>q * ld;
      const pp = load<f64>(rowP + (<usize>p << 3)), qq = load<f64>(rowQ + (<usize>q << 3)), pq = load<f64>(rowP + (<usize>q << 3));
      if (!(pp >= NEGLIGIBLE && qq >= NEGLIGIBLE) || Math.abs(pq) <= tolerance * Math.sqrt(pp) * Math.sqrt(qq)) continue;
      // the tangent of the smaller angle; for large zeta the square would overflow
      const zeta = (qq - pp) / (2 * pq), size = Math.abs(zeta);
      const positive = size > 1e8 ? 0.5 / size : 1 / (size + Math.sqrt(1 + size * size));
      const tangent = zeta < 0 ? -positive : positive;
      const cosine = 1 / Math.sqrt(1 + tangent * tangent), sine = cosine * tangent, half = sine / (1 + cosine);
      turn(rowP, rowQ, sine, half);
      turn(j + <usize>p * ld, j + <usize>q * ld, sine, half);
      // the columns: by symmetry those of all other rows are the rows just made, and the four in the middle are known
      for (let t = 0; t < PAIR; t++) {
        store<f64>(g + <usize>t * ld + (<usize>p << 3), load<f64>(rowP + (<usize>t << 3)));
        store<f64>(g + <usize>t * ld + (<usize>q << 3), load<f64>(rowQ + (<usize>t << 3)));
      }
      store<f64>(rowP + (<usize>p << 3), pp - tangent * pq);
      store<f64>(rowQ + (<usize>q << 3), qq + tangent * pq);
      store<f64>(rowP + (<usize>q << 3), 0);
      store<f64>(rowQ + (<usize>p << 3), 0);
      rotations++;
    }
  }
  return rotations;
}

/** The rows of a pair ← j · rows. */
function rotateRows(j: usize, first: i32, second: i32, panels: usize): void {
  const width = int(3), packedJ = panels, rows = packedJ + (<usize>(PAIR * PAIR) << 3), out = rows + (<usize>(PAIR * CHUNK) << 3);
  pack(packedJ, j, PAIR, 1, PAIR, PAIR, MR, F64, 1);
  for (let from = 0; from < width; from += CHUNK) {
    const columns = min(CHUNK, width - from), ldo = <usize>CHUNK << 3;
    // panels of four columns
    for (let r = 0; r < PAIR; r++) {
      const row = rowAt(first, second, r);
      let p = rows + (<usize>(r * NR) << 3), at = row + (<usize>from << 3);
      let c = 0;
      for (; row != 0 && c + NR <= columns; c += NR, p += <usize>(PAIR * NR) << 3, at += NR << 3) {
        v128.store(p, v128.load(at));
        v128.store(p, v128.load(at, 16), 16);
      }
      for (; c < CHUNK; c += NR, p += <usize>(PAIR * NR) << 3) {
        for (let q = 0; q < NR; q++) store<f64>(p + (<usize>q << 3), row != 0 && c + q < columns ? load<f64>(at + (<usize>q << 3)) : 0);
        at += NR << 3;
      }
    }
    memory.fill(out, 0, <usize>PAIR * ldo);
    for (let c = 0; c < columns; c += NR) {
      for (let r = 0; r < PAIR; r += MR) {
        tile(PAIR, packedJ + (<usize>(r * PAIR) << 3), STEP_A, rows + (<usize>(c * PAIR) << 3), out + <usize>r * ldo + (<usize>c << 3), ldo);
      }
    }
    for (let r = 0; r < PAIR; r++) {
      const row = rowAt(first, second, r);
      if (row != 0) memory.copy(row + (<usize>from << 3), out + <usize>r * ldo, <usize>columns << 3);
    }
  }
}

/** Tasks are pairs of blocks; a block paired with itself has its own rows rotated against each other. */
export function jacobiRound(begin: i32, end: i32): void {
  const g = scratch(), j = g + (<usize>(PAIR * PAIR) << 3), panels = j + (<usize>(PAIR * PAIR) << 3);
  for (let t = begin; t < end; t++) {
    const pair = ptr(5) + (<usize>t << 3), first = load<i32>(pair), second = load<i32>(pair, 4);
    // a block against itself is a pair whose second half has no rows
    const inside = first == second, beyond = inside ? int(4) : second;
    innerProducts(g, first, beyond, panels);
    memory.fill(j, 0, <usize>(PAIR * PAIR) << 3);
    for (let r = 0; r < PAIR; r++) store<f64>(j + (<usize>(r * PAIR + r) << 3), 1);
    const rotations = rotatePairs(g, j, inside, double(6));
    store<i32>(ptr(8) + (<usize>t << 2), rotations);
    if (rotations > 0) rotateRows(j, first, beyond, panels);
  }
}
