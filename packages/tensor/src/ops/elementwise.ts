/** Elementwise ops, with NumPy's broadcasting (rank up to 4). */
import type { BinaryOp, Shape4, Storage, UnaryOp } from '../backend.js';
import type { DType } from '../dtype.js';
import { Tensor } from '../tensor.js';
import { backendOf, expectDType, expectShape, expectThat, rowsOf, show } from './check.js';

/** The shape that two shapes broadcast to. Throws when a dimension differs and neither is 1. */
export function broadcastShape(op: string, a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  for (let i = 1; i <= rank; i++) {
    const [x, y] = [a.at(-i) ?? 1, b.at(-i) ?? 1];
    expectThat(x === y || x === 1 || y === 1, op, `a shape that broadcasts with ${show(a)}`, show(b));
    shape.unshift(x === 1 ? y : x);
  }
  return shape;
}

/** Element strides of an operand inside a broadcast result, as rank 4. */
function stridesIn(shape: readonly number[], result: readonly number[]): Shape4 {
  const strides = [0, 0, 0, 0];
  let step = 1;
  for (let i = 1; i <= Math.min(4, result.length); i++) {
    const d = shape.at(-i) ?? 1;
    strides[4 - i] = d === 1 ? 0 : step;
    step *= d;
  }
  return strides as unknown as Shape4;
}

function rank4(op: string, shape: readonly number[]): Shape4 {
  expectThat(shape.length <= 4, op, 'tensors of rank 4 or less', `rank ${shape.length}`);
  return [1, 1, 1, 1, ...shape].slice(-4) as unknown as Shape4;
}

function binary(op: BinaryOp, a: Tensor, b: Tensor): Tensor {
  const backend = backendOf(op, a, b);
  expectDType(op, 'a', a, 'f32');
  expectDType(op, 'b', b, 'f32');
  const shape = broadcastShape(op, a.shape, b.shape);
  const same = a.size === b.size && a.shape.length === b.shape.length && a.shape.every((d, i) => d === b.shape[i]);
  const [full, sa, sb] = same
    ? ([
        [1, 1, 1, a.size],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
      ] as const)
    : [rank4(op, shape), stridesIn(a.shape, shape), stridesIn(b.shape, shape)];
  return Tensor.wrap(shape, 'f32', backend.binary(op, a.storage, b.storage, full, sa, sb), backend);
}

/** a + b with broadcasting; likewise the next five. */
export const add = (a: Tensor, b: Tensor): Tensor => binary('add', a, b);
export const sub = (a: Tensor, b: Tensor): Tensor => binary('sub', a, b);
export const mul = (a: Tensor, b: Tensor): Tensor => binary('mul', a, b);
export const div = (a: Tensor, b: Tensor): Tensor => binary('div', a, b);
export const maximum = (a: Tensor, b: Tensor): Tensor => binary('max', a, b);
export const minimum = (a: Tensor, b: Tensor): Tensor => binary('min', a, b);

function unary(op: UnaryOp, x: Tensor): Tensor {
  expectDType(op, 'x', x, 'f32');
  const { backend } = x;
  return Tensor.wrap(x.shape, 'f32', backend.unary(op, x.storage, x.size), backend);
}

export const neg = (x: Tensor): Tensor => unary('neg', x);
export const abs = (x: Tensor): Tensor => unary('abs', x);
export const exp = (x: Tensor): Tensor => unary('exp', x);
/** Natural logarithm. */
export const log = (x: Tensor): Tensor => unary('log', x);
export const sqrt = (x: Tensor): Tensor => unary('sqrt', x);
/** 1 / √x. */
export const rsqrt = (x: Tensor): Tensor => unary('rsqrt', x);
export const square = (x: Tensor): Tensor => unary('square', x);
export const sigmoid = (x: Tensor): Tensor => unary('sigmoid', x);
export const tanh = (x: Tensor): Tensor => unary('tanh', x);
/** x · sigmoid(x). */
export const silu = (x: Tensor): Tensor => unary('silu', x);
export const relu = (x: Tensor): Tensor => unary('relu', x);

/** scale · x + shift. */
export function affine(x: Tensor, scale: number, shift = 0): Tensor {
  expectDType('affine', 'x', x, 'f32');
  const { backend } = x;
  return Tensor.wrap(x.shape, 'f32', backend.affine(x.storage, x.size, scale, shift), backend);
}

/** silu(gate) · up. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const backend = backendOf('swiglu', gate, up);
  expectDType('swiglu', 'gate', gate, 'f32');
  expectDType('swiglu', 'up', up, 'f32');
  expectShape('swiglu', 'up', up, gate.shape);
  return Tensor.wrap(gate.shape, 'f32', backend.swiglu(gate.storage, up.storage, gate.size), backend);
}

/** Derivatives of `swiglu`. */
export function swigluGrad(dy: Tensor, gate: Tensor, up: Tensor): { gate: Tensor; up: Tensor } {
  const backend = backendOf('swigluGrad', dy, gate, up);
  expectShape('swigluGrad', 'dy', dy, gate.shape);
  const d = backend.swigluGrad(dy.storage, gate.storage, up.storage, gate.size);
  return {
    gate: Tensor.wrap(gate.shape, 'f32', d.gate, backend),
    up: Tensor.wrap(gate.shape, 'f32', d.up, backend),
  };
}

const CASTS: readonly DType[] = ['f32', 'f64', 'i32', 'bf16', 'f16', 'int8'];

/** Converts the elements: 16-bit formats round to nearest even, i32 truncates, int8 has a scale for each row (last dimension). */
export function cast(x: Tensor, dtype: DType): Tensor {
  expectThat(CASTS.includes(dtype), 'cast', `a dtype of ${CASTS.join(', ')}`, `${dtype}`, 'dtype');
  const { backend } = x;
  if (x.dtype === dtype) return x.reshape(...x.shape);
  if (x.dtype === 'f32' || dtype === 'f32') {
    const storage = convert(x, dtype);
    return Tensor.wrap(x.shape, dtype, storage, backend);
  }
  const between = Tensor.wrap(x.shape, 'f32', convert(x, 'f32'), backend);
  const y = Tensor.wrap(x.shape, dtype, convert(between, dtype), backend);
  between.dispose();
  return y;
}

function convert(x: Tensor, dtype: DType): Storage {
  const { backend, storage } = x;
  if (x.dtype !== 'int8' && dtype !== 'int8') return backend.cast(storage, x.size, x.dtype, dtype);
  const { rows, columns } = rowsOf('cast', x);
  return dtype === 'int8'
    ? backend.quantizeRows(storage, rows, columns)
    : backend.dequantizeRows(storage, rows, columns);
}
