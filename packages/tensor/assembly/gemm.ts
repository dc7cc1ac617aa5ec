/**
 * Matrix products C = Σ alpha · A · B (+ C), single precision, after Goto & van de Geijn (2008): operands are packed into
 * panels that the micro-kernel reads in order, a 6 × 8 tile of C stays in twelve vector registers over the whole inner loop.
 * Strides describe transposed operands: element (i, k) of A is at a + (i·ars + k·acs)·4.
 *
 * Every element of C is computed by the same sequence of operations wherever the matrix is cut, since threads get whole tiles.
 */
import { float, int, ptr, scratch } from './control';
import { madd } from './simd';

export const MR: i32 = 6;
export const NR: i32 = 8;
/** Bytes of a row of a packed panel. */
export const STEP_A: usize = <usize>MR << 2;
export const STEP_B: usize = <usize>NR << 2;
const MC: i32 = 96; // rows of A packed at once: MC·KC·4 = 240 KiB, in the level-2 cache
const KC: i32 = 640; // largest depth of a block: a panel of B is KC·NR·4 = 20 KiB, in the level-1 cache
const NC: i32 = 1024; // columns of B packed at once: 2.5 MiB
const RIDE: i32 = 128; // depth that later terms may add to a block: the rank of an adapter

/** Scratch bytes of `gemm`: one packed block of A, one of B, one tile. */
export function productScratch(): usize {
  return <usize>((MC + NC) * (KC + RIDE) + MR * NR) << 2;
}

export const F32: i32 = 0;
export const BF16: i32 = 1;
export const I8: i32 = 3; // rows of whole numbers, then a scale for each

// @ts-ignore: decorator
@inline
export function half(bits: u32): f32 {
  // IEEE binary16 to binary32: shift the fields into place and rescale, which also covers subnormals
  const magic = reinterpret<f32>(<u32>(254 - 15) << 23);
  let value = reinterpret<u32>(reinterpret<f32>((bits & 0x7fff) << 13) * magic);
  if ((bits & 0x7c00) == 0x7c00) value |= 0xff << 23;
  return reinterpret<f32>(value | ((bits & 0x8000) << 16));
}

// @ts-ignore: decorator
@inline
function shiftOf(type: i32): usize {
  return type == F32 ? 2 : type == I8 ? 0 : 1;
}

/** Address of the scales of int8 weights [n, k]. */
export function scalesOf(w: usize, n: i32, k: i32): usize {
  return w + ((<usize>n * <usize>k + 3) & ~3);
}

// @ts-ignore: decorator
@inline
export function loadAs(p: usize, index: isize, type: i32): f32 {
  if (type == F32) return load<f32>(p + (index << 2));
  if (type == I8) return <f32>load<i8>(p + index);
  const bits = <u32>load<u16>(p + (index << 1));
  return type == BF16 ? reinterpret<f32>(bits << 16) : half(bits);
}

/**
 * Panels of a matrix whose rows run along k, four at a time, so that a row is read a cache line or two at once. `side` is that
 * of a tile, 6 or 8. Returns how many columns went into such groups.
 */
function packWide(to: usize, panel: i32, a: usize, step: isize, columns: i32, depth: i32, side: i32, scale: f32): i32 {
  const group = 4 * side, stride = <usize>panel << 2, bytes = <usize>side << 2;
  const f = f32x4.splat(scale);
  let j = 0;
  for (; j + group <= columns; j += group) {
    let from = a + (<usize>j << 2);
    for (let k = 0; k < depth; k++) {
      let p = to + <usize>k * bytes;
      for (let q = 0; q < 4; q++) {
        const at = from + <usize>q * bytes;
        v128.store(p, f32x4.mul(v128.load(at), f));
        if (side == NR) v128.store(p, f32x4.mul(v128.load(at, 16), f), 16);
        else v128.store64_lane(p, f32x4.mul(v128.load64_zero(at, 16), f), 0, 16);
        p += stride;
      }
      from += step << 2;
    }
    to += 4 * stride;
  }
  return j;
}

