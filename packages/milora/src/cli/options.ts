/**
 * Options of the command's verbs: one table per verb, from which parsing, checking and `--help` all follow.
 */
import { parseArgs } from 'node:util';
import { MiloraError } from '../errors.js';
import { nearest } from '../suggest.js';

interface Described {
  /** One sentence for the help, without a full stop. */
  help: string;
  /** Heading in the help; the last one given goes on. */
  group?: string;
}

export type OptionSpec = Described &
  (
    | { type: 'flag' }
    | { type: 'text'; value: string; default?: string }
    | { type: 'choice'; choices: readonly string[]; default?: string }
    | { type: 'number'; value?: string; default?: number; min?: number; max?: number; above?: number; below?: number }
    | { type: 'whole'; value?: string; default?: number; min?: number; max?: number }
  );

export type OptionTable = Readonly<Record<string, OptionSpec>>;

type ValueOf<S> = S extends { type: 'flag' }
  ? boolean
  : S extends { type: 'text' }
    ? string
    : S extends { type: 'choice'; choices: readonly (infer C)[] }
      ? C
      : number;

/** Values of a table's options; undefined where there is neither a value nor a default. */
export type Values<T extends OptionTable> = {
  [K in keyof T]: T[K] extends { type: 'flag' } | { default: string | number }
    ? ValueOf<T[K]>
    : ValueOf<T[K]> | undefined;
};

export interface Parsed<T extends OptionTable> {
  values: Values<T>;
  /** Options that were given, rather than left at their defaults. */
  given: ReadonlySet<string>;
  positionals: string[];
}

const fail = (message: string): never => {
  throw new MiloraError('usage', message);
};

/** Options that every verb has. */
export const commonOptions = {
  help: { type: 'flag', help: 'show this help', group: 'Other' },
  debug: { type: 'flag', help: 'show the stack of an error' },
} as const satisfies OptionTable;

/** How the verbs that only read a model hold its weights. */
export const weightOptions = {
  dtype: {
    type: 'choice',
    choices: ['f32', 'bf16', 'int8', 'storage'],
    default: 'f32',
    help: 'hold the matrices in float32, bfloat16, 8 bits with a scale per row, or as they are stored',
  },
} as const satisfies OptionTable;

/**
 * Reads the arguments after the verb.
 * @throws MiloraError `usage`: an unknown option (with the nearest right one), a missing or bad value
 */
export function parseOptions<T extends OptionTable>(
  verb: string,
  table: T,
  args: readonly string[],
  mostPositionals: number,
): Parsed<T> {
  const options = Object.fromEntries(
    Object.entries(table).map(([name, { type }]) => [
      name,
      { type: type === 'flag' ? ('boolean' as const) : ('string' as const) },
    ]),
  );
  const { tokens, positionals } = parseArgs({
    args: args.map((arg) => (arg === '-h' ? '--help' : arg)),
    options,
    strict: false,
    allowPositionals: true,
    tokens: true,
  });
  const values: Record<string, unknown> = {};
  for (const [name, spec] of Object.entries(table)) {
    values[name] = spec.type === 'flag' ? false : spec.default;
  }
  const given = new Set<string>();
  for (const token of tokens) {
    if (token.kind !== 'option') continue;
    const spec = Object.hasOwn(table, token.name) ? table[token.name] : undefined;
    if (!spec) return fail(unknownOption(verb, token.rawName, table));
    values[token.name] = valueOf(token.rawName, spec, token.value, token.inlineValue === true);
    given.add(token.name);
  }
  if (positionals.length > mostPositionals && values['help'] !== true) {
    fail(
      `${positionals[mostPositionals]!}: expected an option of milora ${verb}, got a bare word; see milora ${verb} --help`,
    );
  }
  return { values: values as Values<T>, given, positionals };
}

function unknownOption(verb: string, name: string, table: OptionTable): string {
  const near = nearest(
    name,
    Object.keys(table).map((known) => `--${known}`),
  );
  const hint = near === undefined ? `see milora ${verb} --help` : `did you mean ${near}?`;
  return `${name}: expected an option of milora ${verb}, got an unknown one; ${hint}`;
}

function valueOf(name: string, spec: OptionSpec, value: string | undefined, inline: boolean): unknown {
  if (spec.type === 'flag') {
    if (value !== undefined) fail(`${name}: expected no value, got ${JSON.stringify(value)}`);
    return true;
  }
  if (value === undefined || (!inline && value.startsWith('--'))) {
    return fail(`${name}: expected a value (${placeholder(spec)}), got none`);
  }
  switch (spec.type) {
    case 'text':
      return value;
    case 'choice': {
      if (spec.choices.includes(value)) return value;
      const near = nearest(value, spec.choices);
      const hint = near === undefined ? '' : `; did you mean ${near}?`;
      return fail(`${name}: expected ${spec.choices.join(', ')}, got ${JSON.stringify(value)}${hint}`);
    }
    default:
      return numberOf(name, spec, value);
  }
}

function numberOf(name: string, spec: OptionSpec & { type: 'number' | 'whole' }, value: string): number {
  const { min, max } = spec;
  const [above, below] = spec.type === 'number' ? [spec.above, spec.below] : [undefined, undefined];
  const number = value.trim() === '' ? NaN : Number(value);
  const holds =
    (spec.type === 'whole' ? Number.isSafeInteger(number) : Number.isFinite(number)) &&
    !(number < (min ?? -Infinity)) &&
    !(number > (max ?? Infinity)) &&
    !(number <= (above ?? -Infinity)) &&
    !(number >= (below ?? Infinity));
  if (holds) return number;
  const limits = [
    min !== undefined && `≥ ${min}`,
    above !== undefined && `above ${above}`,
    max !== undefined && `≤ ${max}`,
    below !== undefined && `below ${below}`,
  ].filter((limit) => limit !== false);
  const kind = spec.type === 'whole' ? 'a whole number' : 'a number';
  return fail(`${name}: expected ${[kind, ...limits].join(' ')}, got ${JSON.stringify(value)}`);
}

function placeholder(spec: OptionSpec): string {
  if (spec.type === 'flag') return '';
  if (spec.type === 'choice') return spec.choices.join('|');
  return spec.value ?? 'N';
}

/** The help text of a verb. */
export function helpText(
  verb: string,
  { summary, usage, table, example }: { summary: string; usage: string; table: OptionTable; example: string },
): string {
  const lines = [`milora ${verb}: ${summary}.`, '', `usage: milora ${verb} ${usage}`];
  const heads = Object.entries(table).map(
    ([name, spec]) => [`--${name} ${placeholder(spec)}`.trimEnd(), spec] as const,
  );
  const width = Math.min(30, Math.max(...heads.map(([head]) => head.length)));
  for (const [head, spec] of heads) {
    if (spec.group) lines.push('', `${spec.group}:`);
    const usual = spec.type === 'flag' || spec.default === undefined ? '' : ` (default ${spec.default})`;
    const text = `${spec.help}${usual}`;
    if (head.length > width) lines.push(`  ${head}`, `  ${' '.repeat(width)}  ${text}`);
    else lines.push(`  ${head.padEnd(width)}  ${text}`);
  }
  return [...lines, '', 'example:', `  ${example}`, ''].join('\n');
}

/** The value of an option that must be given. */
export function required<V>(name: string, value: V | undefined, wayOut = ''): V {
  return value ?? fail(`--${name}: expected a value, got none${wayOut && `; ${wayOut}`}`);
}
