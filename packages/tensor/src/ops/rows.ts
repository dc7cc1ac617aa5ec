/** Reductions, and ops over the last dimension. */
import type { ReduceOp } from '../backend.js';
import { Tensor } from '../tensor.js';
import { around, axisOf, backendOf, expectDType, expectShape, expectThat, rowsOf, show } from './check.js';
import { affine } from './elementwise.js';

export interface ReduceOptions {
  /** The axis to reduce; all of them when absent. */
  axis?: number;
  /** Keep the reduced axis with size 1. */
  keepDims?: boolean;
}

function reduce(op: ReduceOp, x: Tensor, { axis, keepDims = false }: ReduceOptions): Tensor {
  expectDType(op, 'x', x, 'f32');
  const { backend } = x;
  if (axis === undefined) {
    const shape = keepDims ? x.shape.map(() => 1) : [];
    return Tensor.wrap(shape, 'f32', backend.reduce(op, x.storage, 1, x.size, 1), backend);
  }
  const at = axisOf(op, axis, x.rank);
  const { outer, n, inner } = around(x.shape, at);
  const shape = keepDims ? x.shape.map((d, i) => (i === at ? 1 : d)) : x.shape.filter((_, i) => i !== at);
  return Tensor.wrap(shape, 'f32', backend.reduce(op, x.storage, outer, n, inner), backend);
}

/** Sum over one axis or all elements. */
export const sum = (x: Tensor, options: ReduceOptions = {}): Tensor => reduce('sum', x, options);
/** Largest entry over one axis or all elements. */
export const max = (x: Tensor, options: ReduceOptions = {}): Tensor => reduce('max', x, options);

/** The sum of the squares of all elements of all tensors, as one element. */
export function squaredNorm(tensors: readonly Tensor[]): Tensor {
  expectThat(tensors.length > 0, 'squaredNorm', 'at least one tensor', 'none');
  const backend = backendOf('squaredNorm', ...tensors);
  for (const x of tensors) expectDType('squaredNorm', 'every tensor', x, 'f32');
  const total = backend.squaredNorm(tensors.map((x) => ({ x: x.storage, n: x.size })));
  return Tensor.wrap([], 'f32', total, backend);
}

/** Mean over one axis or all elements. */
export function mean(x: Tensor, options: ReduceOptions = {}): Tensor {
  const total = sum(x, options);
  const y = affine(total, 1 / (x.size / total.size));
  total.dispose();
  return y;
}

/** Sums x over the dimensions along which `shape` was broadcast to it: the derivative of broadcasting. */
export function sumTo(x: Tensor, shape: readonly number[]): Tensor {
  let y = x;
  const step = (next: Tensor): void => {
    if (y !== x) y.dispose();
    y = next;
  };
  while (y.rank > shape.length) step(sum(y, { axis: 0 }));
  shape.forEach((d, i) => {
    if (d === 1 && y.shape[i] !== 1) step(sum(y, { axis: i, keepDims: true }));
  });
  const fits = y.rank === shape.length && shape.every((d, i) => d === y.shape[i]);
  expectThat(fits, 'sumTo', `a shape that broadcasts to ${show(x.shape)}`, show(shape));
  return y === x ? x.reshape(...shape) : y;
}

/** Index (i32) of the first largest entry along the last dimension. */
export function argmax(x: Tensor): Tensor {
  expectDType('argmax', 'x', x, 'f32');
  const { rows, columns } = rowsOf('argmax', x);
  return Tensor.wrap(x.shape.slice(0, -1), 'i32', x.backend.argmax(x.storage, rows, columns), x.backend);
}

/** Softmax over the last dimension. */
export function softmax(x: Tensor): Tensor {
  expectDType('softmax', 'x', x, 'f32');
  const { rows, columns } = rowsOf('softmax', x);
  return Tensor.wrap(x.shape, 'f32', x.backend.softmax(x.storage, rows, columns), x.backend);
}

/** Logarithm of the softmax over the last dimension. */
export function logSoftmax(x: Tensor): Tensor {
  expectDType('logSoftmax', 'x', x, 'f32');
  const { rows, columns } = rowsOf('logSoftmax', x);
  return Tensor.wrap(x.shape, 'f32', x.backend.logSoftmax(x.storage, rows, columns), x.backend);
}