/**
 * Packs `rows` × `depth` of A, times `scale`, into panels [rows / 6][…][6], zero-filled. `panel` is the length of a panel: a
 * block may hold several terms, one below the other, and `to` is the place of this one in the first panel.
 */
export function packA(to: usize, panel: i32, a: usize, rs: isize, cs: isize, rows: i32, depth: i32, scale: f32): void {
  let i = rs == 1 ? packWide(to, panel, a, cs, rows, depth, MR, scale) : 0;
  to += <usize>(i / MR * panel) << 2;
  for (; i < rows; i += MR) {
    const live = min(MR, rows - i);
    const from = a + ((<isize>i * rs) << 2);
    const start = to;
    if (live == MR && cs == 1) {
      const r1 = from + (rs << 2), r2 = r1 + (rs << 2), r3 = r2 + (rs << 2), r4 = r3 + (rs << 2), r5 = r4 + (rs << 2);
      let k = 0;
      for (; k + 4 <= depth; k += 4) {
        const o = <usize>k << 2;
        const a0 = v128.load(from + o), a1 = v128.load(r1 + o), a2 = v128.load(r2 + o), a3 = v128.load(r3 + o);
        const a4 = v128.load(r4 + o), a5 = v128.load(r5 + o);
        const t0 = v128.shuffle<i32>(a0, a1, 0, 4, 1, 5), t1 = v128.shuffle<i32>(a2, a3, 0, 4, 1, 5);
        const t2 = v128.shuffle<i32>(a0, a1, 2, 6, 3, 7), t3 = v128.shuffle<i32>(a2, a3, 2, 6, 3, 7);
        const u0 = v128.shuffle<i32>(a4, a5, 0, 4, 1, 5), u1 = v128.shuffle<i32>(a4, a5, 2, 6, 3, 7);
        v128.store(to, v128.shuffle<i64>(t0, t1, 0, 2));
        v128.store64_lane(to, u0, 0, 16);
        v128.store(to, v128.shuffle<i64>(t0, t1, 1, 3), 24);
        v128.store64_lane(to, u0, 1, 40);
        v128.store(to, v128.shuffle<i64>(t2, t3, 0, 2), 48);
        v128.store64_lane(to, u1, 0, 64);
        v128.store(to, v128.shuffle<i64>(t2, t3, 1, 3), 72);
        v128.store64_lane(to, u1, 1, 88);
        to += 96;
      }
      for (; k < depth; k++) {
        const o = <usize>k << 2;
        store<f32>(to, load<f32>(from + o));
        store<f32>(to, load<f32>(r1 + o), 4);
        store<f32>(to, load<f32>(r2 + o), 8);
        store<f32>(to, load<f32>(r3 + o), 12);
        store<f32>(to, load<f32>(r4 + o), 16);
        store<f32>(to, load<f32>(r5 + o), 20);
        to += 24;
      }
    } else if (live == MR && rs == 1) {
      let p = from;
      for (let k = 0; k < depth; k++) {
        v128.store(to, v128.load(p));
        store<u64>(to, load<u64>(p, 16), 16);
        p += cs << 2;
        to += 24;
      }
    } else {
      for (let k = 0; k < depth; k++) {
        for (let r = 0; r < MR; r++) {
          store<f32>(to + (<usize>r << 2), r < live ? load<f32>(from + ((<isize>r * rs + <isize>k * cs) << 2)) : 0);
        }
        to += 24;
      }
    }
    if (scale != 1) {
      const f = f32x4.splat(scale);
      let p = start;
      for (; p + 16 <= to; p += 16) v128.store(p, f32x4.mul(v128.load(p), f));
      for (; p < to; p += 4) store<f32>(p, load<f32>(p) * scale);
    }
    to = start + (<usize>panel << 2);
  }
}

