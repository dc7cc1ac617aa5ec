/**
 * The tokenizer of the tiny world, trained by this script: byte-level BPE (Sennrich et al. 2016,
 * https://arxiv.org/abs/1508.07909; over bytes as in GPT-2) with at most 512 tokens, in the `tokenizer.json` format of
 * Hugging Face (https://huggingface.co/docs/tokenizers). All 256 bytes are tokens, so any text can be encoded.
 *
 * Numbers: 0 … 20 with the space before them (" 7", " 12") are whole tokens, by merges that stand in front of all
 * learned ones. So a number is one token wherever it stands in a sentence, the addition table is a map from two tokens
 * to one, and "12" shares nothing with "1" and "2", which would only mislead. Digits take part in no other merge:
 * larger numbers, and numbers without a space, fall apart into such tokens and single digits. The signs " +", " -" and
 * " =" are whole tokens in the same way, so that an equation reads "3 + 4 = 7" in five of them.
 */

/** The ids of the special tokens are 0, 1, 2; the bytes follow, then the merges in the order they were learned. */
export const SPECIAL_TOKENS = { bos: '<s>', eos: '</s>', pad: '<pad>' } as const;

/** The split into words of the ByteLevel pre-tokenizer (GPT-2): a word takes the space before it along. */
const WORD = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/**
 * GPT-2 writes every byte as a visible character: printable Latin-1 as itself, the others as U+0100, U+0101, … in
 * order; so a space is "Ġ" (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
 */
const BYTE_SYMBOLS: readonly string[] = (() => {
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let hidden = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : 256 + hidden++));
})();

const toSymbols = (word: string): string[] => Array.from(new TextEncoder().encode(word), (byte) => BYTE_SYMBOLS[byte]!);

type Merge = readonly [left: string, right: string];

const SPACE = BYTE_SYMBOLS[32]!;
const FIXED_MERGES: readonly Merge[] = [...Array(21).keys(), '+', '-', '='].map((part): Merge => {
  const text = SPACE + part;
  return [text.slice(0, -1), text.slice(-1)];
});

/** The content of a tokenizer.json of this kind. */
export interface TokenizerJson {
  readonly added_tokens: readonly { readonly id: number; readonly content: string; readonly special: boolean }[];
  readonly model: {
    readonly type: 'BPE';
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly string[];
  };
  readonly [part: string]: unknown;
}

/**
 * Trains the tokenizer on texts: counts their words once, then merges the most frequent pair of neighbouring tokens
 * until the vocabulary is full. Of equally frequent pairs the one that comes first by character codes wins, so the
 * result depends on the texts only.
 *
 * @param texts a sample of what will be encoded
 * @param vocabularySize at least 283: 3 special tokens, 256 bytes, 21 numbers and 3 signs
 * @throws RangeError when `vocabularySize` is smaller
 * @example
 * const json = trainTokenizer(['Mia lives in Oakhill.'], 300);
 */
export function trainTokenizer(texts: Iterable<string>, vocabularySize = 512): TokenizerJson {
  const specials = Object.values(SPECIAL_TOKENS);
  const base = [...specials, ...BYTE_SYMBOLS];
  const learned = vocabularySize - base.length - FIXED_MERGES.length;
  if (!(learned >= 0)) {
    throw new RangeError(
      `vocabularySize: expected at least ${base.length + FIXED_MERGES.length}, got ${vocabularySize}`,
    );
  }
  const merges = [...FIXED_MERGES, ...learnMerges(countWords(texts), learned)];
  const vocab = Object.fromEntries(
    [...base, ...merges.map(([left, right]) => left + right)].map((token, id) => [token, id]),
  );
  const bos = { SpecialToken: { id: SPECIAL_TOKENS.bos, type_id: 0 } };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: specials.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: {
      type: 'TemplateProcessing',
      single: [bos, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [bos, { Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 0 } }],
      special_tokens: {
        [SPECIAL_TOKENS.bos]: {
          id: SPECIAL_TOKENS.bos,
          ids: [vocab[SPECIAL_TOKENS.bos]],
          tokens: [SPECIAL_TOKENS.bos],
        },
      },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: merges.map((merge) => merge.join(' ')),
    },
  } as TokenizerJson;
}

/** The content of tokenizer_config.json, for a model which reads up to `modelMaxLength` tokens. */
export function tokenizerConfig(modelMaxLength: number): Record<string, unknown> {
  return {
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: SPECIAL_TOKENS.bos,
    eos_token: SPECIAL_TOKENS.eos,
    pad_token: SPECIAL_TOKENS.pad,
    add_bos_token: true,
    add_eos_token: false,
    clean_up_tokenization_spaces: false,
    model_max_length: modelMaxLength,
  };
}

interface Word {
  symbols: string[];
  readonly count: number;
}

/** The different words of the texts with how often each occurs. Words with digits are left to {@link FIXED_MERGES}. */
function countWords(texts: Iterable<string>): Word[] {
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const [word] of text.matchAll(WORD)) {
      if (!/\p{N}/u.test(word)) counts.set(word, (counts.get(word) ?? 0) + 1);
    }
  }
  return Array.from(counts, ([word, count]) => ({ symbols: toSymbols(word), count }));
}

function learnMerges(words: readonly Word[], limit: number): Merge[] {
  const merges: Merge[] = [];
  while (merges.length < limit) {
    const best = mostFrequentPair(words);
    if (best === undefined) break; // every word is one token already
    merges.push(best);
    for (const word of words) word.symbols = mergePair(word.symbols, best);
  }
  return merges;
}

/** Counted anew for every merge: a tiny world has a few hundred words, and clarity is worth the second it takes. */
function mostFrequentPair(words: readonly Word[]): Merge | undefined {
  const counts = new Map<string, number>(); // keyed "left right": no byte symbol is a space
  for (const { symbols, count } of words) {
    for (let i = 1; i < symbols.length; i++) {
      const pair = `${symbols[i - 1]!} ${symbols[i]!}`;
      counts.set(pair, (counts.get(pair) ?? 0) + count);
    }
  }
  let best: string | undefined;
  let bestCount = 0;
  for (const [pair, count] of counts) {
    if (count > bestCount || (count === bestCount && best !== undefined && pair < best)) {
      best = pair;
      bestCount = count;
    }
  }
  return best?.split(' ') as [string, string] | undefined;
}

function mergePair(symbols: readonly string[], [left, right]: Merge): string[] {
  const merged: string[] = [];
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] === left && symbols[i + 1] === right) {
      merged.push(left + right);
      i++;
    } else {
      merged.push(symbols[i]!);
    }
  }
  return merged;
}
