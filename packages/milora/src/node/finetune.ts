/**
 * A finetuning run from files to files: load the base, take its fingerprints, put the adapter in, train, keep the best,
 * measure, and write a PEFT folder. Nothing is written before the model, the data and the adapter have proved good.
 */
import { loadModel } from '@milora/llama/node';
import type { LlamaForCausalLM } from '@milora/llama';
import type { Certificate } from '@milora/tensor';
import { resolve } from 'node:path';
import { inject } from '../adapter.js';
import type { Adapter } from '../adapter.js';
import { subspaceDrift } from '../drift.js';
import { MiloraError } from '../errors.js';
import { forgetting } from '../evaluate.js';
import { methods } from '../inits.js';
import type { MethodName } from '../inits.js';
import { presets } from '../presets.js';
import type { PaperMethod, PresetName } from '../presets.js';
import { checkBase, fingerprintModel, provenanceOf } from '../provenance.js';
import { Trainer } from '../trainer.js';
import { writePeftFolder } from './adapterFolder.js';
import { adapterStart, peftOfCheckpoint, restartInit } from './checkpoint.js';
import type { AdapterStart, Checkpoint } from './checkpoint.js';
import { expectFree, writeFolderAtomic } from './folders.js';
import { withPauses, pause } from './pause.js';
import { RunFolder } from './runFolder.js';
import { loadText, textBatches } from './textData.js';
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

export interface FinetuneOptions extends TrainingOptions {
  /** The base model: a Hugging Face folder or a llama2.c file. */
  model: string;
  /** Keep the base in float32, or as it is stored. */
  dtype: 'f32' | 'storage';
  method: MethodName;
  rank: number;
  /** Null: the rank. */
  alpha: number | null;
  targets: string | readonly string[];
  rslora: boolean;
  dropout: number;
  form: 'auto' | 'residual' | 'offset';
  /** Train on completions only. */
  maskPrompt: boolean;
  /** Text to measure forgetting on. */
  forgetting: string | null;
  /** Tokens of it at most. */
  forgettingTokens: number;
  /** Measure the drift at the end, which takes the SVDs of the targets again. */
  drift: boolean;
}

/** Defaults: the paper's targets and optimiser at a small rank. `model`, `data` have none. */
export const finetuneDefaults: Omit<FinetuneOptions, 'model' | 'data'> = {
  tokenizer: null,
  valid: null,
  validFraction: 0.02,
  maxLength: null,
  pack: false,
  lr: 3e-4,
  schedule: 'linear',
  warmup: 0.03,
  weightDecay: 0,
  betas: [0.9, 0.999],
  clip: 1,
  steps: null,
  epochs: 1,
  batch: 16,
  accumulate: 1,
  evalEvery: null,
  saveEvery: 100,
  seed: 0,
  dtype: 'f32',
  method: 'milora',
  rank: 8,
  alpha: null,
  targets: ['q_proj', 'k_proj', 'v_proj', 'up_proj', 'down_proj'],
  rslora: false,
  dropout: 0,
  form: 'auto',
  maskPrompt: true,
  forgetting: null,
  forgettingTokens: 8192,
  drift: true,
};

/** A preset as options, for one method; methods that the paper does not compare take MiLoRA's alpha. */
export function presetOptions(name: PresetName, method: MethodName): Partial<FinetuneOptions> {
  const preset = presets[name];
  const alphas: Readonly<Record<PaperMethod, number>> = preset.alpha;
  return {
    rank: preset.rank,
    alpha: method in alphas ? alphas[method as PaperMethod] : alphas.milora,
    dropout: preset.dropout,
    targets: preset.targetModules,
    lr: preset.learningRate,
    betas: preset.betas,
    weightDecay: preset.weightDecay,
    schedule: preset.schedule,
    warmup: 'steps' in preset.warmup ? preset.warmup.steps : preset.warmup.ratio,
    batch: preset.batchSize,
    epochs: preset.epochs,
  };
}