/** Packs `depth` × `columns` of B into panels [columns / 8][…][8] of length `panel`, zero-filled, converted to f32; int8 columns have `scales`. */
export function packB(
  to: usize, panel: i32, b: usize, rs: isize, cs: isize, depth: i32, columns: i32, type: i32, scales: usize = 0,
): void {
  let j = type == F32 && cs == 1 ? packWide(to, panel, b, rs, columns, depth, NR, 1) : 0;
  to += <usize>(j / NR * panel) << 2;
  for (; j < columns; j += NR) {
    const live = min(NR, columns - j);
    const start = to;
    if (type == F32 && live == NR && cs == 1) {
      let p = b + (<usize>j << 2);
      for (let k = 0; k < depth; k++) {
        v128.store(to, v128.load(p));
        v128.store(to, v128.load(p, 16), 16);
        p += rs << 2;
        to += 32;
      }
    } else if (type != F32 && type != I8 && live == NR && cs == 1) {
      let p = b + (<usize>j << 1);
      for (let k = 0; k < depth; k++) {
        if (type == BF16) {
          const v = v128.load(p);
          v128.store(to, i32x4.shl(i32x4.extend_low_i16x8_u(v), 16));
          v128.store(to, i32x4.shl(i32x4.extend_high_i16x8_u(v), 16), 16);
        } else {
          for (let c = 0; c < NR; c++) store<f32>(to + (<usize>c << 2), loadAs(p, c, type));
        }
        p += rs << 1;
        to += 32;
      }
    } else if (live == NR && rs == 1 && type != 2) {
      // rows of the stored matrix run along k: transpose 4 × 8 at a time
      const bytes = shiftOf(type);
      const step = cs << bytes;
      const p0 = b + ((<isize>j * cs) << bytes);
      let k = 0;
      for (; k + 4 <= depth; k += 4) {
        let p = p0 + (<usize>k << bytes);
        const b0 = load4(p, type); p += step;
        const b1 = load4(p, type); p += step;
        const b2 = load4(p, type); p += step;
        const b3 = load4(p, type); p += step;
        const b4 = load4(p, type); p += step;
        const b5 = load4(p, type); p += step;
        const b6 = load4(p, type); p += step;
        const b7 = load4(p, type);
        const t0 = v128.shuffle<i32>(b0, b1, 0, 4, 1, 5), t1 = v128.shuffle<i32>(b2, b3, 0, 4, 1, 5);
        const t2 = v128.shuffle<i32>(b0, b1, 2, 6, 3, 7), t3 = v128.shuffle<i32>(b2, b3, 2, 6, 3, 7);
        const t4 = v128.shuffle<i32>(b4, b5, 0, 4, 1, 5), t5 = v128.shuffle<i32>(b6, b7, 0, 4, 1, 5);
        const t6 = v128.shuffle<i32>(b4, b5, 2, 6, 3, 7), t7 = v128.shuffle<i32>(b6, b7, 2, 6, 3, 7);
        v128.store(to, v128.shuffle<i64>(t0, t1, 0, 2));
        v128.store(to, v128.shuffle<i64>(t4, t5, 0, 2), 16);
        v128.store(to, v128.shuffle<i64>(t0, t1, 1, 3), 32);
        v128.store(to, v128.shuffle<i64>(t4, t5, 1, 3), 48);
        v128.store(to, v128.shuffle<i64>(t2, t3, 0, 2), 64);
        v128.store(to, v128.shuffle<i64>(t6, t7, 0, 2), 80);
        v128.store(to, v128.shuffle<i64>(t2, t3, 1, 3), 96);
        v128.store(to, v128.shuffle<i64>(t6, t7, 1, 3), 112);
        to += 128;
      }
      for (; k < depth; k++) {
        for (let c = 0; c < NR; c++) store<f32>(to + (<usize>c << 2), loadAs(b, <isize>(j + c) * cs + k, type));
        to += 32;
      }
    } else {
      for (let k = 0; k < depth; k++) {
        for (let c = 0; c < NR; c++) {
          store<f32>(to + (<usize>c << 2), c < live ? loadAs(b, <isize>k * rs + <isize>(j + c) * cs, type) : 0);
        }
        to += 32;
      }
    }
    if (type == I8) scaleColumns(start, to, scales + (<usize>j << 2), live);
    to = start + (<usize>panel << 2);
  }
}

