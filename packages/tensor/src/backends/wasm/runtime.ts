/**
 * The WebAssembly instance, its shared memory and its threads.
 *
 * Main thread and workers run the same module over one memory. A kernel call writes its arguments into the control block
 * and enters `run`, which forks to the workers and joins them inside WebAssembly (see assembly/index.ts). Workers spin
 * for a moment after each job, then sleep, and never keep a process alive.
 */
import { TensorError } from '../../errors.js';
import { Allocator } from './allocator.js';
import { relaxed, strict } from './binary.js';
import type { Command, Recorder } from './recorder.js';

export interface WasmOptions {
  /** Threads in all, the caller's included. Default: the machine's processors, at most 16. */
  threads?: number;
  /** `auto` takes fused multiply-add where the engine has it. */
  build?: 'auto' | 'relaxed' | 'strict';
}

interface Exports {
  run(job: number, tasks: number, threads: number): void;
  replay(list: number, count: number, threads: number): void;
  worker(): void;
  setup(): void;
  productScratch(): number;
  denseScratch(): number;
  gemvScratch(m: number, k: number): number;
  attentionScratch(keys: number, headDim: number): number;
  attentionGradScratch(keys: number, headDim: number, block: number): number;
}

// addresses of assembly/control.ts
const READY = 256;
const SCRATCH = 328;
const SCRATCH_BYTES = 332;
const MAY_WAIT = 336;
const SPINS = 340;
const ARGS = 384;
const SLOTS = 48;
const COMMAND = 4 + SLOTS; // of a recording, in words: see assembly/index.ts
const HEAP = 8192;

const PAGE = 65536;
const INITIAL_PAGES = 256;
const MAXIMUM_PAGES = 65536;
const SPIN_ROUNDS = 30_000; // some 30 µs: longer than the gap between two kernels of a training step
const AWAKE = 8;
const MAX_THREADS = 64;

interface NodeWorker {
  unref(): void;
  terminate(): Promise<number>;
}
interface NodeProcess {
  getBuiltinModule?(name: string): unknown;
}
const node = (globalThis as { process?: NodeProcess }).process;
const nodeModule = <T>(name: string): T | undefined => node?.getBuiltinModule?.(name) as T | undefined;

export class WasmRuntime {
  readonly threads: number;
  readonly build: 'relaxed' | 'strict';
  readonly memory: WebAssembly.Memory;
  readonly allocator: Allocator;
  private readonly exports: Exports;
  private readonly workers: { terminate(): unknown }[] = [];
  /** Present while kernel calls are recorded. */
  recorder: Recorder | undefined;
  private closed = false;
  private scratchBytes = 0;
  private scratchAt: number | undefined;
  private readonly argInts: Int32Array;
  private readonly argFloats: Float32Array;
  private readonly argDoubles: Float64Array;
  private buffer: ArrayBufferLike;
  /** Views of the whole memory, renewed when it grows. */
  f32!: Float32Array;
  i32!: Int32Array;
  u8!: Uint8Array;

  constructor(options: WasmOptions = {}) {
    const { module, build } = compile(options.build ?? 'auto');
    this.build = build;
    const canShare = typeof SharedArrayBuffer !== 'undefined';
    this.threads = canShare ? checkThreads(options.threads ?? defaultThreads()) : 1;
    // the module declares a shared memory: without SharedArrayBuffer in scope the engine still makes one for us
    this.memory = new WebAssembly.Memory({ initial: INITIAL_PAGES, maximum: MAXIMUM_PAGES, shared: true });
    this.exports = new WebAssembly.Instance(module, { env: { memory: this.memory, abort } })
      .exports as unknown as Exports;
    this.buffer = this.memory.buffer;
    this.renewViews();
    this.argInts = new Int32Array(this.buffer, ARGS, SLOTS);
    this.argFloats = new Float32Array(this.buffer, ARGS, SLOTS);
    this.argDoubles = new Float64Array(this.buffer, ARGS, SLOTS / 2);
    this.allocator = new Allocator(HEAP, INITIAL_PAGES * PAGE, (end) => this.grow(end));
    this.i32[MAY_WAIT >> 2] = node ? 1 : 0;
    this.i32[SPINS >> 2] = SPIN_ROUNDS;
    this.exports.setup();
    this.ensureScratch(this.exports.productScratch());
    for (let i = 1; i < this.threads; i++) this.workers.push(startWorker(module, this.memory));
  }

