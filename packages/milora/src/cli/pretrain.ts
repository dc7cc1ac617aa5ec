/** `milora pretrain`: a new model from a config.json and text. */
import { pretrain as runPretrain, pretrainDefaults, resumePretrain } from '../node/pretrain.js';
import type { PretrainOptions } from '../node/pretrain.js';
import type { RunHooks, RunResult } from '../node/training.js';
import { commonOptions, required } from './options.js';
import type { OptionTable, Parsed } from './options.js';
import { jsonReporter, textReporter } from './report.js';
import { exitCode, expectResumable, resumeBackend } from './train.js';
import { trainingOf, trainingTable } from './trainingOptions.js';
import { backendOptions, jsonOption, onBackend } from './verb.js';
import type { Verb } from './verb.js';

const table = {
  config: { type: 'text', value: 'FILE', help: 'config.json with the architecture', group: 'Files' },
  tokenizer: { type: 'text', value: 'PATH', help: 'folder with tokenizer.json; it is copied to the model' },
  data: { type: 'text', value: 'FILE', help: 'text: .txt, or .jsonl in any format that train reads' },
  out: { type: 'text', value: 'DIR', help: 'run folder to make; the model will be in its folder model' },
  resume: { type: 'text', value: 'DIR', help: 'go on with the run in this folder, with its settings' },
  ...trainingTable(pretrainDefaults),
  beta2: { type: 'number', default: 0.95, min: 0, below: 1, help: "decay of AdamW's second moment" },
  std: {
    type: 'number',
    default: pretrainDefaults.std,
    above: 0,
    help: 'deviation of the random weights',
    group: 'Model',
  },
  dtype: { type: 'choice', choices: ['f32', 'bf16', 'f16'], default: 'f32', help: 'element type of the written model' },
  ...backendOptions,
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const pretrain: Verb<typeof table> = {
  name: 'pretrain',
  summary: 'trains a new LLaMA from random weights on packed text',
  usage: '--config FILE --tokenizer PATH --data FILE --out DIR [options]  |  --resume DIR',
  table,
  example:
    'milora pretrain --config config.json --tokenizer models/tiny --data stories.txt --out runs/tiny --steps 2000',
  async run({ values, given }: Parsed<typeof table>, io) {
    const hooks: RunHooks = {
      onEvent: values.json ? jsonReporter(io) : textReporter(io, (out) => `milora pretrain --resume ${out}`),
      ...(io.signal && { signal: io.signal }),
    };
    if (values.resume === undefined) {
      const options: PretrainOptions = {
        ...pretrainDefaults,
        ...trainingOf(values),
        config: required('config', values.config, 'it is the config.json of the model to make'),
        tokenizer: required('tokenizer', values.tokenizer, 'it is a folder with tokenizer.json'),
        data: required('data', values.data, 'it is the file with the text'),
        betas: [pretrainDefaults.betas[0], values.beta2],
        std: values.std,
        dtype: values.dtype,
      };
      const out = required('out', values.out, 'it is the run folder to make');
      return exitCode(await onBackend(values, () => runPretrain(options, out, hooks)));
    }
    expectResumable(given);
    const dir = values.resume;
    const moved: Parameters<typeof resumePretrain>[1] = {};
    for (const name of ['config', 'tokenizer', 'data', 'valid'] as const) {
      const path = values[name];
      if (path !== undefined) moved[name] = path;
    }
    const resumed = (): Promise<RunResult> => resumePretrain(dir, moved, hooks);
    return exitCode(await onBackend(await resumeBackend(dir, values, given), resumed));
  },
};