/** Multiplies the columns of a panel by their scales. */
function scaleColumns(panel: usize, end: usize, scales: usize, live: i32): void {
  for (let c: usize = 0; c < <usize>live << 2; c += 4) {
    const scale = load<f32>(scales + c);
    for (let p = panel + c; p < end; p += NR << 2) store<f32>(p, load<f32>(p) * scale);
  }
}

// @ts-ignore: decorator
@inline
function load4(p: usize, type: i32): v128 {
  if (type == I8) {
    const halves = i16x8.extend_low_i8x16_s(v128.load32_zero(p));
    return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(halves));
  }
  return type == F32 ? v128.load(p) : i32x4.shl(v128.load16x4_u(p), 16);
}

/**
 * One 6 × 8 tile of C. Row k of the panels, 6 values of A and 8 of B, lies at a + k·stepA and b + k·stepB: packed, or in a
 * matrix whose rows run that way. Nothing but stores may follow the loop: with any arithmetic on the sums V8 keeps them in
 * memory through the loop, at half the speed. For the same reason the variants are written out.
 */
export function tile(depth: i32, a: usize, stepA: usize, b: usize, stepB: usize, c: usize, ldc: isize): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00;
  let c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load32_splat(a);
    c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load32_splat(a, 4);
    c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load32_splat(a, 8);
    c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load32_splat(a, 12);
    c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    x = v128.load32_splat(a, 16);
    c40 = madd(x, b0, c40); c41 = madd(x, b1, c41);
    x = v128.load32_splat(a, 20);
    c50 = madd(x, b0, c50); c51 = madd(x, b1, c51);
    a += stepA;
    b += stepB;
  }
  const step = ldc << 2;
  v128.store(c, c00); v128.store(c, c01, 16); c += step;
  v128.store(c, c10); v128.store(c, c11, 16); c += step;
  v128.store(c, c20); v128.store(c, c21, 16); c += step;
  v128.store(c, c30); v128.store(c, c31, 16); c += step;
  v128.store(c, c40); v128.store(c, c41, 16); c += step;
  v128.store(c, c50); v128.store(c, c51, 16);
}

/** The same, added to what C holds: for short depths. */
export function tileAdd(depth: i32, a: usize, stepA: usize, b: usize, stepB: usize, c: usize, ldc: isize): void {
  const q1 = c + (ldc << 2), q2 = q1 + (ldc << 2), q3 = q2 + (ldc << 2), q4 = q3 + (ldc << 2), q5 = q4 + (ldc << 2);
  let c00 = v128.load(c), c01 = v128.load(c, 16), c10 = v128.load(q1), c11 = v128.load(q1, 16);
  let c20 = v128.load(q2), c21 = v128.load(q2, 16), c30 = v128.load(q3), c31 = v128.load(q3, 16);
  let c40 = v128.load(q4), c41 = v128.load(q4, 16), c50 = v128.load(q5), c51 = v128.load(q5, 16);
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load32_splat(a);
    c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load32_splat(a, 4);
    c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load32_splat(a, 8);
    c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load32_splat(a, 12);
    c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    x = v128.load32_splat(a, 16);
    c40 = madd(x, b0, c40); c41 = madd(x, b1, c41);
    x = v128.load32_splat(a, 20);
    c50 = madd(x, b0, c50); c51 = madd(x, b1, c51);
    a += stepA;
    b += stepB;
  }
  const step = ldc << 2;
  v128.store(c, c00); v128.store(c, c01, 16); c += step;
  v128.store(c, c10); v128.store(c, c11, 16); c += step;
  v128.store(c, c20); v128.store(c, c21, 16); c += step;
  v128.store(c, c30); v128.store(c, c31, 16); c += step;
  v128.store(c, c40); v128.store(c, c41, 16); c += step;
  v128.store(c, c50); v128.store(c, c51, 16);
}

