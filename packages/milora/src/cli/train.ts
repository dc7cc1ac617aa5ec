/** `milora train`: finetuning with an adapter, and going on with it. */
import { MiloraError } from '../errors.js';
import { methods } from '../inits.js';
import type { MethodName } from '../inits.js';
import { finetune, finetuneDefaults, presetOptions, resumeFinetune } from '../node/finetune.js';
import type { FinetuneOptions, MovedFiles } from '../node/finetune.js';
import { RunFolder } from '../node/runFolder.js';
import type { RunHooks, RunResult } from '../node/training.js';
import { presets } from '../presets.js';
import type { PresetName } from '../presets.js';
import { commonOptions, required } from './options.js';
import type { OptionTable, Parsed } from './options.js';
import { jsonReporter, textReporter } from './report.js';
import { svdCacheOf, svdCacheOption } from './svdCache.js';
import { trainingOf, trainingTable } from './trainingOptions.js';
import { INTERRUPTED, backendOptions, jsonOption, onBackend } from './verb.js';
import type { Verb } from './verb.js';

const table = {
  model: {
    type: 'text',
    value: 'PATH',
    help: 'the base model: a Hugging Face folder or a llama2.c .bin file',
    group: 'Files',
  },
  data: { type: 'text', value: 'FILE', help: 'training data: .jsonl, .json or .txt' },
  out: { type: 'text', value: 'DIR', help: 'run folder to make (default runs/<method>-<time>)' },
  resume: { type: 'text', value: 'DIR', help: 'go on with the run in this folder, with its settings' },
  tokenizer: { type: 'text', value: 'PATH', help: "another tokenizer than the model folder's" },
  dtype: {
    type: 'choice',
    choices: ['f32', 'storage'],
    default: 'f32',
    help: 'hold the base in float32, or as it is stored',
  },
  method: {
    type: 'choice',
    choices: Object.keys(methods) as MethodName[],
    default: 'milora',
    help: 'how the adapter starts',
    group: 'Adapter',
  },
  preset: {
    type: 'choice',
    choices: Object.keys(presets) as PresetName[],
    help: "the MiLoRA paper's settings; options given here win",
  },
  rank: { type: 'whole', default: 8, min: 1, help: 'rank of the adapter' },
  alpha: { type: 'number', above: 0, help: 'the product is scaled by alpha / rank (default: the rank)' },
  targets: {
    type: 'text',
    value: 'LIST',
    default: 'q,k,v,up,down',
    help: 'layers by name, "all-linear", or a regular expression',
  },
  rslora: { type: 'flag', help: 'scale by alpha / √rank' },
  dropout: { type: 'number', default: 0, min: 0, below: 1, help: "share of the adapter's input that is dropped" },
  form: {
    type: 'choice',
    choices: ['auto', 'residual', 'offset'],
    default: 'auto',
    help: 'how the frozen part is kept; auto: offset for a 16-bit base',
  },
  ...trainingTable({
    lr: finetuneDefaults.lr,
    schedule: finetuneDefaults.schedule,
    warmup: finetuneDefaults.warmup,
    weightDecay: finetuneDefaults.weightDecay,
    batch: finetuneDefaults.batch,
    epochs: finetuneDefaults.epochs,
    clip: finetuneDefaults.clip,
    saveEvery: finetuneDefaults.saveEvery,
  }),
  pack: { type: 'flag', help: 'several examples in one row', group: 'Examples' },
  'no-mask-prompt': { type: 'flag', help: 'train on the prompts too' },
  'show-masking': { type: 'flag', help: 'show which tokens of the first examples are trained' },
  forgetting: { type: 'text', value: 'FILE', help: 'text to measure forgetting of the base on', group: 'Measures' },
  'forgetting-tokens': {
    type: 'whole',
    default: finetuneDefaults.forgettingTokens,
    min: 2,
    help: 'tokens of it at most',
  },
  'no-drift': { type: 'flag', help: 'leave out the subspace drift, which takes the SVDs again' },
  ...backendOptions,
  ...svdCacheOption,
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const train: Verb<typeof table> = {
  name: 'train',
  summary: 'finetunes a LLaMA with MiLoRA or a relative of it',
  usage: '--model PATH --data FILE [options]  |  --resume DIR',
  table,
  example: 'milora train --model models/SmolLM2-135M --data train.jsonl --rank 8 --epochs 1 --out runs/first',
  async run(parsed, io) {
    const { values } = parsed;
    const cache = svdCacheOf(values['svd-cache'], io);
    const hooks: RunHooks = {
      onEvent: values.json ? jsonReporter(io) : textReporter(io, (out) => `milora train --resume ${out}`),
      ...(io.signal && { signal: io.signal }),
      ...(values['show-masking'] && { showMasking: 3 }),
      ...(cache && { cache }),
    };
    return exitCode(
      values.resume === undefined ? await begin(parsed, hooks) : await goOn(parsed, values.resume, hooks),
    );
  },
};

export const exitCode = ({ summary }: RunResult): number => (summary ? 0 : INTERRUPTED);

async function begin({ values, given }: Parsed<typeof table>, hooks: RunHooks): Promise<RunResult> {
  const model = required('model', values.model, 'it is the base model to finetune');
  const data = required('data', values.data, 'it is the file with the examples');
  const options: FinetuneOptions = {
    model,
    data,
    ...finetuneDefaults,
    ...trainingOf(values),
    tokenizer: values.tokenizer ?? null,
    dtype: values.dtype,
    method: values.method,
    rank: values.rank,
    alpha: values.alpha ?? null,
    targets: parseTargets(values.targets),
    rslora: values.rslora,
    dropout: values.dropout,
    form: values.form,
    pack: values.pack,
    maskPrompt: !values['no-mask-prompt'],
    forgetting: values.forgetting ?? null,
    forgettingTokens: values['forgetting-tokens'],
    drift: !values['no-drift'],
    ...(values.preset && ungiven(presetOptions(values.preset, values.method), given)),
  };
  const out = values.out ?? `runs/${values.method}-${timestamp()}`;
  return onBackend(values, () => finetune(options, out, hooks));
}

/** The part of a preset that the command line does not overrule. */
function ungiven(preset: Partial<FinetuneOptions>, given: ReadonlySet<string>): Partial<FinetuneOptions> {
  const optionOf = (key: string): string => (key === 'weightDecay' ? 'weight-decay' : key);
  // alpha belongs to its rank: another rank takes its own
  const overruled = (key: string): boolean => given.has(optionOf(key)) || (key === 'alpha' && given.has('rank'));
  return Object.fromEntries(Object.entries(preset).filter(([key]) => !overruled(key)));
}

/** `q,k,up` and paths are names; everything else is PEFT's string: "all-linear" or a regular expression. */
export function parseTargets(text: string): string | string[] {
  const names = text.split(',').map((name) => name.trim());
  return text.toLowerCase() !== 'all-linear' && names.every((name) => /^[\w.]+$/.test(name)) ? names : text;
}

const timestamp = (): string => new Date().toISOString().slice(0, 19).replaceAll(/[-:]/g, '').replace('T', '-');

/** Options that make sense with --resume: files that have moved, the machine and the output. */
const RESUMABLE = [
  'resume',
  'model',
  'tokenizer',
  'data',
  'valid',
  'forgetting',
  'config',
  'backend',
  'threads',
  'svd-cache',
  'json',
  'debug',
];

export function expectResumable(given: ReadonlySet<string>): void {
  const settled = [...given].filter((name) => !RESUMABLE.includes(name));
  if (settled.length === 0) return;
  throw new MiloraError(
    'usage',
    `--resume: expected the run's own settings to go on, got ${settled.map((name) => `--${name}`).join(', ')}; leave them out`,
  );
}

/** The backend to resume on: that of the run, unless another is given. */
export async function resumeBackend<V extends { backend: string }>(
  dir: string,
  values: V,
  given: ReadonlySet<string>,
): Promise<V> {
  if (given.has('backend')) return values;
  return { ...values, backend: (await RunFolder.open(dir)).config.backend };
}

async function goOn({ values, given }: Parsed<typeof table>, dir: string, hooks: RunHooks): Promise<RunResult> {
  expectResumable(given);
  const moved: MovedFiles = {};
  for (const name of ['model', 'tokenizer', 'data', 'valid', 'forgetting'] as const) {
    const path = values[name];
    if (path !== undefined) moved[name] = path;
  }
  return onBackend(await resumeBackend(dir, values, given), () => resumeFinetune(dir, moved, hooks));
}
