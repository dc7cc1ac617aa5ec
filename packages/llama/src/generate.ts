/**
 * Generation, token by token, as an async iterator; with a KV cache, or without one (every step reads the whole text: the
 * slow definition of what the cache must give). Where the backend can record kernel calls, all steps after the prompt are replays
 * of one (`decoder.ts`). Batches are padded on the left.
 */
import { noGrad, slice } from '@milora/autograd';
import { scope } from '@milora/tensor';
import type { Tensor } from '@milora/tensor';
import { Decoder } from './decoder.js';
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
  const generation = new Generation(model, [prompt], options);
  try {
    for (;;) {
      const step = generation.next();
      const ids = step instanceof Promise ? await step : step;
      if (ids === undefined) return;
      yield ids[0]!;
    }
  } finally {
    generation.dispose();
  }
}

/** The same for several prompts at once: yields one id per row, undefined in rows that have ended. */
export async function* generateBatch(
  model: LlamaForCausalLM,
  prompts: readonly (readonly number[])[],
  options: GenerateOptions = {},
): AsyncGenerator<(number | undefined)[], void> {
  const generation = new Generation(model, prompts, options);
  try {
    for (;;) {
      const ids = await generation.next();
      if (ids === undefined) return;
      yield ids;
    }
  } finally {
    generation.dispose();
  }
}

/** One id per row, undefined in rows that have ended. */
type Ids = (number | undefined)[];

/** What a generation is in the middle of. Steps that are recorded are synchronous: a promise per token would take its time. */
class Generation {
  private readonly sampler: Sampler;
  private readonly stop: ReadonlySet<number>;
  private readonly rows: number[][];
  private readonly padding: readonly number[];
  private readonly ended: boolean[];
  private readonly cache: KVCache | undefined;
  private decoder: Decoder | undefined;
  private left: number;

  constructor(
    private readonly model: LlamaForCausalLM,
    prompts: readonly (readonly number[])[],
    private readonly options: GenerateOptions,
  ) {
    const { maxNewTokens = 64, sampler = greedy(), useCache = true } = options;
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
    this.sampler = sampler;
    this.stop = new Set(options.stopIds ?? model.config.eosTokenId);
    this.left = Math.min(maxNewTokens, limit - longest);
    this.padding = prompts.map((p) => longest - p.length);
    this.rows = prompts.map((p, b) => [...Array<number>(this.padding[b]!).fill(0), ...p]);
    this.ended = prompts.map(() => false);
    if (useCache) this.cache = new KVCache(model.config, prompts.length, longest + this.left, model.backend);
  }

  /** The next id of each row; undefined when all have ended or have their length. */
  next(): Ids | undefined | Promise<Ids | undefined> {
    this.options.signal?.throwIfAborted();
    if (this.left-- <= 0 || this.ended.every(Boolean)) return undefined;
    const { decoder, rows } = this;
    if (decoder?.step(rows.map((row) => row.at(-1)!))) {
      return this.sampler === greedy()
        ? this.takeLikeliest(decoder)
        : this.sample(decoder.logits.dataSync() as Float32Array);
    }
    return this.readAll();
  }

  /** A step in the ordinary way: over the prompt, without a cache, or where nothing can be recorded. */
  private async readAll(): Promise<Ids | undefined> {
    const { model, cache, padding } = this;
    const first = cache?.length === 0;
    const logits = await lastLogits(model, inputOf(this.rows, padding, cache?.length ?? 0), cache);
    this.decoder?.dispose();
    this.decoder = cache && first && model.backend.capture ? new Decoder(model, cache, padding) : undefined;
    return this.sample(logits);
  }

  private sample(logits: Float32Array): Ids | undefined {
    const V = this.model.config.vocabSize;
    return this.take((row, b) => {
      const seen = this.padding[b] ? row.slice(this.padding[b]) : row;
      return this.sampler(logits.subarray(b * V, (b + 1) * V), seen);
    });
  }

  /** Greedy, without a look at the logits; unless it is the last id, which stands for logits that are no numbers too. */
  private takeLikeliest({ likeliest, logits }: Decoder): Ids | undefined {
    const ids = likeliest.dataSync();
    if (ids.includes(this.model.config.vocabSize - 1)) return this.sample(logits.dataSync() as Float32Array);
    return this.take((_, b) => ids[b]!);
  }

  private take(choose: (row: readonly number[], b: number) => number): Ids | undefined {
    const ids = this.rows.map((row, b) => {
      // an ended row goes on with any token; nothing of it is seen
      const id = this.ended[b] ? 0 : choose(row, b);
      row.push(id);
      if (this.stop.has(id)) this.ended[b] = true;
      return this.ended[b] ? undefined : id;
    });
    return this.ended.every(Boolean) ? undefined : ids;
  }

  dispose(): void {
    this.decoder?.dispose();
    this.cache?.dispose();
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