  /** Bytes reserved from the system. */
  get reservedBytes(): number {
    return this.memory.buffer.byteLength;
  }

  /** Makes sure that every thread has the scratch of attention over `keys` keys. */
  ensureAttentionScratch(keys: number, headDim: number): void {
    this.ensureScratch(this.exports.attentionScratch(keys, headDim));
  }

  /** The same for its gradient, with blocks of `block` queries. */
  ensureAttentionGradScratch(keys: number, headDim: number, block: number): void {
    this.ensureScratch(this.exports.attentionGradScratch(keys, headDim, block));
  }

  /** The same for the product of `m` rows of `k` with weights. */
  ensureGemvScratch(m: number, k: number): void {
    this.ensureScratch(this.exports.gemvScratch(m, k));
  }

  /** The same for linear algebra in double precision. */
  ensureDenseScratch(): void {
    this.ensureScratch(this.exports.denseScratch());
  }

  /** Makes sure that every thread has `bytes` of scratch. */
  ensureScratch(bytes: number): void {
    if (bytes <= this.scratchBytes) return;
    const each = Allocator.rounded(bytes);
    // the new block first: if there is no room for it, the kernels still have the old one
    const at = this.allocator.alloc(each * this.threads);
    if (this.scratchAt !== undefined) this.allocator.free(this.scratchAt);
    this.scratchAt = at;
    this.scratchBytes = each;
    this.i32[SCRATCH >> 2] = this.scratchAt;
    this.i32[SCRATCH_BYTES >> 2] = each;
  }

  /** Integer or address argument. */
  int(slot: number, value: number): void {
    this.argInts[slot] = value;
  }

  float(slot: number, value: number): void {
    this.argFloats[slot] = value;
  }

  /** A double takes two slots, the first of which is even. */
  double(slot: number, value: number): void {
    this.argDoubles[slot / 2] = value;
  }

  /** Runs a job whose arguments are set. Small work stays on the calling thread: `grain` tasks are worth a thread. */
  run(job: number, tasks: number, grain: number): void {
    if (tasks <= 0) return;
    // the threads of a replay are awake: meeting them costs far less than a call on its own may
    const worth = this.recorder ? Math.ceil(grain / AWAKE) : grain;
    const shared = this.threads > 1 && tasks >= 2 * worth;
    this.recorder?.add(job, tasks, shared, this.argInts.slice());
    this.exports.run(job, tasks, shared && !this.closed ? this.threads : 1);
  }

  /** Writes commands where the threads can follow them; returns the address, which the caller frees. */
  writeCommands(commands: readonly Command[]): number {
    const at = this.allocator.alloc(commands.length * COMMAND * 4);
    commands.forEach(({ job, tasks, shared, meet, args }, i) => {
      const to = at / 4 + i * COMMAND;
      this.i32.set([job, tasks, shared ? 1 : 0, meet ? 1 : 0], to);
      this.i32.set(args, to + COMMAND - SLOTS);
    });
    return at;
  }

  /** Runs commands that `writeCommands` wrote. */
  replay(at: number, count: number): void {
    this.exports.replay(at, count, this.closed ? 1 : this.threads);
  }

  /** Waits until all workers have entered their loop: for measurements and tests. */
  async ready(): Promise<void> {
    while (Atomics.load(this.i32, READY >> 2) < this.workers.length) await new Promise((done) => setTimeout(done, 1));
  }

