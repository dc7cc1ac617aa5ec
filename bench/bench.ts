/**
 * `npm run -s bench -- gemm train svd --json`: measures this engine. With --json one object per line on stdout,
 * `{suite, case, metric, value, unit, threads, backend}`; a table otherwise.
 */
import { parseArgs } from 'node:util';
import { decode } from './suites/decode.js';
import { gemm } from './suites/gemm.js';
import type { Result, SuiteOptions } from './suites/suite.js';
import { svd } from './suites/svd.js';
import { train } from './suites/train.js';

const SIZES = ['260K', '15M', '135M'] as const;

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      json: { type: 'boolean', default: false },
      threads: { type: 'string', default: '2' },
      seconds: { type: 'string', default: '3' },
      sizes: { type: 'string', default: '260K' },
    },
  });
  const sizes = values.sizes.split(',').map((size) => {
    const known = SIZES.find((name) => name === size);
    if (!known) throw new Error(`--sizes: expected ${SIZES.join(', ')}, got ${size}`);
    return known;
  });
  const suites: Record<string, (options: SuiteOptions) => Promise<void>> = {
    gemm,
    train: (options) => train(options, sizes),
    decode: (options) => decode(options, sizes),
    svd,
  };
  const show = ({ suite, case: of, metric, value, unit, threads, backend }: Result): string =>
    `${suite.padEnd(6)} ${of.padEnd(18)} ${metric.padEnd(11)} ${value.toPrecision(4).padStart(10)} ${unit} (${threads} threads, ${backend})`;
  const emit = (result: Result): void => console.log(values.json ? JSON.stringify(result) : show(result));
  for (const name of positionals.length > 0 ? positionals : Object.keys(suites)) {
    const suite = suites[name];
    if (!suite) throw new Error(`bench: expected suites of ${Object.keys(suites).join(', ')}, got ${name}`);
    await suite({ threads: Number(values.threads), seconds: Number(values.seconds), emit });
  }
}

process.stdout.on('error', () => process.exit(0)); // the reader of a pipe may leave early
main().catch((error: unknown) => {
  console.error((error as Error).message);
  process.exitCode = 1;
});
