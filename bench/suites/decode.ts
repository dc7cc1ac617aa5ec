/**
 * Greedy decoding of random weights from a prompt of 4 tokens, as llama2.c's `run -t 0` does: new tokens per second, with the
 * weights in f32, bf16 and int8.
 */
import { castWeights, generate, parseLlamaConfig, randomLlama } from '@milora/llama';
import { Philox } from '@milora/tensor';
import { configs } from '../configs.js';
import { openBackend } from './suite.js';
import type { SuiteOptions } from './suite.js';

/** Prompt and new tokens together. */
const CONTEXT = { '260K': 500, '15M': 256, '135M': 256 };
const PROMPT = [1, 260, 261, 261];

export async function decode({ threads, seconds, limit, backends, sizes, emit, warn }: SuiteOptions): Promise<void> {
  for (const backendName of backends) {
    const { backend, label, threads: used, close } = await openBackend(backendName, threads);
    for (const size of sizes ?? (['260K'] as const)) {
      const config = parseLlamaConfig({ model_type: 'llama', ...configs[size].model }, 'configs.json');
      const model = randomLlama(config, new Philox(0), { std: config.hiddenSize ** -0.5, backend });
      const maxNewTokens = CONTEXT[size] - PROMPT.length;
      for (const dtype of ['f32', 'bf16', 'int8'] as const) {
        castWeights(model, dtype);
        /** Seconds for each token; Infinity once all of them took `most` seconds. */
        const run = async (most = Infinity): Promise<number> => {
          const started = performance.now();
          let tokens = 0;
          for await (const _ of generate(model, PROMPT, { maxNewTokens, stopIds: [] })) {
            tokens++;
            if (performance.now() - started > 1000 * most) return Infinity;
          }
          return (performance.now() - started) / 1000 / tokens;
        };
        const name = `${size} ${dtype}`;
        // warms up
        if ((await run(limit)) === Infinity) {
          warn(`decode ${name} on ${label}: left out: expected a run within ${limit} s. Raise --limit.`);
          continue;
        }
        const times: number[] = [];
        for (let spent = 0; times.length < 2 || spent < seconds; spent += times.at(-1)! * maxNewTokens) {
          times.push(await run());
        }
        const value = 1 / times.sort((a, b) => a - b)[times.length >> 1]!;
        emit({
          suite: 'decode',
          case: name,
          metric: 'throughput',
          value,
          unit: 'tokens/s',
          threads: used,
          backend: label,
        });
      }
      model.dispose();
    }
    await close();
  }
}
