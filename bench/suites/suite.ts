/** What all benchmark suites share: their options, how a result is written, and how a case is timed. */
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { createWasmBackend } from '@milora/tensor';
import type { Backend } from '@milora/tensor';
import type { InitSize, MatrixSize, Product, Size } from '../configs.js';
import type { Limits } from './limits.js';
import { medianSeconds } from './timing.js';

export interface Result {
  suite: string;
  case: string;
  metric: string;
  value: number;
  unit: string;
  threads: number;
  /** What ran it: `wasm-relaxed`, `gpu/webasm`, `jax-js`, … */
  backend: string;
}

export const BACKENDS = ['wasm', 'gpu/webasm'] as const;
export type BackendName = (typeof BACKENDS)[number];

export const METHODS = ['milora', 'lora', 'pissa'] as const;
export type Method = (typeof METHODS)[number];

/** The packages that a suite compares with; for svd PyTorch comes on top, where there is one. */
export const PEERS = {
  gemm: ['jax-js', 'tfjs'],
  train: ['jax-js', 'tfjs'],
  svd: ['ml-matrix', 'svd-js'],
} as const;
export type PeerName = (typeof PEERS)[keyof typeof PEERS][number];

export interface SuiteOptions {
  threads: number;
  /** Seconds to measure each case for. */
  seconds: number;
  /** A case whose first call takes more seconds than this is left out. */
  limit: number;
  backends: readonly BackendName[];
  /** Sizes out of configs.json; undefined leaves the choice to the suite. */
  sizes: readonly Size[] | undefined;
  /** Of the svd suite: matrices instead of its own, and models whose start is decomposed. */
  matrices: readonly MatrixSize[] | undefined;
  inits: readonly InitSize[];
  /** Tokens in a row, and rows, instead of those in configs.json: every combination is a case. */
  lengths: readonly number[] | undefined;
  batches: readonly number[] | undefined;
  /** Products of the gemm suite. */
  shapes: readonly Product[];
  /** undefined: MiLoRA at 260K, LoRA above. */
  method: Method | undefined;
  /** Recompute activations in the backward pass. */
  checkpoint: boolean;
  /** Examples to train on instead of random tokens. */
  data: string | undefined;
  /** A tokenizer for them; undefined takes bytes as ids. */
  tokenizer: string | undefined;
  /** Folder that training cases are written to, for peers elsewhere. */
  exportTo: string | undefined;
  /** Whether other libraries are measured after each case. */
  peers: boolean;
  /** The Python in which PyTorch is looked for. */
  python: string;
  /** Seconds after which a peer is stopped. */
  peerLimit: number;
  /** What this machine can do at most, once the limits suite has run. */
  limits: Limits | undefined;
  emit(result: Result): void;
  /** Says what was left out. */
  warn(message: string): void;
  /** Says what went wrong; the run goes on and ends with exit status 1. */
  fail(message: string): void;
}

export interface OpenBackend {
  backend: Backend;
  /** Backend and build, as it stands in the results. */
  label: string;
  threads: number;
  close(): Promise<void>;
}

/** Resident bytes of this process, after the wasm memory of cases before this one was freed. */
export async function residentBytes(): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  // strays of a finished case hold its memory until their finalizers have run
  for (let i = 0; i < 3; i++) {
    collect();
    await setImmediate();
  }
  return process.memoryUsage().rss;
}

/** Starts a backend; `gpu/webasm` runs on the calling thread only. */
export async function openBackend(name: BackendName, threads: number): Promise<OpenBackend> {
  if (name === 'wasm') {
    const backend = createWasmBackend({ threads });
    await backend.ready();
    return { backend, label: `${backend.name}-${backend.build}`, threads, close: () => backend.close() };
  }
  const { createGpuBackend } = await import('@milora/tensor/gpu');
  const backend = createGpuBackend('webasm');
  return { backend, label: backend.name, threads: 1, close: () => Promise.resolve() };
}

/**
 * Times the cases of one backend, and leaves out, aloud, those that do not end in time: a call cannot be interrupted,
 * so a case is not even begun when the fastest of the cases before it says that it would take too long.
 */
export class Timer {
  private secondsPerWork = Infinity;

  constructor(
    private readonly options: Pick<SuiteOptions, 'seconds' | 'limit' | 'warn'>,
    private readonly name: string,
  ) {}

  /** Whether a case of so much work (in any unit, the same for all) may begin. */
  fits(of: string, work: number): boolean {
    const { limit } = this.options;
    const guess = work * this.secondsPerWork;
    if (guess === Infinity || guess <= limit) return true;
    this.skip(of, `about ${guess.toFixed(0)} s from the cases before it`);
    return false;
  }

  /** Median seconds of one call after warming up; undefined when the first call took too long. */
  async median(of: string, work: number, task: () => unknown): Promise<number | undefined> {
    const start = performance.now();
    await task();
    const first = (performance.now() - start) / 1000;
    if (first > this.options.limit) {
      this.secondsPerWork = Math.min(this.secondsPerWork, first / work);
      this.skip(of, `${first.toFixed(1)} s`);
      return undefined;
    }
    const median = await medianSeconds(task, this.options.seconds, first);
    this.secondsPerWork = Math.min(this.secondsPerWork, median / work);
    return median;
  }

  private skip(of: string, got: string): void {
    const { limit, warn } = this.options;
    warn(`${of} on ${this.name}: left out: expected a call within ${limit} s, got ${got}. Raise --limit.`);
  }
}
