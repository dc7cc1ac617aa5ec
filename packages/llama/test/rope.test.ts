import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { RopeConfig } from '../src/rope.js';
import { ropeFrequencies, ropeTables } from '../src/rope.js';

const plain = (headDim: number, ropeTheta: number): RopeConfig => ({ headDim, ropeTheta, ropeScaling: null });
const llama3: RopeConfig = {
  headDim: 64,
  ropeTheta: 500000,
  ropeScaling: { type: 'llama3', factor: 32, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositionEmbeddings: 8192 },
};

const headDims = fc.integer({ min: 1, max: 64 }).map((half) => 2 * half);
const thetas = fc.double({ min: 100, max: 1e7, noNaN: true });

describe('ropeFrequencies', () => {
  it('falls geometrically from 1 towards 1 / theta', () => {
    // 10000^(-2i/8): 1, 1/10, 1/100, 1/1000
    expect([...ropeFrequencies(plain(8, 10000))]).toEqual([1, 0.1, 0.01, 0.001].map(Math.fround));
    fc.assert(
      fc.property(headDims, thetas, (headDim, theta) => {
        const frequencies = ropeFrequencies(plain(headDim, theta));
        expect(frequencies).toHaveLength(headDim / 2);
        for (const [i, frequency] of frequencies.entries()) {
          const exact = Math.exp((-2 * i * Math.log(theta)) / headDim);
          expect(Math.abs(frequency / exact - 1)).toBeLessThan(1e-6);
          expect(Math.fround(frequency)).toBe(frequency);
        }
      }),
    );
  });

  it('divides by the factor of linear scaling', () => {
    const scaled = ropeFrequencies({ ...plain(16, 10000), ropeScaling: { type: 'linear', factor: 4 } });
    expect([...scaled]).toEqual([...ropeFrequencies(plain(16, 10000))].map((frequency) => frequency / 4));
  });

  it('keeps short wavelengths and stretches long ones with llama3 scaling', () => {
    const before = ropeFrequencies({ ...llama3, ropeScaling: null });
    const after = ropeFrequencies(llama3);
    const kinds = [...before].map((frequency, i) => {
      // Meta's formula, in double precision (llama_models/llama3/reference_impl/model.py, apply_scaling)
      const wavelength = (2 * Math.PI) / frequency;
      const smooth = Math.min(1, Math.max(0, (8192 / wavelength - 1) / 3));
      expect(Math.abs(after[i]! / (((1 - smooth) * frequency) / 32 + smooth * frequency) - 1)).toBeLessThan(3e-6);
      return smooth === 1 ? 'kept' : smooth === 0 ? 'stretched' : 'between';
    });
    expect(new Set(kinds)).toEqual(new Set(['kept', 'between', 'stretched']));
    for (const [i, kind] of kinds.entries()) {
      if (kind === 'kept') expect(after[i]).toBe(before[i]);
      if (kind === 'stretched') expect(after[i]).toBe(before[i]! / 32);
    }
  });
});

describe('ropeTables', () => {
  it('holds cosines and sines of float32 angles', () => {
    const config = plain(8, 10000);
    const { cos, sin } = ropeTables(config, 5);
    expect(cos).toHaveLength(20);
    expect(cos.slice(0, 4)).toEqual(Float32Array.of(1, 1, 1, 1));
    expect(sin.slice(4, 8)).toEqual(Float32Array.from([1, 0.1, 0.01, 0.001].map(Math.fround), Math.sin));
    // float32(33333 · float32(0.1)) is 3333.300048828125, not 3333.3
    const far = ropeTables(config, 33334);
    expect(far.cos[33333 * 4 + 1]).toBe(Math.fround(Math.cos(3333.300048828125)));
  });

  it('turns pairs, so that scores depend on the distance only', () => {
    const rotate = (x: number[], position: number, { cos, sin }: ReturnType<typeof ropeTables>): number[] => {
      const half = x.length / 2;
      const c = cos.subarray(position * half, (position + 1) * half);
      const s = sin.subarray(position * half, (position + 1) * half);
      return x.map((value, i) =>
        i < half ? value * c[i]! - x[i + half]! * s[i]! : value * c[i - half]! + x[i - half]! * s[i - half]!,
      );
    };
    const dot = (a: number[], b: number[]): number => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
    const vector = fc.array(fc.double({ min: -1, max: 1, noNaN: true }), { minLength: 8, maxLength: 8 });
    const tables = ropeTables(plain(8, 10000), 200);
    fc.assert(
      fc.property(vector, vector, fc.nat(99), fc.nat(99), fc.nat(99), (q, k, a, b, shift) => {
        const near = dot(rotate(q, a, tables), rotate(k, b, tables));
        const shifted = dot(rotate(q, a + shift, tables), rotate(k, b + shift, tables));
        expect(shifted).toBeCloseTo(near, 4);
      }),
    );
  });
});
