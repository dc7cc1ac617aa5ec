import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { LlamaError } from '../errors.js';
import { Llama2cTokenizer } from '../llama2cTokenizer.js';
import type { Tokenizer } from '../tokenizer.js';
import { HfTokenizer } from '../tokenizer.js';
import { kindOf, readJsonIfPresent, readTextIfPresent } from './files.js';

/**
 * Reads a tokenizer: the tokenizer.json of a model directory with tokenizer_config.json and chat_template.jinja beside
 * it, where they exist, or the tokenizer.bin of llama2.c, given as a file since its name varies.
 *
 * @throws LlamaError `missing-file`, `json`, or `tokenizer` as in `HfTokenizer` and `Llama2cTokenizer`
 *
 * @example
 * const tokenizer = await loadTokenizer('models/SmolLM2-135M');
 * const other = await loadTokenizer('models/stories260K/tok512.bin');
 */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  switch (await kindOf(path)) {
    case 'file':
      if (path.endsWith('.bin')) return new Llama2cTokenizer(await readFile(path), path);
      throw new LlamaError(
        'missing-file',
        `${path}: expected a model directory with tokenizer.json, or a llama2.c tokenizer ending in .bin, got another file`,
      );
    case 'absent':
      throw new LlamaError(
        'missing-file',
        `${path}: expected a model directory with tokenizer.json, got nothing there`,
      );
    case 'directory':
      return loadFromDirectory(path);
  }
}

async function loadFromDirectory(directory: string): Promise<HfTokenizer> {
  const path = join(directory, 'tokenizer.json');
  const json = await readJsonIfPresent(path);
  if (json === undefined) {
    throw new LlamaError('missing-file', `${directory}: expected tokenizer.json, got none; ${await wayOut(directory)}`);
  }
  const config = (await readJsonIfPresent(join(directory, 'tokenizer_config.json'))) ?? {};
  const template = await readTextIfPresent(join(directory, 'chat_template.jinja'));
  const isMergeable = typeof config === 'object' && template !== undefined;
  return new HfTokenizer(json, isMergeable ? { ...config, chat_template: template } : config, path);
}

async function wayOut(directory: string): Promise<string> {
  const names = await readdir(directory);
  const bin = names.find((name) => /^tok.*\.bin$/.test(name));
  if (bin !== undefined) return `for the llama2.c tokenizer pass ${join(directory, bin)}`;
  if (names.includes('tokenizer.model')) {
    return 'tokenizer.model alone is not supported: save the tokenizer with transformers, which writes tokenizer.json';
  }
  return 'copy it from where the model comes from';
}
