/**
 * Optimiser steps. A kernel has one result, so each state is a kernel of its own, in the order of the formulas. Factors such as 1 − β₂ come
 * as arguments: computed here in f32, 1 − 0.999 would be off by 2·10⁻⁵.
 */
import type { Thread, Vector } from './thread.js';

/** y + alpha · x */
export function axpy(this: Thread, y: Vector, x: Vector, alpha: number): number {
  return y[this.thread.x] + alpha * x[this.thread.x];
}

/** y · factor[0] */
export function scaleBy(this: Thread, y: Vector, factor: Vector): number {
  return y[this.thread.x] * factor[0];
}

/** m ← β₁ · m + (1 − β₁) · g */
export function adamFirstMoment(this: Thread, m: Vector, g: Vector, beta1: number, rest1: number): number {
  return beta1 * m[this.thread.x] + rest1 * g[this.thread.x];
}

/** v ← β₂ · v + (1 − β₂) · g² */
export function adamSecondMoment(this: Thread, v: Vector, g: Vector, beta2: number, rest2: number): number {
  return beta2 * v[this.thread.x] + rest2 * g[this.thread.x] * g[this.thread.x];
}

/** p ← p · decay − step · m / (√v / root + eps), with decay = 1 − lr · weightDecay, step = lr / bc₁, root = √bc₂ */
export function adamParameter(
  this: Thread,
  p: Vector,
  m: Vector,
  v: Vector,
  decay: number,
  step: number,
  root: number,
  eps: number,
): number {
  return p[this.thread.x] * decay - (step * m[this.thread.x]) / (Math.sqrt(v[this.thread.x]) / root + eps);
}

/** buf ← momentum · buf + (1 − dampening) · (g + weightDecay · p) */
export function sgdBuffer(
  this: Thread,
  buf: Vector,
  g: Vector,
  p: Vector,
  momentum: number,
  rest: number,
  weightDecay: number,
): number {
  return momentum * buf[this.thread.x] + rest * (g[this.thread.x] + weightDecay * p[this.thread.x]);
}

/** p ← p − lr · buf */
export function sgdParameter(this: Thread, p: Vector, buf: Vector, lr: number): number {
  return p[this.thread.x] - lr * buf[this.thread.x];
}

/** p ← p − lr · (g + weightDecay · p + momentum · buf), buf already updated */
export function sgdParameterNesterov(
  this: Thread,
  p: Vector,
  g: Vector,
  buf: Vector,
  lr: number,
  momentum: number,
  weightDecay: number,
): number {
  return p[this.thread.x] - lr * (g[this.thread.x] + weightDecay * p[this.thread.x] + momentum * buf[this.thread.x]);
}
