/**
 * The product of dense.ts with float32 inside: operands are rounded to it while they are packed, products are summed up in the tiles of
 * gemm.ts over a block of depth, and only the sums of blocks are added in float64. Twice as fast, for what is made exact afterwards.
 */
import { int, ptr, scratch } from './control';
import { F64, STRIP, shiftOf } from './dense';
import { BF16, F32, MR, NR, STEP_A, STEP_B, half, tile, tileRows } from './gemm';

const MC: i32 = 192; // rows of A packed at once: MC·KC·4 = 240 KiB, in the level-2 cache
const KC: i32 = 320; // depth of a block, which limits the rounding
const NC: i32 = 1024; // columns of B packed at once: 1.25 MiB; all of it fits into the scratch of dense.ts
const NARROW: i32 = 64; // columns up to which packing A does not pay
const DEEP: i32 = 2048; // depth of a block then: rows are read in long pieces, or memory is waited for

// @ts-ignore: decorator
@inline
function load1<T>(p: usize): f32 {
  if (isFloat<T>()) return <f32>load<T>(p);
  const bits = <u32>load<u16>(p);
  return isSigned<T>() ? half(bits) : reinterpret<f32>(bits << 16);
}

/** Two neighbours in the lower half. */
// @ts-ignore: decorator
@inline
function load2<T>(p: usize): v128 {
  if (sizeof<T>() == 8) return f32x4.demote_f64x2_zero(v128.load(p));
  if (sizeof<T>() == 4) return v128.load64_zero(p);
  return f32x4.replace_lane(f32x4.splat(load1<T>(p)), 1, load1<T>(p + 2));
}

/** Four neighbours. */
// @ts-ignore: decorator
@inline
function load4<T>(p: usize): v128 {
  if (sizeof<T>() == 4) return v128.load(p);
  if (isFloat<T>() || isSigned<T>()) return v128.shuffle<i64>(load2<T>(p), load2<T>(p + 2 * sizeof<T>()), 0, 2);
  return i32x4.shl(v128.load16x4_u(p), 16);
}

/** Four lines of a panel that run along memory. */
// @ts-ignore: decorator
@inline
function packFour<T>(p: usize, at: usize, step: usize, depth: i32, bytes: usize): void {
  let k = 0;
  for (; k + 4 <= depth; k += 4) {
    const a0 = load4<T>(at), a1 = load4<T>(at + step), a2 = load4<T>(at + 2 * step), a3 = load4<T>(at + 3 * step);
    const t0 = v128.shuffle<i32>(a0, a1, 0, 4, 1, 5), t1 = v128.shuffle<i32>(a2, a3, 0, 4, 1, 5);
    const t2 = v128.shuffle<i32>(a0, a1, 2, 6, 3, 7), t3 = v128.shuffle<i32>(a2, a3, 2, 6, 3, 7);
    v128.store(p, v128.shuffle<i64>(t0, t1, 0, 2));
    p += bytes;
    v128.store(p, v128.shuffle<i64>(t0, t1, 1, 3));
    p += bytes;
    v128.store(p, v128.shuffle<i64>(t2, t3, 0, 2));
    p += bytes;
    v128.store(p, v128.shuffle<i64>(t2, t3, 1, 3));
    p += bytes;
    at += 4 * sizeof<T>();
  }
  for (; k < depth; k++, p += bytes, at += sizeof<T>()) {
    for (let r: usize = 0; r < 4; r++) store<f32>(p + (r << 2), load1<T>(at + r * step));
  }
}

