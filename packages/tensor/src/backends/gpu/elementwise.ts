/** y[i] = f(x[i], …): one cell per element. */
import type { BinaryOp, UnaryOp } from '../../backend.js';
import type { Thread, Vector } from './thread.js';

/** value */
export function fill(this: Thread, value: number): number {
  return value;
}

/** scale · x + shift */
export function affine(this: Thread, x: Vector, scale: number, shift: number): number {
  return scale * x[this.thread.x] + shift;
}

/** −x */
function negate(this: Thread, x: Vector): number {
  return -x[this.thread.x];
}

/** |x| */
function absolute(this: Thread, x: Vector): number {
  return Math.abs(x[this.thread.x]);
}

/** eˣ */
function exponential(this: Thread, x: Vector): number {
  return Math.exp(x[this.thread.x]);
}

/** ln x */
function logarithm(this: Thread, x: Vector): number {
  return Math.log(x[this.thread.x]);
}

/** √x */
function squareRoot(this: Thread, x: Vector): number {
  return Math.sqrt(x[this.thread.x]);
}

/** 1 / √x */
function inverseSquareRoot(this: Thread, x: Vector): number {
  return 1 / Math.sqrt(x[this.thread.x]);
}

/** x² */
function square(this: Thread, x: Vector): number {
  return x[this.thread.x] * x[this.thread.x];
}

/** σ(x) = 1 / (1 + e⁻ˣ); e⁻ˣ may overflow to Infinity, which gives the right limit 0. */
function sigmoid(this: Thread, x: Vector): number {
  return 1 / (1 + Math.exp(-x[this.thread.x]));
}

/** tanh x, clamped to where it is ±1 in f32: WGSL's tanh overflows to NaN. */
function hyperbolicTangent(this: Thread, x: Vector): number {
  return Math.tanh(Math.max(-10, Math.min(10, x[this.thread.x])));
}

/** x · σ(x) */
function silu(this: Thread, x: Vector): number {
  return x[this.thread.x] / (1 + Math.exp(-x[this.thread.x]));
}

/** max(x, 0) */
function relu(this: Thread, x: Vector): number {
  return Math.max(x[this.thread.x], 0);
}

export const unaryKernels: Record<UnaryOp, (this: Thread, x: Vector) => number> = {
  neg: negate,
  abs: absolute,
  exp: exponential,
  log: logarithm,
  sqrt: squareRoot,
  rsqrt: inverseSquareRoot,
  square,
  sigmoid,
  tanh: hyperbolicTangent,
  silu,
  relu,
};

/** a + b */
function add(this: Thread, a: Vector, b: Vector): number {
  return a[this.thread.x] + b[this.thread.x];
}

/** a − b */
function subtract(this: Thread, a: Vector, b: Vector): number {
  return a[this.thread.x] - b[this.thread.x];
}

/** a · b */
function multiply(this: Thread, a: Vector, b: Vector): number {
  return a[this.thread.x] * b[this.thread.x];
}

/** a / b */
function divide(this: Thread, a: Vector, b: Vector): number {
  return a[this.thread.x] / b[this.thread.x];
}

/** max(a, b) */
function maximum(this: Thread, a: Vector, b: Vector): number {
  return Math.max(a[this.thread.x], b[this.thread.x]);
}

/** min(a, b) */
function minimum(this: Thread, a: Vector, b: Vector): number {
  return Math.min(a[this.thread.x], b[this.thread.x]);
}

/** Operands of equal shape: `strided` (layout.ts) expands a broadcast one first. */
export const binaryKernels: Record<BinaryOp, (this: Thread, a: Vector, b: Vector) => number> = {
  add,
  sub: subtract,
  mul: multiply,
  div: divide,
  max: maximum,
  min: minimum,
};

/** silu(gate) · up */
export function swiglu(this: Thread, gate: Vector, up: Vector): number {
  return (gate[this.thread.x] / (1 + Math.exp(-gate[this.thread.x]))) * up[this.thread.x];
}

/** dgate = dy · up · σ(g) · (1 + g · (1 − σ(g))) */
export function swigluGradGate(this: Thread, dy: Vector, gate: Vector, up: Vector): number {
  const sigma = 1 / (1 + Math.exp(-gate[this.thread.x]));
  return dy[this.thread.x] * up[this.thread.x] * sigma * (1 + gate[this.thread.x] * (1 - sigma));
}

/** dup = dy · silu(gate): swiglu with dy in the place of up. */
export const swigluGradUp = swiglu;
