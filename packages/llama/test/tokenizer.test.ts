import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HfTokenizer, checkTokenizer, createStreamDecoder } from '../src/tokenizer.js';
import type { StreamDecoderOptions, Tokenizer } from '../src/tokenizer.js';
import { loadTokenizer } from '../src/node.js';
import { byteFallback, byteLevel, llama2cTokenizerBin } from './fixtures/tokenizers.js';
import { texts } from './fixtures/texts.js';
import { sharedJson, sharedPath } from './shared.js';

const likeLlama3 = new HfTokenizer(byteLevel.tokenizer, byteLevel.config);
const likeLlama2 = new HfTokenizer(byteFallback.tokenizer, byteFallback.config);
const tokenizers: [string, HfTokenizer][] = [
  ['byte level', likeLlama3],
  ['byte fallback', likeLlama2],
];
const plain = { addSpecialTokens: false };
const pieces = (tokenizer: Tokenizer, text: string, options = plain): (string | undefined)[] =>
  tokenizer.encode(text, options).map((id) => tokenizer.idToToken(id));

describe('HfTokenizer', () => {
  it('splits like LLaMA 3: words, groups of three digits, whole tokens before merges', () => {
    expect(pieces(likeLlama3, 'Hello world direct', { addSpecialTokens: true })).toEqual([
      '<|begin_of_text|>',
      'Hello',
      'Ġworld',
      'Ġdirect',
    ]);
    expect(pieces(likeLlama3, '12345')).toEqual(['123', '4', '5']);
    expect(pieces(likeLlama3, 'é')).toEqual(['Ã', '©']);
  });

  it('splits like LLaMA 2: a space in front, merges by rank, bytes for the rest', () => {
    expect(pieces(likeLlama2, 'thend the', { addSpecialTokens: true })).toEqual(['<s>', '▁the', 'nd', '▁the']);
    expect(pieces(likeLlama2, 'Ж')).toEqual(['▁', '<0xD0>', '<0x96>']);
    expect(pieces(likeLlama2, '')).toEqual([]);
  });

  it.each(tokenizers)('gives back what it encoded (%s)', (_, tokenizer) => {
    fc.assert(
      fc.property(texts, (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
        expect(tokenizer.decode(tokenizer.encode(text, plain))).toBe(text);
        for (const id of tokenizer.encode(text)) expect(id).toBeLessThan(tokenizer.vocabSize);
      }),
      { numRuns: 300 },
    );
  });

  it('keeps spaces before punctuation although the file asks for a clean-up', () => {
    expect(byteLevel.config.clean_up_tokenization_spaces).toBe(true);
    const text = "Hello , world . do n't !";
    expect(likeLlama3.decode(likeLlama3.encode(text))).toBe(text);
  });

  it('knows begin, end and padding tokens, written as strings or objects', () => {
    expect(likeLlama3.idToToken(likeLlama3.bosId!)).toBe('<|begin_of_text|>');
    expect(likeLlama3.eosIds.map((id) => likeLlama3.idToToken(id))).toEqual(['<|eot_id|>']);
    expect(likeLlama3.padId).toBe(likeLlama3.tokenToId('<|end_of_text|>'));
    expect(likeLlama3.vocabSize).toBe(likeLlama3.eosIds[0]! + 1);
    expect(likeLlama2).toMatchObject({ bosId: 1, eosIds: [2], padId: undefined, chatTemplate: undefined });
    expect(likeLlama3.tokenToId('no such token')).toBeUndefined();
    expect(likeLlama3.idToToken(99999)).toBeUndefined();
    // as in the first LLaMA conversions
    expect(new HfTokenizer(byteFallback.tokenizer, { bos_token: '', eos_token: null })).toMatchObject({
      bosId: undefined,
      eosIds: [],
    });
  });

  it('finds special tokens in text and leaves them out of text', () => {
    const ids = likeLlama3.encode('Hello<|eot_id|> world');
    expect(ids.map((id) => likeLlama3.idToToken(id))).toEqual(['<|begin_of_text|>', 'Hello', '<|eot_id|>', 'Ġworld']);
    expect(likeLlama3.decode(ids)).toBe('Hello world');
    expect(likeLlama3.decode(ids, { skipSpecialTokens: false })).toBe('<|begin_of_text|>Hello<|eot_id|> world');
  });

  it('decodes nothing, and ids it does not have, to nothing', () => {
    expect(likeLlama2.decode([])).toBe('');
    expect(likeLlama2.decode([1, 2])).toBe('');
    expect(likeLlama2.decode([...likeLlama2.encode('then'), 5000, -1])).toBe('then');
  });

  it('takes the default one of several chat templates', () => {
    expect(likeLlama3.chatTemplate).toContain('bos_token');
  });

  it('reads files that lack parts, such as GPT-2’s', () => {
    const { model } = byteLevel.tokenizer;
    const bare = new HfTokenizer({ model: { vocab: model.vocab, merges: ['H e', 'l l'] } });
    expect(pieces(bare, 'Hell')).toEqual(['He', 'll']);
    expect(bare.bosId).toBeUndefined();
  });

  it.each([
    [null, {}, 'x.json: expected a JSON object, got null'],
    [{}, {}, 'x.json: model: expected an object, got nothing'],
    [{ model: { type: 'Seq2Seq' } }, {}, 'x.json: model.type: expected BPE, Unigram, WordPiece, got "Seq2Seq"'],
    [{ model: { type: 'BPE', merges: [] } }, {}, 'x.json: model.vocab: expected the vocabulary, got nothing'],
    [{ model: { type: 'BPE', vocab: {} } }, {}, 'x.json: model.merges: expected a list, got nothing'],
    [{ ...byteLevel.tokenizer, decoder: { type: 'Magic' } }, {}, 'Unknown Decoder type: Magic'],
    [{ ...byteLevel.tokenizer, pre_tokenizer: { type: 'Magic' } }, {}, 'x.json: expected a tokenizer of known parts'],
    [byteLevel.tokenizer, [], 'x.json: expected tokenizer_config.json to be an object, got []'],
    [byteLevel.tokenizer, { bos_token: '<s>' }, 'x.json: bos_token: expected a token of the vocabulary, got "<s>"'],
  ])('refuses %#', (json, config, message) => {
    expect(() => new HfTokenizer(json, config, 'x.json')).toThrow(
      expect.objectContaining({
        name: 'LlamaError',
        code: 'tokenizer',
        message: expect.stringContaining(message) as string,
      }),
    );
  });
});

