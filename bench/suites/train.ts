/**
 * One finetuning step on random weights: tokens per second without padding, peak bytes of tensors, bytes of wasm memory
 * and of the process. The batch is one fixed batch of random tokens, as the peers have it, or examples of a data file.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Batch } from 'milora';
import { configs } from '../configs.js';
import type { Size } from '../configs.js';
import { exportCase } from './exported.js';
import { Finetuning, LEARNING_RATE, configOf, randomTokens } from './finetuning.js';
import type { Labelled } from './finetuning.js';
import { ratio, trainPeer } from './peers.js';
import { realBatch } from './realBatch.js';
import { fraction, stepFlops } from './roofline.js';
import { PEERS, Timer, openBackend, residentBytes } from './suite.js';
import type { BackendName, Method, OpenBackend, PeerName, Result, SuiteOptions } from './suite.js';

/** Losses that are handed to peers and compared with theirs. */
const COMPARED = 8;

interface TrainCase {
  name: string;
  size: Size;
  method: Method;
  batch: Labelled;
  /** Tokens of each sequence, and how many have a loss. */
  lengths: readonly number[];
  targets: number;
  withPeers: boolean;
}

export async function train(options: SuiteOptions): Promise<void> {
  const { data, checkpoint, peers, warn } = options;
  const withPeers = peers && data === undefined && !checkpoint;
  if (peers && !withPeers) warn('train: peers are left out: they know no packing, masks or checkpoints');
  for (const backend of options.backends) {
    const timer = new Timer(options, backend);
    for (const size of options.sizes ?? ['260K' as const]) {
      // a full SVD of large weights is the svd suite's business: the step is the same from LoRA's start
      const method = options.method ?? (size === '260K' ? 'milora' : 'lora');
      for (const [rows, length] of layoutsOf(size, options)) {
        const isUsual = !options.batches && !options.lengths;
        const name = [method, size, ...(isUsual ? [] : [`${rows}x${length}`]), ...(checkpoint ? ['checkpoint'] : [])];
        const of = { name: name.join(' '), size, method, withPeers: withPeers && backend === 'wasm' };
        if (data === undefined) {
          const lengths = Array.from({ length: rows }, () => length);
          const batch = randomTokens(rows, length, configOf(size, length).vocabSize);
          await measure({ ...of, batch, lengths, targets: rows * (length - 1) }, timer, backend, options);
        } else {
          await measureExamples(of, data, [rows, length], timer, backend, options);
        }
      }
    }
  }
}

/** Rows and tokens in a row; of a data file, examples and the most tokens of one. */
function layoutsOf(size: Size, { data, batches, lengths }: SuiteOptions): [number, number][] {
  const usual = data === undefined ? configs[size] : { batch: 8, seq: 512 };
  return (batches ?? [usual.batch]).flatMap((rows) =>
    (lengths ?? [usual.seq]).map((length): [number, number] => [rows, length]),
  );
}

/** The same examples padded and packed, which must have the same loss. */
async function measureExamples(
  of: Pick<TrainCase, 'name' | 'size' | 'method' | 'withPeers'>,
  path: string,
  [count, maxLength]: [number, number],
  timer: Timer,
  backend: BackendName,
  options: SuiteOptions,
): Promise<void> {
  const { vocabSize } = configOf(of.size, maxLength);
  const { padded, packed, lengths } = await realBatch(path, options.tokenizer, { count, maxLength, vocabSize });
  const run = (name: string, batch: Batch): Promise<number | undefined> =>
    measure({ ...of, name: `${of.name} ${name}`, batch, lengths, targets: batch.targets }, timer, backend, options);
  const [one, other] = [await run('padded', padded), await run('packed', packed)];
  if (one === undefined || other === undefined || Math.abs(one - other) <= 1e-5 * one) return;
  options.fail(`train ${of.name}: expected the loss ${one} of the padded batch for the packed one, got ${other}`);
}

