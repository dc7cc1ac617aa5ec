/** From data files to batches of a run: reading, tokenising, holding some examples out for validation, fingerprinting. */
import { checkTokenizer } from '@milora/llama';
import type { LlamaConfig, Tokenizer } from '@milora/llama';
import { Philox, fingerprint } from '@milora/tensor';
import { BatchIterator } from '../batches.js';
import type { Batch } from '../batches.js';
import { tokenizeInPieces } from '../chunks.js';
import type { DatasetFormat, Example } from '../dataset.js';
import type { TokenizedExample } from '../tokenize.js';
import { MiloraError } from '../errors.js';
import { readDataset } from './data.js';

export interface LoadDataOptions {
  maxLength: number;
  /** Train on completions only. */
  maskPrompt: boolean;
  /** Examples of the file to use, from the beginning. Default all. */
  limit?: number | undefined;
  /** Characters to use, in whole examples. Default all. */
  characters?: number;
}

/** What became of a data file. */
export interface DataReport {
  file: string;
  format: DatasetFormat;
  /** Examples in use; pieces, for running text. */
  examples: number;
  tokens: number;
  targets: number;
  /** Examples that lost their end to the longest length. */
  truncated: number;
  /** Examples left out because nothing to train on was left of them. */
  dropped: number;
  /** Fields of the records that are not used. */
  ignoredFields: readonly string[];
}

export interface LoadedData {
  examples: readonly TokenizedExample[];
  report: DataReport;
}

/** Reads and tokenises a data file. Throws as `readDataset` and `tokenizeDataset`. */
export async function loadData(file: string, tokenizer: Tokenizer, options: LoadDataOptions): Promise<LoadedData> {
  const whole = await readDataset(file);
  const dataset = { ...whole, examples: beginning(whole.examples, options) };
  const { examples, truncated, dropped, tokens, targets } = tokenizeInPieces(dataset, tokenizer, options);
  const { format, ignoredFields } = dataset;
  const report = {
    file,
    format,
    examples: examples.length,
    tokens,
    targets,
    truncated,
    dropped: dropped.length,
    ignoredFields,
  };
  return { examples, report };
}

function beginning(
  examples: readonly Example[],
  { limit = Infinity, characters = Infinity }: LoadDataOptions,
): readonly Example[] {
  let [taken, count] = [0, 0];
  while (count < Math.min(limit, examples.length) && taken < characters)
    taken += JSON.stringify(examples[count++]).length;
  return examples.slice(0, count);
}

/** Text for forgetting: enough of the file for so many tokens, even where a token is 16 characters. */
export async function loadText(
  file: string,
  tokenizer: Tokenizer,
  options: { maxLength: number; tokens: number },
): Promise<LoadedData> {
  const { maxLength, tokens } = options;
  return loadData(file, tokenizer, { maxLength, maskPrompt: false, characters: 16 * tokens });
}

/** A tokenizer for the model, or an error that says why it is none. */
export function expectTokenizer(tokenizer: Tokenizer, config: LlamaConfig): void {
  checkTokenizer(tokenizer, config);
  const { bosId } = tokenizer;
  if (bosId !== undefined && config.bosTokenId !== undefined && bosId !== config.bosTokenId) {
    throw new MiloraError(
      'tokenizer-mismatch',
      `tokenizer: expected the begin token ${config.bosTokenId} of the model's config.json, got ${bosId}; ` +
        'use the tokenizer that belongs to the model',
    );
  }
}

/** Most examples that a share of the training data gives to validation: more would cost time and tell little. */
const MOST_HELD_OUT = 1000;

/**
 * Takes a seeded random share of the examples out for validation: at least one, unless there is only one or the share is
 * 0, and at most 1000.
 */
export function holdOut(
  examples: readonly TokenizedExample[],
  fraction: number,
  seed: number,
): { train: TokenizedExample[]; held: TokenizedExample[] } {
  const n = examples.length;
  const count = fraction === 0 || n < 2 ? 0 : Math.min(n - 1, MOST_HELD_OUT, Math.max(1, Math.round(n * fraction)));
  const chosen = new Set(new Philox(seed, HOLD_OUT_STREAM).permutation(n).subarray(0, count));
  return { train: examples.filter((_, i) => !chosen.has(i)), held: examples.filter((_, i) => chosen.has(i)) };
}

/** Far from the streams of the epochs, which count from 0. */
const HOLD_OUT_STREAM = 0xffffffff;

/** Batches for measuring: every example once, of similar lengths together. */
export function measuringBatches(examples: readonly TokenizedExample[], batchSize: number): Iterable<Batch> {
  const byLength = [...examples].sort((a, b) => b.ids.length - a.ids.length);
  return new BatchIterator(byLength, { batchSize, seed: 0, shuffle: false });
}

/** Batches of text for forgetting, at most `tokens` of it, small enough that all their logits fit in memory. */
export function textBatches(
  examples: readonly TokenizedExample[],
  tokens: number,
  vocabSize: number,
): { batches: () => Iterable<Batch>; tokens: number } {
  const chosen: TokenizedExample[] = [];
  let taken = 0;
  for (const example of examples) {
    const room = tokens - taken;
    if (room < 2) break;
    const ids = example.ids.slice(0, room);
    chosen.push({ ...example, ids, labels: example.labels.slice(0, room) });
    taken += ids.length;
  }
  const longest = Math.max(...chosen.map(({ ids }) => ids.length));
  const rows = Math.max(1, Math.min(16, Math.floor(MOST_LOGITS / (longest * vocabSize))));
  return { batches: () => measuringBatches(chosen, rows), tokens: taken };
}

/** 64 MiB of float32; forgetting holds a few such tensors at once. */
const MOST_LOGITS = 2 ** 24;

/** One fingerprint of all ids and labels, in order. */
export async function fingerprintData(examples: readonly TokenizedExample[]): Promise<string> {
  const total = examples.reduce((n, { ids }) => n + 2 * ids.length + 1, 0);
  const data = new Int32Array(total);
  let at = 0;
  for (const { ids, labels } of examples) {
    data[at++] = ids.length;
    data.set(ids, at);
    data.set(labels, (at += ids.length));
    at += ids.length;
  }
  return fingerprint({ dtype: 'i32', shape: [total], data });
}