describe('checkTokenizer', () => {
  it('refuses a tokenizer with more ids than the model', () => {
    const { vocabSize } = likeLlama2;
    expect(() => checkTokenizer(likeLlama2, { vocabSize })).not.toThrow();
    expect(() => checkTokenizer(likeLlama2, { vocabSize: vocabSize + 64 })).not.toThrow();
    expect(() => checkTokenizer(likeLlama2, { vocabSize: vocabSize - 1 })).toThrow(
      expect.objectContaining({
        code: 'tokenizer-mismatch',
        message: expect.stringMatching(`vocabSize ${vocabSize - 1}, got ids up to ${vocabSize - 1};`) as string,
      }),
    );
  });
});

describe('createStreamDecoder', () => {
  const stream = (tokenizer: Tokenizer, ids: readonly number[], options?: StreamDecoderOptions): string[] => {
    const decoder = createStreamDecoder(tokenizer, options);
    return [...ids.map((id) => decoder.push(id)), decoder.finish()];
  };

  it('returns a character with its last token', () => {
    expect(stream(likeLlama3, likeLlama3.encode('a😀é'))).toEqual(['', 'a', '', '😀', '', 'é', '']);
    expect(stream(likeLlama2, likeLlama2.encode('a Ж'))).toEqual(['', 'a', ' ', '', 'Ж', '']);
  });

  it('keeps the space of the first word after a prompt', () => {
    const prompt = likeLlama2.encode('then');
    const ids = [likeLlama2.tokenToId('▁the')!];
    expect(stream(likeLlama2, ids, { prompt })).toEqual([' the', '']);
    expect(stream(likeLlama2, ids)).toEqual(['the', '']);
  });

  it('gives up on half a character at the end only', () => {
    const [first, second] = likeLlama3.encode('é', plain) as [number, number];
    expect(stream(likeLlama3, [first])).toEqual(['', '\ufffd']);
    expect(stream(likeLlama3, [first, first, second])).toEqual(['', '', '\ufffdé', '']);
  });

  it.each(tokenizers)('adds up to decode, of any text and with any prompt (%s)', (_, tokenizer) => {
    fc.assert(
      fc.property(texts, texts, fc.boolean(), (before, text, skipSpecialTokens) => {
        const prompt = tokenizer.encode(before);
        const ids = [...tokenizer.encode(text, plain), ...tokenizer.eosIds];
        const parts = stream(tokenizer, ids, { prompt, skipSpecialTokens });
        const decode = (all: number[]): string => tokenizer.decode(all, { skipSpecialTokens });
        expect(decode(prompt) + parts.join('')).toBe(decode([...prompt, ...ids]));
        if (!text.includes('\ufffd')) expect(parts.join('')).not.toContain('\ufffd');
      }),
      { numRuns: 300 },
    );
  });

  it.each(tokenizers)('adds up to decode, of any ids (%s)', (_, tokenizer) => {
    const id = fc.nat(tokenizer.vocabSize + 5);
    fc.assert(
      fc.property(fc.array(id, { maxLength: 40 }), (ids) => {
        // a byte order mark at the start of some bytes is lost in the package's decoder
        fc.pre(!tokenizer.decode([9, ...ids]).includes('\ufeff'));
        expect(stream(tokenizer, ids).join('')).toBe(tokenizer.decode(ids));
      }),
      { numRuns: 300 },
    );
  });
});

