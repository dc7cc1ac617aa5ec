/**
 * Greedy decoding of random weights from a prompt of 4 tokens, as llama2.c's `run -t 0` does: new tokens per second, with the
 * weights in f32, bf16 and int8.
 */
import { castWeights, generate, parseLlamaConfig, randomLlama } from '@milora/llama';
import { Philox, createWasmBackend } from '@milora/tensor';
import { configs } from '../configs.js';
import type { SuiteOptions } from './suite.js';

/** Prompt and new tokens together. */
const CONTEXT = { '260K': 500, '15M': 256, '135M': 256 };
const PROMPT = [1, 260, 261, 261];

export async function decode({ threads, seconds, sizes, emit }: SuiteOptions): Promise<void> {
  for (const name of sizes ?? (['260K'] as const)) {
    const config = parseLlamaConfig({ model_type: 'llama', ...configs[name].model }, 'configs.json');
    const backend = createWasmBackend({ threads });
    await backend.ready();
    const model = randomLlama(config, new Philox(0), { std: config.hiddenSize ** -0.5, backend });
    for (const dtype of ['f32', 'bf16', 'int8'] as const) {
      castWeights(model, dtype);
      const options = { maxNewTokens: CONTEXT[name] - PROMPT.length, stopIds: [] };
      const times: number[] = [];
      for (let spent = 0, run = 0; run < 3 || spent < seconds; run++) {
        const started = performance.now();
        let tokens = 0;
        for await (const _ of generate(model, PROMPT, options)) tokens++;
        const time = (performance.now() - started) / 1000;
        if (run > 0) times.push(time / tokens); // the first one warms up
        spent += time;
      }
      emit({
        suite: 'decode',
        case: `${name} ${dtype}`,
        metric: 'throughput',
        value: 1 / times.sort((a, b) => a - b)[times.length >> 1]!,
        unit: 'tokens/s',
        threads,
        backend: `${backend.name}-${backend.build}`,
      });
    }
    model.dispose();
    await backend.close();
  }
}