/** Panels [side][depth] of a matrix whose lines lie side by side, as `packAs` of dense.ts. */
function packAs<T>(to: usize, from: usize, along: isize, down: isize, lines: i32, depth: i32, side: i32): void {
  const bytes = <usize>side << 2, panel = <usize>depth * bytes, width = <isize>sizeof<T>();
  let i = 0;
  if (along == 1) {
    // many panels at a time: rows may lie a page apart each, and are read the faster the longer the pieces are
    while (i + side <= lines) {
      const group = min(32, (lines - i) / side);
      let source = from + <isize>i * width;
      for (let k = 0; k < depth; k++) {
        let p = to + <usize>k * bytes, at = source;
        for (let q = 0; q < group; q++) {
          v128.store(p, load4<T>(at));
          if (side == NR) v128.store(p, load4<T>(at + 4 * width), 16);
          else v128.store64_lane(p, load2<T>(at + 4 * width), 0, 16);
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
    if (down == 1) for (; r + 4 <= live; r += 4) packFour<T>(to + (<usize>r << 2), from + <isize>(i + r) * along * width, along * width, depth, bytes);
    for (; r < side; r++) {
      let p = to + (<usize>r << 2), at = from + <isize>(i + r) * along * width;
      const step = r < live ? down * width : 0;
      const factor: f32 = r < live ? 1 : 0;
      if (r >= live) at = from; // what is there is finite, or the product is not
      for (let k = 0; k < depth; k++, p += bytes, at += step) store<f32>(p, load1<T>(at) * factor);
    }
    to += panel;
  }
}

function pack(to: usize, from: usize, along: isize, down: isize, lines: i32, depth: i32, side: i32, type: i32): void {
  if (type == F64) packAs<f64>(to, from, along, down, lines, depth, side);
  else if (type == F32) packAs<f32>(to, from, along, down, lines, depth, side);
  else if (type == BF16) packAs<u16>(to, from, along, down, lines, depth, side);
  else packAs<i16>(to, from, along, down, lines, depth, side);
}

/** Adds a tile in scratch, times `sign`, to C, as far as it lies in C and in the triangle: first ≤ column − row ≤ last. */
function addTile(c: usize, ldc: usize, from: usize, sign: f64, high: i32, wide: i32, first: i32, last: i32): void {
  const signs = f64x2.splat(sign);
  for (let r = 0; r < high; r++) {
    const low = max(0, r + first), end = min(wide, r + last + 1);
    if (low == 0 && end == NR) {
      for (let q: usize = 0; q < 4; q++) {
        const at = c + (q << 4);
        v128.store(at, f64x2.add(v128.load(at), f64x2.mul(signs, f64x2.promote_low_f32x4(v128.load64_zero(from + (q << 3))))));
      }
    } else {
      for (let q = low; q < end; q++) {
        const at = c + (<usize>q << 3);
        store<f64>(at, load<f64>(at) + sign * <f64>load<f32>(from + (<usize>q << 2)));
      }
    }
    c += ldc;
    from += STEP_B;
  }
}

/** Rows i … of a narrow C from rows of A in place. */
function inPlace(i: i32, rows: i32): void {
  const c = ptr(0), ldc = <usize>int(1) << 3, n = int(3), k = int(4), sign: f64 = int(13) ? -1 : 1;
  const a = ptr(5), ars = <isize>int(6), b = ptr(9), brs = <isize>int(10), bcs = <isize>int(11), typeB = int(12);
  const packedB = scratch(), packedA = packedB + (<usize>(NARROW * DEEP) << 2), edge = packedA + (<usize>(MR * DEEP) << 2);
  for (let k0 = 0; k0 < k; k0 += DEEP) {
    const kc = min(DEEP, k - k0);
    pack(packedB, b + (<isize>k0 * brs << shiftOf(typeB)), bcs, brs, n, kc, NR, typeB);
    for (let r = i; r < i + rows; r += MR) {
      const high = min(MR, i + rows - r), row = a + ((<isize>r * ars + <isize>k0) << 2);
      if (high < MR) pack(packedA, row, ars, 1, high, kc, MR, F32);
      for (let q = 0; q < n; q += NR) {
        const panel = packedB + (<usize>(q * kc) << 2);
        if (high < MR) tile(kc, packedA, STEP_A, panel, STEP_B, edge, NR);
        else tileRows(kc, row, ars, panel, STEP_B, edge, NR);
        addTile(c + <usize>r * ldc + (<usize>q << 3), ldc, edge, sign, high, min(NR, n - q), -MR, NR);
      }
    }
  }
}

function packed(i: i32, rows: i32, j: i32, columns: i32): void {
  const c = ptr(0), ldc = <usize>int(1) << 3, k = int(4), lower = int(14) == 2, upper = int(14) == 3;
  const a = ptr(5), ars = <isize>int(6), acs = <isize>int(7), typeA = int(8), shiftA = shiftOf(typeA);
  const b = ptr(9), brs = <isize>int(10), bcs = <isize>int(11), typeB = int(12), shiftB = shiftOf(typeB);
  const packedA = scratch(), packedB = packedA + (<usize>(MC * KC) << 2), edge = packedB + (<usize>(NC * KC) << 2);
  const sign: f64 = int(13) ? -1 : 1;
  for (let j0 = j; j0 < j + columns; j0 += NC) {
    const nc = min(NC, j + columns - j0);
    const start = lower ? max(i, j0 / MR * MR) : i, stop = upper ? min(i + rows, j0 + nc) : i + rows;
    for (let k0 = 0; k0 < k; k0 += KC) {
      const kc = min(KC, k - k0);
      pack(packedB, b + ((<isize>k0 * brs + <isize>j0 * bcs) << shiftB), bcs, brs, nc, kc, NR, typeB);
      for (let i0 = start; i0 < stop; i0 += MC) {
        const mc = min(MC, stop - i0);
        pack(packedA, a + ((<isize>i0 * ars + <isize>k0 * acs) << shiftA), ars, acs, mc, kc, MR, typeA);
        for (let q = 0; q < nc; q += NR) {
          const wide = min(NR, nc - q);
          for (let r = 0; r < mc; r += MR) {
            const high = min(MR, mc - r), ahead = i0 + r - (j0 + q);
            if (lower && ahead + high <= 0 || upper && ahead >= wide) continue;
            tile(kc, packedA + (<usize>(r * kc) << 2), STEP_A, packedB + (<usize>(q * kc) << 2), STEP_B, edge, NR);
            const at = c + <usize>(i0 + r) * ldc + (<usize>(j0 + q) << 3);
            addTile(at, ldc, edge, sign, high, wide, upper ? ahead : -MR, lower ? ahead : NR);
          }
        }
      }
    }
  }
}

/** C ← C ± A·B. Slots and tasks are those of `multiply` in dense.ts, but for strips of 8 columns. */
export function multiplySingle(begin: i32, end: i32): void {
  const m = int(2), n = int(3), cut = int(14);
  if (cut == 0) return packed(0, m, begin * NR, min(n, end * NR) - begin * NR);
  if (cut == 1) {
    const i = begin * MR, rows = min(m, end * MR) - i;
    if (int(8) == F32 && int(7) == 1 && n <= NARROW) return inPlace(i, rows);
    return packed(i, rows, 0, n);
  }
  const strips = int(15), mirrored = max(strips - end, end);
  packed(0, m, begin * STRIP, min(n, end * STRIP) - begin * STRIP);
  if (mirrored < strips - begin) packed(0, m, mirrored * STRIP, min(n, (strips - begin) * STRIP) - mirrored * STRIP);
}
