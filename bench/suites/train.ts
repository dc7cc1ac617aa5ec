/**
 * One finetuning step (forward, backward, AdamW) of each method on random weights and one fixed batch of random
 * tokens, as in PyTorch + PEFT's peers: tokens per second, and peak bytes of tensors.
 */
import { AdamW } from '@milora/autograd';
import { parseLlamaConfig, randomLlama } from '@milora/llama';
import { Philox, createWasmBackend, scope } from '@milora/tensor';
import { inject, methods } from 'milora';
import { configs } from '../configs.js';
import { medianSeconds } from './suite.js';
import type { SuiteOptions } from './suite.js';

export async function train(
  { threads, seconds, emit }: SuiteOptions,
  names: readonly ('260K' | '15M' | '135M')[],
): Promise<void> {
  for (const name of names) {
    const { batch, seq, rank, model: json } = configs[name];
    const config = parseLlamaConfig({ model_type: 'llama', ...json }, 'configs.json');
    // a full SVD of large weights is the svd suite's business: the step is the same from LoRA's start
    const method = name === '260K' ? 'milora' : 'lora';
    const backend = createWasmBackend({ threads });
    await backend.ready();
    const random = new Philox(0);
    const model = randomLlama(config, random, { std: config.hiddenSize ** -0.5, backend });
    await inject(model, methods[method], { rank });
    const optimizer = new AdamW(model.trainable(), { lr: 3e-4 });
    const inputIds = Int32Array.from({ length: batch * seq }, () => random.int(config.vocabSize));
    const step = (): Promise<number> =>
      scope(async () => {
        const loss = model.loss({ inputIds, batch, length: seq }, inputIds);
        loss.backward();
        optimizer.step();
        optimizer.zeroGrad();
        return loss.item();
      });
    await step();
    backend.resetPeak();
    const time = await medianSeconds(step, seconds);
    const common = { suite: 'train', case: `${method} ${name}`, threads, backend: `${backend.name}-${backend.build}` };
    emit({ ...common, metric: 'throughput', value: (batch * seq) / time, unit: 'tokens/s' });
    emit({ ...common, metric: 'peak', value: backend.memory().peakBytes, unit: 'bytes' });
    await backend.close();
  }
}
