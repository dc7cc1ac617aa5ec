/**
 * Examples as token ids and labels: what of an example is trained, and what is masked.
 *
 * Prompt and completion are tokenised separately and then joined, so that the border between what is trained and what is
 * not falls between two tokens. By default the completion only is trained, and in a chat the assistant's turns only;
 * `describeMasking` prints that, so that it can be looked at. A label of −100 is ignored, as in PyTorch and Hugging Face.
 */
import { renderChat } from '@milora/llama';
import type { ChatMessage, Tokenizer } from '@milora/llama';
import type { Example } from './dataset.js';
import { MiloraError } from './errors.js';

/** Label of a token that is not trained. */
export const IGNORE = -100;

/** Token ids of one example with their labels. */
export interface TokenizedExample {
  /** `[length]` */
  readonly ids: Int32Array;
  /**
   * `[length]`, not shifted: `labels[t]` is `ids[t]` where token t is trained (predicted from the tokens before it), else
   * −100. The first token has nothing before it, so it is never trained.
   */
  readonly labels: Int32Array;
  /** Whether `maxLength` cut off its end. */
  readonly truncated: boolean;
}

export interface TokenizeOptions {
  /** Longest example in tokens; longer ones lose their end. */
  readonly maxLength: number;
  /** Train on completions and assistant turns only (default true); false trains on every token. */
  readonly maskPrompt?: boolean;
  /**
   * End with the tokenizer's (first) end token, trained, so that the model learns to stop. Default: true where the
   * tokenizer has one. A chat template writes its own ends.
   */
  readonly addEos?: boolean;
  /** Begin with the tokenizer's begin token. Default: as the tokenizer itself does. A chat template writes its own. */
  readonly addBos?: boolean;
}

/** A stretch of text whose tokens are all trained, or all not. */
interface Segment {
  readonly text: string;
  readonly trained: boolean;
}

/**
 * Token ids and labels of one example.
 *
 * Prompt and completion are tokenised separately and then joined. So the prompt's tokens are the ones the model
 * will see when it is asked later; tokenised together, the last characters of the prompt can merge with the first ones
 * of the completion into a token that no later prompt ends with. The same goes for the turns of a conversation.
 * Tokenizers of the SentencePiece kind (LLaMA 1 and 2) put a space before every text they encode; a completion that
 * begins with a space leaves its own out then, so that there is one and not two.
 *
 * @throws MiloraError `max-length` unless maxLength is a whole number ≥ 2, `no-eos` / `no-bos` if a token is asked for
 *   that the tokenizer lacks, `no-chat-template` and `chat-template` for conversations whose turns cannot be rendered
 *   or told apart
 */
export function tokenizeExample(example: Example, tokenizer: Tokenizer, options: TokenizeOptions): TokenizedExample {
  return tokenizeWith(tokenizer, resolveOptions(tokenizer, options))(example);
}

interface ResolvedOptions {
  readonly maxLength: number;
  readonly maskPrompt: boolean;
  readonly bos: readonly number[];
  readonly eos: readonly number[];
  /** Whether the tokenizer puts a space before every text. */
  readonly spaceFirst: boolean;
}

function resolveOptions(tokenizer: Tokenizer, options: TokenizeOptions): ResolvedOptions {
  const { maxLength, maskPrompt = true, addBos, addEos } = options;
  if (!Number.isInteger(maxLength) || maxLength < 2) {
    throw new MiloraError('max-length', `maxLength: expected a whole number ≥ 2, got ${maxLength}`);
  }
  const { bosId } = tokenizer;
  const eosId = tokenizer.eosIds[0];
  if (addBos === true && bosId === undefined) {
    throw new MiloraError('no-bos', 'addBos: expected a tokenizer with a begin token, got one without');
  }
  if (addEos === true && eosId === undefined) {
    throw new MiloraError('no-eos', 'addEos: expected a tokenizer with an end token, got one without');
  }
  const encode = (text: string): string => tokenizer.encode(text, { addSpecialTokens: false }).join(' ');
  const beginsWithBos = bosId !== undefined && tokenizer.encode('', { addSpecialTokens: true })[0] === bosId;
  return {
    maxLength,
    maskPrompt,
    bos: bosId !== undefined && (addBos ?? beginsWithBos) ? [bosId] : [],
    eos: eosId !== undefined && (addEos ?? true) ? [eosId] : [],
    spaceFirst: encode('a b') === `${encode('a')} ${encode('b')}`,
  };
}

function tokenizeWith(tokenizer: Tokenizer, options: ResolvedOptions): (example: Example) => TokenizedExample {
  const encode = (text: string): number[] => tokenizer.encode(text, { addSpecialTokens: false });
  return (example) => {
    const { maxLength, maskPrompt, bos, eos, spaceFirst } = options;
    const isChat = 'messages' in example;
    const ids: number[] = isChat ? [] : [...bos];
    const isTrained: boolean[] = ids.map(() => !maskPrompt);
    const append = (tokens: readonly number[], trained: boolean): void => {
      for (const token of tokens) {
        ids.push(token);
        isTrained.push(trained || !maskPrompt);
      }
    };
    segmentsOf(example, tokenizer).forEach(({ text, trained }, i) => {
      const hasSpace = i > 0 && spaceFirst && /^ [^]/.test(text);
      append(encode(hasSpace ? text.slice(1) : text), trained);
    });
    if (!isChat) append(eos, true);

    const length = Math.min(ids.length, maxLength);
    const labels = new Int32Array(length).fill(IGNORE);
    for (let t = 1; t < length; t++) if (isTrained[t]) labels[t] = ids[t]!;
    return { ids: Int32Array.from(ids.slice(0, length)), labels, truncated: ids.length > maxLength };
  };
}

