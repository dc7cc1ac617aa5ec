/** `milora merge`: an adapter merged into its base, as a model folder. */
import { loadModel } from '@milora/llama/node';
import { stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { MiloraError } from '../errors.js';
import { PROVENANCE_FILE, loadPeftFolder } from '../node/adapterFolder.js';
import { exists, expectFree } from '../node/folders.js';
import { mergeToFolder } from '../node/modelFolder.js';
import { commonOptions, required } from './options.js';
import type { OptionTable } from './options.js';
import { backendOptions, jsonOption, onBackend, short } from './verb.js';
import type { Io, Verb } from './verb.js';

const table = {
  model: { type: 'text', value: 'PATH', help: 'the base model of the adapter', group: 'Files' },
  adapter: { type: 'text', value: 'DIR', help: 'adapter folder' },
  out: { type: 'text', value: 'DIR', help: 'model folder to write' },
  force: { type: 'flag', help: 'replace a model folder that is there' },
  dtype: { type: 'choice', choices: ['f32', 'bf16', 'f16'], default: 'f32', help: 'element type of the written model' },
  ...backendOptions,
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const merge: Verb<typeof table> = {
  name: 'merge',
  summary: 'merges an adapter into its base model, in float32, and checks the logits of what it wrote',
  usage: '--model PATH --adapter DIR --out DIR [options]',
  table,
  example: 'milora merge --model models/SmolLM2-135M --adapter runs/first/adapter --out models/mine',
  async run({ values }, io) {
    const path = required('model', values.model);
    const adapterDir = required('adapter', values.adapter);
    const out = required('out', values.out);
    await expectOutput(out, values.force, 'config.json', [path, adapterDir]);
    return onBackend(values, async () => {
      const model = await loadModel(path);
      try {
        const adapter = await loadPeftFolder(adapterDir, model);
        noteUnverified(io, adapterDir, await exists(join(adapterDir, PROVENANCE_FILE)));
        const isFolder = (await stat(path)).isDirectory();
        const report = await mergeToFolder(model, adapter, out, {
          dtype: values.dtype,
          ...(isFolder && { tokenizer: path }),
        });
        const { difference, largest, tokens, copied } = report;
        if (values.dtype !== 'f32') {
          io.stderr.write(
            `milora: warning: ${values.dtype} rounds the weights: it moved a logit by up to ${short(difference)} ` +
              `(largest logit ${short(largest)}). float32 keeps the adapter as trained.\n`,
          );
        }
        if (values.json) io.stdout.write(`${JSON.stringify({ type: 'merge', out, dtype: values.dtype, ...report })}\n`);
        else {
          io.stdout.write(
            `largest logit difference, adapter against merged model: ${difference.toExponential(2)} ` +
              `(${tokens} tokens, largest logit ${short(largest)})\n` +
              `wrote ${out} in ${values.dtype}${copied.length > 0 ? `, with ${copied.join(', ')}` : ''}\n`,
          );
        }
        return 0;
      } finally {
        model.dispose();
      }
    });
  },
};

/** Says that nothing ties an adapter to this base. */
export function noteUnverified(io: Io, adapter: string, hasProvenance: boolean): void {
  if (!hasProvenance)
    io.stderr.write(`milora: note: ${adapter} has no ${PROVENANCE_FILE}, so its base could not be checked\n`);
}

/**
 * Refuses an output folder with files in it; with `force` only one that is no output of this command (it lacks `mark`),
 * and one that is an input.
 */
export async function expectOutput(
  out: string,
  force: boolean,
  mark: string,
  inputs: readonly string[],
): Promise<void> {
  if (inputs.some((input) => resolve(input) === resolve(out))) {
    throw new MiloraError('output-exists', `${out}: expected another folder than those that are read, got the same`);
  }
  if (!force) return expectFree(out, 'give another folder with --out, or replace this one with --force');
  if (!(await exists(join(out, mark)))) await expectFree(out, `it has no ${mark}, so --force does not replace it`);
}
