/**
 * The tokenizer.bin of llama2.c: a SentencePiece BPE vocabulary with scores.
 *
 * The file is an int32 (length of the longest token), then for each id a float32 score, an int32 length and as many
 * bytes, little-endian. Ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`; 256 tokens `<0x00>` … `<0xFF>` stand for single bytes;
 * spaces are plain spaces.
 *
 * Encoding starts with a space and the characters of the text, those without a token as their UTF-8 bytes, and joins
 * again and again the pair of neighbours whose union has the highest score, the leftmost of equals.
 *
 * https://github.com/karpathy/llama2.c/blob/master/tokenizer.py (`export`), run.c (`encode`, `decode`)
 */
import { LlamaError } from './errors.js';
import type { DecodeOptions, EncodeOptions, Tokenizer } from './tokenizer.js';

const SPECIAL_TOKENS = ['<unk>', '<s>', '</s>'];
const BOS = 1;
const EOS = 2;
const BYTE_TOKEN = /^<0x([0-9A-F]{2})>$/;

/** A tokenizer from llama2.c's tokenizer.bin. */
export class Llama2cTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId = BOS;
  readonly eosIds: readonly number[] = [EOS];
  readonly padId = undefined;
  readonly #tokens: readonly string[];
  readonly #scores: readonly number[];
  readonly #ids: ReadonlyMap<string, number>;
  /** Id of the token of each byte. */
  readonly #byteIds: readonly number[];
  /** The bytes that a token stands for; none for special tokens. */
  readonly #bytes: readonly Uint8Array[];

  /**
   * @param bytes the file
   * @param name where it came from, for messages
   * @throws LlamaError `tokenizer` when the file is cut short or is something else
   */
  constructor(bytes: Uint8Array, name = 'tokenizer.bin') {
    const { tokens, scores } = readVocabulary(bytes, name);
    const encoder = new TextEncoder();
    const byteOf = (token: string): number => parseInt(BYTE_TOKEN.exec(token)?.[1] ?? '', 16);

    this.vocabSize = tokens.length;
    this.#tokens = tokens;
    this.#scores = scores;
    this.#ids = new Map(tokens.map((token, id) => [token, id]));
    this.#bytes = tokens.map((token, id) => {
      if (id < SPECIAL_TOKENS.length) return new Uint8Array();
      const byte = byteOf(token);
      return Number.isNaN(byte) ? encoder.encode(token) : Uint8Array.of(byte);
    });
    this.#byteIds = Array.from({ length: 256 }, (_, byte) => {
      const token = `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
      const id = this.#ids.get(token);
      if (id === undefined)
        throw new LlamaError('tokenizer', `${name}: expected a token for every byte, got none like ${token}`);
      return id;
    });
  }

  encode(text: string, { addSpecialTokens = true }: EncodeOptions = {}): number[] {
    const begin = addSpecialTokens ? [BOS] : [];
    return text === '' ? begin : [...begin, ...this.#merge(this.#characters(` ${text}`))];
  }

  decode(ids: readonly number[], { skipSpecialTokens = true }: DecodeOptions = {}): string {
    const pieces: Uint8Array[] = [];
    let begins = true;
    const encoder = new TextEncoder();
    for (const id of ids) {
      let piece = this.#bytes[id];
      if (piece === undefined) continue;
      const special = SPECIAL_TOKENS[id];
      if (special !== undefined && !skipSpecialTokens) piece = encoder.encode(special);
      // the space that `encode` put in front; run.c, which never decodes without a begin token, looks for that
      if (begins && piece[0] === 32 && BYTE_TOKEN.exec(this.#tokens[id]!) === null) piece = piece.subarray(1);
      begins = id === BOS || (begins && special !== undefined);
      pieces.push(piece);
    }
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(concatenate(pieces));
  }

  tokenToId(token: string): number | undefined {
    return this.#ids.get(token);
  }

  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }

  #characters(text: string): number[] {
    const encoder = new TextEncoder();
    return Array.from(text).flatMap((character) => {
      const id = this.#ids.get(character);
      return id === undefined ? Array.from(encoder.encode(character), (byte) => this.#byteIds[byte]!) : [id];
    });
  }

  /** Joins pairs by score. `ids` becomes a linked list, since joining in an array would take quadratic time. */
  #merge(ids: number[]): number[] {
    const next = ids.map((_, i) => i + 1);
    const previous = ids.map((_, i) => i - 1);
    const queue = new MergeQueue();
    const propose = (left: number): void => {
      const right = next[left];
      if (right === undefined || right >= ids.length) return;
      const joined = this.#ids.get(this.#tokens[ids[left]!]! + this.#tokens[ids[right]!]!);
      if (joined === undefined) return;
      queue.push({ score: this.#scores[joined]!, left, leftId: ids[left]!, rightId: ids[right]!, joined });
    };

    for (let i = 0; i < ids.length; i++) propose(i);
    for (let merge = queue.pop(); merge !== undefined; merge = queue.pop()) {
      const { left, leftId, rightId, joined } = merge;
      const right = next[left]!;
      // Either side may have been joined to something else since.
      if (ids[left] !== leftId || ids[right] !== rightId) continue;
      ids[left] = joined;
      ids[right] = GONE;
      next[left] = next[right]!;
      if (next[left] < ids.length) previous[next[left]] = left;
      propose(left);
      if (previous[left]! >= 0) propose(previous[left]!);
    }
    return ids.filter((id) => id !== GONE);
  }
}

/** In place of an id that was joined to its left neighbour. */
const GONE = -1;

interface Merge {
  readonly score: number;
  /** Place of the left half. */
  readonly left: number;
  readonly leftId: number;
  readonly rightId: number;
  readonly joined: number;
}

const comesBefore = (a: Merge, b: Merge): boolean => a.score > b.score || (a.score === b.score && a.left < b.left);

/** A binary heap: the highest score first, the leftmost of equals. */
class MergeQueue {
  readonly #heap: Merge[] = [];

  push(merge: Merge): void {
    const heap = this.#heap;
    let at = heap.length;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!comesBefore(merge, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = merge;
  }

  pop(): Merge | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && comesBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!comesBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function readVocabulary(bytes: Uint8Array, name: string): { tokens: string[]; scores: number[] } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const broken = (at: number, got: string): LlamaError =>
    new LlamaError('tokenizer', `${name}: expected llama2.c's tokenizer.bin, got ${got} at byte ${at}`);

  const tokens: string[] = [];
  const scores: number[] = [];
  let at = 4;
  while (at < bytes.length) {
    if (at + 8 > bytes.length) throw broken(at, 'its end inside a token');
    const length = view.getInt32(at + 4, true);
    const start = at + 8;
    if (length < 0 || start + length > bytes.length) throw broken(at, `a token of ${length} bytes`);
    scores.push(view.getFloat32(at, true));
    try {
      tokens.push(decoder.decode(bytes.subarray(start, start + length)));
    } catch {
      throw broken(start, 'a token that is not UTF-8');
    }
    at = start + length;
  }
  if (tokens.length <= SPECIAL_TOKENS.length) throw broken(bytes.length, `its end after ${tokens.length} tokens`);
  // The file has line breaks around the begin and end tokens, for printing.
  tokens.splice(0, SPECIAL_TOKENS.length, ...SPECIAL_TOKENS);
  return { tokens, scores };
}

function concatenate(pieces: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(pieces.reduce((length, piece) => length + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