/** dx of `softmax` from dy and the result y. */
export function softmaxGrad(dy: Tensor, y: Tensor): Tensor {
  expectShape('softmaxGrad', 'dy', dy, y.shape);
  const { rows, columns } = rowsOf('softmaxGrad', y);
  return Tensor.wrap(y.shape, 'f32', y.backend.softmaxGrad(dy.storage, y.storage, rows, columns), y.backend);
}

/** dx of `logSoftmax` from dy and the result y. */
export function logSoftmaxGrad(dy: Tensor, y: Tensor): Tensor {
  expectShape('logSoftmaxGrad', 'dy', dy, y.shape);
  const { rows, columns } = rowsOf('logSoftmaxGrad', y);
  return Tensor.wrap(y.shape, 'f32', y.backend.logSoftmaxGrad(dy.storage, y.storage, rows, columns), y.backend);
}

/** x / √(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019), and the factors inv of each row. */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): { y: Tensor; inv: Tensor } {
  const backend = backendOf('rmsNorm', x, weight);
  expectDType('rmsNorm', 'x', x, 'f32');
  expectDType('rmsNorm', 'weight', weight, 'f32');
  const { rows, columns } = rowsOf('rmsNorm', x);
  expectShape('rmsNorm', 'weight', weight, [columns]);
  const { y, inv } = backend.rmsNorm(x.storage, weight.storage, rows, columns, eps);
  return { y: Tensor.wrap(x.shape, 'f32', y, backend), inv: Tensor.wrap(x.shape.slice(0, -1), 'f32', inv, backend) };
}

export function rmsNormGradInput(dy: Tensor, x: Tensor, weight: Tensor, inv: Tensor): Tensor {
  expectShape('rmsNormGradInput', 'dy', dy, x.shape);
  const { rows, columns } = rowsOf('rmsNormGradInput', x);
  const dx = x.backend.rmsNormGradInput(dy.storage, x.storage, weight.storage, inv.storage, rows, columns);
  return Tensor.wrap(x.shape, 'f32', dx, x.backend);
}

export function rmsNormGradWeight(dy: Tensor, x: Tensor, inv: Tensor): Tensor {
  expectShape('rmsNormGradWeight', 'dy', dy, x.shape);
  expectShape('rmsNormGradWeight', 'inv', inv, x.shape.slice(0, -1));
  const { rows, columns } = rowsOf('rmsNormGradWeight', x);
  const dw = x.backend.rmsNormGradWeight(dy.storage, x.storage, inv.storage, rows, columns);
  return Tensor.wrap([columns], 'f32', dw, x.backend);
}

/**
 * Cross-entropy of each row of logits `[…, C]` with labels (i32, `[…]`); rows with a negative label give 0. Returns the
 * losses and the log-sum-exp of each row. A label of C or more is the caller's mistake and gives a wrong number.
 */
export function crossEntropy(logits: Tensor, labels: Tensor): { loss: Tensor; lse: Tensor } {
  const backend = backendOf('crossEntropy', logits, labels);
  expectDType('crossEntropy', 'logits', logits, 'f32');
  expectDType('crossEntropy', 'labels', labels, 'i32');
  const { rows, columns } = rowsOf('crossEntropy', logits);
  expectThat(
    labels.size === rows,
    'crossEntropy',
    `${rows} labels for logits ${show(logits.shape)}`,
    show(labels.shape),
  );
  const { loss, lse } = backend.crossEntropy(logits.storage, labels.storage, rows, columns);
  const shape = logits.shape.slice(0, -1);
  return { loss: Tensor.wrap(shape, 'f32', loss, backend), lse: Tensor.wrap(shape, 'f32', lse, backend) };
}

export function crossEntropyGrad(dloss: Tensor, logits: Tensor, labels: Tensor, lse: Tensor): Tensor {
  const { rows, columns } = rowsOf('crossEntropyGrad', logits);
  expectThat(
    [dloss, labels, lse].every((x) => x.size === rows),
    'crossEntropyGrad',
    `${rows} losses, labels and lse for logits ${show(logits.shape)}`,
    [dloss, labels, lse].map((x) => show(x.shape)).join(', '),
  );
  const { backend } = logits;
  const d = backend.crossEntropyGrad(dloss.storage, logits.storage, labels.storage, lse.storage, rows, columns);
  return Tensor.wrap(logits.shape, 'f32', d, backend);
}
