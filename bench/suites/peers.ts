/** Other libraries, each in a process of its own, one after another in the same run (bench/peers). */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { benchFolder } from '../configs.js';
import type { GemmAnswer, SvdAnswer, SvdTask, Task, TrainAnswer, TrainTask } from '../peers/peer.js';
import type { PeerName, Result, SuiteOptions } from './suite.js';

const PACKAGES: Record<PeerName, string> = {
  'jax-js': '@jax-js/jax',
  tfjs: '@tensorflow/tfjs-backend-wasm',
  'ml-matrix': 'ml-matrix',
  'svd-js': 'svd-js',
};
const peersFolder = join(benchFolder, 'peers');

/** Refuses, with the way out, when a peer's package is not there. */
export function requirePeers(peers: readonly PeerName[], folder = peersFolder): void {
  const missing = [...new Set(peers)].filter(
    (peer) => !existsSync(join(folder, 'node_modules', PACKAGES[peer], 'package.json')),
  );
  if (missing.length === 0) return;
  throw new Error(
    `--peers: expected ${missing.map((peer) => PACKAGES[peer]).join(' and ')} in bench/peers, got none. ` +
      'They are optional; install them with: npm install --prefix bench/peers --ignore-scripts',
  );
}

/** Runs a job in a peer's process; undefined, and a complaint, when it fails or takes too long. */
async function runPeer<Answer>(
  peer: PeerName | 'torch',
  job: Task,
  options: SuiteOptions,
): Promise<Answer[] | undefined> {
  const [command, script] =
    peer === 'torch'
      ? [options.python, join(peersFolder, 'svd.py')]
      : [process.execPath, join(benchFolder, 'dist', 'peers', `${peer}.js`)];
  const scratch = mkdtempSync(join(tmpdir(), 'milora-peer-'));
  const child = spawn(command, [script, JSON.stringify({ ...job, packages: peersFolder, scratch })], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: options.peerLimit * 1000,
    killSignal: 'SIGKILL',
  });
  let [answers, complaints] = ['', ''];
  child.stdout.on('data', (text) => (answers += String(text)));
  child.stderr.on('data', (text) => (complaints += String(text)));
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject).on('close', resolve);
  });
  rmSync(scratch, { recursive: true, force: true });
  if (code !== 0) {
    const complaint = /^.*(?:error|abort).*$/im.exec(complaints)?.[0].trim();
    const end = child.killed ? `no end within ${options.peerLimit} s (--peer-limit)` : `exit status ${code}`;
    const got = complaint ?? end;
    options.fail(`${job.suite} on ${peer}: expected a measurement, got ${got.slice(0, 300)}`);
    return undefined;
  }
  return answers
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Answer);
}

/** The products of the gemm suite in a peer. */
export async function gemmPeer(peer: PeerName, options: SuiteOptions): Promise<Result[]> {
  const { shapes, threads, seconds } = options;
  const job: Task = { suite: 'gemm', shapes, threads, seconds };
  const answers = (await runPeer<GemmAnswer>(peer, job, options)) ?? [];
  return answers.map(({ shape: [m, k, n], seconds: time }) => ({
    ...{ suite: 'gemm', case: `${m}x${k}x${n}`, metric: 'throughput', unit: 'GFLOPS', threads, backend: peer },
    value: (2 * m * k * n) / time / 1e9,
  }));
}

/** The finetuning step in a peer, from the files of `exportCase`. */
export async function trainPeer(
  peer: PeerName,
  of: Omit<TrainTask, 'suite' | 'threads' | 'seconds'>,
  options: SuiteOptions,
): Promise<TrainAnswer | undefined> {
  const { threads, seconds } = options;
  const job: Task = { suite: 'train', threads, seconds, ...of };
  return (await runPeer<TrainAnswer>(peer, job, options))?.[0];
}

/** Decompositions in a peer, of the matrix in a file. */
export async function svdPeer(
  peer: PeerName | 'torch',
  of: Omit<SvdTask, 'suite' | 'threads' | 'seconds'>,
  options: SuiteOptions,
): Promise<SvdAnswer[]> {
  const { threads, seconds } = options;
  return (await runPeer<SvdAnswer>(peer, { suite: 'svd', threads, seconds, ...of }, options)) ?? [];
}

/** Whether a Python can import PyTorch. */
export function hasTorch(python: string): boolean {
  return spawnSync(python, ['-c', 'import torch'], { stdio: 'ignore' }).status === 0;
}

/** How many times as fast as a peer we are. */
export function ratio(mine: Result, theirs: Result): Result {
  const isTime = mine.metric === 'time';
  const value = isTime ? theirs.value / mine.value : mine.value / theirs.value;
  return { ...mine, metric: 'ratio', value, unit: `times ${theirs.backend}` };
}
