import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { didYouMean, nearest } from '../src/suggest.js';

const names = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'];

describe('nearest', () => {
  it.each([
    ['qproj', 'q_proj'],
    ['q_porj', 'q_proj'],
    ['Gate_Proj', 'gate_proj'],
    ['donw_proj', 'down_proj'],
    ['up-proj', 'up_proj'],
  ])('%s is near %s', (word, expected) => expect(nearest(word, names)).toBe(expected));

  it('counts two swapped letters as one edit, also in a short word', () => {
    expect(nearest('mpl', ['attn', 'mlp'])).toBe('mlp');
  });

  it.each(['', 'embed_tokens', 'lm_head', 'query_key_value'])('nothing is near %j', (word) =>
    expect(nearest(word, names)).toBeUndefined(),
  );

  it('finds a word of six letters or more again after any single edit, when it is the only candidate', () => {
    const word = fc.stringMatching(/^[a-z_]{6,20}$/);
    fc.assert(
      fc.property(word, fc.nat(), fc.constantFrom('drop', 'add', 'change', 'swap'), (original, seed, edit) => {
        const i = seed % (original.length - 1);
        const [head, a, b, tail] = [original.slice(0, i), original[i]!, original[i + 1]!, original.slice(i + 2)];
        const edited = {
          drop: head + b + tail,
          add: `${head}${a}#${b}${tail}`,
          change: `${head}#${b}${tail}`,
          swap: head + b + a + tail,
        };
        expect(nearest(edited[edit], [original])).toBe(original);
      }),
      { numRuns: 300 },
    );
  });

  it('takes an exact candidate before a near one', () => {
    expect(nearest('k_proj', names)).toBe('k_proj');
  });
});

describe('didYouMean', () => {
  it('is a phrase for a message, or nothing', () => {
    expect(didYouMean('qproj', names)).toBe('; did you mean "q_proj"?');
    expect(didYouMean('embed_tokens', names)).toBe('');
  });
});
