/**
 * What this machine can do at most, for the roofline: multiply-adds of 128-bit vectors in registers (GFLOPS), and bytes
 * copied and read by a plain loop (GB/s), from memory and from a cache. One thread and `--threads` of them, each with
 * its own loop and data; the fastest of twenty windows, since a limit is no median.
 */
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { BLOCK, FMA_FLOPS, compileLoops } from './loops.js';
import type { SuiteOptions } from './suite.js';

const MiB = 2 ** 20;
/** Data of a thread that no cache holds, and data that some cache does. */
const [LARGE, SMALL] = [128 * MiB, 2 * MiB];
const WINDOWS = 20;

export interface Limits {
  /** GFLOPS of multiply-adds with all threads, or of one times their number if that is more. */
  gflops: number;
  /** GB/s of reading data of this many bytes, with all threads. */
  readGBs(bytes: number): number;
}

/** Body of a worker: warms up, waits for the others, and reports the units of its fastest window per second. */
const WORKER = `
  const { workerData, parentPort } = process.getBuiltinModule('node:worker_threads');
  const { module, loop, bytes, calls, seconds, threads, gate, windows } = workerData;
  const { memory, ...loops } = new WebAssembly.Instance(module).exports;
  if (bytes > 0) memory.grow(Math.ceil((2 * bytes) / 65536));
  new Uint8Array(memory.buffer).fill(1); // untouched pages are all the same page of zeros
  const blocks = bytes / ${BLOCK};
  const run = { fma: () => loops.fma(calls), copy: () => loops.copy(bytes, 0, blocks), read: () => loops.read(0, blocks) }[loop];
  const window = (limit) => {
    let n = 0;
    const start = performance.now();
    let now = start;
    for (; now - start < limit; now = performance.now(), n++) run();
    return (1000 * n) / (now - start);
  };
  window(600 * seconds);
  Atomics.add(gate, 0, 1);
  while (Atomics.load(gate, 0) < threads);
  parentPort.postMessage(Math.max(...Array.from({ length: windows }, () => window((1000 * seconds) / windows))));
`;

type Loop = 'fma' | 'copy' | 'read';

/** Operations or bytes per second of all threads, in units of 10⁹. */
async function rate(module: WebAssembly.Module, loop: Loop, bytes: number, threads: number, seconds: number) {
  const gate = new Int32Array(new SharedArrayBuffer(4));
  const calls = 20_000;
  const workerData = { module, loop, bytes, calls, seconds, threads, gate, windows: WINDOWS };
  const one = (): Promise<number> =>
    new Promise((resolve, reject) => {
      new Worker(WORKER, { eval: true, workerData }).once('message', resolve).once('error', reject);
    });
  const callsPerSecond = (await Promise.all(Array.from({ length: threads }, one))).reduce((a, b) => a + b);
  const perCall = loop === 'fma' ? calls * FMA_FLOPS : bytes * (loop === 'copy' ? 2 : 1);
  return (callsPerSecond * perCall) / 1e9;
}

export async function limits(options: SuiteOptions): Promise<void> {
  const { module, fused } = compileLoops();
  const backend = fused ? 'wasm-relaxed' : 'wasm-strict';
  let one = 0;
  for (const threads of new Set([1, options.threads])) {
    const measure = async (loop: Loop, bytes = 0): Promise<number> => {
      const value = await rate(module, loop, bytes, threads, Math.min(0.5, options.seconds));
      const of = loop === 'fma' ? 'multiply-add' : `${loop} ${bytes / MiB} MiB`;
      const unit = loop === 'fma' ? 'GFLOPS' : 'GB/s';
      options.emit({ suite: 'limits', case: of, metric: 'throughput', value, unit, threads, backend });
      return value;
    };
    const together = await measure('fma');
    if (threads === 1) one = together;
    // who else uses the machine would lower the limit
    const gflops = threads <= availableParallelism() ? Math.max(together, threads * one) : together;
    await measure('copy', LARGE);
    const memory = await measure('read', LARGE);
    const cache = await measure('read', SMALL);
    options.limits = { gflops, readGBs: (bytes) => (bytes > 2 * threads * SMALL ? memory : cache) };
  }
}
