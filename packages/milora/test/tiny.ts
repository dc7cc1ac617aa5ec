/** A small model, a batch for it, and what tests of adapters and of the trainer do with them. */
import { AdamW } from '@milora/autograd';
import { exportLlama, loadLlama } from '@milora/llama';
import type { LlamaConfig, LlamaForCausalLM, LlamaInput } from '@milora/llama';
import { Philox, getBackend, scope } from '@milora/tensor';
import type { Backend, HostTensor, TensorSource } from '@milora/tensor';
import { configOf, randomModel } from '../../llama/test/models.js';
import type { TokenizedExample } from '../src/tokenize.js';

export { configOf, distance, logitsOf, parametersOf, randomModel, referenceLoss } from '../../llama/test/models.js';

/** Odd sizes, grouped heads, a head size of its own. */
export const tinyConfig = (changes: Partial<LlamaConfig> = {}): LlamaConfig =>
  configOf({ attentionBias: true, ...changes });

export const tinyModel = (seed = 1, backend: Backend = getBackend()): LlamaForCausalLM =>
  randomModel(tinyConfig(), seed, backend);

/** The tiny model with its matrices in bf16. */
export async function tinyBf16Model(seed = 1): Promise<LlamaForCausalLM> {
  const wide = tinyModel(seed);
  const tensors = new Map<string, HostTensor>(await exportLlama(wide, 'bf16'));
  wide.dispose();
  const source: TensorSource = {
    name: 'memory',
    names: () => [...tensors.keys()],
    info: (name) => tensors.get(name),
    read: (name) => Promise.resolve(tensors.get(name)!),
  };
  return loadLlama(wide.config, source, { dtype: 'storage' });
}

/** Two rows of six tokens. */
export const BATCH: LlamaInput & { inputIds: number[] } = {
  inputIds: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8],
  batch: 2,
  length: 6,
};
export const LABELS = BATCH.inputIds.map((id, at) => (at % 6 < 2 ? -100 : id));

/** A few steps of AdamW on the batch: enough to move every trained parameter. */
export async function trainSteps(model: LlamaForCausalLM, steps: number, lr = 0.02): Promise<number[]> {
  const optimizer = new AdamW(model.trainable(), { lr });
  const losses: number[] = [];
  for (let i = 0; i < steps; i++) {
    losses.push(
      await scope(() => {
        const loss = model.loss(BATCH, LABELS);
        loss.backward();
        optimizer.step();
        optimizer.zeroGrad();
        return loss.item();
      }),
    );
  }
  optimizer.dispose();
  return losses;
}

export const liveBytes = (): number => getBackend().memory().liveBytes;

/** Seeded examples of unequal length with masked prompts; every one has at least one trained token. */
export function examplesOf(count: number, longest: number, vocabSize: number, seed: number): TokenizedExample[] {
  const random = new Philox(seed);
  return Array.from({ length: count }, () => {
    const length = 2 + random.int(longest - 1);
    const prompt = 1 + random.int(length - 1);
    const ids = Int32Array.from({ length }, () => random.int(vocabSize));
    return { ids, labels: ids.map((id, t) => (t < prompt ? -100 : id)), truncated: false };
  });
}
