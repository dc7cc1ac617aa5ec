/**
 * Keys and values of the tokens a model has seen, per layer, in buffers of a fixed capacity that are written in place.
 */
import { writeRows, zeros } from '@milora/tensor';
import type { Backend, Tensor } from '@milora/tensor';
import type { LlamaConfig } from './config.js';
import { LlamaError } from './errors.js';

/** The part of one layer: k and v `[B, capacity, G, D]`. */
export class LayerCache {
  constructor(
    readonly k: Tensor,
    readonly v: Tensor,
  ) {}

  /** Writes the keys and values `[B, T, G, D]` of new tokens to `slots` (i32 `[B, T]`); returns views of the whole buffers. */
  append(k: Tensor, v: Tensor, slots: Tensor): [Tensor, Tensor] {
    writeRows(this.k, k, slots);
    writeRows(this.v, v, slots);
    return [this.k.reshape(...this.k.shape), this.v.reshape(...this.v.shape)];
  }
}

export class KVCache {
  readonly layers: readonly LayerCache[];
  /** Tokens held. */
  length = 0;

  /** Room for `capacity` tokens in each of `batch` rows. */
  constructor(
    config: LlamaConfig,
    batch: number,
    readonly capacity: number,
    backend: Backend,
  ) {
    const shape = [batch, capacity, config.numKeyValueHeads, config.headDim];
    const buffer = (): Tensor => zeros(shape, { backend }).keep();
    this.layers = Array.from({ length: config.numHiddenLayers }, () => new LayerCache(buffer(), buffer()));
  }

  /** Throws `cache` unless `tokens` more fit. */
  expectRoom(tokens: number): void {
    if (this.length + tokens > this.capacity) {
      throw new LlamaError('cache', `cache: expected at most ${this.capacity} tokens, got ${this.length + tokens}`);
    }
  }

  /** Counts the tokens that all layers have appended. */
  advance(tokens: number): void {
    this.length += tokens;
  }

  dispose(): void {
    for (const { k, v } of this.layers) {
      k.dispose();
      v.dispose();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
