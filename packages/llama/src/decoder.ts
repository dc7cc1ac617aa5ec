/**
 * Decoding one token per row and step, with the whole step recorded: its kernels, of the same shapes each time, are run once in
 * the ordinary way and from then on by one call into the backend. What differs from step to step (ids, positions, places in the
 * cache, key windows) lies in tensors that are overwritten before.
 */
import { noGrad } from '@milora/autograd';
import { TensorError, argmax, intTensor, scope } from '@milora/tensor';
import type { Recording, Tensor } from '@milora/tensor';
import type { KVCache } from './kvCache.js';
import type { LlamaForCausalLM, Pass } from './model.js';

export class Decoder {
  /** Logits `[B, 1, V]` of the last step, and the likeliest ids `[B, 1]`. */
  logits!: Tensor;
  likeliest!: Tensor;
  private recording: Recording | undefined;
  private readonly ids: Tensor;
  private readonly pass: Required<Pass>;
  private readonly numbers: { id: Int32Array; position: Int32Array; slot: Int32Array; range: Int32Array };

  /** Decodes behind what `cache` holds; row b begins with `padding[b]` tokens that nothing sees. Throws on backends without `capture`. */
  constructor(
    private readonly model: LlamaForCausalLM,
    private readonly cache: KVCache,
    private readonly padding: readonly number[],
  ) {
    const { backend } = model;
    if (!backend.capture) {
      throw new TensorError('capture', `decoder: expected a backend that can record, got ${backend.name}`);
    }
    const B = padding.length;
    const ints = (...shape: number[]): Tensor =>
      intTensor(new Int32Array(shape.reduce((a, b) => a * b, 1)), shape, { backend }).keep();
    this.ids = ints(B, 1);
    this.pass = { positions: ints(B), slots: ints(B, 1), ranges: ints(B, 1, 2), ...model.ropeTables(cache.capacity) };
    this.numbers = {
      id: new Int32Array(B),
      position: new Int32Array(B),
      slot: new Int32Array(B),
      range: new Int32Array(2 * B),
    };
  }

  /**
   * Reads one id per row; `logits` and `likeliest` then hold what follows. Returns false, with nothing changed, when the model
   * has a layer that cannot be recorded.
   */
  step(ids: ArrayLike<number>): boolean {
    const { model, cache, padding, pass, numbers } = this;
    model.checkIds({ inputIds: ids, batch: padding.length, length: 1 });
    cache.expectRoom(1);
    for (let b = 0; b < padding.length; b++) {
      const pad = padding[b]!;
      numbers.id[b] = ids[b]!;
      numbers.position[b] = cache.length - pad;
      numbers.slot[b] = cache.length;
      numbers.range[2 * b] = pad;
      numbers.range[2 * b + 1] = cache.length + 1;
    }
    this.ids.assign(numbers.id);
    pass.positions.assign(numbers.position);
    pass.slots.assign(numbers.slot);
    pass.ranges.assign(numbers.range);
    if (this.recording) this.recording.replay();
    else if (!this.record()) return false;
    cache.advance(1);
    return true;
  }

  private record(): boolean {
    const { model } = this;
    try {
      this.recording = model.backend.capture!(() =>
        scope(() =>
          noGrad(() => {
            this.logits = model.head(model.hiddenOf(this.ids, this.pass, this.cache)).value.keep();
            this.likeliest = argmax(this.logits).keep();
          }),
        ),
      );
      return true;
    } catch (error) {
      if (error instanceof TensorError && error.code === 'capture') return false;
      throw error;
    }
  }

  dispose(): void {
    this.recording?.dispose();
    for (const tensor of [this.ids, this.pass.positions, this.pass.slots, this.pass.ranges]) tensor.dispose();
  }
}
