import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Llama2cTokenizer } from '../src/llama2cTokenizer.js';
import { loadTokenizer } from '../src/node.js';
import { HfTokenizer, createStreamDecoder } from '../src/tokenizer.js';
import type { Tokenizer } from '../src/tokenizer.js';
import { byteFallback, llama2cTokenizerBin } from './fixtures/tokenizers.js';
import { texts } from './fixtures/texts.js';
import { sharedPath } from './shared.js';

const tokenizer = new Llama2cTokenizer(llama2cTokenizerBin());
const plain = { addSpecialTokens: false };

function expectAgreement(ours: Tokenizer, theirs: Tokenizer, text: string): void {
  const ids = theirs.encode(text);
  expect(ours.encode(text)).toEqual(ids);
  expect(ours.encode(text, plain)).toEqual(theirs.encode(text, plain));
  expect(ours.decode(ids)).toBe(theirs.decode(ids));
  expect(ours.decode(ids, { skipSpecialTokens: false })).toBe(`<s>${text}`);
}

describe('Llama2cTokenizer', () => {
  it('joins the best pair first, the leftmost of equals', () => {
    const pieces = (text: string) => tokenizer.encode(text, plain).map((id) => tokenizer.idToToken(id));
    expect(pieces('thend')).toEqual([' the', 'nd']);
    expect(pieces('then')).toEqual([' then']);
    expect(pieces('ten')).toEqual([' t', 'en']);
    // aa has a better score than aaa
    expect(pieces('aaaaa')).toEqual([' a', 'aa', 'aa']);
    expect(pieces('Ж')).toEqual([' ', '<0xD0>', '<0x96>']);
    expect(tokenizer.encode('')).toEqual([1]);
  });

  it('gives back any text, byte order marks included', () => {
    fc.assert(
      fc.property(fc.oneof(texts, fc.string({ unit: 'binary' })), (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
        expect(tokenizer.decode(tokenizer.encode(text, plain))).toBe(text);
      }),
      { numRuns: 500 },
    );
    expect(tokenizer.decode(tokenizer.encode('\ufeffa\ufeff'))).toBe('\ufeffa\ufeff');
  });

  it('agrees with the tokenizer.json of the same vocabulary', () => {
    const hf = new HfTokenizer(byteFallback.tokenizer, byteFallback.config);
    fc.assert(
      fc.property(texts, (text) => expectAgreement(tokenizer, hf, text)),
      { numRuns: 500 },
    );
    expect(tokenizer).toMatchObject({ vocabSize: hf.vocabSize, bosId: hf.bosId, eosIds: hf.eosIds, padId: hf.padId });
  });

  it('joins as the plain algorithm does, which looks at all pairs each time', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'then anding  '), maxLength: 60 }), (text) => {
        const tokens = Array.from(text === '' ? '' : ` ${text}`);
        const scoreOf = (i: number): number => {
          const id = tokenizer.tokenToId(tokens[i]! + tokens[i + 1]!);
          // pieces stand in the file by falling score
          return id === undefined ? -Infinity : -id;
        };
        for (;;) {
          const scores = tokens.slice(1).map((_, i) => scoreOf(i));
          const best = Math.max(-Infinity, ...scores);
          if (best === -Infinity) break;
          const i = scores.indexOf(best);
          tokens.splice(i, 2, tokens[i]! + tokens[i + 1]!);
        }
        expect(tokenizer.encode(text, plain).map((id) => tokenizer.idToToken(id))).toEqual(tokens);
      }),
      { numRuns: 500 },
    );
  });

  it('takes a long text in good time', () => {
    const text = 'then and the thing, '.repeat(20_000);
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  it('streams', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(tokenizer.vocabSize + 5), { maxLength: 40 }), (ids) => {
        const decoder = createStreamDecoder(tokenizer);
        expect(ids.map((id) => decoder.push(id)).join('') + decoder.finish()).toBe(tokenizer.decode(ids));
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    ['nothing', new Uint8Array(), 'got its end after 0 tokens'],
    ['a file cut short', llama2cTokenizerBin().subarray(0, 1001), 'at byte'],
    ['text', new TextEncoder().encode('{"version": "1.0", "truncation": null}'), 'got a token of'],
    [
      'a vocabulary without bytes',
      llama2cTokenizerBin().subarray(0, 4 + 8 * 5 + 5 + 5 + 6 + 6 + 6),
      'expected a token for every byte',
    ],
  ])('refuses %s', (_, bytes, message) => {
    expect(() => new Llama2cTokenizer(bytes, 'some/tok.bin')).toThrow(
      expect.objectContaining({
        code: 'tokenizer',
        message: expect.stringMatching(new RegExp(`^some/tok.bin: .*${message}`)) as string,
      }),
    );
  });
});

const models = sharedPath('models');
describe.skipIf(!models)('tok512.bin of stories260K (shared/models)', () => {
  it('agrees with its tokenizer.json', async () => {
    const ours = new Llama2cTokenizer(readFileSync(join(models!, 'stories260K', 'tok512.bin')));
    const theirs = await loadTokenizer(join(models!, 'stories260K-hf'));
    expect(ours).toMatchObject({ vocabSize: 512, bosId: 1, eosIds: [2] });
    const words = fc.array(fc.constantFrom(...'Once upon a time there was Lily ; happyendend hadthere. '.split(' ')));
    fc.assert(
      fc.property(
        fc.oneof(
          texts,
          words.map((list) => list.join(' ')),
        ),
        (text) => expectAgreement(ours, theirs, text),
      ),
      { numRuns: 1000 },
    );
  });
});
