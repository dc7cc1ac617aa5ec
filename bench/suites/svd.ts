/**
 * Decompositions in float64 of Gaussian float32 matrices: the r smallest triplets, the r largest, all of them, and the singular
 * values alone. Seconds, and what the certificate says about the result; and the start of a whole model's adapter.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseLlamaConfig } from '@milora/llama';
import { Philox, leadingSubspace, minorSubspace, singularValues, svd as thinSvd } from '@milora/tensor';
import type { HostTensor, Subspace } from '@milora/tensor';
import { configs } from '../configs.js';
import type { InitSize, MatrixSize } from '../configs.js';
import { hasTorch, ratio, svdPeer } from './peers.js';
import { PEERS, openBackend } from './suite.js';
import type { OpenBackend, Result, SuiteOptions } from './suite.js';
import { medianSeconds } from './timing.js';

const RANK = 64;
/** Longest shorter side of the matrices that are decomposed whole, and whole by packages of one thread. */
const [WHOLE, WHOLE_BY_PEERS] = [1024, 512];
/** Shorter side from which PyTorch decomposes a matrix only when it is named. */
const LARGE = 4096;
/** Seconds from which a decomposition is timed once. */
const LONG = 2;

type Kind = 'minor' | 'leading' | 'full' | 'values';

/** Which decompositions of a matrix are measured. */
interface Plan {
  size: MatrixSize;
  kinds: readonly Kind[];
}

const USUAL: readonly Plan[] = [
  { size: [512, 512], kinds: ['full'] },
  { size: [1024, 1024], kinds: ['minor', 'leading', 'full', 'values'] },
  { size: [2048, 2048], kinds: ['values'] },
  { size: [4096, 4096], kinds: ['minor', 'leading'] },
  { size: [4096, 11008], kinds: ['minor', 'leading'] },
];

export async function svd(options: SuiteOptions): Promise<void> {
  const { matrices, inits, peers, python, warn } = options;
  const torch = peers && hasTorch(python);
  if (peers && !torch) warn(`svd: PyTorch is left out: ${python} cannot import torch (--python names another)`);
  const plans = matrices?.map(planOf) ?? (inits.length > 0 ? [] : USUAL);
  for (const plan of plans) await measure(plan, torch, options);
  for (const size of inits) await measureInit(size, options);
}

function planOf(size: MatrixSize): Plan {
  const k = Math.min(...size);
  const kinds: Kind[] = ['minor', 'leading'];
  if (k <= WHOLE) kinds.push('full');
  if (k <= 2 * WHOLE) kinds.push('values');
  return { size, kinds };
}

function gaussian(shape: MatrixSize, random: Philox): HostTensor {
  return { dtype: 'f32', shape, data: random.normalArray(shape[0] * shape[1]) };
}

