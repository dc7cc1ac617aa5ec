/** `milora export`: an adapter as a PEFT folder, from a run's checkpoint or from another folder, at a lower rank if asked. */
import { compressPeft } from '../compress.js';
import { MiloraError } from '../errors.js';
import { readPeftFolder, writePeftFolder } from '../node/adapterFolder.js';
import type { PeftFolder } from '../node/adapterFolder.js';
import { peftOfCheckpoint } from '../node/checkpoint.js';
import { writeFolderAtomic } from '../node/folders.js';
import { RunFolder } from '../node/runFolder.js';
import { expectOutput } from './merge.js';
import { commonOptions, required } from './options.js';
import type { OptionTable, Values } from './options.js';
import { count, jsonOption } from './verb.js';
import type { Verb } from './verb.js';

const table = {
  run: { type: 'text', value: 'DIR', help: 'run folder to take the adapter from', group: 'Files' },
  checkpoint: {
    type: 'choice',
    choices: ['best', 'last'],
    help: 'which checkpoint of the run (default: best, if there is one)',
  },
  adapter: { type: 'text', value: 'DIR', help: 'or an adapter folder' },
  out: { type: 'text', value: 'DIR', help: 'adapter folder to write' },
  force: { type: 'flag', help: 'replace an adapter folder that is there' },
  rank: { type: 'whole', min: 1, help: 'compress to this rank and say the error (default: exact)' },
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const exportVerb: Verb<typeof table> = {
  name: 'export',
  summary: 'writes an adapter as a PEFT folder for the untouched base model',
  usage: '--run DIR | --adapter DIR --out DIR [options]',
  table,
  example: 'milora export --run runs/first --checkpoint last --out adapters/mine',
  async run({ values }, io) {
    const out = required('out', values.out);
    const { run, adapter, rank } = values;
    if ((run === undefined) === (adapter === undefined)) {
      throw new MiloraError(
        'usage',
        `--run, --adapter: expected one of the two, got ${run === undefined ? 'none' : 'both'}`,
      );
    }
    await expectOutput(
      out,
      values.force,
      'adapter_config.json',
      [run, adapter].filter((path) => path !== undefined),
    );
    const { step, ...folder } = await source(values);
    const compressed = rank === undefined ? undefined : compressPeft(folder, rank);
    const result: PeftFolder = { ...folder, ...compressed?.adapter };
    await writeFolderAtomic(out, (temporary) => writePeftFolder(temporary, result));
    const numbers = [...result.tensors.values()].reduce((n, { data }) => n + data.length, 0);
    const { rank: written } = result.config;
    if (values.json) {
      const record = { type: 'export', out, rank: written, numbers, step, error: compressed?.error ?? 0 };
      io.stdout.write(`${JSON.stringify(record)}\n`);
      return 0;
    }
    if (compressed)
      io.stdout.write(`compressed to rank ${written}: relative error ${compressed.error.toExponential(2)}\n`);
    io.stdout.write(
      `wrote ${out}: rank ${written}, ${count(numbers)} numbers${step === null ? '' : `, of step ${step}`}\n`,
    );
    return 0;
  },
};

async function source({
  run,
  adapter,
  checkpoint,
}: Values<typeof table>): Promise<PeftFolder & { step: number | null }> {
  if (adapter !== undefined) return { ...(await readPeftFolder(adapter)), step: null };
  const folder = await RunFolder.open(run!);
  const best = checkpoint === 'last' ? undefined : await folder.load('best');
  if (checkpoint === 'best' && !best) {
    throw new MiloraError(
      'checkpoint',
      `${run}: expected a best checkpoint, got none; the run had no validation, so take --checkpoint last`,
    );
  }
  const { trainer, start } = best ?? (await folder.last());
  if (!start)
    throw new MiloraError('checkpoint', `${run}: expected a run with an adapter, got one that trained a whole model`);
  return { ...peftOfCheckpoint({ trainer, start }), step: trainer.step };
}
