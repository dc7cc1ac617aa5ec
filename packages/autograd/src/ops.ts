/**
 * Differentiable ops: each stands with its derivative. `to` receives the gradients of the parents in their order; what is
 * added to it must be a fresh tensor (a reshape of dy counts as one).
 *
 * Shape letters: N rows, C columns, V vocabulary, B batch, T query tokens, S key tokens, H and G query and key/value heads, D head size.
 */
import * as t from '@milora/tensor';
import { Philox, Tensor, intTensor } from '@milora/tensor';
import { AutogradError } from './errors.js';
import { drawOnce, gradEnabled, record } from './variable.js';
import type { Gradients, Variable } from './variable.js';

/** Runs `fn` and frees the tensors it makes but for the one returned. */
const fused = <T>(fn: () => T): T => t.scope(fn);

// ---- arithmetic with broadcasting ----

export function add(a: Variable, b: Variable): Variable {
  return record('add', t.add(a.value, b.value), [a, b], (dy, to) => {
    if (to.needs(0)) to.add(0, t.sumTo(dy, a.shape));
    if (to.needs(1)) to.add(1, t.sumTo(dy, b.shape));
  });
}

export function sub(a: Variable, b: Variable): Variable {
  return record('sub', t.sub(a.value, b.value), [a, b], (dy, to) => {
    if (to.needs(0)) to.add(0, t.sumTo(dy, a.shape));
    if (to.needs(1)) to.add(1, t.sumTo(t.neg(dy), b.shape));
  });
}

export function mul(a: Variable, b: Variable): Variable {
  return record('mul', t.mul(a.value, b.value), [a, b], (dy, to) => {
    if (to.needs(0)) to.add(0, t.sumTo(t.mul(dy, b.value), a.shape));
    if (to.needs(1)) to.add(1, t.sumTo(t.mul(dy, a.value), b.shape));
  });
}

/** a / b: da = dy / b, db = −dy · a / b². */
export function div(a: Variable, b: Variable): Variable {
  return record('div', t.div(a.value, b.value), [a, b], (dy, to) => {
    if (to.needs(0)) to.add(0, t.sumTo(t.div(dy, b.value), a.shape));
    if (to.needs(1)) {
      to.add(1, t.sumTo(t.neg(t.div(t.mul(dy, a.value), t.square(b.value))), b.shape));
    }
  });
}

/** factor · x + shift. */
export function affine(x: Variable, factor: number, shift = 0): Variable {
  return record('affine', t.affine(x.value, factor, shift), [x], (dy, to) => to.add(0, t.affine(dy, factor)));
}

export const neg = (x: Variable): Variable => affine(x, -1);

// ---- elementwise ----

/** An elementwise op with dx = dy · slope(x, y). */
function elementwise(name: string, x: Variable, y: Tensor, slope: (x: Tensor, y: Tensor) => Tensor): Variable {
  return record(name, y, [x], (dy, to) => to.add(0, t.mul(dy, slope(x.value, y))));
}

export const exp = (x: Variable): Variable => elementwise('exp', x, t.exp(x.value), (_, y) => y);
export const log = (x: Variable): Variable =>
  elementwise('log', x, t.log(x.value), (v) => t.div(t.ones(v.shape, { backend: v.backend }), v));
export const sqrt = (x: Variable): Variable =>
  elementwise('sqrt', x, t.sqrt(x.value), (_, y) => t.div(t.full(y.shape, 0.5, { backend: y.backend }), y));
export const square = (x: Variable): Variable => elementwise('square', x, t.square(x.value), (v) => t.affine(v, 2));
export const sigmoid = (x: Variable): Variable =>
  elementwise('sigmoid', x, t.sigmoid(x.value), (_, y) => t.mul(y, t.affine(y, -1, 1)));
export const tanh = (x: Variable): Variable =>
  elementwise('tanh', x, t.tanh(x.value), (_, y) => t.affine(t.square(y), -1, 1));
/** max(x, 0); the derivative at 0 is 0, as in PyTorch. */
export const relu = (x: Variable): Variable =>
  elementwise('relu', x, t.relu(x.value), (_, y) => t.minimum(t.affine(y, 1e38), t.ones([], { backend: y.backend })));
/** x · σ(x): the slope is σ(x) · (1 + x · (1 − σ(x))). */
export const silu = (x: Variable): Variable =>
  elementwise('silu', x, t.silu(x.value), (v) => {
    const s = t.sigmoid(v);
    return t.mul(s, t.affine(t.mul(v, t.affine(s, -1, 1)), 1, 1));
  });

