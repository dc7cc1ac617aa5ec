/**
 * `npm run -s bench -- limits gemm train --json`: measures this engine. With --json one object per line on stdout,
 * `{suite, case, metric, value, unit, threads, backend}`; a table otherwise. What was left out is said on stderr.
 */
import { parseArgs } from 'node:util';
import { INIT_SIZES, SIZES, configs } from './configs.js';
import type { InitSize, MatrixSize, Product, Size } from './configs.js';
import { attention } from './suites/attention.js';
import { decode } from './suites/decode.js';
import { gemm } from './suites/gemm.js';
import { limits } from './suites/limits.js';
import { requirePeers } from './suites/peers.js';
import { startup } from './suites/startup.js';
import { BACKENDS, METHODS, PEERS } from './suites/suite.js';
import type { Result, SuiteOptions } from './suites/suite.js';
import { svd } from './suites/svd.js';
import { train } from './suites/train.js';

/** In the order they run in: fractions of the limits need the limits first. */
const suites: Record<string, (options: SuiteOptions) => Promise<void>> = {
  limits,
  gemm,
  attention,
  train,
  decode,
  svd,
  startup,
};

const text = { type: 'string' } as const;
const flag = { type: 'boolean', default: false } as const;

/** The options of the command line and the suites it names. Throws on what cannot be. */
function parseBenchArgs(args: string[], print: (line: string) => void): { names: string[]; options: SuiteOptions } {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      json: flag,
      threads: { ...text, default: '2' },
      seconds: { ...text, default: '3' },
      limit: { ...text, default: '10' },
      backends: { ...text, default: 'wasm' },
      sizes: text,
      lengths: text,
      batches: text,
      shapes: text,
      method: text,
      checkpoint: flag,
      data: text,
      tokenizer: text,
      export: text,
      peers: flag,
      python: { ...text, default: 'python3' },
      'peer-limit': { ...text, default: '300' },
    },
  });
  const names = positionals.length > 0 ? Object.keys(suites).filter((name) => positionals.includes(name)) : Object.keys(suites); // prettier-ignore
  const unknown = positionals.find((name) => !suites[name]);
  if (unknown !== undefined) {
    throw new Error(`bench: expected suites of ${Object.keys(suites).join(', ')}, got ${unknown}`);
  }
  const positive = (option: 'threads' | 'seconds' | 'limit' | 'peer-limit'): number => number(option, values[option]);
  const numbers = (option: 'lengths' | 'batches'): number[] | undefined =>
    values[option]?.split(',').map((value) => whole(option, value));
  const shape = (value: string): Product => {
    const sizes = value.split('x').map((size) => whole('shapes', size));
    if (sizes.length !== 3) throw new Error(`--shapes: expected m×k×n such as 256x576x1536, got ${value}`);
    return sizes as Product;
  };
  const options: SuiteOptions = {
    threads: whole('threads', String(positive('threads'))),
    seconds: positive('seconds'),
    limit: positive('limit'),
    backends: values.backends.split(',').map((name) => oneOf('backends', BACKENDS, name)),
    ...parseSizes(values.sizes?.split(','), names),
    lengths: numbers('lengths'),
    batches: numbers('batches'),
    shapes: values.shapes?.split(',').map(shape) ?? configs.gemm,
    method: values.method === undefined ? undefined : oneOf('method', METHODS, values.method),
    checkpoint: values.checkpoint,
    data: values.data,
    tokenizer: values.tokenizer,
    exportTo: values.export,
    peers: values.peers,
    python: values.python,
    peerLimit: positive('peer-limit'),
    limits: undefined,
    emit: (result) => print(values.json ? json(result) : show(result)),
    warn: (message) => console.error(`bench: ${message}`),
    fail: (message) => {
      console.error(`bench: ${message}`);
      process.exitCode = 1;
    },
  };
  return { names, options };
}

/** Models for most suites; for svd matrices as well, and models for whose weights an adapter's start is computed. */
function parseSizes(
  values: string[] | undefined,
  names: readonly string[],
): Pick<SuiteOptions, 'sizes' | 'matrices' | 'inits'> {
  if (!values) return { sizes: undefined, matrices: undefined, inits: [] };
  const known = names.every((name) => name === 'svd') ? INIT_SIZES : SIZES;
  const [models, matrices]: [InitSize[], MatrixSize[]] = [[], []];
  for (const value of values) {
    if (names.includes('svd') && /^\d+(x\d+)?$/.test(value)) {
      const [rows, cols = rows] = value.split('x').map((side) => whole('sizes', side)) as [number, number?];
      matrices.push([rows, cols]);
    } else {
      models.push(oneOf('sizes', known, value, names.includes('svd') ? ' or matrices such as 1024' : ''));
    }
  }
  const sizes = models.filter((size): size is Size => size !== '1.1B');
  return { sizes: sizes.length > 0 ? sizes : undefined, matrices, inits: models };
}

function number(option: string, value: string): number {
  if (!(Number(value) > 0)) throw new Error(`--${option}: expected a positive number, got ${value}`);
  return Number(value);
}

function whole(option: string, value: string): number {
  if (!Number.isInteger(number(option, value))) throw new Error(`--${option}: expected whole numbers, got ${value}`);
  return Number(value);
}

function oneOf<T extends string>(option: string, known: readonly T[], name: string, also = ''): T {
  const found = known.find((candidate) => candidate === name);
  if (found === undefined) throw new Error(`--${option}: expected ${known.join(', ')}${also}, got ${name}`);
  return found;
}

function json({ suite, case: of, metric, value, unit, threads, backend }: Result): string {
  return JSON.stringify({ suite, case: of, metric, value, unit, threads, backend });
}

function show({ suite, case: of, metric, value, unit, threads, backend }: Result): string {
  const amount = unit === 'bytes' ? ([value / 2 ** 20, 'MiB'] as const) : ([value, unit] as const);
  return `${suite.padEnd(9)} ${of.padEnd(34)} ${metric.padEnd(15)} ${amount[0].toPrecision(4).padStart(10)} ${amount[1]} (${threads} threads, ${backend})`; // prettier-ignore
}

/** Runs the suites that the command line names, or all. */
export async function runBench(args: string[], print: (line: string) => void): Promise<void> {
  const { names, options } = parseBenchArgs(args, print);
  if (options.peers) {
    requirePeers(names.flatMap((name) => (Object.hasOwn(PEERS, name) ? PEERS[name as keyof typeof PEERS] : [])));
  }
  for (const name of names) await suites[name]!(options);
}

if (process.argv[1] && /bench\.(m?js|ts)$/.test(process.argv[1])) {
  process.stdout.on('error', () => process.exit(0)); // the reader of a pipe may leave early
  runBench(process.argv.slice(2), (line) => console.log(line)).catch((error: unknown) => {
    console.error(`bench: ${(error as Error).message}`);
    process.exitCode = 1;
  });
}
