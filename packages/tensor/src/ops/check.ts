/** The checks that ops share. Every message reads `name: expected …, got …`. */
import type { Backend } from '../backend.js';
import type { DType } from '../dtype.js';
import { TensorError } from '../errors.js';
import type { Tensor } from '../tensor.js';

export const show = (shape: readonly number[]): string => `[${shape.join(', ')}]`;

/** Throws unless `condition` holds. */
export function expectThat(condition: boolean, op: string, expected: string, got: string, code = 'shape'): void {
  if (!condition) throw new TensorError(code, `${op}: expected ${expected}, got ${got}`);
}

/** The one backend of all operands. Throws when they are mixed. */
export function backendOf(op: string, ...tensors: readonly Tensor[]): Backend {
  const { backend } = tensors[0]!;
  for (const t of tensors) {
    if (t.backend !== backend) {
      throw new TensorError(
        'backend',
        `${op}: expected operands on one backend, got ${backend.name} and ${t.backend.name}`,
      );
    }
  }
  return backend;
}

export function expectDType(op: string, name: string, t: Tensor, ...allowed: readonly DType[]): void {
  if (!allowed.includes(t.dtype)) {
    const cast = t.dtype === 'i32' || allowed.includes('i32') ? '' : "; cast(x, 'f32') converts";
    throw new TensorError('dtype', `${op}: expected ${name} of dtype ${allowed.join(' or ')}, got ${t.dtype}${cast}`);
  }
}

export function expectShape(op: string, name: string, t: Tensor, shape: readonly number[]): void {
  if (t.shape.length !== shape.length || t.shape.some((d, i) => d !== shape[i])) {
    throw new TensorError('shape', `${op}: expected ${name} of shape ${show(shape)}, got ${show(t.shape)}`);
  }
}

/** Resolves a possibly negative axis. */
export function axisOf(op: string, axis: number, rank: number): number {
  const resolved = axis < 0 ? axis + rank : axis;
  expectThat(
    Number.isInteger(axis) && resolved >= 0 && resolved < rank,
    op,
    `an axis from ${-rank} to ${rank - 1}`,
    `${axis}`,
  );
  return resolved;
}

/** `[outer, n, inner]` around an axis. */
export function around(shape: readonly number[], axis: number): { outer: number; n: number; inner: number } {
  const product = (part: readonly number[]) => part.reduce((a, b) => a * b, 1);
  return { outer: product(shape.slice(0, axis)), n: shape[axis]!, inner: product(shape.slice(axis + 1)) };
}

/** Rows and columns of a tensor seen as a matrix over its last dimension. */
export function rowsOf(op: string, t: Tensor): { rows: number; columns: number } {
  expectThat(t.rank >= 1, op, 'a tensor of rank 1 or more', `shape ${show(t.shape)}`);
  const { outer, n } = around(t.shape, t.rank - 1);
  return { rows: outer, columns: n };
}