/** Measures a case, and peers on the same case; returns the loss at the start. */
async function measure(
  of: TrainCase,
  timer: Timer,
  name: BackendName,
  options: SuiteOptions,
): Promise<number | undefined> {
  const longest = of.batch.length;
  const { checkpoint } = options;
  const { lengths, targets } = of;
  const flops = stepFlops(configOf(of.size, longest), { lengths, targets, rank: configs[of.size].rank, checkpoint });
  if (!timer.fits(`train ${of.name}`, flops)) return undefined;

  const peers = of.withPeers ? PEERS.train : [];
  const scratch = peers.length > 0 ? mkdtempSync(join(tmpdir(), 'milora-bench-')) : undefined;
  const root = name === 'wasm' ? (options.exportTo ?? scratch) : undefined;
  const folder = root === undefined ? undefined : join(root, of.name.replaceAll(' ', '-'));
  const opened = await openBackend(name, options.threads);
  try {
    const run = await Finetuning.start(of.size, of.method, opened.backend, { longest, checkpoint });
    // packed rows are our own business: what others read is the padded batch
    const finish = folder && !of.name.includes('packed') ? await exportCase(folder, run.model, of.batch) : undefined;
    opened.backend.resetPeak();
    const time = await timer.median(`train ${of.name}`, flops, () => run.step(of.batch));
    if (time === undefined) return run.losses[0];
    if (finish) {
      while (run.losses.length < COMPARED) await run.step(of.batch);
      finish({ config: of.size, losses: run.losses.slice(0, COMPARED) });
    }
    const result = await report(of, opened, time, options);
    if (options.limits && name === 'wasm') {
      const value = fraction(options.limits, flops, time);
      options.emit({ ...result, metric: 'fraction', value, unit: 'of the limit' });
    }
    await opened.close();
    for (const peer of peers) await compare(peer, of, folder!, run.losses, result, options);
    return run.losses[0];
  } finally {
    await opened.close();
    if (scratch !== undefined) rmSync(scratch, { recursive: true, force: true });
  }
}

async function report(
  of: TrainCase,
  { backend, label, threads }: OpenBackend,
  time: number,
  { emit }: SuiteOptions,
): Promise<Result> {
  const common = { suite: 'train', case: of.name, threads, backend: label };
  const tokens = of.lengths.reduce((a, b) => a + b, 0);
  const throughput = { ...common, metric: 'throughput', value: tokens / time, unit: 'tokens/s' };
  emit(throughput);
  const { peakBytes, reservedBytes } = backend.memory();
  emit({ ...common, metric: 'peak', value: peakBytes, unit: 'bytes' });
  emit({ ...common, metric: 'reserved', value: reservedBytes, unit: 'bytes' });
  emit({ ...common, metric: 'rss', value: await residentBytes(), unit: 'bytes' });
  return throughput;
}

async function compare(
  peer: PeerName,
  of: TrainCase,
  folder: string,
  losses: readonly number[],
  mine: Result,
  options: SuiteOptions,
): Promise<void> {
  const { batch, length } = of.batch;
  const { model } = configs[of.size];
  const answer = await trainPeer(
    peer,
    { folder, model, batch, length, learningRate: LEARNING_RATE, steps: COMPARED },
    options,
  );
  if (!answer) return;
  const common = { suite: 'train', case: of.name, threads: options.threads, backend: peer };
  const value = (batch * length) / answer.seconds;
  const theirs = { ...common, metric: 'throughput', value, unit: 'tokens/s' };
  options.emit(theirs);
  options.emit({ ...common, metric: 'rss', value: answer.rss, unit: 'bytes' });
  const both = answer.losses.slice(0, COMPARED).map((loss, i) => Math.abs(loss - losses[i]!));
  const worst = Math.max(...both);
  options.emit({ ...common, metric: 'loss difference', value: worst, unit: `worst of ${both.length}` });
  if (!(worst <= 1e-4)) options.fail(`train ${of.name} on ${peer}: expected losses within 1e-4 of ours, got ${worst}`);
  options.emit(ratio(mine, theirs));
}