/** Our decompositions of a matrix, then those of others. */
async function measure({ size, kinds }: Plan, torch: boolean, options: SuiteOptions): Promise<void> {
  const a = gaussian(size, new Philox(size[0]));
  const opened = await openBackend('wasm', options.threads);
  const measured = new Map<Kind, Result>();
  try {
    for (const kind of kinds) measured.set(kind, await measureOne(kind, a, opened, options));
    if (!options.peers) return;
    const folder = mkdtempSync(join(tmpdir(), 'milora-bench-'));
    try {
      const file = join(folder, 'matrix.bin');
      writeFileSync(file, a.data);
      await compare(a, file, measured, torch, opened, options);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  } finally {
    await opened.close();
  }
}

const rankOf = ({ shape }: HostTensor): number => Math.min(RANK, ...shape);

/** Times a decomposition and says how good it is; `tolerance` asks for less than usual. */
async function measureOne(
  kind: Kind,
  a: HostTensor,
  { backend, label, threads }: OpenBackend,
  { seconds, emit }: SuiteOptions,
  tolerance?: number,
): Promise<Result> {
  const decomposition = { backend, ...(tolerance === undefined ? {} : { tolerance }) };
  const r = rankOf(a);
  const run: Record<Kind, () => Promise<unknown>> = {
    minor: async () => (subspace = await minorSubspace(a, r, decomposition)),
    leading: async () => (subspace = await leadingSubspace(a, r, decomposition)),
    full: async () => (subspace = await thinSvd(a, decomposition)),
    values: () => singularValues(a, decomposition),
  };
  let subspace: Subspace | undefined;
  const before = peakOfProcess();
  backend.resetPeak();
  const start = performance.now();
  await run[kind]();
  const first = (performance.now() - start) / 1000;
  const { peakBytes } = backend.memory();
  const time = first > LONG ? first : await medianSeconds(run[kind], seconds, first);

  const name = [kind, ...(kind === 'minor' || kind === 'leading' ? [`r=${r}`] : []), a.shape.join('x')];
  if (tolerance !== undefined) name.push('as exact as svd_lowrank');
  const common = { suite: 'svd', case: name.join(' '), threads, backend: label };
  const result = { ...common, metric: 'time', value: time, unit: 's' };
  emit(result);
  if (subspace) {
    const { residual, orthogonality, angle } = subspace.certificate;
    emit({ ...common, metric: 'residual', value: residual, unit: 'of s₁' });
    emit({ ...common, metric: 'orthogonality', value: orthogonality, unit: 'largest entry' });
    emit({ ...common, metric: 'angle', value: angle, unit: 'bound of the sine' });
  }
  emit({ ...common, metric: 'peak', value: peakBytes, unit: 'bytes' });
  const after = peakOfProcess();
  if (after > before) emit({ ...common, metric: 'peak rss', value: after, unit: 'bytes' });
  return result;
}

/** The most resident memory so far: of a case only when that has risen. */
const peakOfProcess = (): number => process.resourceUsage().maxRSS * 1024;

async function compare(
  a: HostTensor,
  file: string,
  measured: ReadonlyMap<Kind, Result>,
  torch: boolean,
  opened: OpenBackend,
  options: SuiteOptions,
): Promise<void> {
  const size = a.shape as unknown as MatrixSize;
  const k = Math.min(...size);
  const of = { file, size, rank: rankOf(a) };
  const against = (theirs: Result, kinds: readonly Kind[]): void => {
    for (const kind of kinds) {
      const mine = measured.get(kind);
      if (mine) options.emit(ratio(mine, theirs));
    }
  };
  const report = (name: string, threads: number, value: number, residual: number | undefined): Result => {
    const common = { suite: 'svd', case: size.join('x'), threads, backend: name };
    const result = { ...common, metric: 'time', value, unit: 's' };
    options.emit(result);
    if (residual !== undefined) options.emit({ ...common, metric: 'residual', value: residual, unit: 'of s₁' });
    return result;
  };

  if (measured.has('full') && k <= WHOLE_BY_PEERS) {
    for (const peer of PEERS.svd) {
      for (const { seconds, residual } of await svdPeer(peer, { ...of, methods: ['svd'] }, options)) {
        against(report(peer, 1, seconds, residual), ['full']);
      }
    }
  }
  if (!torch || (k >= LARGE && !options.matrices)) return;
  const methods: string[] = [];
  if (measured.has('full') || measured.has('minor')) methods.push('svd', 'gram-eigh');
  if (measured.has('leading')) methods.push('svd_lowrank');
  if (measured.has('values')) methods.push('svdvals');
  for (const { method, seconds, residual } of await svdPeer('torch', { ...of, methods }, options)) {
    const theirs = report(`torch ${method}`, options.threads, seconds, residual);
    if (method === 'svdvals') against(theirs, ['values']);
    else if (method === 'svd_lowrank') {
      against(theirs, ['leading']);
      options.emit(ratio(await measureOne('leading', a, opened, options, residual), theirs));
    } else against(theirs, ['full', 'minor', 'leading']);
  }
}

/** The minor triplets of every weight that MiLoRA adapts by default, in a model of random weights. */
async function measureInit(size: InitSize, options: SuiteOptions): Promise<void> {
  const { rank, model } = configs[size];
  const config = parseLlamaConfig({ model_type: 'llama', ...model }, `${size} in configs.json`);
  const { hiddenSize: C, intermediateSize: F, numHiddenLayers: L } = config;
  const [Q, K] = [config.headDim * config.numAttentionHeads, config.headDim * config.numKeyValueHeads];
  const shapes: MatrixSize[] = [[Q, C], [K, C], [K, C], [F, C], [C, F]]; // prettier-ignore
  const { backend, label, threads, close } = await openBackend('wasm', options.threads);
  const random = new Philox(0);
  const times = new Map<string, { count: number; seconds: number }>();
  const worst = { residual: 0, orthogonality: 0, angle: 0 };
  const verdicts = { determined: 0, sensitive: 0, tied: 0 };
  try {
    for (let layer = 0; layer < L; layer++) {
      for (const shape of shapes) {
        const weight = gaussian(shape, random);
        const start = performance.now();
        const { certificate } = await minorSubspace(weight, rank, { backend });
        const time = (performance.now() - start) / 1000;
        const { count, seconds } = times.get(shape.join('x')) ?? { count: 0, seconds: 0 };
        times.set(shape.join('x'), { count: count + 1, seconds: seconds + time });
        for (const key of ['residual', 'orthogonality', 'angle'] as const) {
          worst[key] = Math.max(worst[key], certificate[key]);
        }
        verdicts[certificate.verdict]++;
      }
    }
    const emit = (of: string, metric: string, value: number, unit: string): void =>
      options.emit({ suite: 'svd', case: of, metric, value, unit, threads, backend: label });
    const name = `init ${size} r=${rank}`;
    let total = 0;
    for (const [shape, { count, seconds }] of times) {
      emit(`${name} ${count} of ${shape}`, 'time', seconds, 's');
      total += seconds;
    }
    emit(name, 'time', total, 's');
    emit(name, 'residual', worst.residual, 'of s₁, worst');
    emit(name, 'orthogonality', worst.orthogonality, 'largest entry, worst');
    emit(name, 'angle', worst.angle, 'bound of the sine, worst');
    for (const [verdict, count] of Object.entries(verdicts)) emit(name, verdict, count, `of ${L * shapes.length}`);
    emit(name, 'peak', backend.memory().peakBytes, 'bytes');
    emit(name, 'peak rss', peakOfProcess(), 'bytes');
  } finally {
    await close();
  }
}
