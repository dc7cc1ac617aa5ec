/** What a verb of the command is, and what all of them share: input, output and the choice of a backend. */
import { createWasmBackend, getBackend, setBackend } from '@milora/tensor';
import type { WasmBackend } from '@milora/tensor';
import type { OptionTable, Parsed } from './options.js';

/** Where a verb reads and writes. */
export interface Io {
  stdout: { write(text: string): unknown };
  stderr: { write(text: string): unknown };
  /** Whether stdout is a terminal, where one line may be written over again. */
  isTTY: boolean;
  /** Width of the terminal. */
  columns?: number;
  /** Lines that the user types. */
  lines?: () => AsyncIterable<string>;
  /** Ctrl-C. */
  signal?: AbortSignal;
  /** The user's folder for what may be lost. Without it nothing is kept that no option asks for. */
  cacheFolder?: string;
}

export interface Verb<T extends OptionTable = OptionTable> {
  name: string;
  /** One sentence without a full stop. */
  summary: string;
  /** What follows the verb in the usage line. */
  usage: string;
  table: T;
  /** A line that works. */
  example: string;
  /** Bare words that it takes. Default 0. */
  positionals?: number;
  /** Returns the exit code. */
  run(parsed: Parsed<T>, io: Io): Promise<number>;
}

/** Exit code after Ctrl-C. */
export const INTERRUPTED = 130;

export const backendOptions = {
  backend: {
    type: 'choice',
    choices: ['wasm', 'gpu/cpu', 'gpu/webasm', 'gpu/webgl2', 'gpu/webgpu'],
    default: 'wasm',
    help: 'what computes',
    group: 'Machine',
  },
  threads: { type: 'whole', min: 1, max: 64, help: 'threads of the wasm backend (default: all processors)' },
} as const satisfies OptionTable;

/** Runs `fn` on the backend that the options ask for, and puts the former one back. */
export async function onBackend<T>(
  values: { backend: (typeof backendOptions.backend.choices)[number]; threads: number | undefined },
  fn: () => Promise<T>,
): Promise<T> {
  if (values.backend === 'wasm' && values.threads === undefined) return fn();
  let wasm: WasmBackend | undefined;
  const before = getBackend();
  if (values.backend === 'wasm') {
    setBackend((wasm = createWasmBackend({ threads: values.threads! })));
  } else {
    const { createGpuBackend } = await import('@milora/tensor/gpu');
    setBackend(createGpuBackend(values.backend.slice('gpu/'.length) as Parameters<typeof createGpuBackend>[0]));
  }
  try {
    return await fn();
  } finally {
    setBackend(before);
    await wasm?.close();
  }
}

export const jsonOption = {
  json: { type: 'flag', help: 'write JSON objects, one a line, and nothing else to stdout' },
} as const satisfies OptionTable;

/** `1234567` → `1,234,567`. */
export const count = (n: number): string => n.toLocaleString('en-US');

/** A number with so many digits that count; plain where that is readable. */
export function short(x: number, digits = 4): string {
  if (x === 0) return '0';
  const size = Math.abs(x);
  return size >= 1e-3 && size < 1e6 ? String(Number(x.toPrecision(digits))) : x.toExponential(digits - 2);
}

/** Seconds as `4.2 s`, `3 min 05 s` or `2 h 07 min`. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  const two = (n: number): string => String(Math.floor(n)).padStart(2, '0');
  return minutes < 60
    ? `${minutes} min ${two(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}