describe('loadTokenizer', () => {
  const directory = mkdtempSync(join(tmpdir(), 'milora-tokenizer-'));
  const path = (name: string): string => join(directory, name);
  const write = (name: string, content: unknown): void => writeFileSync(path(name), JSON.stringify(content));

  it('reads what there is, and names what is missing', async () => {
    await expect(loadTokenizer(path('nowhere'))).rejects.toMatchObject({ code: 'missing-file' });
    await expect(loadTokenizer(directory)).rejects.toMatchObject({ code: 'missing-file' });

    writeFileSync(path('tok99.bin'), llama2cTokenizerBin());
    await expect(loadTokenizer(directory)).rejects.toThrow(`pass ${path('tok99.bin')}`);
    expect((await loadTokenizer(path('tok99.bin'))).encode('then the')).toEqual(likeLlama2.encode('then the'));

    write('tokenizer.json', byteLevel.tokenizer);
    expect(await loadTokenizer(directory)).toMatchObject({ bosId: undefined, chatTemplate: undefined });
    write('tokenizer_config.json', byteLevel.config);
    expect(await loadTokenizer(directory)).toMatchObject({ bosId: likeLlama3.bosId, padId: likeLlama3.padId });
    writeFileSync(path('chat_template.jinja'), 'from the file');
    expect(await loadTokenizer(directory)).toMatchObject({ eosIds: likeLlama3.eosIds, chatTemplate: 'from the file' });

    await expect(loadTokenizer(path('tokenizer.json'))).rejects.toThrow('expected a model directory');
    writeFileSync(path('tokenizer.json'), '');
    await expect(loadTokenizer(directory)).rejects.toMatchObject({
      code: 'json',
      message: `${path('tokenizer.json')}: expected JSON, got an empty file`,
    });
  });
});

const stories = sharedPath('models', 'stories260K-hf');
describe.skipIf(!stories)('the tokenizer of stories260K (shared/models)', () => {
  it('reads what the model wrote', async () => {
    const tokenizer = await loadTokenizer(stories!);
    const expected = sharedJson<{ greedy_ids: number[]; greedy_text: string }>(
      'models',
      'stories260K-hf',
      'expected_generate.json',
    );
    expect(tokenizer).toMatchObject({ vocabSize: 512, bosId: 1, eosIds: [2] });
    expect(tokenizer.decode(expected.greedy_ids)).toBe(expected.greedy_text);
    expect(tokenizer.decode(tokenizer.encode(expected.greedy_text))).toBe(expected.greedy_text);
    const decoder = createStreamDecoder(tokenizer);
    const streamed = expected.greedy_ids.map((id) => decoder.push(id)).join('') + decoder.finish();
    expect(streamed).toBe(expected.greedy_text);
  });
});