/** silu(gate) · up, both of one shape. */
export function swiglu(gate: Variable, up: Variable): Variable {
  return record('swiglu', t.swiglu(gate.value, up.value), [gate, up], (dy, to) => {
    const d = t.swigluGrad(dy, gate.value, up.value);
    to.add(0, d.gate);
    to.add(1, d.up);
  });
}

/** In training, zeroes each element with probability p and scales the rest by 1 / (1 − p). */
export function dropout(x: Variable, p: number, random: Philox): Variable {
  if (!(p >= 0 && p < 1)) throw new AutogradError('dropout', `dropout: expected a probability in [0, 1), got ${p}`);
  if (p === 0) return x;
  // the generator moves on once, however often a checkpointed function runs
  let isFirst = false;
  const start = drawOnce(() => {
    isFirst = true;
    return random.state();
  });
  const keep = (isFirst ? random : Philox.fromState(start)).uniformArray(x.value.size);
  const factor = 1 / (1 - p);
  for (let i = 0; i < keep.length; i++) keep[i] = keep[i]! < p ? 0 : factor;
  const mask = Tensor.fromHost({ dtype: 'f32', shape: x.shape, data: keep }, x.value.backend);
  return record('dropout', t.mul(x.value, mask), [x], (dy, to) => to.add(0, t.mul(dy, mask)), [mask]);
}

// ---- reductions ----

/** Sum over one axis, or all elements. */
export function sum(x: Variable, options: { axis?: number; keepDims?: boolean } = {}): Variable {
  return record('sum', t.sum(x.value, options), [x], (dy, to) => to.add(0, spread(dy, x.shape, options.axis, 1)));
}

/** Mean over one axis, or all elements. */
export function mean(x: Variable, options: { axis?: number; keepDims?: boolean } = {}): Variable {
  const y = t.mean(x.value, options);
  const share = y.size / x.value.size;
  return record('mean', y, [x], (dy, to) => to.add(0, spread(dy, x.shape, options.axis, share)));
}

/** Broadcasts the gradient of a reduction back to `shape`, times `factor`. */
function spread(dy: Tensor, shape: readonly number[], axis: number | undefined, factor: number): Tensor {
  return fused(() => {
    const at = axis === undefined ? -1 : axis < 0 ? axis + shape.length : axis;
    const kept = shape.map((d, i) => (axis === undefined || i === at ? 1 : d));
    return t.mul(t.full(shape, factor, { backend: dy.backend }), dy.reshape(...kept));
  });
}

// ---- layout ----

export function reshape(x: Variable, ...shape: readonly number[]): Variable {
  return record('reshape', x.value.reshape(...shape), [x], (dy, to) => to.add(0, dy.reshape(...x.shape)));
}

export function permute(x: Variable, perm: readonly number[]): Variable {
  const inverse = perm.map((_, i) => perm.indexOf(i));
  return record('permute', t.permute(x.value, perm), [x], (dy, to) => to.add(0, t.permute(dy, inverse)));
}

/** Elements `start` … `start + count − 1` along an axis. */
export function slice(x: Variable, axis: number, start: number, count: number): Variable {
  const total = x.shape.at(axis)!;
  return record('slice', t.slice(x.value, axis, start, count), [x], (dy, to) =>
    to.add(0, t.pad(dy, axis, start, total)),
  );
}

export function concat(parts: readonly Variable[], axis: number): Variable {
  const value = t.concat(
    parts.map((part) => part.value),
    axis,
  );
  return record('concat', value, parts, (dy, to) => {
    let start = 0;
    parts.forEach((part, i) => {
      const count = part.shape.at(axis)!;
      if (to.needs(i)) to.add(i, t.slice(dy, axis, start, count));
      start += count;
    });
  });
}

/** Rows of a table `[V, C]` by ids (i32): `[…ids, C]`. */
export function embedding(table: Variable, ids: Tensor): Variable {
  return record('embedding', t.gatherRows(table.value, ids), [table], (dy, to) =>
    to.add(0, t.scatterAddRows(dy, ids, table.shape[0]!)),
  );
}

// ---- matrix products ----

/** Adds `alpha · op(a) · op(b)` to the gradient of parent `i`, into the one it has when that may change in place. */
export function addProduct(to: Gradients, i: number, a: Tensor, b: Tensor, options: t.MatmulOptions = {}): void {
  const into = to.existing(i);
  const g = t.matmul(a, b, into ? { ...options, into } : options);
  if (!into) to.add(i, g);
}

