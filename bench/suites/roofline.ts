/**
 * The least work that a case needs, in operations (two per multiply-add), and what share of the machine's limit it got.
 * Only matrix products and attention are counted: norms, softmax and the optimiser come on top and count as loss.
 */
import type { LlamaConfig } from '@milora/llama';
import type { Limits } from './limits.js';

/** Keys that the queries of rows of these lengths see. */
export const causalPairs = (lengths: readonly number[]): number => lengths.reduce((n, t) => n + (t * (t + 1)) / 2, 0);

/** q·k and p·v. */
export const attentionFlops = (pairs: number, heads: number, headDim: number): number => 4 * pairs * heads * headDim;

/** The derivative makes the scores again, then those of p, q, k and v. */
export const attentionGradFlops = (pairs: number, heads: number, headDim: number): number =>
  10 * pairs * heads * headDim;

export interface StepShape {
  /** Tokens of each sequence; padding does not count. */
  lengths: readonly number[];
  /** Tokens with a loss. */
  targets: number;
  rank: number;
  /** Whether the layers are computed twice. */
  checkpoint: boolean;
}

/** Operations of a finetuning step with adapters on q, k, v, up and down and everything else frozen. */
export function stepFlops(config: LlamaConfig, { lengths, targets, rank, checkpoint }: StepShape): number {
  const { hiddenSize: C, intermediateSize: F, headDim: D, numAttentionHeads: H, numKeyValueHeads: G } = config;
  const tokens = lengths.reduce((a, b) => a + b, 0);
  const pairs = causalPairs(lengths);
  const first = C * (H + 2 * G) * D; // q, k, v
  const weights = first + C * H * D + 3 * C * F;
  const adapters = rank * (C + H * D + 2 * (C + G * D) + 2 * (C + F));
  const forward = 2 * tokens * (weights + adapters) + attentionFlops(pairs, H, D);
  // frozen weights get no gradient, thin factors do
  const backward = 2 * tokens * (weights + 2 * adapters) + attentionGradFlops(pairs, H, D);
  const head = 2 * 2 * targets * C * config.vocabSize;
  // nothing below the first layer wants a gradient
  const unneeded = 2 * tokens * (first + rank * 3 * C);
  return config.numHiddenLayers * (forward * (checkpoint ? 2 : 1) + backward) - unneeded + head;
}

/** The share of the limit: the least time, by operations or by bytes, over the time taken. */
export function fraction(limits: Limits, flops: number, seconds: number, bytes = 0): number {
  const least = Math.max(flops / (limits.gflops * 1e9), bytes > 0 ? bytes / (limits.readGBs(bytes) * 1e9) : 0);
  return least / seconds;
}
