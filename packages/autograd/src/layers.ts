/** The three layers that a LLaMA is made of. */
import type { Tensor } from '@milora/tensor';
import { Module } from './module.js';
import { embedding, linear, rmsNorm } from './ops.js';
import { Variable } from './variable.js';

/** y = x Wᵀ + bias, weight `[out, in]` (f32, or bf16 / f16 / int8 when frozen), bias `[out]`. */
export class Linear extends Module {
  weight: Variable;
  bias?: Variable;

  constructor(weight: Tensor, bias?: Tensor) {
    super();
    this.weight = new Variable(weight);
    if (bias) this.bias = new Variable(bias);
  }

  get outFeatures(): number {
    return this.weight.shape[0]!;
  }

  get inFeatures(): number {
    return this.weight.shape[1]!;
  }

  /** x `[…, in]` → `[…, out]`. */
  forward(x: Variable): Variable {
    return linear(x, this.weight, this.bias);
  }
}

/** Rows of weight `[vocabulary, width]`. */
export class Embedding extends Module {
  weight: Variable;

  constructor(weight: Tensor) {
    super();
    this.weight = new Variable(weight);
  }

  /** ids i32 `[…]` → `[…, width]`. */
  forward(ids: Tensor): Variable {
    return embedding(this.weight, ids);
  }
}

/** Root-mean-square normalisation (Zhang & Sennrich 2019), weight `[width]`. */
export class RMSNorm extends Module {
  weight: Variable;

  constructor(
    weight: Tensor,
    readonly eps: number,
  ) {
    super();
    this.weight = new Variable(weight);
  }

  /** x `[…, width]` → the same shape. */
  forward(x: Variable): Variable {
    return rmsNorm(x, this.weight, this.eps);
  }
}
