/**
 * What finetuning and pretraining share: options, the loop that writes metrics and checkpoints, and the events that
 * progress bars and logs listen to.
 */
import { loadTokenizer } from '@milora/llama/node';
import type { LlamaConfig, LlamaForCausalLM, Tokenizer } from '@milora/llama';
import type { ScheduleName } from '@milora/autograd';
import type { SubspaceCache } from '@milora/tensor';
import { stat } from 'node:fs/promises';
import type { InjectProgress } from '../adapter.js';
import { BatchIterator } from '../batches.js';
import { describeMasking } from '../tokenize.js';
import type { TokenizedExample } from '../tokenize.js';
import { MiloraError } from '../errors.js';
import { evaluate } from '../evaluate.js';
import type { Trainer } from '../trainer.js';
import type { EvalEvent, StepEvent, TrainOptions } from '../trainer.js';
import type { Checkpoint } from './checkpoint.js';
import { pause, withPauses } from './pause.js';
import type { MetricsEvent, RunFolder } from './runFolder.js';
import { expectTokenizer, fingerprintData, holdOut, loadData, measuringBatches } from './textData.js';
import type { DataReport } from './textData.js';

/** Options of every run. */
export interface TrainingOptions {
  /** A model folder with tokenizer.json, or llama2.c's tokenizer.bin. Null: that of the model. */
  tokenizer: string | null;
  /** Training data. */
  data: string;
  /** Validation data; null: a share of the training data. */
  valid: string | null;
  /** That share; 0 for no validation. */
  validFraction: number;
  /** Longest example in tokens; null: 512, or what the model allows. */
  maxLength: number | null;
  /** Several examples in one row. */
  pack: boolean;
  /** Peak learning rate. */
  lr: number;
  schedule: ScheduleName;
  /** Steps of linear warmup, or a share of all steps if below 1. */
  warmup: number;
  weightDecay: number;
  betas: readonly [number, number];
  /** Largest norm of the gradients; 0 for no clipping. */
  clip: number;
  /** Optimiser steps; null: from the epochs. */
  steps: number | null;
  epochs: number;
  /** Rows per batch. */
  batch: number;
  /** Batches per optimiser step. */
  accumulate: number;
  /** Steps between validations; null: a tenth of the run, at least 10. */
  evalEvery: number | null;
  /** Steps between checkpoints. */
  saveEvery: number;
  seed: number;
}

/** Options whose value the data decides, once it has. */
export interface ResolvedTraining {
  maxLength: number;
  steps: number;
  warmup: number;
  evalEvery: number;
}

export type RunEvent =
  | { type: 'data'; role: 'train' | 'valid' | 'forgetting'; report: DataReport; examples: number }
  | { type: 'masking'; text: string }
  /** A module's adapter is about to be made, or in the making; `done = total` at the end. */
  | ({ type: 'init' } & InjectProgress)
  /** Modules whose window the weights do not fully determine, see `Certificate`. */
  | { type: 'uncertain'; sensitive: string[]; tied: string[] }
  | { type: 'warning'; message: string }
  | { type: 'start'; step: number; steps: number; out: string; trainable: number; parameters: number; resumed: boolean }
  | StepEvent
  | EvalEvent
  | { type: 'checkpoint'; name: 'last' | 'best'; step: number }
  | { type: 'interrupted'; step: number; steps: number; out: string }
  | RunSummary;

/** What a run came to. */
export interface RunSummary extends MetricsEvent {
  type: 'summary';
  /** Steps done. */
  step: number;
  /** Step of the weights in the result: the one of the lowest validation loss. */
  resultStep: number;
  /** Validation loss before training and of the result; null without validation. */
  validation: { before: number; after: number } | null;
  /** Forgetting of the base model on other text. */
  forgetting: { loss: number; kl: number; tokens: number } | null;
  /** Largest share of B and of A outside the window they started in, over the layers. */
  drift: { left: number; right: number } | null;
  trainable: number;
  parameters: number;
  /** Folder of the adapter or the model. */
  result: string;
  /** Seconds of training steps. */
  seconds: number;
}

export interface RunHooks {
  onEvent?: (event: RunEvent) => void | Promise<void>;
  /** Ends the run after the step in progress; the checkpoint is written. */
  signal?: AbortSignal;
  /** Examples whose masking is shown, as events. Default 0. */
  showMasking?: number;
  /** Decompositions of earlier runs, and of this one for later ones. */
  cache?: SubspaceCache;
}

export interface RunResult {
  out: string;
  /** Absent when a signal ended the run early. */
  summary?: RunSummary;
}

/** Loads a tokenizer that fits the model. */
export async function tokenizerFor(
  config: LlamaConfig,
  tokenizer: string | null,
  model: string | null,
): Promise<Tokenizer> {
  const isFile = model !== null && (await stat(model).catch(() => undefined))?.isFile();
  if (tokenizer === null && (isFile || model === null)) {
    throw new MiloraError(
      'tokenizer',
      `${model}: expected a tokenizer with --tokenizer, got none and a model without one`,
    );
  }
  const loaded = await loadTokenizer(tokenizer ?? model!);
  expectTokenizer(loaded, config);
  return loaded;
}

/** Everything about the data of a run. */
export interface TrainingData {
  train: readonly TokenizedExample[];
  batches: BatchIterator;
  /** Loss on the validation data; undefined without any. */
  validate: ((model: LlamaForCausalLM) => Promise<number>) | undefined;
  resolved: ResolvedTraining;
  fingerprint: string;
}

/** Longest examples by default. */
const USUAL_LENGTH = 512;

