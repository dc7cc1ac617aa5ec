/** What a path holds, as plain data: a model, an adapter, a run, or a safetensors file. */
import { parseLlamaConfig } from '@milora/llama';
import type { LlamaConfig } from '@milora/llama';
import { loadModel } from '@milora/llama/node';
import { openSafetensorsFile, openSafetensorsFolder } from '@milora/tensor/node';
import { singularValues } from '@milora/tensor';
import type { TensorSource } from '@milora/tensor';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { linearLayers } from '../adapter.js';
import { MiloraError } from '../errors.js';
import { ofModule } from '../inits.js';
import type { PeftLoraConfig } from '../peftConfig.js';
import type { Provenance } from '../provenance.js';
import { expandTargetAliases, selectTargets } from '../targets.js';
import { readPeftFolder } from './adapterFolder.js';
import { exists } from './folders.js';
import { pause } from './pause.js';
import { RunFolder } from './runFolder.js';
import type { MetricsEvent, RunConfig } from './runFolder.js';

export interface TensorRow {
  name: string;
  dtype: string;
  shape: readonly number[];
}

/** Singular values of one weight, in short. */
export interface SpectrumRow {
  module: string;
  largest: number;
  smallest: number;
  /** largest / smallest */
  condition: number;
}

export type Inspection =
  | {
      kind: 'model';
      path: string;
      config: LlamaConfig;
      parameters: number;
      tensors: TensorRow[];
      spectrum?: SpectrumRow[];
    }
  | {
      kind: 'adapter';
      path: string;
      config: PeftLoraConfig;
      parameters: number;
      tensors: TensorRow[];
      provenance: (Omit<Provenance, 'base'> & { base: { name: string; tensors: number } }) | null;
    }
  | {
      kind: 'run';
      path: string;
      config: RunConfig;
      steps: number;
      last: MetricsEvent | null;
      checkpoints: Record<string, number>;
      result: string | null;
    }
  | {
      kind: 'safetensors';
      path: string;
      metadata: Readonly<Record<string, string>>;
      parameters: number;
      tensors: TensorRow[];
    };

export interface InspectOptions {
  /** Take the singular values of the targets of a model. */
  spectrum?: string | readonly string[];
}

/**
 * Looks at a path.
 * @throws MiloraError `inspect` when it is none of the four
 */
export async function inspectPath(path: string, options: InspectOptions = {}): Promise<Inspection> {
  const stats = await stat(path).catch(() => undefined);
  if (!stats) throw new MiloraError('inspect', `${path}: expected a file or folder, got nothing there`);
  if (stats.isFile()) return path.endsWith('.bin') ? inspectModelFile(path, options) : inspectFile(path);
  if (await RunFolder.isRun(path)) return inspectRun(path);
  if (await exists(join(path, 'adapter_config.json'))) return inspectAdapter(path);
  if (await exists(join(path, 'config.json'))) return inspectModel(path, options);
  throw new MiloraError(
    'inspect',
    `${path}: expected a model (config.json), an adapter (adapter_config.json) or a run (config.json, checkpoints), got another folder`,
  );
}

const sizeOfRows = (rows: readonly TensorRow[]): number =>
  rows.reduce((total, { shape }) => total + shape.reduce((n, d) => n * d, 1), 0);

async function inspectFile(path: string): Promise<Inspection> {
  const file = await openSafetensorsFile(path);
  try {
    const tensors = file.entries.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
    return { kind: 'safetensors', path, metadata: file.metadata, parameters: sizeOfRows(tensors), tensors };
  } finally {
    await file.close();
  }
}

const rowsOf = (source: TensorSource): TensorRow[] => source.names().map((name) => ({ name, ...source.info(name)! }));

async function inspectModel(path: string, options: InspectOptions): Promise<Inspection> {
  const file = join(path, 'config.json');
  const config = parseLlamaConfig(JSON.parse(await readFile(file, 'utf8')), file);
  const source = await openSafetensorsFolder(path);
  let tensors: TensorRow[];
  try {
    tensors = rowsOf(source);
  } finally {
    await source.close();
  }
  const spectrum = options.spectrum && { spectrum: await spectrumOf(path, options.spectrum) };
  return { kind: 'model', path, config, parameters: sizeOfRows(tensors), tensors, ...spectrum };
}

async function inspectModelFile(path: string, options: InspectOptions): Promise<Inspection> {
  const model = await loadModel(path);
  const tensors = [...model.stateDict()].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  const { config } = model;
  model.dispose();
  const spectrum = options.spectrum && { spectrum: await spectrumOf(path, options.spectrum) };
  return { kind: 'model', path, config, parameters: sizeOfRows(tensors), tensors, ...spectrum };
}

async function spectrumOf(path: string, targets: string | readonly string[]): Promise<SpectrumRow[]> {
  const model = await loadModel(path, { dtype: 'storage' });
  const rows: SpectrumRow[] = [];
  try {
    const linears = linearLayers(model);
    for (const module of selectTargets([...linears.keys()], expandTargetAliases(targets))) {
      const { s } = await ofModule(module, singularValues(linears.get(module)!.weight.value));
      const [largest, smallest] = [s[0] ?? 0, s[s.length - 1] ?? 0];
      rows.push({ module, largest, smallest, condition: largest / smallest });
      await pause();
    }
  } finally {
    model.dispose();
  }
  return rows;
}

async function inspectAdapter(path: string): Promise<Inspection> {
  const { config, tensors, provenance } = await readPeftFolder(path);
  const rows = [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  const base = provenance && { name: provenance.base.name, tensors: Object.keys(provenance.base.fingerprints).length };
  return {
    kind: 'adapter',
    path,
    config,
    parameters: sizeOfRows(rows),
    tensors: rows,
    provenance: provenance ? { ...provenance, base: base! } : null,
  };
}

async function inspectRun(path: string): Promise<Inspection> {
  const folder = await RunFolder.open(path);
  const events = await folder.metrics();
  const checkpoints: Record<string, number> = {};
  for (const name of ['last', 'best'] as const) {
    const checkpoint = await folder.load(name);
    if (checkpoint) checkpoints[name] = checkpoint.trainer.step;
  }
  return {
    kind: 'run',
    path,
    config: folder.config,
    steps: events.filter(({ type }) => type === 'step').length,
    last: events.at(-1) ?? null,
    checkpoints,
    result: (await exists(folder.result)) ? folder.result : null,
  };
}
