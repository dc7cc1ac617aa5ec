/**
 * Choosing the next token. A sampler is a function from logits to a token id; a logits processor changes the logits
 * before. The filters of `sample` and their order are those of transformers: temperature, top-k, top-p, min-p
 * (https://github.com/huggingface/transformers/blob/main/src/transformers/generation/logits_process.py).
 * Wherever two tokens are equally likely, the lower id comes first.
 */
import { LlamaError } from './errors.js';

/**
 * Picks a token.
 *
 * @param logits `[vocabSize]`; −Infinity excludes a token
 * @param ids the tokens so far, prompt included, for samplers that look back
 * @returns a token id
 */
export type Sampler = (logits: Float32Array, ids?: readonly number[]) => number;

/** Turns logits into others of the same length; leaves its argument as it is. */
export type LogitsProcessor = (logits: Float32Array, ids: readonly number[]) => Float32Array;

export interface SampleOptions {
  /** Divides the logits: below 1 sharper, above 1 flatter, 0 always the likeliest. Default 1. */
  readonly temperature?: number;
  /** Keep only this many of the likeliest tokens. */
  readonly topK?: number;
  /** Keep the fewest likeliest tokens whose probabilities add up to this (Holtzman et al. 2019, arXiv:1904.09751). */
  readonly topP?: number;
  /** Keep tokens at least this fraction as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082). */
  readonly minP?: number;
  /** Uniform numbers in [0, 1), one per token. */
  readonly random: () => number;
}

/**
 * The likeliest token.
 *
 * @throws LlamaError `sampler` when a logit is NaN or none is finite
 */
export function greedy(): Sampler {
  return likeliest;
}

function likeliest(logits: Float32Array): number {
  let best = -1;
  let bestLogit = -Infinity;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id]!;
    if (!(logit < Infinity)) throw new LlamaError('sampler', `logits[${id}]: expected a finite number, got ${logit}`);
    if (logit > bestLogit) {
      best = id;
      bestLogit = logit;
    }
  }
  if (best < 0) throw new LlamaError('sampler', `logits: expected at least one finite number among ${logits.length}`);
  return best;
}

/**
 * Draws a token by its probability, after the filters.
 *
 * @throws LlamaError `sampler` for options out of range, or for logits as in `greedy`
 *
 * @example
 * const sampler = sample({ temperature: 0.8, topP: 0.95, random: Math.random });
 */
export function sample({ temperature = 1, topK, topP = 1, minP = 0, random }: SampleOptions): Sampler {
  check('temperature', temperature, 'a number ≥ 0', temperature >= 0 && temperature < Infinity);
  check('topK', topK, 'a whole number ≥ 1', topK === undefined || (Number.isInteger(topK) && topK >= 1));
  check('topP', topP, 'a number in (0, 1]', topP > 0 && topP <= 1);
  check('minP', minP, 'a number in [0, 1]', minP >= 0 && minP <= 1);
  if (temperature === 0) return greedy();

  return (logits) => {
    const max = logits[likeliest(logits)]!;
    const weights = new Float64Array(logits.length);
    for (let id = 0; id < logits.length; id++) weights[id] = Math.exp((logits[id]! - max) / temperature);
    let candidates = idsAtLeast(weights, minP);
    if (topK !== undefined && topK < candidates.length) candidates = likeliestOf(candidates, weights, topK);
    if (topP < 1) candidates = nucleus(candidates, weights, topP);
    return draw(candidates, weights, random());
  };
}

/** Tokens of at least `fraction` of the largest weight, which is 1. */
function idsAtLeast(weights: Float64Array, fraction: number): number[] {
  const ids: number[] = [];
  for (let id = 0; id < weights.length; id++) if (weights[id]! > 0 && weights[id]! >= fraction) ids.push(id);
  return ids;
}

/** The `count` tokens of largest weight in order, of equals the first; one pass, since most tokens fail the first test. */
function likeliestOf(ids: readonly number[], weights: Float64Array, count: number): number[] {
  const best: number[] = [];
  for (const id of ids) {
    const weight = weights[id]!;
    if (best.length === count && weight <= weights[best[count - 1]!]!) continue;
    let at = best.length < count ? best.length : count - 1;
    for (; at > 0 && weights[best[at - 1]!]! < weight; at--) best[at] = best[at - 1]!;
    best[at] = id;
  }
  return best;
}

const sorted = (ids: number[], weights: Float64Array): number[] =>
  ids.sort((a, b) => weights[b]! - weights[a]! || a - b);

const sum = (ids: readonly number[], weights: Float64Array): number =>
  ids.reduce((total, id) => total + weights[id]!, 0);

function nucleus(ids: number[], weights: Float64Array, topP: number): number[] {
  const total = sum(ids, weights);
  // Sorting a whole vocabulary is slow. Tokens below this bound add up to less than 1 − topP, so the nucleus is
  // complete before the first of them.
  const bound = ((1 - topP) * total) / ids.length;
  const likely = sorted(
    ids.filter((id) => weights[id]! >= bound),
    weights,
  );
  let length = 0;
  for (let reached = 0; length < likely.length && reached < topP * total; length++)
    reached += weights[likely[length]!]!;
  return likely.slice(0, length);
}

function draw(ids: readonly number[], weights: Float64Array, uniform: number): number {
  check('random()', uniform, 'a number in [0, 1)', uniform >= 0 && uniform < 1);
  let rest = uniform * sum(ids, weights);
  for (const id of ids) {
    rest -= weights[id]!;
    if (rest < 0) return id;
  }
  // rounding of the sum
  return ids.at(-1)!;
}

/**
 * Makes tokens that have occurred less likely: positive logits are divided by `penalty`, negative ones multiplied
 * (Keskar et al. 2019, CTRL, arXiv:1909.05858, section 4.1). 1 changes nothing.
 *
 * @throws LlamaError `sampler` unless penalty > 0
 *
 * @example
 * const sampler = withProcessors([repetitionPenalty(1.1)], greedy());
 */
export function repetitionPenalty(penalty: number): LogitsProcessor {
  check('penalty', penalty, 'a number > 0', penalty > 0 && penalty < Infinity);
  return (logits, ids) => {
    const out = logits.slice();
    for (const id of new Set(ids)) {
      const logit = logits[id];
      if (logit !== undefined) out[id] = logit > 0 ? logit / penalty : logit * penalty;
    }
    return out;
  };
}

/**
 * A sampler that first applies processors, in order.
 *
 * @throws LlamaError `sampler` when called without the tokens so far
 */
export function withProcessors(processors: readonly LogitsProcessor[], sampler: Sampler): Sampler {
  return (logits, ids) => {
    if (ids === undefined) {
      throw new LlamaError('sampler', 'ids: expected the tokens so far as second argument, got none');
    }
    return sampler(
      processors.reduce((current, process) => process(current, ids), logits),
      ids,
    );
  };
}

function check(name: string, value: unknown, expected: string, holds: boolean): void {
  if (!holds) throw new LlamaError('sampler', `${name}: expected ${expected}, got ${String(value)}`);
}
