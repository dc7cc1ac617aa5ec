/**
 * A batch of a data file as finetuning sees it, prompts masked, in two layouts of the same examples: padded, one to a row,
 * and packed into a single row without padding.
 */
import { loadTokenizer } from '@milora/llama/node';
import type { Tokenizer } from '@milora/llama';
import { BatchIterator, tokenizeDataset } from 'milora';
import type { Batch } from 'milora';
import { readDataset } from 'milora/node';

/** Stands in for a tokenizer: a byte is a token, after padding, begin and end. For speed the ids do not matter. */
const bytes: Tokenizer = {
  vocabSize: 259,
  bosId: 1,
  eosIds: [2],
  padId: 0,
  encode: (text, { addSpecialTokens = true } = {}) => [
    ...(addSpecialTokens ? [1] : []),
    ...Array.from(new TextEncoder().encode(text), (byte) => byte + 3),
  ],
  decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids, (id) => id - 3)),
  tokenToId: () => undefined,
  idToToken: () => undefined,
};

export interface RealBatch {
  padded: Batch;
  packed: Batch;
  /** Tokens of each example. */
  lengths: number[];
}

/** The first `count` examples of a file; longer ones than `maxLength` tokens lose their end. */
export async function realBatch(
  path: string,
  tokenizer: string | undefined,
  { count, maxLength, vocabSize }: { count: number; maxLength: number; vocabSize: number },
): Promise<RealBatch> {
  const by = tokenizer === undefined ? bytes : await loadTokenizer(tokenizer);
  if (by.vocabSize > vocabSize) {
    throw new Error(`--tokenizer: expected at most the model's ${vocabSize} tokens, got ${by.vocabSize}`);
  }
  const { examples: texts } = await readDataset(path);
  const examples = tokenizeDataset(texts.slice(0, count), by, { maxLength }).examples;
  const lengths = examples.map(({ ids }) => ids.length);
  const options = { batchSize: examples.length, seed: 0, shuffle: false };
  const padded = new BatchIterator(examples, { ...options, maxLength }).nextBatch();
  const tokens = lengths.reduce((a, b) => a + b, 0);
  const packed = new BatchIterator(examples, { ...options, mode: 'pack', maxLength: tokens }).nextBatch();
  return { padded, packed, lengths };
}