/** The tile with rows of A in place that run along k: row r starts at a + r·lda·4. A little slower, but nothing to pack. */
export function tileRows(depth: i32, a: usize, lda: isize, b: usize, stepB: usize, c: usize, ldc: isize): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00;
  let c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;
  let a1 = a + (lda << 2), a2 = a1 + (lda << 2), a3 = a2 + (lda << 2), a4 = a3 + (lda << 2), a5 = a4 + (lda << 2);
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load32_splat(a);
    c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load32_splat(a1);
    c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load32_splat(a2);
    c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load32_splat(a3);
    c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    x = v128.load32_splat(a4);
    c40 = madd(x, b0, c40); c41 = madd(x, b1, c41);
    x = v128.load32_splat(a5);
    c50 = madd(x, b0, c50); c51 = madd(x, b1, c51);
    a += 4; a1 += 4; a2 += 4; a3 += 4; a4 += 4; a5 += 4;
    b += stepB;
  }
  const step = ldc << 2;
  v128.store(c, c00); v128.store(c, c01, 16); c += step;
  v128.store(c, c10); v128.store(c, c11, 16); c += step;
  v128.store(c, c20); v128.store(c, c21, 16); c += step;
  v128.store(c, c30); v128.store(c, c31, 16); c += step;
  v128.store(c, c40); v128.store(c, c41, 16); c += step;
  v128.store(c, c50); v128.store(c, c51, 16);
}

/** The same, added to what C holds. */
export function tileRowsAdd(depth: i32, a: usize, lda: isize, b: usize, stepB: usize, c: usize, ldc: isize): void {
  const q1 = c + (ldc << 2), q2 = q1 + (ldc << 2), q3 = q2 + (ldc << 2), q4 = q3 + (ldc << 2), q5 = q4 + (ldc << 2);
  let c00 = v128.load(c), c01 = v128.load(c, 16), c10 = v128.load(q1), c11 = v128.load(q1, 16);
  let c20 = v128.load(q2), c21 = v128.load(q2, 16), c30 = v128.load(q3), c31 = v128.load(q3, 16);
  let c40 = v128.load(q4), c41 = v128.load(q4, 16), c50 = v128.load(q5), c51 = v128.load(q5, 16);
  let a1 = a + (lda << 2), a2 = a1 + (lda << 2), a3 = a2 + (lda << 2), a4 = a3 + (lda << 2), a5 = a4 + (lda << 2);
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load32_splat(a);
    c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load32_splat(a1);
    c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load32_splat(a2);
    c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load32_splat(a3);
    c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    x = v128.load32_splat(a4);
    c40 = madd(x, b0, c40); c41 = madd(x, b1, c41);
    x = v128.load32_splat(a5);
    c50 = madd(x, b0, c50); c51 = madd(x, b1, c51);
    a += 4; a1 += 4; a2 += 4; a3 += 4; a4 += 4; a5 += 4;
    b += stepB;
  }
  const step = ldc << 2;
  v128.store(c, c00); v128.store(c, c01, 16); c += step;
  v128.store(c, c10); v128.store(c, c11, 16); c += step;
  v128.store(c, c20); v128.store(c, c21, 16); c += step;
  v128.store(c, c30); v128.store(c, c31, 16); c += step;
  v128.store(c, c40); v128.store(c, c41, 16); c += step;
  v128.store(c, c50); v128.store(c, c51, 16);
}

/** The first four rows of a tile, for what six do not divide. */
export function tile4(depth: i32, a: usize, stepA: usize, b: usize, stepB: usize, c: usize, ldc: isize): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00;
  let c30 = c00, c31 = c00;
  for (let k = 0; k < depth; k++) {
    const b0 = v128.load(b), b1 = v128.load(b, 16);
    let x = v128.load32_splat(a);
    c00 = madd(x, b0, c00); c01 = madd(x, b1, c01);
    x = v128.load32_splat(a, 4);
    c10 = madd(x, b0, c10); c11 = madd(x, b1, c11);
    x = v128.load32_splat(a, 8);
    c20 = madd(x, b0, c20); c21 = madd(x, b1, c21);
    x = v128.load32_splat(a, 12);
    c30 = madd(x, b0, c30); c31 = madd(x, b1, c31);
    a += stepA;
    b += stepB;
  }
  const step = ldc << 2;
  v128.store(c, c00); v128.store(c, c01, 16); c += step;
  v128.store(c, c10); v128.store(c, c11, 16); c += step;
  v128.store(c, c20); v128.store(c, c21, 16); c += step;
  v128.store(c, c30); v128.store(c, c31, 16);
}

