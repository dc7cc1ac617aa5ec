import { Philox } from '@milora/tensor';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { boundsOf, middle, minor, principal, randomWindow, range } from '../src/window.js';

const spectrum = fc
  .integer({ min: 1, max: 200 })
  .chain((k) => fc.tuple(fc.constant(k), fc.integer({ min: 1, max: k })));

describe('windows', () => {
  it('name the triplets they are called after', () => {
    expect(principal(6, 2)).toEqual([0, 1]);
    expect(minor(6, 2)).toEqual([4, 5]);
    expect(middle(6, 2)).toEqual([2, 3]);
    expect(middle(7, 2)).toEqual([2, 3]);
    expect(range(6, 1, 4)).toEqual([1, 2, 3]);
  });

  it('hold rank distinct ascending indices below k, whichever the choice', () => {
    fc.assert(
      fc.property(spectrum, fc.nat(), ([k, rank], seed) => {
        for (const window of [
          principal(k, rank),
          minor(k, rank),
          middle(k, rank),
          randomWindow(k, rank, new Philox(seed, 0)),
          range(k, k - rank, k),
        ]) {
          expect(window).toHaveLength(rank);
          expect(window.every((i, at) => i >= 0 && i < k && (at === 0 || i > window[at - 1]!))).toBe(true);
        }
        expect(minor(k, rank)).toEqual(range(k, k - rank, k));
        expect(boundsOf(minor(k, rank))).toEqual({ from: k - rank, to: k });
      }),
      { numRuns: 300 },
    );
  });

  it('principal and minor together are the whole spectrum', () => {
    fc.assert(
      fc.property(spectrum, ([k, rank]) => {
        const rest = k === rank ? [] : principal(k, k - rank);
        expect([...rest, ...minor(k, rank)]).toEqual(range(k, 0, k));
      }),
      { numRuns: 200 },
    );
  });

  it('the random window repeats with its seed and reaches every triplet about equally often', () => {
    expect(randomWindow(50, 8, new Philox(3, 1))).toEqual(randomWindow(50, 8, new Philox(3, 1)));
    const rng = new Philox(7, 0);
    const counts = new Array<number>(20).fill(0);
    for (let draw = 0; draw < 4000; draw++) for (const i of randomWindow(20, 5, rng)) counts[i]!++;
    // Each count is binomial(4000, 1/4): mean 1000, standard deviation 27.4; five of them on either side.
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(137);
  });

  it('windows with gaps have no bounds', () => {
    expect(boundsOf([0, 2])).toBeUndefined();
    expect(boundsOf([])).toBeUndefined();
    expect(boundsOf([3])).toEqual({ from: 3, to: 4 });
  });
});

describe('ranks that do not fit', () => {
  it('are refused with the module, the shape and the largest possible rank', () => {
    const site = { module: 'model.layers.0.self_attn.k_proj', shape: [8, 64] };
    expect(() => minor(8, 16, site)).toThrow(
      'model.layers.0.self_attn.k_proj: expected a rank ≤ 8, the largest possible for a weight of shape [8, 64], got 16; ' +
        'lower the rank, or give this module its own in rank_pattern',
    );
    expect(() => principal(8, 9)).toThrow(expect.objectContaining({ code: 'rank-too-large' }));
  });

  it.each([0, -1, 1.5, NaN])('rank %s', (rank) => {
    expect(() => middle(8, rank)).toThrow(expect.objectContaining({ code: 'rank-too-small' }));
  });

  it.each([
    [-1, 2],
    [2, 2],
    [3, 9],
    [0.5, 2],
  ])('range %s … %s of 8', (from, to) => {
    expect(() => range(8, from, to)).toThrow(expect.objectContaining({ code: 'window-range' }));
  });
});
