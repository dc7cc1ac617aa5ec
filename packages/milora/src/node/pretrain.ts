/**
 * Pretraining from files to files: a new model of the architecture in a config.json, random weights from a seed, all
 * parameters trained on packed text. The run folder's `model/` is a Hugging Face folder in the end.
 */
import { parseLlamaConfig, randomLlama } from '@milora/llama';
import type { LlamaConfig } from '@milora/llama';
import { saveModel } from '@milora/llama/node';
import { Philox } from '@milora/tensor';
import { readFile, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { MiloraError } from '../errors.js';
import { Trainer } from '../trainer.js';
import type { Checkpoint } from './checkpoint.js';
import { expectFree, writeFolderAtomic } from './folders.js';
import { copyTokenizer } from './modelFolder.js';
import { RunFolder } from './runFolder.js';
import {
  expectSameData,
  measured,
  prepareData,
  takeBest,
  tokenizerFor,
  trainInto,
  trainerOptions,
} from './training.js';
import type { RunHooks, RunResult, RunSummary, TrainingOptions } from './training.js';

export interface PretrainOptions extends TrainingOptions {
  /** A config.json, or a folder with one. */
  config: string;
  tokenizer: string;
  /** Deviation of the random weights. */
  std: number;
  /** Element type of the model in the end. */
  dtype: 'f32' | 'bf16' | 'f16';
}

/** Defaults; `config`, `tokenizer` and `data` have none. */
export const pretrainDefaults: Omit<PretrainOptions, 'config' | 'tokenizer' | 'data'> = {
  valid: null,
  validFraction: 0.02,
  maxLength: null,
  pack: true,
  lr: 1e-3,
  schedule: 'cosine',
  warmup: 0.05,
  weightDecay: 0.01,
  betas: [0.9, 0.95],
  clip: 1,
  steps: null,
  epochs: 1,
  batch: 16,
  accumulate: 1,
  evalEvery: null,
  saveEvery: 100,
  seed: 0,
  std: 0.02,
  dtype: 'f32',
};

/** Pretrains into the new run folder `out`. Throws before anything is written when options, files or data are bad. */
export async function pretrain(options: PretrainOptions, out: string, hooks: RunHooks = {}): Promise<RunResult> {
  await expectFree(out, `give another folder with --out, or go on with --resume ${out}`);
  return runPretrain(options, hooks, async (trainer, data, resolved) =>
    RunFolder.create(
      out,
      { kind: 'pretrain', backend: trainer.model.backend.name, options: { ...resolved }, data },
      { trainer: await trainer.state() },
    ),
  );
}

/** Goes on from the last checkpoint, to the same weights as a run that never stopped. */
export async function resumePretrain(
  dir: string,
  moved: Partial<Pick<PretrainOptions, 'config' | 'tokenizer' | 'data' | 'valid'>> = {},
  hooks: RunHooks = {},
): Promise<RunResult> {
  const folder = await RunFolder.open(dir);
  if (folder.config.kind !== 'pretrain') {
    throw new MiloraError(
      'run-folder',
      `${dir}: expected a pretraining run, got a ${folder.config.kind} run; use its command`,
    );
  }
  const checkpoint = await folder.last();
  const options = { ...(folder.config.options as unknown as PretrainOptions), ...moved };
  return runPretrain(
    options,
    hooks,
    async (trainer, data) => {
      expectSameData(folder, data);
      trainer.load(checkpoint.trainer);
      await folder.rewind(checkpoint.trainer.step);
      return folder;
    },
    true,
  );
}

async function runPretrain(
  given: PretrainOptions,
  hooks: RunHooks,
  begin: (trainer: Trainer, data: string, resolved: PretrainOptions) => Promise<RunFolder>,
  resumed = false,
): Promise<RunResult> {
  const options = {
    ...given,
    config: resolve(given.config),
    tokenizer: resolve(given.tokenizer),
    data: resolve(given.data),
    valid: given.valid === null ? null : resolve(given.valid),
  };
  const config = await readConfig(options.config);
  const tokenizer = await tokenizerFor(config, options.tokenizer, null);
  const data = await prepareData(options, config, tokenizer, false, hooks);
  const { steps } = data.resolved;
  const model = randomLlama(config, new Philox(options.seed), { std: options.std });
  let trainer: Trainer | undefined;
  try {
    model.requiresGrad(true);
    const active = (trainer = new Trainer(model, data.batches, trainerOptions(options, data, model, hooks.signal)));
    const folder = await begin(active, data.fingerprint, { ...options, ...data.resolved });
    const parameters = model.parameters().reduce((n, { value }) => n + value.size, 0);
    await hooks.onEvent?.({
      type: 'start',
      step: active.step,
      steps,
      out: folder.path,
      trainable: parameters,
      parameters,
      resumed,
    });
    const snapshot = async (): Promise<Checkpoint> => ({ trainer: await active.state() });
    const finished = await trainInto(folder, active, snapshot, { saveEvery: options.saveEvery, steps }, hooks);
    if (!finished) return { out: folder.path };

    const resultStep = await takeBest(folder, active);
    await writeFolderAtomic(folder.result, async (temporary) => {
      await saveModel(temporary, model, options.dtype);
      await copyTokenizer(options.tokenizer, temporary);
    });
    const summary: RunSummary = {
      type: 'summary',
      ...(await measured(folder)),
      resultStep,
      forgetting: null,
      drift: null,
      trainable: parameters,
      parameters,
      result: folder.result,
    };
    await folder.append(summary);
    await hooks.onEvent?.(summary);
    return { out: folder.path, summary };
  } finally {
    trainer?.dispose();
    model.dispose();
  }
}

async function readConfig(path: string): Promise<LlamaConfig> {
  const isFolder = (await stat(path).catch(() => undefined))?.isDirectory();
  const file = isFolder ? join(path, 'config.json') : path;
  let json: unknown;
  try {
    json = JSON.parse(await readFile(file, 'utf8'));
  } catch (cause) {
    throw new MiloraError('config', `${file}: expected a config.json, got ${(cause as Error).message}`, { cause });
  }
  return parseLlamaConfig(json, file);
}
