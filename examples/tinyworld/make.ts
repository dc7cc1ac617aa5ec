/**
 * The command that writes the files of the tiny world (see `files.ts`) into a folder:
 *
 *   npm run tinyworld -- --out DIR [--seed 7] [--documents 500000] [--valid 2000] [--train 20000] [--test 500] [--context 256]
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { MAKE_DEFAULTS, makeTinyworld, type MakeOptions } from './files.js';

function main(): void {
  const { values } = parseArgs({
    options: {
      out: { type: 'string' },
      seed: { type: 'string' },
      documents: { type: 'string' },
      valid: { type: 'string' },
      train: { type: 'string' },
      test: { type: 'string' },
      context: { type: 'string' },
    },
  });
  const { out, ...given } = values;
  if (out === undefined) throw new Error('--out: expected a folder, got nothing');
  const options: { -readonly [key in keyof MakeOptions]: number } = { ...MAKE_DEFAULTS };
  for (const [name, value] of Object.entries(given)) {
    const number = Number(value);
    if (!Number.isSafeInteger(number) || number < 0) {
      throw new RangeError(`--${name}: expected a whole number ≥ 0, got ${value}`);
    }
    options[name as keyof MakeOptions] = number;
  }
  for (const { file, lines } of makeTinyworld(out, options)) console.log(`${join(out, file)}: ${lines} lines`);
}

try {
  main();
} catch (error) {
  console.error(`tinyworld: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
