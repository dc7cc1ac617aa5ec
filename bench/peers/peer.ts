/**
 * What the processes of the peers share: the job they get, the case they read, and how they time and answer. A peer's packages
 * are looked up in bench/peers at run time, as they are not installed with the rest; the few types used are its own.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { MatrixSize, Product } from '../configs.js';
import { medianSeconds } from '../suites/timing.js';

interface Timing {
  threads: number;
  seconds: number;
}

export interface GemmTask extends Timing {
  suite: 'gemm';
  shapes: readonly Product[];
}

export interface TrainTask extends Timing {
  suite: 'train';
  /** What `exportCase` wrote. */
  folder: string;
  /** Hugging Face config.json fields. */
  model: Record<string, unknown>;
  batch: number;
  length: number;
  learningRate: number;
  /** Steps to take at least, for their losses. */
  steps: number;
}

export interface SvdTask extends Timing {
  suite: 'svd';
  /** float32, row by row. */
  file: string;
  size: MatrixSize;
  /** Which decompositions, for peers that have several. */
  methods: readonly string[];
  /** Triplets of those that find some only. */
  rank: number;
}

export type Task = GemmTask | TrainTask | SvdTask;

export type Job = Task & {
  /** The folder whose node_modules has the packages. */
  packages: string;
  /** A folder for files of its own. */
  scratch: string;
};

export interface GemmAnswer {
  shape: Product;
  seconds: number;
}

export interface TrainAnswer {
  seconds: number;
  /** Loss before each step. */
  losses: number[];
  rss: number;
}

export interface SvdAnswer {
  method: string;
  seconds: number;
  /** Largest ‖A v − s u‖ and ‖Aᵀu − s v‖ over s₁, of methods with vectors. */
  residual?: number;
}

export const job = JSON.parse(process.argv[2] ?? 'null') as Job;
export const require = createRequire(join(job.packages, 'package.json'));

/** The sizes of a model, in letters: C hidden, F intermediate, H and G heads, D head size, V vocabulary, L layers. */
export function sizesOf({ model }: TrainTask) {
  const size = (field: string): number => model[field] as number;
  const [C, H] = [size('hidden_size'), size('num_attention_heads')];
  return {
    ...{ C, H, D: C / H, F: size('intermediate_size'), G: size('num_key_value_heads'), V: size('vocab_size') },
    ...{ L: size('num_hidden_layers'), eps: size('rms_norm_eps'), theta: size('rope_theta') },
  };
}

export interface Weight {
  shape: number[];
  data: Float32Array;
}

/** Weights by their PEFT names, and token ids. */
export function readCase({ folder }: TrainTask): { weights: Map<string, Weight>; ids: Int32Array } {
  const { tensors } = JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8')) as { tensors: [string, number[]][] };
  const bytes = readFileSync(join(folder, 'weights.bin'));
  const weights = new Map<string, Weight>();
  let at = bytes.byteOffset;
  for (const [name, shape] of tensors) {
    const length = shape.reduce((a, b) => a * b, 1);
    weights.set(name, { shape, data: new Float32Array(bytes.buffer, at, length) });
    at += 4 * length;
  }
  const ids = readFileSync(join(folder, 'ids.bin'));
  return { weights, ids: new Int32Array(ids.buffer.slice(ids.byteOffset, ids.byteOffset + ids.byteLength)) };
}

/** Cosines and sines of the rotary embedding in Hugging Face's half-split layout, each `[length, dim]`. */
export function rotary(length: number, dim: number, theta: number): { cos: Float32Array; sin: Float32Array } {
  const angles = Float32Array.from({ length: length * dim }, (_, i) => {
    const pair = (i % dim) % (dim / 2);
    return Math.floor(i / dim) * theta ** ((-2 * pair) / dim);
  });
  return { cos: angles.map(Math.cos), sin: angles.map(Math.sin) };
}

export type Step = () => Promise<number> | number;

