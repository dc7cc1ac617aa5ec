/**
 * AdapterLinear: a frozen weight plus a trained product of two thin matrices, in the place of a Linear.
 *
 *     residual form   y = W_res x + s·B A x                      W_res = W − s·B₀A₀ in float32; the cheapest step
 *     offset form     y = W x + s·(B A x − B₀ A₀ x)              W exactly as stored, 16-bit too
 *     plain           y = W x + s·B A x                          methods that start from B A = 0
 *
 * Rounding W_res to 16 bits would destroy the split (docs/milora.md), so a 16-bit base takes the offset form.
 * A₀, B₀ are the factors at the start. With them the layer turns itself off (y = W x), exports to any base, and back.
 */
import type { Linear } from '@milora/autograd';
import { Module, Variable, add, affine, asRows, dropout, linear, record } from '@milora/autograd';
import * as t from '@milora/tensor';
import type { Philox, Tensor } from '@milora/tensor';
import type { Window } from './window.js';

export type AdapterForm = 'residual' | 'offset' | 'plain';

/** The factors A `[r, in]` and B `[out, r]`. */
export interface Factors {
  a: Tensor;
  b: Tensor;
}

export interface AdapterParts {
  /** The layer whose place this takes; its bias goes along. */
  base: Linear;
  form: AdapterForm;
  /** The frozen weight of the form: W_res or W. */
  weight: Tensor;
  factors: Factors;
  /** Factors at the start; undefined in the plain form. */
  initial: Factors | undefined;
  trains: { a: boolean; b: boolean };
  /** The triplets of the base weight that the start took, if it took some. */
  window: Window | undefined;
  scaling: number;
  /** Probability of dropping elements of the adapter's input while training, and where its randomness comes from. */
  dropout: { p: number; random: Philox };
}

export class AdapterLinear extends Module {
  weight: Variable;
  bias?: Variable;
  loraA: Variable;
  loraB: Variable;
  readonly form: AdapterForm;
  readonly initial: Factors | undefined;
  readonly window: Window | undefined;
  readonly scaling: number;
  readonly dropout: { p: number; random: Philox };
  /** Off: the layer gives what the base model gives. */
  enabled = true;
  /** The layer that was replaced. */
  readonly base: Linear;
  private merged: Variable | undefined;

  constructor(parts: AdapterParts) {
    super();
    this.base = parts.base;
    this.weight = new Variable(parts.weight);
    if (parts.base.bias) this.bias = parts.base.bias;
    this.loraA = new Variable(parts.factors.a, { requiresGrad: parts.trains.a });
    this.loraB = new Variable(parts.factors.b, { requiresGrad: parts.trains.b });
    this.form = parts.form;
    this.initial = parts.initial;
    this.window = parts.window;
    this.scaling = parts.scaling;
    this.dropout = parts.dropout;
    hide(this, 'base');
    hide(this, 'merged');
  }

  get rank(): number {
    return this.loraA.shape[0]!;
  }

  /** x `[…, in]` → `[…, out]`. */
  forward(x: Variable): Variable {
    if (!this.enabled) return linear(x, this.base.weight, this.bias);
    if (this.merged) return linear(x, this.merged, this.bias);
    const { p, random } = this.dropout;
    const offset = this.form === 'offset' ? this.initial : undefined;
    let y: Variable;
    if (this.training && p > 0) {
      // the offset sees the whole input: dropout acts on what is trained only
      const trained = linear(linear(dropout(x, p, random), this.loraA), this.loraB);
      y = add(linear(x, this.weight), affine(trained, this.scaling));
      if (offset) {
        const start = linear(linear(x, new Variable(offset.a)), new Variable(offset.b));
        y = add(y, affine(start, -this.scaling));
      }
    } else {
      y = adapterLinear(x, this.weight, this.loraA, this.loraB, this.scaling, offset);
    }
    return this.bias ? add(y, this.bias) : y;
  }

  /** The weight of the plain layer that computes the same: W_res + s·B·A, or W + s·(B·A − B₀·A₀), in float32. */
  mergedWeight(): Tensor {
    return t.scope(() => {
      const w = this.weight.value;
      const sum = t.affine(t.cast(w, 'f32'), 1);
      t.matmul(this.loraB.value, this.loraA.value, { alpha: this.scaling, into: sum });
      if (this.form === 'offset') {
        t.matmul(this.initial!.b, this.initial!.a, { alpha: -this.scaling, into: sum });
      }
      return sum;
    });
  }

  /** Computes with the merged weight from now on, as the deployed model would. */
  merge(): void {
    this.merged ??= new Variable(this.mergedWeight().keep());
  }

  /** Back to weight and factors, exactly as they were. */
  unmerge(): void {
    this.merged?.value.dispose();
    this.merged = undefined;
  }

  get isMerged(): boolean {
    return this.merged !== undefined;
  }

  /** Frees what the adapter added; the base layer lives on. */
  override dispose(): void {
    this.unmerge();
    for (const factor of [this.loraA, this.loraB]) {
      factor.zeroGrad();
      factor.value.dispose();
    }
    this.initial?.a.dispose();
    this.initial?.b.dispose();
    if (this.form === 'residual') this.weight.value.dispose();
  }
}

/** Keeps a property out of the module tree. */
function hide(module: AdapterLinear, key: string): void {
  Object.defineProperty(module, key, { enumerable: false, writable: true });
}

/**
 * y = W x + s·(B A x − B₀ A₀ x) as one op. With h = A x: dB = s·dyᵀh, dh = s·dy B, dA = dhᵀx, dx = dy W + dh A − s·dy B₀ A₀. The
 * frozen W costs no gradient.
 */
export function adapterLinear(
  x: Variable,
  weight: Variable,
  loraA: Variable,
  loraB: Variable,
  scaling: number,
  offset?: Factors,
): Variable {
  const out = weight.shape[0]!;
  const rows = asRows(x.value);
  const h = t.matmul(rows, loraA.value, { transposeB: true }); // [N, r]
  const value = t.scope(() => {
    const plus = [{ a: h, b: loraB.value, transposeB: true, alpha: scaling }];
    if (offset) {
      const h0 = t.matmul(rows, offset.a, { transposeB: true });
      plus.push({ a: h0, b: offset.b, transposeB: true, alpha: -scaling });
    }
    const y = t.matmul(rows, weight.value, { transposeB: true, plus }); // [N, out]
    return y.reshape(...x.shape.slice(0, -1), out);
  });
  return record(
    'adapterLinear',
    value,
    [x, loraA, loraB],
    (dy, to) => {
      const d = asRows(dy); // [N, out]
      if (to.needs(2)) to.add(2, t.matmul(d, h, { transposeA: true, alpha: scaling }));
      if (!to.needs(0) && !to.needs(1)) return;
      const dh = t.matmul(d, loraB.value, { alpha: scaling }); // [N, r]
      if (to.needs(1)) to.add(1, t.matmul(dh, rows, { transposeA: true }));
      if (to.needs(0)) {
        const existing = to.existing(0);
        const plus = [{ a: dh, b: loraA.value }];
        if (offset) plus.push({ a: t.matmul(d, offset.b, { alpha: -scaling }), b: offset.a });
        const dx = t.matmul(d, weight.value, existing ? { plus, into: asRows(existing) } : { plus }); // [N, in]
        if (!existing) to.add(0, dx.reshape(...x.shape));
      }
    },
    [h, rows],
  );
}
