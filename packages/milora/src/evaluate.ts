/**
 * Measures of a model on token batches: loss and perplexity, and how much of the base model it has forgotten.
 *
 * Forgetting loss (MiLoRA §4.4): the cross-entropy of the finetuned model against the base model's next-token distribution on
 * held-out text, −E Σ_v p_base(v) log p(v). Less its floor, the base's own entropy, it is the KL divergence.
 */
import { noGrad } from '@milora/autograd';
import { castWeights, generateBatch, nextTargets } from '@milora/llama';
import type { LlamaForCausalLM, WeightDType } from '@milora/llama';
import { exp, logSoftmax, mul, scope, sub, sum } from '@milora/tensor';
import type { Tensor } from '@milora/tensor';
import type { Adapter } from './adapter.js';
import type { Batch } from './batches.js';
import { countTargets } from './tokenize.js';

export interface Evaluation {
  /** Mean cross-entropy per target token, in nats. */
  loss: number;
  /** e^loss. */
  perplexity: number;
  /** Target tokens counted. */
  targets: number;
}

/** Batches one after another; an async source may pause between them. */
export type Batches = Iterable<Batch> | AsyncIterable<Batch>;

/** Loss over all batches, weighted by their target tokens. */
export async function evaluate(model: LlamaForCausalLM, batches: Batches): Promise<Evaluation> {
  let [total, targets] = [0, 0];
  await withoutDropout(model, async () => {
    for await (const batch of batches) {
      const count = countTargets(nextTargets(batch.labels, batch.batch, batch.length));
      total += await scope(() => noGrad(() => model.loss(batch, batch.labels, { normalizer: 1 })).item());
      targets += count;
    }
  });
  const loss = total / Math.max(1, targets);
  return { loss, perplexity: Math.exp(loss), targets };
}

/** What coarser weights cost, against f32. */
export interface Exactness {
  /** Perplexity in f32 on the same batches. */
  perplexity: number;
  /** Largest difference of a logit, as a share of the largest logit in f32. */
  logitError: number;
  /** Tokens whose logits were compared. */
  logitTokens: number;
}

/**
 * Evaluates a model, converts its weights in place (see `castWeights`) and evaluates it again. Logits are compared on the tokens of
 * `probe`.
 */
export async function castAndCompare(
  model: LlamaForCausalLM,
  dtype: WeightDType,
  batches: () => Batches,
  probe: ArrayLike<number>,
): Promise<Evaluation & { exactness: Exactness }> {
  const logits = (): Promise<Float32Array> =>
    scope(async () => {
      const input = { inputIds: probe, batch: 1, length: probe.length };
      return (await noGrad(() => model.forward(input)).value.data()) as Float32Array;
    });
  const before = await evaluate(model, batches());
  const exact = await logits();
  castWeights(model, dtype);
  const coarse = await logits();
  let [error, largest] = [0, 0];
  exact.forEach((x, i) => {
    error = Math.max(error, Math.abs(coarse[i]! - x));
    largest = Math.max(largest, Math.abs(x));
  });
  const exactness = { perplexity: before.perplexity, logitError: error / largest, logitTokens: probe.length };
  return { ...(await evaluate(model, batches())), exactness };
}

/** Runs `fn` in evaluation mode and puts the mode back, also after an error. */
async function withoutDropout(model: LlamaForCausalLM, fn: () => Promise<void>): Promise<void> {
  const { training } = model;
  model.eval();
  try {
    await fn();
  } finally {
    model.train(training);
  }
}

export interface Forgetting {
  /** Cross-entropy against the base's distribution, in nats per token. */
  loss: number;
  /** The same less the base's entropy: KL(base ‖ model). */
  kl: number;
  /** Tokens counted. */
  tokens: number;
}

/** Forgetting of `model` with its adapter, against itself with the adapter off. */
export async function forgetting(model: LlamaForCausalLM, adapter: Adapter, batches: Batches): Promise<Forgetting> {
  return forgettingAgainst(model, batches, (run) => adapter.disabled(run));
}

/** Forgetting against any base: `asBase` runs a function while `model` is the base. */
export async function forgettingAgainst(
  model: LlamaForCausalLM,
  batches: Batches,
  asBase: <T>(run: () => Promise<T>) => Promise<T>,
): Promise<Forgetting> {
  let [cross, divergence, tokens] = [0, 0, 0];
  await withoutDropout(model, async () => {
    for await (const batch of batches) {
      // every real token but the last of its window predicts a next one
      const counts = Float32Array.from({ length: batch.inputIds.length }, (_, i) => (hasNext(batch, i) ? 1 : 0));
      const [ce, kl] = await scope(async () => {
        const logProbabilities = (): Tensor => noGrad(() => logSoftmax(model.forward(batch).value));
        const base = await asBase(() => Promise.resolve(logProbabilities()));
        const tuned = logProbabilities();
        const p = exp(base);
        const weigh = async (rows: Tensor): Promise<number> => {
          const perToken = (await sum(rows, { axis: -1 }).data()) as Float32Array;
          return perToken.reduce((total, x, i) => total + x * counts[i]!, 0);
        };
        return [-(await weigh(mul(p, tuned))), await weigh(mul(p, sub(base, tuned)))] as const;
      });
      cross += ce;
      divergence += kl;
      tokens += counts.reduce((a, b) => a + b, 0);
    }
  });
  return { loss: cross / Math.max(1, tokens), kl: divergence / Math.max(1, tokens), tokens };
}

/** Whether token i of a batch is followed by another of the same example. */
function hasNext({ ranges, length }: Batch, i: number): boolean {
  const real = ranges[2 * i]! < ranges[2 * i + 1]!;
  const last = i % length === length - 1;
  return real && !last && ranges[2 * i + 3]! > ranges[2 * i + 2]! && ranges[2 * i + 2] === ranges[2 * i];
}

export interface ExactMatchOptions {
  maxNewTokens: number;
  /** Prompts generated at once. Default 32. */
  batchSize?: number;
}

/** Greedy completions of token prompts, decoded by `decode`, in order. */
export async function complete(
  model: LlamaForCausalLM,
  prompts: readonly (readonly number[])[],
  decode: (ids: readonly number[]) => string,
  options: ExactMatchOptions,
): Promise<string[]> {
  const { maxNewTokens, batchSize = 32 } = options;
  const out: string[] = [];
  for (let from = 0; from < prompts.length; from += batchSize) {
    const part = prompts.slice(from, from + batchSize);
    const rows: number[][] = part.map(() => []);
    for await (const ids of generateBatch(model, part, { maxNewTokens })) {
      ids.forEach((id, b) => id !== undefined && rows[b]!.push(id));
    }
    out.push(...rows.map(decode));
  }
  return out;
}