/**
 * Finetunes into the new run folder `out`.
 *
 * @throws MiloraError and the other packages' errors for bad options, files, models and data, before anything is written
 *
 * @example
 * await finetune({ ...finetuneDefaults, model: 'models/SmolLM2-135M', data: 'train.jsonl' }, 'runs/first');
 */
export async function finetune(options: FinetuneOptions, out: string, hooks: RunHooks = {}): Promise<RunResult> {
  await expectFree(out, `give another folder with --out, or go on with --resume ${out}`);
  return runFinetune(options, hooks, async (work, data, resolved) => {
    const fingerprints = await fingerprintModel(work.model);
    await work.inject(methods[options.method]);
    const provenance = provenanceOf(work.adapter, options.method, { name: options.model, fingerprints });
    const start = await adapterStart(work.adapter, provenance);
    const trainer = work.trainer();
    const first: Checkpoint = { trainer: await trainer.state(), start };
    const backend = work.model.backend.name;
    const folder = await RunFolder.create(out, { kind: 'finetune', backend, options: { ...resolved }, data }, first);
    return { folder, trainer, start, resumed: false };
  });
}

/** Files that may have moved since a run began; what they hold is checked. */
export type MovedFiles = Partial<Pick<FinetuneOptions, 'model' | 'tokenizer' | 'data' | 'valid' | 'forgetting'>>;

/**
 * Goes on with a run from its last checkpoint; losses and weights are those of a run that never stopped, to the bit.
 *
 * @throws MiloraError `run-folder`, `wrong-base`, `wrong-data` and as `finetune`
 */
export async function resumeFinetune(dir: string, moved: MovedFiles = {}, hooks: RunHooks = {}): Promise<RunResult> {
  const folder = await RunFolder.open(dir);
  if (folder.config.kind !== 'finetune') {
    throw new MiloraError(
      'run-folder',
      `${dir}: expected a finetuning run, got a ${folder.config.kind} run; use its command`,
    );
  }
  const checkpoint = await folder.last();
  const { start } = checkpoint;
  if (!start) throw new MiloraError('checkpoint', `${dir}: expected a checkpoint with an adapter, got one without`);
  const options = { ...(folder.config.options as unknown as FinetuneOptions), ...moved };
  return runFinetune(options, hooks, async (work, data) => {
    expectSameData(folder, data);
    checkBase(start.provenance.base, await fingerprintModel(work.model), options.model);
    await work.inject(restartInit({ ...checkpoint, start }));
    const trainer = work.trainer();
    trainer.load(checkpoint.trainer);
    await folder.rewind(checkpoint.trainer.step);
    return { folder, trainer, start, resumed: true };
  });
}

/** A model with its adapter in the making. */
interface Work {
  model: LlamaForCausalLM;
  adapter: Adapter;
  inject(init: (typeof methods)[MethodName]): Promise<void>;
  trainer(): Trainer;
}

interface Begun {
  folder: RunFolder;
  trainer: Trainer;
  start: AdapterStart;
  resumed: boolean;
}

