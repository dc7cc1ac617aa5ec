/** Ops that move elements without changing them. */
import type { Shape4 } from '../backend.js';
import { Tensor } from '../tensor.js';
import { around, axisOf, backendOf, expectDType, expectThat, show } from './check.js';

/** Reorders dimensions: result dimension i is dimension `perm[i]` of x. Rank up to 4. */
export function permute(x: Tensor, perm: readonly number[]): Tensor {
  expectDType('permute', 'x', x, 'f32');
  const valid = perm.length === x.rank && x.rank <= 4 && [...perm].sort().every((d, i) => d === i);
  expectThat(valid, 'permute', `a permutation of ${x.rank} dimensions (at most 4)`, show(perm));
  const lead = 4 - x.rank;
  const shape = [1, 1, 1, 1, ...x.shape].slice(-4) as unknown as Shape4;
  const order = [0, 1, 2, 3].map((d) => (d < lead ? d : perm[d - lead]! + lead)) as unknown as Shape4;
  const result = perm.map((d) => x.shape[d]!);
  return Tensor.wrap(result, 'f32', x.backend.permute(x.storage, shape, order), x.backend);
}

/** The matrix (or last two dimensions) transposed. */
export function transpose(x: Tensor): Tensor {
  expectThat(x.rank >= 2, 'transpose', 'rank 2 or more', `shape ${show(x.shape)}`);
  const order = x.shape.map((_, i) => i);
  return permute(x, [...order.slice(0, -2), x.rank - 1, x.rank - 2]);
}

/** Elements `start` … `start + count − 1` along an axis. */
export function slice(x: Tensor, axis: number, start: number, count: number): Tensor {
  expectDType('slice', 'x', x, 'f32');
  const at = axisOf('slice', axis, x.rank);
  const { outer, n, inner } = around(x.shape, at);
  expectThat(
    start >= 0 && count >= 0 && start + count <= n,
    'slice',
    `a range inside 0 … ${n} of axis ${at}`,
    `${start} … ${start + count}`,
  );
  const shape = x.shape.map((d, i) => (i === at ? count : d));
  return Tensor.wrap(shape, 'f32', x.backend.slice(x.storage, outer, n, inner, start, count), x.backend);
}

/** Puts x at `before` along an axis of size `total`, zeros around it: the derivative of `slice`. */
export function pad(x: Tensor, axis: number, before: number, total: number): Tensor {
  expectDType('pad', 'x', x, 'f32');
  const at = axisOf('pad', axis, x.rank);
  const { outer, n, inner } = around(x.shape, at);
  expectThat(before >= 0 && before + n <= total, 'pad', `room for ${n} elements at ${before}`, `${total}`);
  const shape = x.shape.map((d, i) => (i === at ? total : d));
  return Tensor.wrap(shape, 'f32', x.backend.pad(x.storage, outer, n, inner, before, total), x.backend);
}

/** Joins tensors along an axis; all other sizes must agree. */
export function concat(parts: readonly Tensor[], axis: number): Tensor {
  expectThat(parts.length > 0, 'concat', 'at least one tensor', 'none');
  let whole = parts[0]!;
  const at = axisOf('concat', axis, whole.rank);
  const backend = backendOf('concat', ...parts);
  for (const part of parts) expectDType('concat', 'every part', part, 'f32');
  for (const part of parts.slice(1)) {
    const fits = part.rank === whole.rank && part.shape.every((d, i) => i === at || d === whole.shape[i]);
    expectThat(fits, 'concat', `shapes equal to ${show(whole.shape)} but for axis ${at}`, show(part.shape));
    const { outer, n, inner } = around(whole.shape, at);
    const nb = part.shape[at]!;
    const shape = whole.shape.map((d, i) => (i === at ? d + nb : d));
    const joined = backend.concat(whole.storage, part.storage, outer, n, nb, inner);
    if (whole !== parts[0]) whole.dispose();
    whole = Tensor.wrap(shape, 'f32', joined, backend);
  }
  return parts.length === 1 ? whole.reshape(...whole.shape) : whole;
}

/** Rows of a table `[rows, width]` (f32, bf16, f16 or int8) by ids (i32, any shape): `[…ids, width]` in f32. */
export function gatherRows(table: Tensor, ids: Tensor): Tensor {
  const backend = backendOf('gatherRows', table, ids);
  expectThat(table.rank === 2, 'gatherRows', 'a table [rows, width]', show(table.shape));
  expectDType('gatherRows', 'table', table, 'f32', 'bf16', 'f16', 'int8');
  expectDType('gatherRows', 'ids', ids, 'i32');
  const [rows, width] = table.shape as [number, number];
  const y = backend.gatherRows(table.storage, table.dtype, ids.storage, ids.size, rows, width);
  return Tensor.wrap([...ids.shape, width], 'f32', y, backend);
}

/** Adds row i of dy `[…ids, width]` to row ids[i] of a zero table `[rows, width]`: the derivative of `gatherRows`. */
export function scatterAddRows(dy: Tensor, ids: Tensor, rows: number): Tensor {
  const backend = backendOf('scatterAddRows', dy, ids);
  expectDType('scatterAddRows', 'dy', dy, 'f32');
  expectDType('scatterAddRows', 'ids', ids, 'i32');
  const width = dy.shape.at(-1)!;
  expectThat(
    dy.size === ids.size * width,
    'scatterAddRows',
    `dy of shape ${show([...ids.shape, width])}`,
    show(dy.shape),
  );
  const y = backend.scatterAddRows(dy.storage, ids.storage, ids.size, rows, width);
  return Tensor.wrap([rows, width], 'f32', y, backend);
}
