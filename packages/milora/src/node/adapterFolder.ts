/**
 * Adapters on disk: a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) that any PEFT loads onto the
 * untouched base model, with our `milora.json` beside it that says where it comes from and which base it is for.
 *
 * Each file is written whole or not at all, and the config last: a folder with a config is complete.
 */
import { openSafetensorsFile, writeFileAtomic, writeSafetensors } from '@milora/tensor/node';
import { convertHost } from '@milora/tensor';
import type { HostTensor } from '@milora/tensor';
import { firstNonFinite } from '@milora/llama';
import type { LlamaForCausalLM } from '@milora/llama';
import { mkdir, readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Adapter } from '../adapter.js';
import { MiloraError } from '../errors.js';
import { exportPeft, importPeft } from '../peft.js';
import type { PeftAdapter } from '../peft.js';
import { parsePeftConfig, serializePeftConfig } from '../peftConfig.js';
import { checkBase, fingerprintModel, parseProvenance, provenanceOf } from '../provenance.js';
import type { Provenance } from '../provenance.js';
import { didYouMean } from '../suggest.js';

export const CONFIG_FILE = 'adapter_config.json';
export const WEIGHTS_FILE = 'adapter_model.safetensors';
export const PROVENANCE_FILE = 'milora.json';

export interface SavePeftOptions {
  /** Name or path of the base model, for `base_model_name_or_path`. */
  baseModel: string;
  /** Name of the method, for the provenance. */
  method: string;
  /** Of the base model as loaded, by `fingerprintModel`. */
  fingerprints: Record<string, string>;
}

export interface PeftFolder extends PeftAdapter {
  /** Absent in folders that another program wrote. */
  provenance: Provenance | undefined;
}

/**
 * Writes an adapter as a PEFT folder for the untouched base.
 *
 * @example
 * const fingerprints = await fingerprintModel(model); // before the adapter goes in
 * await savePeftFolder('adapter', adapter, { baseModel: 'models/SmolLM2-135M', method: 'milora', fingerprints });
 */
export async function savePeftFolder(dir: string, adapter: Adapter, options: SavePeftOptions): Promise<void> {
  const { baseModel, method, fingerprints } = options;
  const provenance = provenanceOf(adapter, method, { name: baseModel, fingerprints });
  await writePeftFolder(dir, { ...(await exportPeft(adapter, baseModel)), provenance });
}

/** Writes the three files; without a provenance only PEFT's two. */
export async function writePeftFolder(dir: string, { config, tensors, provenance }: PeftFolder): Promise<void> {
  await mkdir(dir, { recursive: true });
  // a config beside the weights of another adapter would be a lie
  await rm(join(dir, CONFIG_FILE), { force: true });
  await rm(join(dir, PROVENANCE_FILE), { force: true });
  await writeSafetensors(join(dir, WEIGHTS_FILE), tensors, { format: 'pt' });
  if (provenance) await writeFileAtomic(join(dir, PROVENANCE_FILE), `${JSON.stringify(provenance, null, 2)}\n`);
  await writeFileAtomic(join(dir, CONFIG_FILE), serializePeftConfig(config));
}

/**
 * Reads a PEFT folder: config, tensors as float32, and provenance where there is one.
 * @throws MiloraError `adapter-folder`, `peft-config`, `non-finite`, `provenance`; TensorError `safetensors-…`
 */
export async function readPeftFolder(dir: string): Promise<PeftFolder> {
  const text = await readText(dir, CONFIG_FILE);
  if (text === undefined) throw new MiloraError('adapter-folder', await whyNoAdapter(dir));
  const config = parsePeftConfig(text, join(dir, CONFIG_FILE));
  const names = await readdir(dir);
  if (!names.includes(WEIGHTS_FILE)) {
    const pickle = names.includes('adapter_model.bin');
    throw new MiloraError(
      'adapter-folder',
      `${dir}: expected ${WEIGHTS_FILE}, got ${pickle ? 'adapter_model.bin, a pickle; load and save it with a current PEFT' : 'none'}`,
    );
  }
  const file = await openSafetensorsFile(join(dir, WEIGHTS_FILE));
  const tensors = new Map<string, HostTensor>();
  try {
    for (const name of file.names()) {
      const { shape, dtype, data } = await file.read(name);
      const tensor = { shape, dtype: 'f32' as const, data: convertHost(data, dtype, 'f32') };
      const bad = firstNonFinite(tensor);
      if (bad) throw new MiloraError('non-finite', `${join(dir, WEIGHTS_FILE)}: ${name}: ${bad}`);
      tensors.set(name, tensor);
    }
  } finally {
    await file.close();
  }
  const origin = await readText(dir, PROVENANCE_FILE);
  const provenance = origin === undefined ? undefined : parseProvenance(origin, join(dir, PROVENANCE_FILE));
  return { config, tensors, provenance };
}

async function readText(dir: string, name: string): Promise<string | undefined> {
  return readFile(join(dir, name), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
    throw error;
  });
}

async function whyNoAdapter(dir: string): Promise<string> {
  const names = await readdir(dir).catch(() => undefined);
  if (names === undefined) return `${dir}: expected an adapter folder, got nothing there`;
  const inside = names.includes('adapter') ? `; for the result of this run give ${join(dir, 'adapter')}` : '';
  return `${dir}: expected an adapter folder with ${CONFIG_FILE}, got none${inside || didYouMean(CONFIG_FILE, names)}`;
}

/**
 * Puts the adapter of a PEFT folder on the untouched base model, as a plain LoRA. If the folder has a `milora.json`, the
 * model must be the one that it names.
 *
 * @param options.fingerprints of the model, if they are known already
 * @throws MiloraError `wrong-base` and as `readPeftFolder` and `importPeft`; the model is then unchanged
 *
 * @example
 * const adapter = await loadPeftFolder('runs/milora/adapter', model);
 */
export async function loadPeftFolder(
  dir: string,
  model: LlamaForCausalLM,
  options: { fingerprints?: Record<string, string> } = {},
): Promise<Adapter> {
  const folder = await readPeftFolder(dir);
  if (folder.provenance) {
    checkBase(folder.provenance.base, options.fingerprints ?? (await fingerprintModel(model)), dir);
  }
  return importPeft(model, folder);
}
