/** Ops that change a tensor in place: accumulation and optimiser steps. */
import type { AdamWSpec, SgdSpec } from '../backend.js';
import { Tensor } from '../tensor.js';
import { around, axisOf, backendOf, expectDType, expectShape, expectThat, rowsOf, show } from './check.js';

/** y ← y + alpha · x. */
export function axpy(y: Tensor, x: Tensor, alpha = 1): void {
  const backend = backendOf('axpy', y, x);
  expectDType('axpy', 'y', y, 'f32');
  expectDType('axpy', 'x', x, 'f32');
  expectThat(x.size === y.size, 'axpy', `as many elements as ${show(y.shape)}`, show(x.shape));
  y.replaceStorage(backend.axpy(y.storage, x.storage, y.size, alpha));
}

/** Overwrites the part `start` … of y along an axis with x; all other sizes agree. */
export function write(y: Tensor, x: Tensor, axis: number, start: number): void {
  const backend = backendOf('write', y, x);
  expectDType('write', 'y', y, 'f32');
  expectDType('write', 'x', x, 'f32');
  const at = axisOf('write', axis, y.rank);
  const { outer, n, inner } = around(y.shape, at);
  const count = x.shape[at] ?? 0;
  expectShape(
    'write',
    'x',
    x,
    y.shape.map((d, i) => (i === at ? count : d)),
  );
  expectThat(start >= 0 && start + count <= n, 'write', `a range inside 0 … ${n}`, `${start} … ${start + count}`);
  y.replaceStorage(backend.write(y.storage, x.storage, outer, n, inner, start, count));
}

/**
 * Overwrites rows of y `[B, S, …]` with those of x `[B, T, …]`: row t of b goes to `positions[b, t]` (i32, below S, each at most
 * once in a b). What `write` does where the place is only known on the device.
 */
export function writeRows(y: Tensor, x: Tensor, positions: Tensor): void {
  const backend = backendOf('writeRows', y, x, positions);
  expectDType('writeRows', 'y', y, 'f32');
  expectDType('writeRows', 'x', x, 'f32');
  expectDType('writeRows', 'positions', positions, 'i32');
  const [B, S] = y.shape as [number, number];
  const T = x.shape[1]!;
  expectShape('writeRows', 'x', x, [B, T, ...y.shape.slice(2)]);
  expectThat(positions.size === B * T, 'writeRows', `${B * T} positions`, show(positions.shape));
  const { inner } = around(y.shape, 1);
  y.replaceStorage(backend.writeRows(y.storage, x.storage, positions.storage, B, T, S, inner));
}

/** y ← y · factor, where factor is a tensor of one element. */
export function scaleBy(y: Tensor, factor: Tensor): void {
  const backend = backendOf('scaleBy', y, factor);
  expectDType('scaleBy', 'y', y, 'f32');
  expectDType('scaleBy', 'factor', factor, 'f32');
  expectThat(factor.size === 1, 'scaleBy', 'a factor of one element', show(factor.shape));
  y.replaceStorage(backend.scaleBy(y.storage, factor.storage, y.size));
}

/**
 * Losses `[…]` of logits `[…, C]` with labels (i32), as `crossEntropy` gives them; the logits become their derivatives
 * times `scale`.
 */
export function crossEntropyUpdate(logits: Tensor, labels: Tensor, scale: number): Tensor {
  const backend = backendOf('crossEntropyUpdate', logits, labels);
  expectDType('crossEntropyUpdate', 'logits', logits, 'f32');
  expectDType('crossEntropyUpdate', 'labels', labels, 'i32');
  const { rows, columns } = rowsOf('crossEntropyUpdate', logits);
  expectThat(labels.size === rows, 'crossEntropyUpdate', `${rows} labels`, show(labels.shape));
  const next = backend.crossEntropyUpdate(logits.storage, labels.storage, rows, columns, scale);
  logits.replaceStorage(next.logits);
  return Tensor.wrap(logits.shape.slice(0, -1), 'f32', next.loss, backend);
}

/** A parameter with its gradient and moments, all of one shape. */
export interface AdamWTensors {
  p: Tensor;
  g: Tensor;
  m: Tensor;
  v: Tensor;
}

/** One AdamW step on all parameters, in one pass. With `factor`, a tensor of one element, gradients count times it. */
export function adamw(parts: readonly AdamWTensors[], spec: AdamWSpec, factor?: Tensor): void {
  if (parts.length === 0) return;
  const backend = backendOf('adamw', ...parts.flatMap(({ p, g, m, v }) => [p, g, m, v]), ...(factor ? [factor] : []));
  for (const part of parts) {
    for (const name of ['p', 'g', 'm', 'v'] as const) {
      expectDType('adamw', name, part[name], 'f32');
      expectShape('adamw', name, part[name], part.p.shape);
    }
  }
  if (factor) expectThat(factor.size === 1, 'adamw', 'a factor of one element', show(factor.shape));
  const storages = parts.map(({ p, g, m, v }) => ({
    p: p.storage,
    g: g.storage,
    m: m.storage,
    v: v.storage,
    n: p.size,
  }));
  for (const [i, next] of backend.adamw(storages, spec, factor?.storage).entries()) {
    parts[i]!.p.replaceStorage(next.p);
    parts[i]!.m.replaceStorage(next.m);
    parts[i]!.v.replaceStorage(next.v);
  }
}

/** One SGD step on p with gradient g and momentum buffer buf, all of one shape. */
export function sgd(p: Tensor, g: Tensor, buf: Tensor, spec: SgdSpec): void {
  const backend = backendOf('sgd', p, g, buf);
  for (const [name, t] of Object.entries({ p, g, buf })) {
    expectDType('sgd', name, t, 'f32');
    expectShape('sgd', name, t, p.shape);
  }
  const next = backend.sgd(p.storage, g.storage, buf.storage, p.size, spec);
  p.replaceStorage(next.p);
  buf.replaceStorage(next.buf);
}