/** a `[…, m, k]` · b `[…, k, n]`; b may also be one matrix for all. */
export function matmul(a: Variable, b: Variable): Variable {
  return record('matmul', t.matmul(a.value, b.value), [a, b], (dy, to) => {
    if (to.needs(0)) {
      if (a.value.rank >= b.value.rank) addProduct(to, 0, dy, b.value, { transposeB: true });
      else to.add(0, t.sumTo(t.matmul(dy, b.value, { transposeB: true }), a.shape));
    }
    if (to.needs(1)) {
      if (b.value.rank === a.value.rank) addProduct(to, 1, a.value, dy, { transposeA: true });
      else to.add(1, t.sumTo(t.matmul(a.value, dy, { transposeA: true }), b.shape));
    }
  });
}

/** A tensor `[…, C]` as a matrix `[N, C]`. */
export function asRows(x: Tensor): Tensor {
  return x.reshape(-1, x.shape.at(-1)!);
}

/** y = x Wᵀ + bias: x `[…, in]`, W `[out, in]`, bias `[out]`. */
export function linear(x: Variable, weight: Variable, bias?: Variable): Variable {
  const [out] = weight.shape as [number, number];
  const value = fused(() => {
    const y = t.matmul(asRows(x.value), weight.value, { transposeB: true });
    return (bias ? t.add(y, bias.value) : y).reshape(...x.shape.slice(0, -1), out);
  });
  return record('linear', value, bias ? [x, weight, bias] : [x, weight], (dy, to) => {
    const d = asRows(dy);
    if (to.needs(0)) {
      const into = to.existing(0);
      if (into) t.matmul(d, weight.value, { into: asRows(into) });
      else to.add(0, t.matmul(d, weight.value).reshape(...x.shape));
    }
    if (to.needs(1)) addProduct(to, 1, d, asRows(x.value), { transposeA: true });
    if (bias && to.needs(2)) to.add(2, t.sum(d, { axis: 0 }));
  });
}

// ---- rows ----

export function softmax(x: Variable): Variable {
  const y = t.softmax(x.value);
  return record('softmax', y, [x], (dy, to) => to.add(0, t.softmaxGrad(dy, y)));
}

export function logSoftmax(x: Variable): Variable {
  const y = t.logSoftmax(x.value);
  return record('logSoftmax', y, [x], (dy, to) => to.add(0, t.logSoftmaxGrad(dy, y)));
}

/** x / √(mean(x²) + eps) · weight over the last dimension. */
export function rmsNorm(x: Variable, weight: Variable, eps: number): Variable {
  const { y, inv } = t.rmsNorm(x.value, weight.value, eps);
  return record(
    'rmsNorm',
    y,
    [x, weight],
    (dy, to) => {
      if (to.needs(0)) to.add(0, t.rmsNormGradInput(dy, x.value, weight.value, inv));
      if (to.needs(1)) to.add(1, t.rmsNormGradWeight(dy, x.value, inv));
    },
    [inv],
  );
}

/** Rotary embedding of x `[…, H, D]`; see `rope` of @milora/tensor. The derivative turns back. */
export function rope(x: Variable, positions: Tensor, cos: Tensor, sin: Tensor): Variable {
  return record('rope', t.rope(x.value, positions, cos, sin), [x], (dy, to) =>
    to.add(0, t.rope(dy, positions, cos, sin, true)),
  );
}

/** Grouped-query attention with key windows; see `attention` of @milora/tensor. */
export function attention(q: Variable, k: Variable, v: Variable, ranges: Tensor, scale?: number): Variable {
  const { out, lse } = t.attention(q.value, k.value, v.value, ranges, scale);
  return record(
    'attention',
    out,
    [q, k, v],
    (dy, to) => {
      const d = t.attentionGrad(dy, q.value, k.value, v.value, ranges, out, lse, scale);
      to.add(0, d.q);
      to.add(1, d.k);
      to.add(2, d.v);
    },
    [lse],
  );
}

// ---- losses ----

export interface CrossEntropyOptions {
  /** What the sum of the losses is divided by. Default: the number of targets that are not negative. */
  normalizer?: number;
}

const counted = (targets: ArrayLike<number>): number => {
  let n = 0;
  for (let i = 0; i < targets.length; i++) if (targets[i]! >= 0) n++;
  return n;
};

function checkTargets(targets: ArrayLike<number>, rows: number, classes: number): void {
  if (targets.length !== rows) {
    throw new AutogradError('targets', `crossEntropy: expected ${rows} targets, got ${targets.length}`);
  }
  for (let i = 0; i < targets.length; i++) {
    if (targets[i]! >= classes) {
      throw new AutogradError('targets', `crossEntropy: expected targets below ${classes}, got ${targets[i]} at ${i}`);
    }
  }
}

