/**
 * Checkpoints of a training run: the trainer's state and, for adapters, the factors they started from.
 *
 *     state.safetensors   parameters.<name>      as trained
 *                         optimizer.<slot>       AdamW's moments
 *                         start.<module>.lora_A  factors at the start (and lora_B)
 *     state.json          step, data position, random states, best loss, the adapter's provenance with the base's fingerprints
 *
 * The start is kept because the frozen residual W − s·B₀A₀ is rebuilt from it, to the bit; another SVD could give other
 * signs, or another basis where singular values tie.
 */
import { openSafetensorsFile, writeFileAtomic, writeSafetensors } from '@milora/tensor/node';
import type { HostTensor } from '@milora/tensor';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Adapter } from '../adapter.js';
import { MiloraError } from '../errors.js';
import { factorsInit } from '../inits.js';
import type { GivenFactors, Init } from '../inits.js';
import { adapterFactors, peftFromFactors } from '../peft.js';
import type { LayerFactors } from '../peft.js';
import { windowOf } from '../provenance.js';
import type { Provenance } from '../provenance.js';
import type { TrainerState } from '../trainer.js';
import type { PeftFolder } from './adapterFolder.js';
import { exists, recoverFolder, writeFolderAtomic } from './folders.js';

export const CHECKPOINT_VERSION = 1;
const WEIGHTS = 'state.safetensors';
const STATE = 'state.json';

/** How an adapter started. */
export interface AdapterStart {
  provenance: Provenance;
  /** A `[r, in]` and B `[out, r]` by module path. */
  factors: ReadonlyMap<string, { a: HostTensor; b: HostTensor }>;
}

export interface Checkpoint {
  trainer: TrainerState;
  /** Absent when all parameters are trained. */
  start?: AdapterStart;
}

/** The start of an adapter: take it before training. */
export async function adapterStart(adapter: Adapter, provenance: Provenance): Promise<AdapterStart> {
  const factors = new Map<string, { a: HostTensor; b: HostTensor }>();
  for (const [path, { a, b, initial }] of await adapterFactors(adapter)) factors.set(path, initial ?? { a, b });
  return { provenance, factors };
}

/** Whether the method's start is a part of the base weight. */
const splits = ({ provenance }: AdapterStart): boolean => provenance.form !== 'plain';

/** Gives the same adapter as at the start, to the bit. */
export function restartInit({ start, trainer }: Checkpoint & { start: AdapterStart }): Init {
  const given = new Map<string, GivenFactors>();
  for (const [path, { a, b }] of start.factors) {
    const recorded = start.provenance.windows[path];
    given.set(path, {
      a: a.data as Float32Array,
      b: b.data as Float32Array,
      trains: { a: trainer.parameters.has(`${path}.lora_a`), b: trainer.parameters.has(`${path}.lora_b`) },
      ...(recorded && { window: windowOf(recorded) }),
    });
  }
  return factorsInit(given, splits(start));
}

/** The adapter of a checkpoint as a PEFT folder for the untouched base; needs no model. */
export function peftOfCheckpoint({ start, trainer }: Checkpoint & { start: AdapterStart }): PeftFolder {
  const layers = new Map<string, LayerFactors>();
  for (const [path, initial] of start.factors) {
    layers.set(path, {
      a: trainer.parameters.get(`${path}.lora_a`) ?? initial.a,
      b: trainer.parameters.get(`${path}.lora_b`) ?? initial.b,
      ...(splits(start) && { initial }),
    });
  }
  const { provenance } = start;
  return { ...peftFromFactors(provenance.adapter, layers, provenance.base.name), provenance };
}

interface StateJson {
  version: number;
  step: number;
  best: number | null;
  position: TrainerState['position'];
  optimizerStep: number;
  random: TrainerState['random'];
  provenance: Provenance | null;
}

/** Writes a checkpoint folder, whole or not at all. */
export async function writeCheckpoint(dir: string, { trainer, start }: Checkpoint): Promise<void> {
  const tensors: [string, HostTensor][] = [];
  for (const [name, tensor] of trainer.parameters) tensors.push([`parameters.${name}`, tensor]);
  for (const [name, tensor] of trainer.optimizer.tensors) tensors.push([`optimizer.${name}`, tensor]);
  for (const [path, { a, b }] of start?.factors ?? []) {
    tensors.push([`start.${path}.lora_A`, a], [`start.${path}.lora_B`, b]);
  }
  const state: StateJson = {
    version: CHECKPOINT_VERSION,
    step: trainer.step,
    best: trainer.best,
    position: trainer.position,
    optimizerStep: trainer.optimizer.step,
    random: trainer.random,
    provenance: start?.provenance ?? null,
  };
  await writeFolderAtomic(dir, async (temporary) => {
    await writeSafetensors(join(temporary, WEIGHTS), tensors);
    await writeFileAtomic(join(temporary, STATE), `${JSON.stringify(state, null, 2)}\n`);
  });
}

/**
 * Reads a checkpoint folder; undefined when there is none.
 * @throws MiloraError `checkpoint` when it is not one of this version; TensorError `safetensors-…` when it is damaged
 */
export async function readCheckpoint(dir: string): Promise<Checkpoint | undefined> {
  await recoverFolder(dir);
  if (!(await exists(dir))) return undefined;
  const state = await readState(join(dir, STATE));
  const file = await openSafetensorsFile(join(dir, WEIGHTS));
  const parameters = new Map<string, HostTensor>();
  const optimizer = new Map<string, HostTensor>();
  const factors = new Map<string, { a: HostTensor; b: HostTensor }>();
  try {
    for (const name of file.names()) {
      const dot = name.indexOf('.');
      const [kind, rest] = [name.slice(0, dot), name.slice(dot + 1)];
      if (kind === 'parameters') parameters.set(rest, await file.read(name));
      else if (kind === 'optimizer') optimizer.set(rest, await file.read(name));
      else if (rest.endsWith('.lora_A')) {
        const path = rest.slice(0, -'.lora_A'.length);
        factors.set(path, { a: await file.read(name), b: await file.read(`start.${path}.lora_B`) });
      }
    }
  } finally {
    await file.close();
  }
  const { step, best, position, random, provenance } = state;
  const trainer = {
    step,
    best,
    position,
    random,
    parameters,
    optimizer: { step: state.optimizerStep, tensors: optimizer },
  };
  return provenance ? { trainer, start: { provenance, factors } } : { trainer };
}

async function readState(path: string): Promise<StateJson> {
  let state: StateJson;
  try {
    state = JSON.parse(await readFile(path, 'utf8')) as StateJson;
  } catch (cause) {
    throw new MiloraError('checkpoint', `${path}: expected the state of a run, got ${(cause as Error).message}`, {
      cause,
    });
  }
  if (state.version !== CHECKPOINT_VERSION) {
    throw new MiloraError(
      'checkpoint',
      `${path}: expected version ${CHECKPOINT_VERSION}, got ${String(state.version)}; resume with the version that wrote it`,
    );
  }
  return state;
}
