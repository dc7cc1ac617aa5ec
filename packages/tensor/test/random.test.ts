import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Philox, philox4x32 } from '../src/random.js';

const seeds = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const counts = fc.integer({ min: 0, max: 3000 });

describe('philox4x32', () => {
  it('gives the known answers of Random123', () => {
    const ones = 0xffffffff;
    expect([...philox4x32([0, 0, 0, 0], [0, 0])]).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    expect([...philox4x32([ones, ones, ones, ones], [ones, ones])]).toEqual([
      0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd,
    ]);
    expect([...philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])]).toEqual([
      0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1,
    ]);
  });
});

describe('Philox', () => {
  it('hands out the blocks of its seed and stream in order', () => {
    const random = new Philox(5 * 2 ** 32 + 7, 3);
    const words = Array.from({ length: 8 }, () => random.uint32());
    expect(words).toEqual([...philox4x32([0, 0, 3, 0], [7, 5]), ...philox4x32([1, 0, 3, 0], [7, 5])]);
  });

  it('makes the same numbers in bulk as one by one, in any portions', () => {
    fc.assert(
      fc.property(seeds, fc.array(counts, { maxLength: 5 }), (seed, portions) => {
        const total = portions.reduce((sum, n) => sum + n, 0);
        const single = new Philox(seed);
        const expected = Float32Array.from({ length: total }, () => (single.uint32() >>> 8) * 2 ** -24);
        const whole = new Philox(seed).uniformArray(total);
        const random = new Philox(seed);
        const parts = portions.flatMap((n) => [...random.uniformArray(n)]);
        expect(whole).toEqual(expected);
        expect(parts).toEqual([...expected]);
        expect(random.state()).toEqual(single.state());
      }),
      { numRuns: 200 },
    );
  });

  it('resumes exactly from a state that went through JSON', () => {
    fc.assert(
      fc.property(seeds, fc.integer({ min: 0, max: 2 ** 32 - 1 }), counts, (seed, stream, skip) => {
        const random = new Philox(seed, stream).split(3);
        for (let i = 0; i < skip % 9; i++) random.uint32();
        random.normalArray(skip);
        const resumed = Philox.fromState(JSON.parse(JSON.stringify(random.state())));
        expect(resumed.stream).toBe(random.stream);
        for (let i = 0; i < 6; i++) expect(resumed.uint32()).toBe(random.uint32());
        expect(resumed.normalArray(5)).toEqual(random.normalArray(5));
      }),
      { numRuns: 200 },
    );
  });

  it('goes on beyond 2^32 blocks', () => {
    const random = Philox.fromState({ key: [1, 2], stream: 0, position: 4 * 2 ** 32 - 2 });
    const last = philox4x32([0xffffffff, 0, 0, 0], [1, 2]);
    expect([random.uint32(), random.uint32(), random.uint32()]).toEqual([
      last[2],
      last[3],
      philox4x32([0, 1, 0, 0], [1, 2])[0],
    ]);
  });

  it('splits into streams that depend on seed, stream and name but not on position', () => {
    const random = new Philox(1);
    const before = random.split(7).state();
    random.uint32();
    expect(random.split(7).state()).toEqual(before);
    const firsts = [
      random.split(7),
      random.split(8),
      new Philox(1, 1).split(7),
      new Philox(2).split(7),
      random.split(7).split(7),
      random.split(8).split(7),
      new Philox(1),
      new Philox(1, 7),
    ].map((other) => other.uint32());
    expect(new Set(firsts).size).toBe(firsts.length);
  });

  it('has uniform numbers in range, with the moments of the distribution', () => {
    const n = 200_000;
    const x = new Philox(11).uniformArray(n, -2, 3);
    expect(Math.min(...x.subarray(0, 10_000))).toBeGreaterThanOrEqual(-2);
    expect(x.every((value) => value >= -2 && value < 3)).toBe(true);
    // five standard errors
    expect(Math.abs(mean(x) - 0.5)).toBeLessThan((5 * 5) / Math.sqrt(12 * n));
    expect(Math.abs(variance(x) - 25 / 12)).toBeLessThan(0.03);

    const random = new Philox(12);
    const y = Float64Array.from({ length: n }, () => random.uniform());
    expect(y.every((value) => value >= 0 && value < 1)).toBe(true);
    expect(Math.abs(mean(y) - 0.5)).toBeLessThan(5 / Math.sqrt(12 * n));
  });

  it('has normal numbers with the moments and tails of the distribution', () => {
    const n = 200_001;
    const x = new Philox(13).normalArray(n, 1, 2).map((value) => (value - 1) / 2);
    expect(Math.abs(mean(x))).toBeLessThan(5 / Math.sqrt(n));
    expect(Math.abs(variance(x) - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
    expect(Math.abs(mean(x.map((value) => value ** 3)))).toBeLessThan(5 * Math.sqrt(15 / n));
    expect(Math.abs(mean(x.map((value) => value ** 4)) - 3)).toBeLessThan(5 * Math.sqrt(96 / n));
    // P(|x| > 3) = 0.0026998
    expect(x.filter((value) => Math.abs(value) > 3).length / n).toBeCloseTo(0.0027, 3);
    // neighbours, which share a radius, are uncorrelated
    expect(Math.abs(mean(x.subarray(1).map((value, i) => value * x[i]!)))).toBeLessThan(5 / Math.sqrt(n));
    expect(new Philox(1).normalArray(3).subarray(0, 2)).toEqual(new Philox(1).normalArray(2));
  });

  it('draws integers without bias', () => {
    const random = new Philox(14);
    const bins = new Float64Array(7);
    const n = 70_000;
    for (let i = 0; i < n; i++) {
      const bin = random.int(7);
      bins[bin] = bins[bin]! + 1;
    }
    // χ² with 6 degrees of freedom exceeds 27.9 with probability 1e-4
    expect(bins.reduce((sum, count) => sum + (count - n / 7) ** 2 / (n / 7), 0)).toBeLessThan(27.9);
    // three quarters of 2^32: taking the remainder would make the lower third twice as likely
    const large = Array.from({ length: 3000 }, () => random.int(3 * 2 ** 30));
    expect(large.filter((value) => value < 2 ** 30).length).toBeLessThan(1150);
    expect(random.int(1)).toBe(0);
    expect(random.int(2 ** 32)).toBeLessThan(2 ** 32);
  });

  it('permutes and shuffles: every order equally likely, nothing lost', () => {
    fc.assert(
      fc.property(seeds, fc.integer({ min: 0, max: 200 }), (seed, n) => {
        const order = new Philox(seed).permutation(n);
        expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: n }, (_, i) => i));
        expect(new Philox(seed).permutation(n)).toEqual(order);
      }),
      { numRuns: 200 },
    );
    const random = new Philox(15);
    const seen = new Map<string, number>();
    for (let i = 0; i < 24_000; i++) {
      const order = random.shuffle(['a', 'b', 'c', 'd']).join('');
      seen.set(order, (seen.get(order) ?? 0) + 1);
    }
    expect(seen.size).toBe(24);
    // χ² with 23 degrees of freedom exceeds 56.6 with probability 1e-4
    expect([...seen.values()].reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0)).toBeLessThan(56.6);
  });

  it('refuses seeds, streams, bounds and states out of range', () => {
    for (const seed of [-1, 0.5, NaN, 2 ** 53])
      expect(() => new Philox(seed)).toThrow(/expected seed to be a whole number/);
    expect(() => new Philox(1, 2 ** 32)).toThrow(expect.objectContaining({ code: 'range' }));
    for (const n of [0, -1, 2 ** 32 + 1, 1.5]) expect(() => new Philox(1).int(n)).toThrow(/expected n to be/);
    expect(() => Philox.fromState({ key: [1, -1], stream: 0, position: 0 })).toThrow(/key/);
    expect(() => Philox.fromState({ key: [1, 1], stream: 0, position: -1 })).toThrow(/position/);
  });
});

function mean(x: Float32Array | Float64Array): number {
  let sum = 0;
  for (const value of x) sum += value;
  return sum / x.length;
}

function variance(x: Float32Array | Float64Array): number {
  const center = mean(x);
  let sum = 0;
  for (const value of x) sum += (value - center) ** 2;
  return sum / x.length;
}
