/** Model folders that the commands write: merged models, and what stands beside the weights. */
import type { LlamaForCausalLM } from '@milora/llama';
import { loadModel, saveModel } from '@milora/llama/node';
import { noGrad } from '@milora/autograd';
import { scope } from '@milora/tensor';
import { copyFile, readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Adapter } from '../adapter.js';
import { MiloraError } from '../errors.js';
import { writeFolderAtomic } from './folders.js';

/** Files of a model folder that have to do with text. */
const TOKENIZER_FILES = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'tokenizer.model',
  'generation_config.json',
];

/** Copies a tokenizer: the files of a folder, or llama2.c's file. Returns the names of what was copied. */
export async function copyTokenizer(from: string, to: string): Promise<string[]> {
  if ((await stat(from)).isFile()) {
    await copyFile(from, join(to, basename(from)));
    return [basename(from)];
  }
  const present = (await readdir(from)).filter((name) => TOKENIZER_FILES.includes(name));
  for (const name of present) await copyFile(join(from, name), join(to, name));
  return present;
}

export interface MergeReport {
  /** Largest difference of a logit between the model with its adapter and the merged model as read back from the disk. */
  difference: number;
  /** The largest logit, to compare with. */
  largest: number;
  /** Tokens that the logits were computed for. */
  tokens: number;
  copied: string[];
}

/** Float32 differences beyond this share of the largest logit are no rounding. */
const ROUNDING = 1e-3;

/**
 * Merges an adapter in float32, writes the model, reads it back and compares logits; the folder appears only if they
 * agree. The model is merged afterwards: the adapter is gone.
 *
 * @param options.tokenizer a folder whose tokenizer is copied along
 * @throws MiloraError `merge` if a float32 merge changes the logits by more than rounding, or any merge makes them not finite
 */
export async function mergeToFolder(
  model: LlamaForCausalLM,
  adapter: Adapter,
  out: string,
  options: { dtype: 'f32' | 'bf16' | 'f16'; tokenizer?: string },
): Promise<MergeReport> {
  const tokens = Math.min(16, model.config.maxPositionEmbeddings);
  const before = await probe(model, tokens);
  adapter.mergeAndUnload();
  const report: MergeReport = { difference: 0, largest: 0, tokens, copied: [] };
  await writeFolderAtomic(out, async (temporary) => {
    await saveModel(temporary, model, options.dtype);
    if (options.tokenizer) report.copied = await copyTokenizer(options.tokenizer, temporary);
    const written = await loadModel(temporary);
    const after = await probe(written, tokens);
    written.dispose();
    for (let i = 0; i < before.length; i++) {
      report.largest = Math.max(report.largest, Math.abs(before[i]!));
      const difference = Math.abs(before[i]! - after[i]!);
      report.difference = difference <= report.difference ? report.difference : difference; // keeps a NaN
    }
    const limit = options.dtype === 'f32' ? ROUNDING * report.largest : Infinity;
    if (!(report.difference <= limit)) {
      throw new MiloraError(
        'merge',
        `${out}: expected logits like those before the merge, got a difference of ${report.difference} ` +
          `with a largest logit of ${report.largest}; the model was not written`,
      );
    }
  });
  return report;
}

/** Logits of a few tokens, spread over the vocabulary. */
async function probe(model: LlamaForCausalLM, length: number): Promise<Float32Array> {
  const { vocabSize } = model.config;
  const inputIds = Int32Array.from(
    { length },
    (_, i) => (7 + i * Math.max(1, Math.floor(vocabSize / length))) % vocabSize,
  );
  model.eval();
  return scope(async () => {
    const logits = noGrad(() => model.forward({ inputIds, batch: 1, length }).value);
    return (await logits.data()) as Float32Array;
  });
}