/** C[high, wide] = the tile in scratch, added to C when `add`. */
function combine(c: usize, ldc: isize, from: usize, high: i32, wide: i32, add: bool): void {
  for (let r = 0; r < high; r++) {
    if (wide == NR) {
      const lo = v128.load(from), hi = v128.load(from, 16);
      v128.store(c, add ? f32x4.add(v128.load(c), lo) : lo);
      v128.store(c, add ? f32x4.add(v128.load(c, 16), hi) : hi, 16);
    } else {
      for (let q: usize = 0; q < <usize>wide << 2; q += 4) {
        const x = load<f32>(from + q);
        store<f32>(c + q, add ? load<f32>(c + q) + x : x);
      }
    }
    c += ldc << 2;
    from += NR << 2;
  }
}

// ---- the job ----
// Slots: 0 c, 1 m, 2 n, 3 accumulate, 4 cut (0 columns, 1 rows), 5 tiles of the cut dimension, 6 terms, 7 and 8 elements
// from one A and B of a batch to the next (first term), then for each term: a, b, k, ars, acs, brs, bcs, type of b, alpha.
const TERM: i32 = 9;
const TERM_SLOTS: i32 = 9;

/**
 * C[rows, columns] at (i, j) = Σ alpha · A · B over the terms, added to C when `accumulate`. Terms of little depth share
 * a block with the one before them, so that an adapter's product costs no pass over C of its own.
 */
function product(c: usize, i: i32, rows: i32, j: i32, columns: i32, batch: i32): void {
  const terms = int(6), ldc = <isize>int(2);
  const packedA = scratch(), packedB = packedA + (<usize>(MC * (KC + RIDE)) << 2);
  const edge = packedB + (<usize>(NC * (KC + RIDE)) << 2);
  for (let j0 = 0; j0 < columns; j0 += NC) {
    const nc = min(NC, columns - j0);
    let add = int(3) != 0;
    for (let t = 0, k0 = 0; t < terms; ) {
      // the block: depth kc of term t from k0, and as many small terms behind it as fit
      const first = TERM + t * TERM_SLOTS, k = int(first + 2);
      const blocks = (k + KC - 1) / KC;
      const kc = k == 0 ? 0 : min((k + blocks - 1) / blocks, k - k0);
      let depth = kc, next = t;
      if (k0 + kc == k) {
        next = t + 1;
        while (next < terms && depth + int(TERM + next * TERM_SLOTS + 2) <= kc + RIDE) {
          depth += int(TERM + next * TERM_SLOTS + 2);
          next++;
        }
      }
      if (depth > 0) {
        block(c, i, rows, j + j0, nc, batch, t, max(next, t + 1), k0, kc, depth, add, t + k0 == 0, packedA, packedB, edge, ldc);
        add = true;
      }
      k0 = next == t ? k0 + kc : 0;
      t = next;
    }
    if (!add) {
      for (let r = 0; r < rows; r++) memory.fill(c + ((<isize>(i + r) * ldc + <isize>(j + j0)) << 2), 0, <usize>nc << 2);
    }
  }
}