/** Mean cross-entropy of logits `[…, V]` with target ids, one per row; negative targets (−100) are ignored. */
export function crossEntropy(
  logits: Variable,
  targets: ArrayLike<number>,
  options: CrossEntropyOptions = {},
): Variable {
  const { backend } = logits.value;
  const classes = logits.shape.at(-1)!;
  const rows = logits.value.size / classes;
  checkTargets(targets, rows, classes);
  const scale = 1 / (options.normalizer ?? Math.max(1, counted(targets)));
  const labels = intTensor(targets, [rows], { backend });
  const { value, lse } = fused(() => {
    const { loss, lse } = t.crossEntropy(logits.value.reshape(rows, classes), labels);
    return { value: t.affine(t.sum(loss), scale), lse };
  });
  return record(
    'crossEntropy',
    value,
    [logits],
    (dy, to) => {
      const d = fused(() => {
        const rowsOfDy = t.mul(t.full([rows], scale, { backend }), dy);
        return t.crossEntropyGrad(rowsOfDy, logits.value.reshape(rows, classes), labels, lse).reshape(...logits.shape);
      });
      to.add(0, d);
    },
    [labels, lse],
  );
}

/** Logits held at once by `linearCrossEntropy`: 64 MiB. */
const CHUNK_ELEMENTS = 1 << 24;

/**
 * Mean cross-entropy of hidden states x `[…, C]` through an output matrix `[V, C]`: what `crossEntropy(linear(x, W))` gives,
 * but the logits exist only for a chunk of rows at a time, and never for rows without a target. The gradients are made
 * in the forward pass, chunk by chunk, and scaled in the backward pass.
 */
export function linearCrossEntropy(
  x: Variable,
  weight: Variable,
  targets: ArrayLike<number>,
  options: CrossEntropyOptions = {},
): Variable {
  const { backend } = x.value;
  const [classes, width] = weight.shape as [number, number];
  const rows = x.value.size / width;
  checkTargets(targets, rows, classes);
  const live = Array.from({ length: rows }, (_, i) => i).filter((i) => targets[i]! >= 0);
  const scale = 1 / (options.normalizer ?? Math.max(1, live.length));
  const differentiate = gradEnabled() && (x.requiresGrad || weight.requiresGrad);
  const chunks = Math.max(1, Math.ceil((live.length * classes) / CHUNK_ELEMENTS));
  const perChunk = Math.ceil(live.length / chunks);

  const { value, dx, dw } = t.scope(() => {
    const all = asRows(x.value);
    let total = t.zeros([], { backend });
    let dx: Tensor | undefined;
    let dw: Tensor | undefined;
    for (let from = 0; from < live.length; from += perChunk) {
      const part = live.slice(from, from + perChunk);
      const step = t.scope(() => {
        const index = intTensor(part, [part.length], { backend });
        const labels = intTensor(
          part.map((i) => targets[i]!),
          [part.length],
          { backend },
        );
        const h = part.length === rows ? all : t.gatherRows(all, index);
        const logits = t.matmul(h, weight.value, { transposeB: true });
        const loss = differentiate ? t.crossEntropyUpdate(logits, labels, scale) : t.crossEntropy(logits, labels).loss;
        const sum = t.add(total, t.affine(t.sum(loss), scale));
        if (!differentiate) return { sum };
        const d = logits; // turned into their derivatives
        const grads: { sum: Tensor; dx?: Tensor; dw?: Tensor } = { sum };
        if (x.requiresGrad) {
          const dh = t.matmul(d, weight.value);
          grads.dx = part.length === rows ? dh : t.scatterAddRows(dh, index, rows);
        }
        if (weight.requiresGrad) grads.dw = t.matmul(d, h, { transposeA: true, ...(dw ? { into: dw } : {}) });
        return grads;
      });
      total = step.sum;
      if (step.dx && dx) t.axpy(dx, step.dx);
      else dx ??= step.dx;
      dw ??= step.dw;
    }
    if (differentiate && x.requiresGrad) dx ??= t.zeros([rows, width], { backend });
    if (differentiate && weight.requiresGrad) dw ??= t.zeros([classes, width], { backend });
    return { value: total, dx, dw };
  });
  const saved = [dx, dw].filter((d) => d !== undefined);
  return record(
    'linearCrossEntropy',
    value,
    [x, weight],
    (dy, to) => {
      if (dx) to.add(0, t.mul(dx, dy).reshape(...x.shape));
      if (dw) to.add(1, t.mul(dw, dy));
    },
    saved,
  );
}
