/** Options that training and pretraining share, as a table and as a record. */
import type { TrainingOptions } from '../node/training.js';
import type { OptionTable, Values } from './options.js';

/** The table; both verbs fill in their own defaults. */
export function trainingTable(defaults: {
  lr: number;
  schedule: string;
  warmup: number;
  weightDecay: number;
  batch: number;
  epochs: number;
  clip: number;
  saveEvery: number;
}) {
  return {
    valid: {
      type: 'text',
      value: 'FILE',
      help: 'validation data; without it a share of the training data',
      group: 'Data',
    },
    'valid-fraction': {
      type: 'number',
      default: 0.02,
      min: 0,
      below: 1,
      help: 'that share, at most 1000 examples; 0 for no validation',
    },
    'max-length': { type: 'whole', min: 2, help: 'longest example in tokens (default 512, or what the model allows)' },
    lr: { type: 'number', default: defaults.lr, above: 0, help: 'peak learning rate', group: 'Training' },
    schedule: {
      type: 'choice',
      choices: ['constant', 'linear', 'cosine'],
      default: defaults.schedule,
      help: 'how the rate falls after the warmup',
    },
    warmup: {
      type: 'number',
      default: defaults.warmup,
      min: 0,
      help: 'steps of linear warmup, or a share of all steps if below 1',
    },
    steps: { type: 'whole', min: 1, help: 'optimiser steps (default: from the epochs)' },
    epochs: { type: 'number', default: defaults.epochs, above: 0, help: 'times through the data' },
    batch: { type: 'whole', default: defaults.batch, min: 1, help: 'rows per batch' },
    accumulate: { type: 'whole', default: 1, min: 1, help: 'batches per optimiser step' },
    clip: { type: 'number', default: defaults.clip, min: 0, help: 'largest norm of the gradients; 0 for no clipping' },
    'weight-decay': { type: 'number', default: defaults.weightDecay, min: 0, help: 'decoupled weight decay' },
    seed: { type: 'whole', default: 0, min: 0, help: 'seed of everything random' },
    'eval-every': {
      type: 'whole',
      min: 1,
      help: 'steps between validations (default: a tenth of the run, at least 10)',
    },
    'save-every': { type: 'whole', default: defaults.saveEvery, min: 1, help: 'steps between checkpoints' },
  } as const satisfies OptionTable;
}

/** The shared part of a run's options. */
export function trainingOf(
  values: Values<ReturnType<typeof trainingTable>>,
): Omit<TrainingOptions, 'tokenizer' | 'data' | 'pack' | 'betas'> {
  return {
    valid: values.valid ?? null,
    validFraction: values['valid-fraction'],
    maxLength: values['max-length'] ?? null,
    lr: values.lr,
    schedule: values.schedule as TrainingOptions['schedule'],
    warmup: values.warmup,
    weightDecay: values['weight-decay'],
    clip: values.clip,
    steps: values.steps ?? null,
    epochs: values.epochs,
    batch: values.batch,
    accumulate: values.accumulate,
    evalEvery: values['eval-every'] ?? null,
    saveEvery: values['save-every'],
    seed: values.seed,
  };
}
