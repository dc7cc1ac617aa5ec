/**
 * Text to token ids and back.
 *
 * `Tokenizer` is what the rest of this library needs of one. `HfTokenizer` is the usual case: Hugging Face's
 * tokenizer.json, run by their own package (https://huggingface.co/docs/tokenizers). `llama2cTokenizer.ts` has the
 * other one. `createStreamDecoder` turns ids into text while they are generated.
 */
import { Tokenizer as HfImplementation } from '@huggingface/tokenizers';
import type { LlamaConfig } from './config.js';
import { LlamaError } from './errors.js';

export interface EncodeOptions {
  /** Add what the tokenizer puts around a text, usually the begin token. Default true. */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leave out begin, end and other special tokens. Default true. */
  readonly skipSpecialTokens?: boolean;
}

export interface Tokenizer {
  /** The largest id + 1. */
  readonly vocabSize: number;
  /** The begin token, undefined if there is none. */
  readonly bosId: number | undefined;
  /** The end tokens, the usual one first. */
  readonly eosIds: readonly number[];
  /** The padding token, undefined if there is none. */
  readonly padId: number | undefined;
  /** The Jinja template for `renderChat`, undefined for models without a chat format. */
  readonly chatTemplate?: string | undefined;
  encode(text: string, options?: EncodeOptions): number[];
  /** Ids that the tokenizer lacks yield no text: a model's vocabulary is often padded beyond its tokenizer's. */
  decode(ids: readonly number[], options?: DecodeOptions): string;
  tokenToId(token: string): number | undefined;
  idToToken(id: number): string | undefined;
}

type JsonRecord = Record<string, unknown>;

const isRecord = (value: unknown): value is JsonRecord =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const show = (value: unknown): string => (value === undefined ? 'nothing' : JSON.stringify(value).slice(0, 80));

const MODELS = ['BPE', 'Unigram', 'WordPiece'];

/**
 * A tokenizer from tokenizer.json and tokenizer_config.json. The former decides how text is split and which special
 * tokens surround it; the latter names the begin, end and padding tokens and holds the chat template.
 *
 * @example
 * const tokenizer = new HfTokenizer(JSON.parse(tokenizerJson), JSON.parse(tokenizerConfigJson));
 * tokenizer.decode(tokenizer.encode('Once upon a time'));
 */
export class HfTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  readonly eosIds: readonly number[];
  readonly padId: number | undefined;
  readonly chatTemplate: string | undefined;
  readonly #hf: HfImplementation;

  /**
   * @param tokenizerJson the parsed tokenizer.json
   * @param tokenizerConfig the parsed tokenizer_config.json
   * @param name where they came from, for messages
   * @throws LlamaError `tokenizer` when a part is missing, of an unknown kind, or names a token that does not exist
   */
  constructor(tokenizerJson: unknown, tokenizerConfig: unknown = {}, name = 'tokenizer.json') {
    if (!isRecord(tokenizerConfig)) {
      throw new LlamaError(
        'tokenizer',
        `${name}: expected tokenizer_config.json to be an object, got ${show(tokenizerConfig)}`,
      );
    }
    const parts = completeParts(tokenizerJson, name);
    try {
      this.#hf = new HfImplementation(parts, tokenizerConfig);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new LlamaError('tokenizer', `${name}: expected a tokenizer of known parts, got one that fails: ${reason}`, {
        cause: error,
      });
    }
    this.vocabSize = this.#hf.model?.vocab.length ?? 0;

    const idOf = (key: string): number | undefined => {
      const token = tokenText(tokenizerConfig[key]);
      if (token === undefined) return undefined;
      const id = this.tokenToId(token);
      if (id === undefined) {
        throw new LlamaError('tokenizer', `${name}: ${key}: expected a token of the vocabulary, got ${show(token)}`);
      }
      return id;
    };
    const eosId = idOf('eos_token');
    this.bosId = idOf('bos_token');
    this.eosIds = eosId === undefined ? [] : [eosId];
    this.padId = idOf('pad_token');
    this.chatTemplate = chatTemplateOf(tokenizerConfig['chat_template']);
  }

  encode(text: string, { addSpecialTokens = true }: EncodeOptions = {}): number[] {
    return this.#hf.encode(text, { add_special_tokens: addSpecialTokens }).ids;
  }

  decode(ids: readonly number[], { skipSpecialTokens = true }: DecodeOptions = {}): string {
    const known = ids.filter((id) => this.idToToken(id) !== undefined);
    if (known.length === 0) return '';
    // The clean-up, which tokenizer_config.json often asks for, was made for word pieces: it deletes spaces before
    // punctuation, so that decoding would no longer return what was encoded.
    return this.#hf.decode(known, { skip_special_tokens: skipSpecialTokens, clean_up_tokenization_spaces: false });
  }

  tokenToId(token: string): number | undefined {
    return this.#hf.token_to_id(token);
  }

  idToToken(id: number): string | undefined {
    return this.#hf.id_to_token(id);
  }
}

