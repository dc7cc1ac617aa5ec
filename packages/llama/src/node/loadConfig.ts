import { join } from 'node:path';
import type { LlamaConfig } from '../config.js';
import { parseLlamaConfig } from '../config.js';
import { LlamaError } from '../errors.js';
import { readJsonIfPresent } from './files.js';

/**
 * Reads config.json of a model directory.
 *
 * @throws LlamaError `missing-file`, `json`, or `config` as in `parseLlamaConfig`
 *
 * @example
 * const config = await loadConfig('models/SmolLM2-135M');
 */
export async function loadConfig(directory: string): Promise<LlamaConfig> {
  const path = join(directory, 'config.json');
  const json = await readJsonIfPresent(path);
  if (json === undefined) {
    throw new LlamaError(
      'missing-file',
      `${directory}: expected a model directory with config.json, got none at ${path}`,
    );
  }
  return parseLlamaConfig(json, path);
}
