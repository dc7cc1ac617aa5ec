/**
 * Long texts as training examples: a document of any length becomes pieces of at most `maxLength` tokens, so that none of
 * it is lost. Consecutive pieces share one token, because the first token of a piece has nothing before it: so every
 * token but a document's first is predicted exactly once.
 */
import type { Tokenizer } from '@milora/llama';
import { IGNORE, countTargets, tokenizeDataset } from './tokenize.js';
import type { Dataset } from './dataset.js';
import type { TokenizeOptions, TokenizedDataset, TokenizedExample } from './tokenize.js';

/** Pieces of at most `maxLength` tokens; pieces without a trained token are left out. */
export function chunkExample({ ids, labels, truncated }: TokenizedExample, maxLength: number): TokenizedExample[] {
  if (ids.length <= maxLength) return [{ ids, labels, truncated }];
  const pieces: TokenizedExample[] = [];
  for (let from = 0; from + 1 < ids.length; from += maxLength - 1) {
    const piece = { ids: ids.slice(from, from + maxLength), labels: labels.slice(from, from + maxLength), truncated };
    piece.labels[0] = IGNORE;
    if (countTargets(piece.labels) > 0) pieces.push(piece);
  }
  return pieces;
}

/**
 * Tokenises a data set as its format asks: running text in pieces, everything else example by example, cut at `maxLength`.
 *
 * @throws MiloraError as `tokenizeDataset`
 */
export function tokenizeInPieces(dataset: Dataset, tokenizer: Tokenizer, options: TokenizeOptions): TokenizedDataset {
  const isText = dataset.format === 'text' || dataset.format === 'plain-text';
  if (!isText || !(options.maxLength >= 2)) return tokenizeDataset(dataset.examples, tokenizer, options);
  const whole = tokenizeDataset(dataset.examples, tokenizer, { ...options, maxLength: Number.MAX_SAFE_INTEGER });
  const examples = whole.examples.flatMap((example) => chunkExample(example, options.maxLength));
  return { ...whole, examples, tokens: examples.reduce((n, { ids }) => n + ids.length, 0) };
}
