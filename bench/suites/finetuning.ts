/** A finetuning step on random weights, as PyTorch + PEFT's peers measure it: forward, backward, AdamW on one fixed batch. */
import { AdamW } from '@milora/autograd';
import { parseLlamaConfig, randomLlama } from '@milora/llama';
import type { LlamaConfig, LlamaForCausalLM, LlamaInput } from '@milora/llama';
import { Philox, scope } from '@milora/tensor';
import type { Backend } from '@milora/tensor';
import { inject, methods } from 'milora';
import { configs } from '../configs.js';
import type { Size } from '../configs.js';
import type { Method } from './suite.js';

export interface Labelled extends LlamaInput {
  labels: ArrayLike<number>;
}

export const LEARNING_RATE = 3e-4;

/** The model's configuration, with room for rows of `longest` tokens. */
export function configOf(size: Size, longest: number): LlamaConfig {
  const { model } = configs[size];
  const max_position_embeddings = Math.max(model.max_position_embeddings, longest);
  return parseLlamaConfig({ model_type: 'llama', ...model, max_position_embeddings }, 'configs.json');
}

export class Finetuning {
  /** Loss before each step so far. */
  readonly losses: number[] = [];
  private readonly optimizer: AdamW;

  private constructor(readonly model: LlamaForCausalLM) {
    this.optimizer = new AdamW(model.trainable(), { lr: LEARNING_RATE });
  }

  /** A model of this size with an adapter at its start. */
  static async start(
    size: Size,
    method: Method,
    backend: Backend,
    options: { longest: number; checkpoint: boolean },
  ): Promise<Finetuning> {
    const config = configOf(size, options.longest);
    const model = randomLlama(config, new Philox(0), { std: config.hiddenSize ** -0.5, backend });
    model.gradientCheckpointing = options.checkpoint;
    await inject(model, methods[method], { rank: configs[size].rank });
    return new Finetuning(model);
  }

  readonly step = (batch: Labelled): Promise<number> =>
    scope(async () => {
      const loss = this.model.loss(batch, batch.labels);
      loss.backward();
      this.optimizer.step();
      this.optimizer.zeroGrad();
      const value = await loss.item();
      this.losses.push(value);
      return value;
    });
}

/** One row after another of random tokens, each the label of the one before it. */
export function randomTokens(batch: number, length: number, vocabSize: number): Labelled {
  const random = new Philox(1);
  const inputIds = Int32Array.from({ length: batch * length }, () => random.int(vocabSize));
  return { inputIds, labels: inputIds, batch, length };
}