/** Checks what the package takes for granted and fills in parts that files leave out. */
function completeParts(json: unknown, name: string): JsonRecord {
  if (!isRecord(json)) throw new LlamaError('tokenizer', `${name}: expected a JSON object, got ${show(json)}`);
  const model = json['model'];
  if (!isRecord(model)) throw new LlamaError('tokenizer', `${name}: model: expected an object, got ${show(model)}`);
  // GPT-2's file, for one, predates the field.
  const type = model['type'] ?? ('merges' in model ? 'BPE' : undefined);
  if (typeof type !== 'string' || !MODELS.includes(type)) {
    throw new LlamaError('tokenizer', `${name}: model.type: expected ${MODELS.join(', ')}, got ${show(type)}`);
  }
  const vocab = model['vocab'];
  if (type === 'Unigram' ? !Array.isArray(vocab) : !isRecord(vocab)) {
    throw new LlamaError('tokenizer', `${name}: model.vocab: expected the vocabulary, got ${show(vocab)}`);
  }
  if (type === 'BPE' && !Array.isArray(model['merges'])) {
    throw new LlamaError('tokenizer', `${name}: model.merges: expected a list, got ${show(model['merges'])}`);
  }
  return {
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    ...json,
    added_tokens: json['added_tokens'] ?? [],
    model: { ...model, type },
  };
}

/** A token is written as a string or as an object with `content`; some files have "" for none. */
function tokenText(value: unknown): string | undefined {
  const text = isRecord(value) ? value['content'] : value;
  return typeof text === 'string' && text !== '' ? text : undefined;
}

/** One template, or several by name, of which `default` is the one for conversations. */
function chatTemplateOf(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return undefined;
  const template: unknown = value.filter(isRecord).find((entry) => entry['name'] === 'default')?.['template'];
  return typeof template === 'string' ? template : undefined;
}

/**
 * Refuses a tokenizer that makes ids the model has no embedding for. A smaller one is fine.
 *
 * @throws LlamaError `tokenizer-mismatch`
 */
export function checkTokenizer(tokenizer: Tokenizer, config: Pick<LlamaConfig, 'vocabSize'>): void {
  if (tokenizer.vocabSize > config.vocabSize) {
    throw new LlamaError(
      'tokenizer-mismatch',
      `tokenizer: expected ids below the model's vocabSize ${config.vocabSize}, got ids up to ${tokenizer.vocabSize - 1}; ` +
        'use the tokenizer that belongs to the model',
    );
  }
}

/** Turns ids into text one at a time. */
export interface StreamDecoder {
  /** Takes the next id and returns the text that has become certain, often '' in the middle of a character. */
  push(id: number): string;
  /** Returns what was held back, for when no more ids follow. */
  finish(): string;
}

export interface StreamDecoderOptions extends DecodeOptions {
  /**
   * The ids before, whose text is not returned. They matter for spaces: many tokenizers drop the space in front of the
   * first word of what they decode.
   */
  readonly prompt?: readonly number[];
}

/** What decoders put in place of bytes that are not (yet) a character. */
const REPLACEMENT = '\ufffd';

/**
 * A decoder for generation. All its texts together are what `decode` makes of all ids after the prompt; a character
 * that takes several tokens is returned whole, with its last token.
 *
 * Only a window of ids is decoded each time: those of the previous text, for context, and those since.
 *
 * @example
 * const decoder = createStreamDecoder(tokenizer, { prompt });
 * for await (const id of ids) process.stdout.write(decoder.push(id));
 * process.stdout.write(decoder.finish());
 */
export function createStreamDecoder(
  tokenizer: Pick<Tokenizer, 'decode'>,
  { prompt = [], ...options }: StreamDecoderOptions = {},
): StreamDecoder {
  let ids = [...prompt];
  /** How many of `ids` have been returned as text. */
  let done = ids.length;

  const advance = (final: boolean): string => {
    const before = tokenizer.decode(ids.slice(0, done), options);
    const text = tokenizer.decode(ids, options);
    // Without new text the window stays as it is, so that it always contains some.
    if (text.length <= before.length || (!final && text.endsWith(REPLACEMENT))) return '';
    ids = ids.slice(done);
    done = ids.length;
    return text.slice(before.length);
  };
  return {
    push(id) {
      ids.push(id);
      return advance(false);
    },
    finish: () => advance(true),
  };
}
