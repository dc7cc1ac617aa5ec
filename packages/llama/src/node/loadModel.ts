/** A model from a path: a Hugging Face folder (config.json and safetensors), or a llama2.c `.bin` file. */
import { fileSource, openSafetensorsFolder, writeFileAtomic, writeSafetensors } from '@milora/tensor/node';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { exportLlama, loadLlama } from '../checkpoint.js';
import type { LoadOptions } from '../checkpoint.js';
import { serializeLlamaConfig } from '../config.js';
import { LlamaError } from '../errors.js';
import { openLlama2c } from '../llama2c.js';
import type { LlamaForCausalLM } from '../model.js';
import { kindOf } from './files.js';
import { loadConfig } from './loadConfig.js';

/**
 * Loads all weights.
 * @throws LlamaError `missing-file`, `config`, `checkpoint`, and TensorError `safetensors-…`, naming file and tensors
 */
export async function loadModel(path: string, options: LoadOptions = {}): Promise<LlamaForCausalLM> {
  const kind = await kindOf(path);
  if (kind === 'absent') {
    throw new LlamaError('missing-file', `${path}: expected a model folder or a llama2.c .bin file, got nothing there`);
  }
  if (kind === 'file') {
    const source = await fileSource(path);
    try {
      const { config, tensors } = await openLlama2c(source);
      return await loadLlama(config, tensors, options);
    } finally {
      await source.close();
    }
  }
  const config = await loadConfig(path);
  const tensors = await openSafetensorsFolder(path);
  try {
    return await loadLlama(config, tensors, options);
  } finally {
    await tensors.close();
  }
}

/** Writes a Hugging Face folder: model.safetensors, then config.json, each whole or not at all. */
export async function saveModel(
  path: string,
  model: LlamaForCausalLM,
  dtype: 'f32' | 'bf16' | 'f16' = 'f32',
): Promise<void> {
  await mkdir(path, { recursive: true });
  await writeSafetensors(join(path, 'model.safetensors'), await exportLlama(model, dtype), { format: 'pt' });
  await writeFileAtomic(
    join(path, 'config.json'),
    `${JSON.stringify(serializeLlamaConfig(model.config, dtype), null, 2)}\n`,
  );
}
