/**
 * The `milora` command as a function: arguments and streams in, exit code out.
 *
 * 0: done · 1: a mistake that one line on stderr explains · 130: interrupted with Ctrl-C.
 */
import { CodedError } from '@milora/tensor';
import { nearest } from '../suggest.js';
import { evalVerb } from './eval.js';
import { exportVerb } from './export.js';
import { generate } from './generate.js';
import { inspect } from './inspect.js';
import { merge } from './merge.js';
import { helpText, parseOptions } from './options.js';
import { pretrain } from './pretrain.js';
import { train } from './train.js';
import { INTERRUPTED } from './verb.js';
import type { Io, Verb } from './verb.js';

export type { Io } from './verb.js';

/** All verbs, in the order of the help. */
export const verbs: readonly Verb[] = [
  train,
  evalVerb,
  generate,
  merge,
  exportVerb,
  inspect,
  pretrain,
] as readonly unknown[] as readonly Verb[];

/** Runs the command. Never throws. */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  const [name, ...args] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    io.stdout.write(overview());
    return 0;
  }
  const complain = (message: string): number => {
    io.stderr.write(`milora: ${message}\n`);
    return 1;
  };
  const verb = verbs.find((candidate) => candidate.name === name);
  if (!verb) {
    const names = verbs.map((candidate) => candidate.name);
    const near = nearest(name, names);
    return complain(
      `${name}: expected ${names.join(', ')}, got something else${near ? `; did you mean ${near}?` : '; see milora --help'}`,
    );
  }
  try {
    const parsed = parseOptions(verb.name, verb.table, args, verb.positionals ?? 0);
    if (parsed.values['help'] === true) {
      io.stdout.write(helpText(verb.name, verb));
      return 0;
    }
    return await verb.run(parsed, io);
  } catch (error) {
    if (io.signal?.aborted && (error as Error).name === 'AbortError') {
      io.stderr.write('milora: interrupted before the first step; nothing was written\n');
      return INTERRUPTED;
    }
    if (args.includes('--debug')) io.stderr.write(`${(error as Error).stack ?? String(error)}\n`);
    const message = error instanceof Error ? error.message : String(error);
    return complain(error instanceof CodedError ? message : `${message} (unexpected; --debug shows where)`);
  }
}

function overview(): string {
  const width = Math.max(...verbs.map(({ name }) => name.length));
  return [
    'milora: finetunes LLaMA models with MiLoRA, PiSSA and LoRA.',
    '',
    'usage: milora VERB [options]',
    '',
    ...verbs.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`),
    '',
    'milora VERB --help lists the options of a verb and shows an example.',
    '',
  ].join('\n');
}