export interface Peer {
  /** A function that multiplies once and waits for it, and one that gives the product. */
  product(a: Weight, b: Weight): { run(): unknown; result(): Promise<ArrayLike<number>> };
  /** A finetuning step that gives the loss before it. */
  finetuning(job: TrainTask): Step;
}

const answer = (line: GemmAnswer | TrainAnswer | SvdAnswer): void => console.log(JSON.stringify(line));

async function time(task: () => unknown): Promise<number> {
  const start = performance.now();
  await task();
  return medianSeconds(task, job.seconds, (performance.now() - start) / 1000);
}

/** Triplets as rows: A v = s u. */
export interface PeerTriplets {
  u: ArrayLike<number>[];
  s: ArrayLike<number>;
  v: ArrayLike<number>[];
}

/** Does the svd suite's job with a library whose one way is a whole decomposition of rows of numbers, and ends the process. */
export async function serveSvd(decompose: (rows: number[][]) => () => PeerTriplets): Promise<never> {
  if (job.suite !== 'svd') throw new Error(`expected the suite svd, got ${job.suite}`);
  const { file, size } = job;
  const bytes = readFileSync(file);
  const data = new Float32Array(bytes.buffer, bytes.byteOffset, size[0] * size[1]);
  const rows = Array.from({ length: size[0] }, (_, i) => Array.from(data.subarray(i * size[1], (i + 1) * size[1])));
  const run = decompose(rows);
  let triplets: PeerTriplets | undefined;
  const seconds = await time(() => (triplets = run()));
  answer({ method: 'svd', seconds, residual: residualOf(rows, triplets!) });
  process.exit(0);
}

function residualOf(a: number[][], { u, s, v }: PeerTriplets): number {
  let [worst, largest] = [0, 0];
  for (const [i, ui] of u.entries()) {
    const vi = v[i]!;
    const back = new Float64Array(vi.length);
    let [left, right] = [0, 0];
    for (const [j, row] of a.entries()) {
      let dot = 0;
      for (let t = 0; t < row.length; t++) {
        dot += row[t]! * vi[t]!;
        back[t] = back[t]! + row[t]! * ui[j]!;
      }
      left += (dot - s[i]! * ui[j]!) ** 2;
    }
    for (let t = 0; t < back.length; t++) right += (back[t]! - s[i]! * vi[t]!) ** 2;
    worst = Math.max(worst, Math.sqrt(left), Math.sqrt(right));
    largest = Math.max(largest, s[i]!);
  }
  return worst / largest;
}

/** Does the job and ends the process. */
export async function serve(peer: Peer): Promise<never> {
  if (job.suite === 'gemm') {
    for (const shape of job.shapes) {
      const [m, k, n] = shape;
      const random = (rows: number, columns: number): Weight => ({
        shape: [rows, columns],
        data: Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5),
      });
      const [a, b] = [random(m, k), random(k, n)];
      const { run, result } = peer.product(a, b);
      const seconds = await time(run);
      expectProduct(a, b, await result());
      answer({ shape, seconds });
    }
  } else if (job.suite === 'train') {
    const step = peer.finetuning(job);
    const losses: number[] = [];
    const seconds = await time(async () => losses.push(await step()));
    while (losses.length < job.steps) losses.push(await step());
    answer({ seconds, losses, rss: process.memoryUsage().rss });
  }
  process.exit(0); // the libraries' workers would keep it alive
}

/** Looks at some elements of a product: a fast wrong one would be worth nothing. */
function expectProduct(a: Weight, b: Weight, c: ArrayLike<number>): void {
  const [[m, k], n] = [a.shape as [number, number], b.shape[1]!];
  for (let t = 0; t < 20; t++) {
    const [row, column] = [(31 * t) % m, (97 * t) % n];
    let dot = 0;
    for (let i = 0; i < k; i++) dot += a.data[row * k + i]! * b.data[i * n + column]!;
    const got = c[row * n + column]!;
    if (!(Math.abs(got - dot) < 1e-3)) throw new Error(`product: expected ${dot} at ${row}, ${column}, got ${got}`);
  }
}