function segmentsOf(example: Example, tokenizer: Tokenizer): Segment[] {
  if ('text' in example) return example.text === '' ? [] : [{ text: example.text, trained: true }];
  if ('messages' in example) return chatSegments(example.messages, tokenizer);
  const segments = [
    { text: example.prompt, trained: false },
    { text: example.completion, trained: true },
  ];
  return segments.filter((segment) => segment.text !== '');
}

/**
 * Cuts a rendered conversation into assistant turns and the rest. A turn is what the template adds to the request for
 * an answer (`addGenerationPrompt`) when the answer is there, its end mark included.
 */
function chatSegments(messages: readonly ChatMessage[], tokenizer: Tokenizer): Segment[] {
  const { chatTemplate } = tokenizer;
  if (chatTemplate === undefined) {
    throw new MiloraError(
      'no-chat-template',
      'messages: expected a tokenizer with a chat template, got one without; use prompt + completion records, or a chat model',
    );
  }
  const special = (id: number | undefined): string => (id === undefined ? '' : (tokenizer.idToToken(id) ?? ''));
  const bosToken = special(tokenizer.bosId);
  const eosToken = special(tokenizer.eosIds[0]);
  const render = (count: number, addGenerationPrompt: boolean): string =>
    renderChat(chatTemplate, messages.slice(0, count), { bosToken, eosToken, addGenerationPrompt });

  const whole = render(messages.length, false);
  const segments: Segment[] = [];
  let done = 0;
  messages.forEach((message, i) => {
    if (message.role !== 'assistant') return;
    const request = render(i, true);
    const answered = render(i + 1, false);
    if (!whole.startsWith(answered) || !answered.startsWith(request) || request.length < done) {
      throw new MiloraError(
        'chat-template',
        `messages[${i}]: expected a chat template that renders the first turns of a conversation the same with and without ` +
          'the turns after them, got different texts, so the assistant turns cannot be found; use prompt + completion records',
      );
    }
    segments.push({ text: whole.slice(done, request.length), trained: false });
    segments.push({ text: whole.slice(request.length, answered.length), trained: true });
    done = answered.length;
  });
  segments.push({ text: whole.slice(done), trained: false });
  return segments.filter((segment) => segment.text !== '');
}

/** Tokenised examples and what happened to them on the way. */
export interface TokenizedDataset {
  readonly examples: readonly TokenizedExample[];
  /** How many of the examples (those dropped not counted) lost their end to `maxLength`. */
  readonly truncated: number;
  /** Indices of examples dropped because no trained token was left, as when the prompt alone fills `maxLength`. */
  readonly dropped: readonly number[];
  /** Tokens in `examples`. */
  readonly tokens: number;
  /** Trained tokens in `examples`. */
  readonly targets: number;
}

/**
 * Tokenises all examples, dropping those without a trained token.
 *
 * @throws MiloraError `no-labels` if none is left, and what `tokenizeExample` throws
 */
export function tokenizeDataset(
  examples: readonly Example[],
  tokenizer: Tokenizer,
  options: TokenizeOptions,
): TokenizedDataset {
  const tokenize = tokenizeWith(tokenizer, resolveOptions(tokenizer, options));
  const kept: TokenizedExample[] = [];
  const dropped: number[] = [];
  let truncated = 0;
  let tokens = 0;
  let targets = 0;
  examples.forEach((example, i) => {
    const tokenized = tokenize(example);
    const trained = countTargets(tokenized.labels);
    if (trained === 0) {
      dropped.push(i);
      return;
    }
    kept.push(tokenized);
    truncated += tokenized.truncated ? 1 : 0;
    tokens += tokenized.ids.length;
    targets += trained;
  });
  if (kept.length === 0) {
    throw new MiloraError(
      'no-labels',
      `training data: expected at least one example with a trained token within maxLength ${options.maxLength}, ` +
        `got none of ${examples.length}; raise maxLength`,
    );
  }
  return { examples: kept, truncated, dropped, tokens, targets };
}

/** How many labels are trained. */
export function countTargets(labels: Int32Array): number {
  let n = 0;
  for (const label of labels) if (label !== IGNORE) n++;
  return n;
}

/**
 * A printable view of one example that shows what is trained: one line for each stretch of tokens, then the counts.
 *
 * @param maxCharacters longer stretches are shortened in the middle
 *
 * @example
 * //   not trained    7 tokens  "<s>Question: 1 + 1?\nAnswer:"
 * //   trained        2 tokens  " 2</s>"
 * //   9 tokens, 2 of them trained
 */
export function describeMasking(
  { ids, labels, truncated }: TokenizedExample,
  tokenizer: Pick<Tokenizer, 'decode'>,
  maxCharacters = 400,
): string {
  const decode = (end: number): string => tokenizer.decode([...ids.subarray(0, end)], { skipSpecialTokens: false });
  const lines: string[] = [];
  for (let from = 0, to = 0; from < ids.length; from = to) {
    const trained = labels[from] !== IGNORE;
    while (to < ids.length && (labels[to] !== IGNORE) === trained) to++;
    // What the stretch adds to the text before it: decoded alone, many tokenizers would drop its first space.
    const text = shorten(decode(to).slice(decode(from).length), maxCharacters);
    lines.push(
      `${trained ? 'trained    ' : 'not trained'} ${String(to - from).padStart(5)} tokens  ${JSON.stringify(text)}`,
    );
  }
  lines.push(`${ids.length} tokens, ${countTargets(labels)} of them trained${truncated ? '; cut off at the end' : ''}`);
  return lines.join('\n');
}

function shorten(text: string, maxCharacters: number): string {
  if (text.length <= maxCharacters) return text;
  const half = Math.max(1, Math.floor((maxCharacters - 3) / 2));
  return `${text.slice(0, half)} … ${text.slice(text.length - half)}`;
}