  /** Ends the workers. What runs afterwards runs on the calling thread. */
  async close(): Promise<void> {
    this.closed = true;
    await Promise.all(this.workers.map((worker) => worker.terminate()));
  }

  private grow(end: number): number | undefined {
    const now = this.memory.buffer.byteLength;
    if (end > MAXIMUM_PAGES * PAGE) return undefined;
    // by half at least, so that growing stays rare
    const wanted = Math.min(MAXIMUM_PAGES, Math.ceil(Math.max(end, now * 1.5) / PAGE));
    for (const pages of [wanted, Math.ceil(end / PAGE)]) {
      try {
        this.memory.grow(pages - now / PAGE);
        this.renewViews();
        return pages * PAGE;
      } catch {
        // try the smaller request, then give up
      }
    }
    return undefined;
  }

  private renewViews(): void {
    this.buffer = this.memory.buffer;
    this.f32 = new Float32Array(this.buffer);
    this.i32 = new Int32Array(this.buffer);
    this.u8 = new Uint8Array(this.buffer);
  }
}

function abort(): never {
  throw new TensorError('wasm-abort', 'wasm: expected a kernel to return, got an abort');
}

function defaultThreads(): number {
  const os = nodeModule<{ availableParallelism(): number }>('node:os');
  const cores = os?.availableParallelism() ?? globalThis.navigator?.hardwareConcurrency ?? 1;
  return Math.max(1, Math.min(16, cores));
}

function checkThreads(threads: number): number {
  if (!Number.isInteger(threads) || threads < 1 || threads > MAX_THREADS) {
    throw new TensorError('threads', `threads: expected a whole number from 1 to ${MAX_THREADS}, got ${threads}`);
  }
  return threads;
}

const modules = new Map<string, WebAssembly.Module | undefined>();

function moduleOf(build: 'relaxed' | 'strict'): WebAssembly.Module | undefined {
  if (!modules.has(build)) {
    const bytes = Uint8Array.from(atob(build === 'relaxed' ? relaxed : strict), (c) => c.charCodeAt(0));
    if (build === 'relaxed' && !WebAssembly.validate(bytes)) {
      // Node 20 has relaxed SIMD behind a flag that may be set before the module is compiled
      nodeModule<{ setFlagsFromString(flag: string): void }>('node:v8')?.setFlagsFromString(
        '--experimental-wasm-relaxed-simd',
      );
    }
    modules.set(build, WebAssembly.validate(bytes) ? new WebAssembly.Module(bytes) : undefined);
  }
  return modules.get(build);
}

function compile(build: 'auto' | 'relaxed' | 'strict'): { module: WebAssembly.Module; build: 'relaxed' | 'strict' } {
  const order = build === 'auto' ? (['relaxed', 'strict'] as const) : [build];
  for (const name of order) {
    const module = moduleOf(name);
    if (module) return { module, build: name };
  }
  throw new TensorError(
    'backend-unavailable',
    `wasm: expected an engine with WebAssembly SIMD and threads${build === 'relaxed' ? ' and relaxed SIMD' : ''}, ` +
      "got one without. Use Node 20 or later, or createGpuBackend('cpu').",
  );
}

const BODY = 'new WebAssembly.Instance(data.module, { env: { memory: data.memory, abort() {} } }).exports.worker();';

function startWorker(module: WebAssembly.Module, memory: WebAssembly.Memory): { terminate(): unknown } {
  const data = { module, memory };
  const threads = nodeModule<{ Worker: new (code: string, options: object) => NodeWorker }>('node:worker_threads');
  if (threads) {
    const worker = new threads.Worker(
      `const data = process.getBuiltinModule('node:worker_threads').workerData; ${BODY}`,
      {
        eval: true,
        workerData: data,
      },
    );
    worker.unref();
    return worker;
  }
  const url = URL.createObjectURL(new Blob([`onmessage = ({ data }) => { ${BODY} }`], { type: 'text/javascript' }));
  const worker = new Worker(url);
  worker.postMessage(data);
  return worker;
}