/** Reads training and validation data and works out how long the run is. */
export async function prepareData(
  options: TrainingOptions,
  config: LlamaConfig,
  tokenizer: Tokenizer,
  maskPrompt: boolean,
  hooks: RunHooks,
): Promise<TrainingData> {
  const limit = config.maxPositionEmbeddings;
  const maxLength = options.maxLength ?? Math.min(USUAL_LENGTH, limit);
  if (maxLength > limit) {
    throw new MiloraError(
      'max-length',
      `max-length: expected at most ${limit}, the model's max_position_embeddings, got ${maxLength}`,
    );
  }
  const loaded = await loadData(options.data, tokenizer, { maxLength, maskPrompt });
  const separate = options.valid ? await loadData(options.valid, tokenizer, { maxLength, maskPrompt }) : undefined;
  const { train, held } = separate
    ? { train: loaded.examples, held: separate.examples }
    : holdOut(loaded.examples, options.validFraction, options.seed);
  await hooks.onEvent?.({ type: 'data', role: 'train', report: loaded.report, examples: train.length });
  if (held.length > 0) {
    const { report } = separate ?? loaded;
    await hooks.onEvent?.({ type: 'data', role: 'valid', report, examples: held.length });
  }
  for (const example of train.slice(0, hooks.showMasking ?? 0)) {
    await hooks.onEvent?.({ type: 'masking', text: describeMasking(example, tokenizer) });
  }

  const { batch, accumulate, pack, seed, epochs, warmup } = options;
  const mode = pack ? ('pack' as const) : ('pad' as const);
  const batches = new BatchIterator(train, { batchSize: batch, seed, mode, maxLength });
  const steps = options.steps ?? Math.max(1, Math.round((epochs * batches.batchCount()) / accumulate));
  const validate =
    held.length === 0
      ? undefined
      : async (model: LlamaForCausalLM) => (await evaluate(model, withPauses(measuringBatches(held, batch)))).loss;
  return {
    train,
    batches,
    validate,
    resolved: {
      maxLength,
      steps,
      warmup: warmup < 1 ? Math.round(warmup * steps) : warmup,
      evalEvery: options.evalEvery ?? Math.max(10, Math.ceil(steps / 10)),
    },
    fingerprint: await fingerprintData(train),
  };
}

/** The trainer's options out of a run's. */
export function trainerOptions(
  options: TrainingOptions,
  { resolved, validate }: TrainingData,
  model: LlamaForCausalLM,
  signal: AbortSignal | undefined,
): TrainOptions {
  return {
    steps: resolved.steps,
    lr: options.lr,
    schedule: options.schedule,
    warmupSteps: resolved.warmup,
    betas: options.betas,
    weightDecay: options.weightDecay,
    accumulation: options.accumulate,
    maxGradNorm: options.clip,
    evalEvery: resolved.evalEvery,
    ...(validate && { validate: () => validate(model) }),
    ...(signal && { signal }),
  };
}

/** Refuses other training data than the run began with. */
export function expectSameData(folder: RunFolder, fingerprint: string): void {
  if (folder.config.data === fingerprint) return;
  throw new MiloraError(
    'wrong-data',
    `${folder.path}: expected the training data, tokenizer and lengths that the run began with, got other tokens; ` +
      'give the original file with --data',
  );
}

/**
 * Trains to the end or to the signal, writing metrics and checkpoints. A checkpoint of a step that a validation follows is
 * taken after the validation, so that resuming does not lose it.
 */
export async function trainInto(
  folder: RunFolder,
  trainer: Trainer,
  snapshot: () => Promise<Checkpoint>,
  { saveEvery, steps }: { saveEvery: number; steps: number },
  hooks: RunHooks,
): Promise<boolean> {
  let saved = trainer.step;
  const save = async (name: 'last' | 'best'): Promise<void> => {
    await folder.save(name, await snapshot());
    if (name === 'last') saved = trainer.step;
    await hooks.onEvent?.({ type: 'checkpoint', name, step: trainer.step });
  };
  for await (const event of trainer.run()) {
    if (event.type === 'end') {
      // step 0 has its checkpoint from the beginning, from before the first validation
      if (trainer.step > saved) await save('last');
      if (!event.finished) await hooks.onEvent?.({ type: 'interrupted', step: trainer.step, steps, out: folder.path });
      return event.finished;
    }
    await folder.append({ ...event });
    await hooks.onEvent?.(event);
    if (event.type === 'eval' && event.best) await save('best');
    const settled = event.type === 'eval' || !trainer.validationDue;
    if (settled && trainer.step > 0 && (trainer.step % saveEvery === 0 || trainer.step === steps)) await save('last');
    await pause();
  }
  return false;
}

/** Goes back to the best checkpoint, if there was validation. Returns the step of the weights in place. */
export async function takeBest(folder: RunFolder, trainer: Trainer): Promise<number> {
  const best = await folder.load('best');
  if (best && best.trainer.step !== trainer.step) trainer.load(best.trainer);
  return trainer.step;
}

/** Losses and time out of a run's metrics. */
export async function measured(folder: RunFolder): Promise<Pick<RunSummary, 'validation' | 'seconds' | 'step'>> {
  const events = await folder.metrics();
  const losses = events.filter((e) => e.type === 'eval').map((e) => e['loss'] as number);
  const steps = events.filter((e) => e.type === 'step');
  return {
    step: steps.length,
    validation: losses.length > 0 ? { before: losses[0]!, after: Math.min(...losses) } : null,
    seconds: steps.reduce((sum, e) => sum + (e['seconds'] as number), 0),
  };
}