async function runFinetune(
  given: FinetuneOptions,
  hooks: RunHooks,
  begin: (work: Work, data: string, resolved: FinetuneOptions) => Promise<Begun>,
): Promise<RunResult> {
  const options = absolutePaths(given);
  const model = await loadModel(options.model, { dtype: options.dtype });
  let adapter: Adapter | undefined;
  let trainer: Trainer | undefined;
  try {
    const tokenizer = await tokenizerFor(model.config, options.tokenizer, options.model);
    const data = await prepareData(options, model.config, tokenizer, options.maskPrompt, hooks);
    const { maxLength } = data.resolved;
    const other = options.forgetting
      ? await loadText(options.forgetting, tokenizer, { maxLength, tokens: options.forgettingTokens })
      : undefined;
    if (other) {
      const { report } = other;
      await hooks.onEvent?.({ type: 'data', role: 'forgetting', report, examples: report.examples });
    }
    const parameters = [...model.stateDict().values()].reduce((n, tensor) => n + tensor.size, 0);
    const work: Work = {
      model,
      get adapter() {
        return adapter!;
      },
      async inject(init) {
        let cacheError: unknown;
        adapter = await inject(model, init, adapterConfig(options), {
          onProgress: async (progress) => {
            await hooks.onEvent?.({ type: 'init', ...progress });
            await pause();
          },
          onCacheError: (error) => (cacheError = error),
          ...(hooks.signal && { signal: hooks.signal }),
          ...(hooks.cache && { cache: hooks.cache }),
        });
        await reportInit(adapter, cacheError, hooks);
      },
      trainer: () => new Trainer(model, data.batches, trainerOptions(options, data, model, hooks.signal)),
    };
    const begun = await begin(work, data.fingerprint, {
      ...options,
      ...data.resolved,
      alpha: options.alpha ?? options.rank,
    });
    const { folder, start } = begun;
    trainer = begun.trainer;

    const { steps } = data.resolved;
    const trainable = work.adapter.trainableCount;
    await hooks.onEvent?.({
      type: 'start',
      step: trainer.step,
      steps,
      out: folder.path,
      trainable,
      parameters,
      resumed: begun.resumed,
    });
    const active = trainer;
    const snapshot = async (): Promise<Checkpoint> => ({ trainer: await active.state(), start });
    const finished = await trainInto(folder, active, snapshot, { saveEvery: options.saveEvery, steps }, hooks);
    if (!finished) return { out: folder.path };

    const resultStep = await takeBest(folder, active);
    const peft = peftOfCheckpoint({ trainer: await active.state(), start });
    await writeFolderAtomic(folder.result, (temporary) => writePeftFolder(temporary, peft));
    const text = other && textBatches(other.examples, options.forgettingTokens, model.config.vocabSize);
    const summary: RunSummary = {
      type: 'summary',
      ...(await measured(folder)),
      resultStep,
      forgetting: text ? await forgetting(model, work.adapter, withPauses(text.batches())) : null,
      drift: options.drift ? await largestDrift(work.adapter) : null,
      trainable,
      parameters,
      result: folder.result,
    };
    await folder.append(summary);
    await hooks.onEvent?.(summary);
    return { out: folder.path, summary };
  } finally {
    trainer?.dispose();
    adapter?.unload();
    model.dispose();
  }
}

function absolutePaths(options: FinetuneOptions): FinetuneOptions {
  const full = (path: string | null): string | null => (path === null ? null : resolve(path));
  return {
    ...options,
    model: resolve(options.model),
    data: resolve(options.data),
    tokenizer: full(options.tokenizer),
    valid: full(options.valid),
    forgetting: full(options.forgetting),
  };
}

function adapterConfig(options: FinetuneOptions): Parameters<typeof inject>[2] {
  const { rank, alpha, targets, rslora, dropout, form, seed } = options;
  return { rank, alpha: alpha ?? rank, targetModules: targets, useRslora: rslora, dropout, form, seed };
}

/** Says what is no error but should be known of an adapter's start. */
async function reportInit(adapter: Adapter, cacheError: unknown, hooks: RunHooks): Promise<void> {
  if (cacheError !== undefined) {
    const { message } = cacheError as Error;
    await hooks.onEvent?.({ type: 'warning', message: `decompositions are not kept for other runs: ${message}` });
  }
  const having = (verdict: Certificate['verdict']): string[] =>
    [...adapter.certificates].filter(([, certificate]) => certificate.verdict === verdict).map(([path]) => path);
  const [sensitive, tied] = [having('sensitive'), having('tied')];
  if (sensitive.length + tied.length > 0) await hooks.onEvent?.({ type: 'uncertain', sensitive, tied });
}

async function largestDrift(adapter: Adapter): Promise<RunSummary['drift']> {
  const drifts = [...(await subspaceDrift(adapter)).values()];
  if (drifts.length === 0) return null;
  return { left: Math.max(...drifts.map((d) => d.left)), right: Math.max(...drifts.map((d) => d.right)) };
}
