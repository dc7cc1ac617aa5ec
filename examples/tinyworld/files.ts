/**
 * The files of the tiny world: the text to pretrain on, the new task, and the tokenizer.
 *
 * The same seed gives the same files, byte for byte, whatever the counts of the other files: each file draws from a
 * stream of random numbers of its own.
 */
import { closeSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Philox } from '@milora/tensor';
import { arithmeticProblems } from './arithmetic.js';
import { worldDocuments } from './documents.js';
import { tokenizerConfig, trainTokenizer } from './tokenizer.js';
import { createWorld, worldFacts } from './world.js';

/** The seed of the world whose model and tokenizer lie in `model/`. */
export const TINYWORLD_SEED = 7;

/** Enough to see every sentence pattern with most of its words. */
const TOKENIZER_SAMPLE = 20_000;

export interface MakeOptions {
  readonly seed: number;
  /** Number of documents in world.jsonl. */
  readonly documents: number;
  /** Number of documents in world.valid.jsonl. */
  readonly valid: number;
  /** Number of problems in arithmetic.train.jsonl. */
  readonly train: number;
  /** Number of problems in arithmetic.test.jsonl. */
  readonly test: number;
  /** `model_max_length` of tokenizer_config.json. */
  readonly context: number;
}

/** Defaults: 500,000 documents are 16 million tokens. */
export const MAKE_DEFAULTS: MakeOptions = {
  seed: TINYWORLD_SEED,
  documents: 500_000,
  valid: 2_000,
  train: 20_000,
  test: 500,
  context: 256,
};

/** Writes all files and yields the name and the number of lines of each when it is there. */
export function* makeTinyworld(out: string, options: MakeOptions): Generator<{ file: string; lines: number }> {
  mkdirSync(out, { recursive: true });
  const { seed } = options;
  const world = createWorld(new Philox(seed, 0));
  const documents = (stream: number, n: number) => worldDocuments(world, new Philox(seed, stream), n);

  yield writeLines(
    out,
    'world.jsonl',
    jsonl(documents(1, options.documents), (text) => ({ text })),
  );
  // Drawn apart from world.jsonl, but short documents occur in both: this measures fit to the world, not novelty.
  yield writeLines(
    out,
    'world.valid.jsonl',
    jsonl(documents(2, options.valid), (text) => ({ text })),
  );
  // What finetuning must not make the model forget.
  yield writeLines(
    out,
    'world.questions.jsonl',
    jsonl(worldFacts(world), ({ question, statements: [first] }) => ({ prompt: question, completion: ` ${first}` })),
  );
  yield writeLines(
    out,
    'arithmetic.train.jsonl',
    jsonl(arithmeticProblems(new Philox(seed, 3), options.train, 'train'), (problem) => problem),
  );
  yield writeLines(
    out,
    'arithmetic.test.jsonl',
    jsonl(arithmeticProblems(new Philox(seed, 4), options.test, 'test'), (problem) => problem),
  );
  const tokenizer = trainTokenizer(documents(5, TOKENIZER_SAMPLE));
  yield writeLines(out, 'tokenizer.json', JSON.stringify(tokenizer, null, 1).split('\n'));
  yield writeLines(out, 'tokenizer_config.json', JSON.stringify(tokenizerConfig(options.context), null, 2).split('\n'));
}

function* jsonl<T>(items: Iterable<T>, record: (item: T) => object): Generator<string> {
  for (const item of items) yield JSON.stringify(record(item));
}

/** Writes under a temporary name and renames at the end, so that a broken run never leaves half a file. */
function writeLines(out: string, file: string, lines: Iterable<string>): { file: string; lines: number } {
  const temporary = join(out, `${file}.${process.pid}.tmp`);
  const descriptor = openSync(temporary, 'w');
  let count = 0;
  let complete = false;
  try {
    let chunk = '';
    for (const line of lines) {
      chunk += line + '\n';
      count++;
      if (chunk.length >= 1 << 20) {
        writeSync(descriptor, chunk);
        chunk = '';
      }
    }
    writeSync(descriptor, chunk);
    complete = true;
  } finally {
    closeSync(descriptor);
    if (!complete) rmSync(temporary, { force: true });
  }
  renameSync(temporary, join(out, file));
  return { file, lines: count };
}
