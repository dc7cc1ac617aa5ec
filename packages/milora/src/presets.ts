/**
 * The settings of the MiLoRA paper's experiments, by name.
 *
 * Source: arXiv 2406.09044 (v3, NAACL 2025), hyperparameters of the three main experiments and of the comparison in
 * PiSSA's own setup (arXiv 2404.02948). The paper gives every method the same learning rate; independent work
 * (arXiv 2602.04998) finds that each has its own best one, so treat a preset's rate as the start of a sweep.
 */

/** Methods that the paper compares at the same rank. */
export type PaperMethod = 'lora' | 'pissa' | 'milora';

/** One experiment's settings; alpha differs between the methods. */
export interface Preset {
  readonly rank: number;
  /** LoRA uses twice the rank; for PiSSA and MiLoRA alpha is the rank, which makes the scaling 1. */
  readonly alpha: Readonly<Record<PaperMethod, number>>;
  /** Probability of dropping an element of the adapter's input. */
  readonly dropout: number;
  /** Ends of module paths, as in PEFT's `target_modules`. */
  readonly targetModules: readonly string[];
  /** AdamW's peak learning rate. */
  readonly learningRate: number;
  readonly betas: readonly [number, number];
  readonly weightDecay: number;
  readonly schedule: 'linear' | 'cosine';
  /** Linear warm-up: so many optimiser steps, or a share of all of them. */
  readonly warmup: { readonly steps: number } | { readonly ratio: number };
  /** Examples per optimiser step. */
  readonly batchSize: number;
  readonly epochs: number;
  /** Where the numbers are from. */
  readonly source: string;
}

const fiveTargets = ['q_proj', 'k_proj', 'v_proj', 'up_proj', 'down_proj'] as const;
const allSevenTargets = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;

const paperOptimiser = {
  dropout: 0.05,
  targetModules: fiveTargets,
  learningRate: 3e-4,
  betas: [0.9, 0.999],
  weightDecay: 0,
  schedule: 'linear',
  warmup: { steps: 100 },
  batchSize: 16,
  epochs: 3,
} as const;

/** Commonsense reasoning: trained on the 170 k examples of LLM-Adapters, tested on eight sets. */
const commonsense: Preset = {
  rank: 32,
  alpha: { lora: 64, pissa: 32, milora: 32 },
  ...paperOptimiser,
  source: 'arXiv 2406.09044 v3, commonsense reasoning',
};

/** Mathematics: trained on MetaMathQA, tested on GSM8K and MATH. */
const math: Preset = {
  rank: 64,
  alpha: { lora: 128, pissa: 64, milora: 64 },
  ...paperOptimiser,
  source: 'arXiv 2406.09044 v3, math reasoning',
};

/** Instruction following. */
const instruction: Preset = {
  rank: 32,
  alpha: { lora: 64, pissa: 32, milora: 32 },
  ...paperOptimiser,
  source: 'arXiv 2406.09044 v3, instruction following',
};

/** The comparison in PiSSA's setup: a high rank on all seven layers and a low learning rate, for one epoch. */
const pissaSetup: Preset = {
  rank: 128,
  alpha: { lora: 128, pissa: 128, milora: 128 },
  dropout: 0,
  targetModules: allSevenTargets,
  learningRate: 2e-5,
  betas: [0.9, 0.999],
  weightDecay: 0,
  schedule: 'cosine',
  warmup: { ratio: 0.03 },
  batchSize: 128,
  epochs: 1,
  source: 'arXiv 2406.09044 v3, comparison in the setup of arXiv 2404.02948',
};

/** Every preset by the name that the command line takes. */
export const presets = { commonsense, math, instruction, 'pissa-setup': pissaSetup } as const satisfies Record<
  string,
  Preset
>;

export type PresetName = keyof typeof presets;
