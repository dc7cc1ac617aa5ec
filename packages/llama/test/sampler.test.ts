import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { greedy, repetitionPenalty, sample, withProcessors } from '../src/sampler.js';
import type { SampleOptions } from '../src/sampler.js';

/** Coarse values, so that ties are common. */
const someLogits = fc
  .array(fc.integer({ min: -20, max: 20 }), { minLength: 1, maxLength: 40 })
  .map((values) => Float32Array.from(values, (x) => x / 4));
const uniform = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

/** The probability of each token under a sampler, by drawing at evenly spaced numbers. */
function distribution(logits: Float32Array, options: Omit<SampleOptions, 'random'>, draws = 20000): number[] {
  let i = 0;
  const sampler = sample({ ...options, random: () => (i++ + 0.5) / draws });
  const counts = Array<number>(logits.length).fill(0);
  for (let n = 0; n < draws; n++) counts[sampler(logits)]!++;
  return counts.map((count) => count / draws);
}

const softmax = (logits: ArrayLike<number>, temperature = 1): number[] => {
  const weights = Array.from(logits, (x) => Math.exp(x / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
};

describe('greedy', () => {
  it('takes the largest logit, the lowest id of equals', () => {
    fc.assert(
      fc.property(someLogits, (logits) => {
        expect(greedy()(logits)).toBe(logits.indexOf(Math.max(...logits)));
      }),
    );
    expect(greedy()(Float32Array.of(-Infinity, -5, -Infinity))).toBe(1);
  });

  it.each([
    ['NaN', [0, NaN], 'logits[1]: expected a finite number, got NaN'],
    ['infinity', [Infinity], 'logits[0]: expected a finite number, got Infinity'],
    ['nothing left', [-Infinity, -Infinity], 'logits: expected at least one finite number among 2'],
    ['no logits', [], 'logits: expected at least one finite number among 0'],
  ])('refuses %s', (_, values, message) => {
    const logits = Float32Array.from(values);
    for (const sampler of [greedy(), sample({ random: () => 0 })]) {
      expect(() => sampler(logits)).toThrow(expect.objectContaining({ code: 'sampler', message }));
    }
  });
});

describe('sample', () => {
  const logits = Float32Array.of(1, 3, 2, 2, -1, -Infinity);

  it.each([0.5, 1, 2])('draws with the probabilities of softmax at temperature %d', (temperature) => {
    const drawn = distribution(logits, { temperature });
    for (const [id, p] of softmax(logits, temperature).entries()) expect(drawn[id]).toBeCloseTo(p, 3);
  });

  it('is greedy at temperature 0 and with topK 1', () => {
    fc.assert(
      fc.property(someLogits, uniform, (values, random) => {
        expect(sample({ temperature: 0, random: () => random })(values)).toBe(greedy()(values));
        expect(sample({ topK: 1, random: () => random })(values)).toBe(greedy()(values));
      }),
    );
  });

  it('never returns an excluded token, whatever the number drawn', () => {
    for (const random of [0, 0.5, 1 - 2 ** -53]) expect(sample({ random: () => random })(logits)).not.toBe(5);
  });

  it('keeps the k likeliest tokens, of equals the lowest ids', () => {
    // 1 and 2 stay although 3 is as likely as 2
    const drawn = distribution(logits, { topK: 2 });
    const [a, b] = softmax([3, 2]) as [number, number];
    expect(drawn).toEqual([0, expect.closeTo(a, 3), expect.closeTo(b, 3), 0, 0, 0]);
  });

  it('keeps the same tokens as sorting would', () => {
    fc.assert(
      fc.property(someLogits, fc.integer({ min: 1, max: 45 }), uniform, (values, topK, random) => {
        const order = [...values.keys()].sort((a, b) => values[b]! - values[a]! || a - b);
        expect(order.slice(0, topK)).toContain(sample({ topK, random: () => random })(values));
        // the last of them comes last
        const last = sample({ topK, temperature: 1e6, random: () => 1 - 2 ** -53 })(values);
        expect(last).toBe(topK < values.length ? order[topK - 1] : values.length - 1);
      }),
    );
  });

  it('keeps the smallest set of tokens that reaches topP', () => {
    fc.assert(
      fc.property(someLogits, fc.double({ min: 0.01, max: 0.99, noNaN: true }), uniform, (values, topP, random) => {
        const probability = softmax(values);
        const order = [...values.keys()].sort((a, b) => probability[b]! - probability[a]! || a - b);
        const nucleus: number[] = [];
        let reached = 0;
        for (const id of order) {
          // sums within rounding of topP may go either way
          if (reached >= topP + 1e-9) break;
          nucleus.push(id);
          reached += probability[id]!;
        }
        expect(nucleus).toContain(sample({ topP, random: () => random })(values));
      }),
      { numRuns: 500 },
    );
    // 0.6, 0.25, 0.1, 0.05
    const steps = Float32Array.from([0.05, 0.6, 0.25, 0.1], Math.log);
    expect(distribution(steps, { topP: 0.8 })).toEqual([
      0,
      expect.closeTo(0.6 / 0.85, 3),
      expect.closeTo(0.25 / 0.85, 3),
      0,
    ]);
    expect(distribution(steps, { topP: 0.5 })).toEqual([0, 1, 0, 0]);
  });

  it('keeps tokens at least minP times as likely as the likeliest', () => {
    const steps = Float32Array.from([0.05, 0.6, 0.25, 0.1], Math.log);
    expect(distribution(steps, { minP: 0.4 }).map((p) => p > 0)).toEqual([false, true, true, false]);
    expect(distribution(steps, { minP: 0.1 }).map((p) => p > 0)).toEqual([false, true, true, true]);
  });

  it('applies topP to what topK leaves', () => {
    // after topK 2: 0.706, 0.294
    const steps = Float32Array.from([0.05, 0.6, 0.25, 0.1], Math.log);
    expect(distribution(steps, { topK: 2, topP: 0.7 }).map((p) => p > 0)).toEqual([false, true, false, false]);
    expect(distribution(steps, { topP: 0.7 }).map((p) => p > 0)).toEqual([false, true, true, false]);
  });

  it.each([
    [{ temperature: -1 }, 'temperature: expected a number ≥ 0, got -1'],
    [{ temperature: NaN }, 'temperature'],
    [{ topK: 0 }, 'topK: expected a whole number ≥ 1, got 0'],
    [{ topP: 0 }, 'topP: expected a number in (0, 1], got 0'],
    [{ minP: 2 }, 'minP'],
  ])('refuses %o', (options, message) => {
    expect(() => sample({ ...options, random: Math.random })).toThrow(message);
  });

  it('refuses a random function that leaves [0, 1)', () => {
    expect(() => sample({ random: () => 1 })(logits)).toThrow('random(): expected a number in [0, 1), got 1');
  });
});

describe('repetitionPenalty', () => {
  it('lowers tokens that have occurred, once each, and leaves its argument alone', () => {
    const logits = Float32Array.of(2, -2, 4, 0);
    expect(repetitionPenalty(2)(logits, [0, 1, 1, 0, 99])).toEqual(Float32Array.of(1, -4, 4, 0));
    expect(logits).toEqual(Float32Array.of(2, -2, 4, 0));
  });

  it('changes nothing at 1 and never raises a logit above 1', () => {
    fc.assert(
      fc.property(
        someLogits,
        fc.array(fc.nat(50)),
        fc.double({ min: 1, max: 5, noNaN: true }),
        (logits, ids, penalty) => {
          expect(repetitionPenalty(1)(logits, ids)).toEqual(logits);
          for (const [id, logit] of repetitionPenalty(penalty)(logits, ids).entries()) {
            expect(logit).toBeLessThanOrEqual(logits[id]!);
            if (!ids.includes(id)) expect(logit).toBe(logits[id]);
          }
        },
      ),
    );
  });

  it('composes with samplers and needs the ids', () => {
    const sampler = withProcessors([repetitionPenalty(2), repetitionPenalty(2)], greedy());
    const logits = Float32Array.of(3, 1, -5);
    expect(sampler(logits, [])).toBe(0);
    expect(sampler(logits, [0])).toBe(1);
    expect(() => sampler(logits)).toThrow('ids: expected the tokens so far');
    expect(() => repetitionPenalty(0)).toThrow('penalty: expected a number > 0, got 0');
  });
});