/** One block of `product`: `kc` of term `t` from `k0`, and the whole terms up to `last`, `depth` in all. */
function block(
  c: usize, i: i32, rows: i32, j: i32, nc: i32, batch: i32,
  t: i32, last: i32, k0: i32, kc: i32, depth: i32, add: bool, isFirst: bool,
  packedA: usize, packedB: usize, edge: usize, ldc: isize,
): void {
  const first = TERM + t * TERM_SLOTS;
  for (let u = t, at = 0; u < last; u++) {
    const s = TERM + u * TERM_SLOTS, type = int(s + 7), brs = <isize>int(s + 5), bcs = <isize>int(s + 6);
    const from = u == t ? k0 : 0, deep = u == t ? kc : int(s + 2);
    const b = ptr(s + 1) + ((<isize>batch * int(8) + <isize>from * brs + <isize>j * bcs) << shiftOf(type));
    const scales = type == I8 ? scalesOf(ptr(s + 1), int(2), int(s + 2)) + (<usize>j << 2) : 0;
    packB(packedB + (<usize>(at * NR) << 2), depth * NR, b, brs, bcs, deep, nc, type, scales);
    at += deep;
  }
  // a narrow B is not worth packing A: whole tiles of it are read in place. It is the whole B that counts, not the part of a
  // thread, since what is added to C is added in another order then
  const ars0 = <isize>int(first + 3);
  const inPlace = last == t + 1 && int(first + 4) == 1 && int(2) <= 2 * NR && float(first + 8) == 1;
  for (let i0 = 0; i0 < rows; i0 += MC) {
    const mc = min(MC, rows - i0);
    const direct = inPlace ? mc - (mc % MR) : 0;
    for (let u = t, at = 0; u < last && direct < mc; u++) {
      const s = TERM + u * TERM_SLOTS, ars = <isize>int(s + 3), acs = <isize>int(s + 4);
      const from = u == t ? k0 : 0, deep = u == t ? kc : int(s + 2);
      const a = ptr(s) + ((<isize>batch * int(7) + <isize>(i + i0 + direct) * ars + <isize>from * acs) << 2);
      packA(packedA + (<usize>(direct * depth + at * MR) << 2), depth * MR, a, ars, acs, mc - direct, deep, float(s + 8));
      at += deep;
    }
    const blockA = ptr(first) + ((<isize>batch * int(7) + <isize>(i + i0) * ars0 + <isize>k0) << 2);
    for (let q = 0; q < nc; q += NR) {
      const panelB = packedB + (<usize>(q * depth) << 2);
      const wide = min(NR, nc - q);
      for (let r = 0; r < mc; r += MR) {
        const inA = r < direct;
        const panelA = inA ? blockA + ((<isize>r * ars0) << 2) : packedA + (<usize>(r * depth) << 2);
        const at = c + ((<isize>(i + i0 + r) * ldc + <isize>(j + q)) << 2);
        const high = min(MR, mc - r);
        // two calls to each tile function, on purpose: with one the compiler inlines it here, at half the speed
        if (wide == NR && high == MR && !add) {
          if (inA) tileRows(depth, panelA, ars0, panelB, STEP_B, at, ldc);
          else tile(depth, panelA, STEP_A, panelB, STEP_B, at, ldc);
        } else if (wide == NR && high == MR && isFirst && !inA) {
          tileAdd(depth, panelA, STEP_A, panelB, STEP_B, at, ldc);
        } else if (wide == NR && high == 4 && !add) {
          tile4(depth, panelA, STEP_A, panelB, STEP_B, at, ldc);
        } else {
          // sums of blocks are added up afterwards: one long chain of additions would round more
          if (inA) tileRows(depth, panelA, ars0, panelB, STEP_B, edge, NR);
          else if (high <= 4) tile4(depth, panelA, STEP_A, panelB, STEP_B, edge, NR);
          else tile(depth, panelA, STEP_A, panelB, STEP_B, edge, NR);
          combine(at, ldc, edge, high, wide, add);
        }
      }
    }
  }
}

/** C = Σ alpha · op(A) · op(B) (+ C). Tasks are batch × tiles of the cut dimension. */
export function gemm(begin: i32, end: i32): void {
  const m = int(1), n = int(2), rows = int(4) != 0, tiles = int(5);
  while (begin < end) {
    const batch = begin / tiles;
    const first = begin - batch * tiles;
    const last = min(tiles, first + (end - begin));
    const c = ptr(0) + (<usize>(batch * m * n) << 2);
    if (rows) product(c, first * MR, min(m, last * MR) - first * MR, 0, n, batch);
    else product(c, 0, m, first * NR, min(n, last * NR) - first * NR, batch);
    begin += last - first;
  }
}
