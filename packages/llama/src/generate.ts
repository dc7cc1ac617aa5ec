/**
 * Generation, token by token, as an async iterator; with a KV cache, or without one (every step reads the whole text: the
 * slow definition of what the cache must give). Batches are padded on the left.
 */
import { noGrad, slice } from '@milora/autograd';
import { scope } from '@milora/tensor';
import type { Tensor } from '@milora/tensor';
import { LlamaError } from './errors.js';
import { KVCache } from './kvCache.js';
import type { LlamaForCausalLM, LlamaInput } from './model.js';
import { greedy } from './sampler.js';
import type { Sampler } from './sampler.js';

export interface GenerateOptions {
  /** Tokens to make at most. Default 64. */
  maxNewTokens?: number;
  /** Picks an id from the logits of one row. Default greedy. */
  sampler?: Sampler;
  /** Ids that end a row. Default: the config's. An empty list never ends. */
  stopIds?: readonly number[];
  /** Keep keys and values between steps. Default true. */
  useCache?: boolean;
  /** Stops between tokens. */
  signal?: AbortSignal;
}

/** Yields the ids after one prompt, one at a time; a stop id ends it and is not yielded. */
export async function* generate(
  model: LlamaForCausalLM,
  prompt: readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<number, void> {
  for await (const [id] of generateBatch(model, [prompt], options)) if (id !== undefined) yield id;
}

/** The same for several prompts at once: yields one id per row, undefined in rows that have ended. */
export async function* generateBatch(
  model: LlamaForCausalLM,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions = {},
): AsyncGenerator<(number | undefined)[], void> {
  const { maxNewTokens = 64, sampler = greedy(), useCache = true, signal } = options;
  const stop = new Set(options.stopIds ?? model.config.eosTokenId);
  const longest = Math.max(...prompts.map((p) => p.length));
  const limit = model.config.maxPositionEmbeddings;
  if (prompts.length === 0 || prompts.some((p) => p.length === 0)) {
    throw new LlamaError(
      'prompt',
      'generate: expected prompts of at least one token (the BOS token, say), got an empty one',
    );
  }
  if (longest > limit) {
    throw new LlamaError('prompt', `generate: expected prompts of at most ${limit} tokens, got ${longest}`);
  }
  const steps = Math.min(maxNewTokens, limit - longest);
  const padding = prompts.map((p) => longest - p.length);
  const rows = prompts.map((p, b) => [...Array<number>(padding[b]!).fill(0), ...p]);
  const ended = prompts.map(() => false);
  const cache = useCache ? new KVCache(model.config, prompts.length, longest + steps, model.backend) : undefined;
  try {
    for (let step = 0; step < steps && !ended.every(Boolean); step++) {
      signal?.throwIfAborted();
      const from = cache?.length ?? 0;
      const logits = await lastLogits(model, inputOf(rows, padding, from), cache);
      const vocabulary = model.config.vocabSize;
      const ids = rows.map((row, b) => {
        // an ended row goes on with any token; nothing of it is seen
        const id = ended[b] ? 0 : sampler(logits.subarray(b * vocabulary, (b + 1) * vocabulary), row.slice(padding[b]));
        row.push(id);
        if (stop.has(id)) ended[b] = true;
        return ended[b] ? undefined : id;
      });
      if (ended.every(Boolean)) return;
      yield ids;
    }
  } finally {
    cache?.dispose();
  }
}

/** The tokens of all rows from column `from` on, with positions that do not count the padding. */
function inputOf(rows: readonly (readonly number[])[], padding: readonly number[], from: number): LlamaInput {
  const total = rows[0]!.length;
  const length = total - from;
  const positions: number[] = [];
  const ranges: number[] = [];
  for (const pad of padding) {
    for (let t = from; t < total; t++) {
      positions.push(Math.max(0, t - pad));
      ranges.push(pad, Math.max(pad, t + 1));
    }
  }
  return { inputIds: rows.flatMap((row) => row.slice(from)), batch: rows.length, length, positions, ranges };
}

function lastLogits(model: LlamaForCausalLM, input: LlamaInput, cache: KVCache | undefined): Promise<Float32Array> {
  return scope(async () => {
    // only the last token's logits are needed: cut before the output matrix
    const logits: Tensor = noGrad(() => {
      const h = model.hidden(input, cache ? { cache } : {});
      return model.head(slice(h, 1, input.length - 1, 1)).value;
    });
    return (await logits.data()) as Float32Array;
  });
}
