/** The parts of the iterative methods: blocks of vectors, Golub–Kahan, triangular factors, and the triplets made of them. */
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { createWasmBackend } from '../../src/backends/wasm/index.js';
import { convertHost } from '../../src/dtype.js';
import { orthogonalise, orthonormalise, startBlock, storeBlock } from '../../src/linalg/blockVectors.js';
import { choleskyFactor } from '../../src/linalg/choleskyFactor.js';
import { golubKahan, type KrylovOptions, type KrylovSpace, type Operator } from '../../src/linalg/golubKahan.js';
import { leadingTriplets } from '../../src/linalg/leading.js';
import { luFactor, type LuFactor } from '../../src/linalg/lu.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { minorTriplets, type Minor } from '../../src/linalg/minor.js';
import { qr } from '../../src/linalg/qr.js';
import type { Triplets } from '../../src/linalg/rayleighRitz.js';
import { runNow, type Steps } from '../../src/linalg/steps.js';
import { mirror, substitute, type Triangle } from '../../src/linalg/substitution.js';
import { HostWorkspace, transposed, viewOf, type View, type Workspace } from '../../src/linalg/workspace.js';
import { Philox } from '../../src/random.js';
import {
  bits,
  columns,
  diagonal,
  difference,
  frobenius,
  gaussian,
  inWorkspace,
  numbers,
  orthogonalityError,
  residualOf,
  scaleColumns,
  sineBetween,
  toHost,
  withSpectrum,
} from './matrices.js';

const EPSILON = Number.EPSILON;

const wasm = createWasmBackend({ threads: 1 });
afterAll(() => wasm.close());

const host = new HostWorkspace();
const seeds = fc.integer({ min: 0, max: 2 ** 40 });
const copy = (a: Matrix): Matrix => ({ ...a, data: a.data.slice() });

const inWasm = <T>(run: (workspace: Workspace) => T): T => inWorkspace(wasm, run);

const loaded = (a: Matrix, workspace: Workspace): Matrix => {
  const out = workspace.matrix(a.rows, a.cols);
  out.data.set(a.data);
  return out;
};

describe('orthonormalise', () => {
  /** A block of rank up to `rank` whose columns have any lengths. */
  const blocks = fc.record({
    n: fc.integer({ min: 40, max: 90 }),
    b: fc.integer({ min: 1, max: 16 }),
    rank: fc.integer({ min: 0, max: 16 }),
    d: fc.integer({ min: 0, max: 20 }),
    scale: fc.constantFrom(1, 1, 1e-20, 1e20, 1e-100, 1e100),
    decay: fc.constantFrom(1, 1, 0.1, 0.01),
    seed: seeds,
  });

  it('gives orthonormal columns, orthogonal to the basis, and the factor of the block, whatever its rank', () => {
    fc.assert(
      fc.property(blocks, ({ n, b, rank, d, scale, decay, seed }) => {
        inWasm((workspace) => {
          const basis = workspace.matrix(d + b, n);
          if (d > 0) basis.data.set(transposeMatrix(qr(gaussian(n, d, seed)).q).data);
          const left = scaleColumns(
            gaussian(n, rank, seed + 1),
            numbers(rank, (i) => decay ** i),
          );
          const block = multiplyMatrices(left, gaussian(rank, b, seed + 2));
          const y = loaded({ ...block, data: block.data.map((x) => x * scale) }, workspace);
          orthogonalise(y, basis, d, workspace);
          const before = copy(y);
          const size = norm(y.data, 0, y.data.length);
          const r = orthonormalise(y, basis, d, size, new Philox(seed, 7), workspace);
          const after = copy(y);
          expect(orthogonalityError(after)).toBeLessThan(2e-14);
          const rows = { rows: d, cols: n, data: basis.data.slice(0, d * n) };
          const overlap = multiplyMatrices(rows, after).data;
          expect(overlap.reduce((most, x) => Math.max(most, Math.abs(x)), 0)).toBeLessThan(1e-13);
          expect(frobenius(difference(multiplyMatrices(after, r), before))).toBeLessThanOrEqual(1e-13 * size);
          let [zeros, large] = [0, 0];
          for (let i = 0; i < b; i++) {
            if (r.data[i * b + i] === 0) zeros++;
            else expect(r.data[i * b + i]).toBeGreaterThan(0);
            if (r.data[i * b + i]! > 1e-12 * size) large++;
            for (let j = 0; j < i; j++) expect(r.data[i * b + j]).toBe(0);
          }
          // what is above rounding counts, and rounding may leave something of nothing
          if (decay === 1) expect(large).toBe(Math.min(b, rank));
          if (decay === 1) expect(zeros).toBeLessThanOrEqual(Math.max(0, b - rank));
        });
      }),
      { numRuns: 200 },
    );
  });

  it('replaces columns of zeros, equal columns, and whole blocks of nothing', () => {
    for (const kill of [[3], [0], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [2, 9, 15]]) {
      const y = gaussian(50, 16, 1);
      for (const c of kill) for (let i = 0; i < 50; i++) y.data[i * 16 + c] = 0;
      const before = copy(y);
      const r = orthonormalise(y, zeroMatrix(0, 50), 0, frobenius(y), new Philox(1), host);
      expect(orthogonalityError(y)).toBeLessThan(1e-14);
      expect(frobenius(difference(multiplyMatrices(y, r), before))).toBeLessThan(1e-13 * (frobenius(before) || 1));
      const zeros = numbers(16, (i) => i).filter((i) => r.data[i * 17] === 0);
      expect(zeros).toEqual(kill);
    }
  });

  it('says so when there is no room for another vector', () => {
    const y = gaussian(4, 5, 1);
    expect(() => orthonormalise(y, zeroMatrix(0, 4), 0, frobenius(y), new Philox(1), host)).toThrow(
      expect.objectContaining({ code: 'no-convergence' }),
    );
  });

  it('starts with any block and stores its columns as rows', () => {
    const [y, basis] = [zeroMatrix(30, 4), zeroMatrix(7, 30)];
    const r = startBlock(y, basis, new Philox(5), host);
    expect(orthogonalityError(y)).toBeLessThan(1e-14);
    expect(frobenius(r)).toBeGreaterThan(1);
    storeBlock(y, basis, 3);
    expect(transposeMatrix({ rows: 4, cols: 30, data: basis.data.slice(90) })).toEqual(y);
    expect(basis.data.slice(0, 90)).toEqual(new Float64Array(90));
  });
});

/** Fails unless measured ≤ limit; NaN fails too. */
const expectWithin = (what: string, measured: number, limit: number): void => {
  expect(measured, what).toBeLessThanOrEqual(limit);
};

const largestOf = (x: Iterable<number>): number => [...x].reduce((most, y) => Math.max(most, y), 0);
const largestMagnitudeOf = (a: Matrix): number => a.data.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

describe('golubKahan', () => {
  /** Adds the products to `out`, which is to be zero. */
  function operatorOf(a: Matrix): Operator & { products: [number, number] } {
    const at = transposeMatrix(a);
    const products: [number, number] = [0, 0];
    const add = (out: Matrix, { data }: Matrix): void => {
      for (let i = 0; i < data.length; i++) out.data[i] = out.data[i]! + data[i]!;
    };
    return {
      rows: a.rows,
      cols: a.cols,
      products,
      times(out, x) {
        products[0]++;
        add(out, multiplyMatrices(a, x));
      },
      transposedTimes(out, x) {
        products[1]++;
        add(out, multiplyMatrices(at, x));
      },
    };
  }

  const run = (a: Matrix, options: Omit<KrylovOptions, 'patience'> & { patience?: number }): KrylovSpace =>
    runNow(golubKahan(operatorOf(a), { patience: 3000, ...options }, host));

  /**
   * The triplets are the largest of `values`, as exactly as they say and as was asked for. Every restart adds some rounding: the
   * vectors of small values among those kept are as exact as the squares allow.
   */
  function expectLargest(
    a: Matrix,
    values: readonly number[],
    space: KrylovSpace,
    { wanted, tolerance, relativeTo }: Pick<KrylovOptions, 'wanted' | 'tolerance' | 'relativeTo'>,
    restarts = false,
  ): void {
    const rounding = restarts ? 1e-12 : 1e-14;
    const { s, residuals, converged, rightVectors } = space;
    expect(converged).toBe(true);
    expect(s.length).toBe(residuals.length);
    const sorted = [...values].sort((p, q) => q - p);
    const unit = sorted[0] || 1;
    const vt = rightVectors(wanted);
    expect([vt.rows, vt.cols]).toEqual([wanted, a.cols]);
    const v = transposeMatrix(vt);
    expectWithin('golubKahan orthogonality', orthogonalityError(v), restarts ? 2e-13 : 2e-14);
    const image = multiplyMatrices(a, v);
    const back = transposeMatrix(multiplyMatrices(transposeMatrix(a), image));
    const imageT = transposeMatrix(image);
    for (let i = 0; i < wanted; i++) {
      const value = s[i]!;
      if (i > 0) expect(value).toBeLessThanOrEqual(s[i - 1]!);
      const asked = tolerance * (relativeTo === 'own' ? value : unit);
      expectWithin('golubKahan value', Math.abs(value - sorted[i]!), asked + rounding * unit);
      expectWithin('golubKahan ‖A v‖', Math.abs(norm(imageT.data, i * a.rows, a.rows) - value), rounding * unit);
      expectWithin('golubKahan claimed', residuals[i]!, asked);
      // Aᵀu − s v with u = A v / s, whose rounding grows with 1 / s
      if (value < 1e-3 * unit) continue;
      const left = numbers(a.cols, (t) => back.data[i * a.cols + t]! / value - value * vt.data[i * a.cols + t]!);
      const measured = norm(Float64Array.from(left), 0, left.length);
      expectWithin('golubKahan residual', Math.abs(measured - residuals[i]!), (rounding * unit ** 2) / value);
    }
  }

  it('finds the largest triplets of all kinds of spectra, of operators of all shapes, with restarts or without', () => {
    const spectra: Record<string, (k: number, random: Philox) => number[]> = {
      decaying: (k) => numbers(k, (i) => 0.9 ** i),
      'decaying faster': (k) => numbers(k, (i) => 0.7 ** i),
      random: (k, random) => [...random.uniformArray(k, 0.1, 1)],
      steep: (k) => numbers(k, (i) => 10 ** (-i / 2)),
      large: (k) => numbers(k, (i) => 1e12 / (1 + i)),
      small: (k) => numbers(k, (i) => 1e-12 / (1 + i)),
      'tied at the top': (k) => numbers(k, (i) => (i < 5 ? 2 : 1 / (1 + i))),
      'tied in pairs': (k) => numbers(k, (i) => 0.8 ** (i >> 1)),
      'rank five': (k) => numbers(k, (i) => (i < 5 ? 5 - i : 0)),
      'rank two': (k) => numbers(k, (i) => (i < 2 ? 2 - i : 0)),
      zero: (k) => numbers(k, () => 0),
    };
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.keys(spectra)),
        fc.integer({ min: 44, max: 60 }),
        fc.constantFrom(0, 0, 1, 20),
        fc.boolean(),
        fc.constantFrom(4, 8),
        fc.constantFrom(1, 4, 12),
        fc.boolean(),
        fc.constantFrom('own' as const, 'largest' as const),
        seeds,
        (kind, k, more, wide, block, wanted, restarts, relativeTo, seed) => {
          const values = spectra[kind]!(k, new Philox(seed, 3));
          const tall = withSpectrum(k + more, k, values, seed);
          const a = wide ? transposeMatrix(tall) : tall;
          const most = restarts ? wanted + 3 * block : k - block;
          // the residual of what is nearly zero is rounding, and relative to itself anything
          const hasZeros = kind.startsWith('rank') || kind === 'zero' || kind === 'steep';
          const options = {
            wanted,
            block,
            most,
            tolerance: 1e-9,
            relativeTo: hasZeros ? ('largest' as const) : relativeTo,
          };
          const space = run(a, options);
          expectLargest(a, values, space, options, restarts);
          expect(space.dimension).toBeLessThanOrEqual(most);
        },
      ),
      { numRuns: 200 },
    );
  });

  it('takes the identity, and operators with two or three values, for what they are', () => {
    for (const values of [
      numbers(60, () => 1),
      numbers(60, (i) => (i < 30 ? 2 : 1)),
      numbers(60, (i) => (i < 3 ? 3 : i < 40 ? 2 : 1)),
      numbers(60, (i) => (i < 3 ? 1 : 0)),
    ]) {
      for (const a of [diagonal(values), diagonal(values, 70), withSpectrum(60, 60, values, 2)]) {
        for (const wanted of [1, 3]) {
          const options = { wanted, tolerance: 1e-13, relativeTo: 'own' as const, block: 4, most: 40, patience: 200 };
          expectLargest(a, values, run(a, options), options);
        }
      }
    }
  });

  it('finds all copies of a value that is there more often than a block has vectors', () => {
    const values = numbers(100, (i) => (i < 12 ? 2 : 1 / (2 + i)));
    for (const a of [diagonal(values), withSpectrum(120, 100, values, 5)]) {
      for (const most of [24, 90]) {
        const options = { wanted: 12, tolerance: 1e-9, relativeTo: 'own' as const, block: 4, most };
        expectLargest(a, values, run(a, options), options, most === 24);
      }
    }
  });

  it('gives the same bits whenever it runs, and all memory back', () => {
    const values = numbers(80, (i) => 0.8 ** i);
    const a = withSpectrum(80, 95, values, 1);
    const options = { wanted: 6, tolerance: 1e-10, relativeTo: 'own' as const, block: 8, patience: 100 };
    // with restarts and without
    for (const most of [30, 72]) {
      const runs = [0, 1].map(() =>
        inWasm((workspace) => {
          const before = wasm.memory().liveBuffers;
          const space = runNow(golubKahan(operatorOf(a), { ...options, most }, workspace));
          const vt = space.rightVectors(6);
          space.free();
          expect(wasm.memory().liveBuffers).toBe(before + 1);
          const data = vt.data.slice();
          workspace.free(vt);
          expect(wasm.memory().liveBuffers).toBe(before);
          expectLargest(a, values, { ...space, rightVectors: () => ({ ...vt, data }) }, options, most === 30);
          return [bits(space.s), bits(space.residuals), bits(data)];
        }),
      );
      expect(runs[1]).toEqual(runs[0]);
    }
  });

  it('gives up when told to after a look, and goes on when not', () => {
    const values = [...new Philox(3).uniformArray(90, 0.9, 1)];
    const a = withSpectrum(90, 90, values, 1);
    for (const leaves of [true, false]) {
      let seen = 0;
      const look: KrylovOptions['look'] = {
        blocks: 3,
        leave({ s, residuals }) {
          seen++;
          expect(s.length).toBe(residuals.length);
          expect(s.length).toBeGreaterThanOrEqual(4);
          for (let i = 1; i < s.length; i++) expect(s[i]).toBeLessThanOrEqual(s[i - 1]!);
          return leaves;
        },
      };
      const options = { wanted: 4, tolerance: 1e-9, relativeTo: 'own' as const, block: 4, most: 60, look };
      const space = run(a, options);
      expect(seen).toBe(1);
      if (leaves) expect([space.converged, space.dimension]).toEqual([false, 12]);
      else expectLargest(a, values, space, options);
    }
  });

  it('ends with its patience, and says how far it is', () => {
    const a = withSpectrum(90, 90, [...new Philox(3).uniformArray(90, 0.9, 1)], 1);
    const operator = operatorOf(a);
    const options = { wanted: 4, block: 4, most: 60, tolerance: 1e-15, relativeTo: 'own' as const, patience: 6 };
    const space = runNow(golubKahan(operator, options, host));
    expect([space.converged, space.dimension, operator.products]).toEqual([false, 24, [6, 6]]);
    const vt = space.rightVectors(4);
    const image = transposeMatrix(multiplyMatrices(a, transposeMatrix(vt)));
    for (let i = 0; i < 4; i++) {
      expect(space.residuals[i]).toBeGreaterThan(1e-6);
      expectWithin('golubKahan impatient', Math.abs(norm(image.data, i * 90, 90) - space.s[i]!), 1e-14);
    }
  });
});

/** What all triplets of b promise; `values` are the exact ones and `size` the largest of all. */
function expectTriplets(
  what: string,
  b: Matrix,
  { u, s, vt, residuals, orthogonality }: Triplets,
  values: readonly number[],
  size: number,
  limits: {
    value: number;
    residual?: number;
    /** What claims are more than the truth by, at most. */ rounding?: number;
  },
): void {
  const count = values.length;
  expect([u.rows, u.cols, s.length, vt.rows, vt.cols]).toEqual([b.rows, count, count, count, b.cols]);
  const measured = Math.max(orthogonalityError(u), orthogonalityError(transposeMatrix(vt)));
  expectWithin(`${what} orthogonality`, measured, limits.rounding ? 2e-12 : 2e-14);
  expectWithin(`${what} claimed orthogonality`, Math.abs(measured - orthogonality), 2e-15);
  values.forEach((value, i) => {
    if (i > 0) expect(s[i]).toBeLessThanOrEqual(s[i - 1]!);
    expectWithin(`${what} value`, Math.abs(s[i]! - value), limits.value * size);
    const one = {
      u: columns(u, i, i + 1),
      s: s.slice(i, i + 1),
      vt: { ...vt, rows: 1, data: vt.data.slice(i * b.cols, (i + 1) * b.cols) },
    };
    const residual = residualOf(b, one);
    if (limits.residual !== undefined) expectWithin(`${what} residual`, residual, limits.residual * size);
    expectWithin(`${what} claimed residual`, residual - residuals[i]!, 2e-14 * size);
    expectWithin(`${what} claimed residual`, residuals[i]! - residual, (limits.rounding ?? 2e-14) * size);
  });
}

describe('leadingTriplets', () => {
  const spectra: Record<string, (k: number) => number[]> = {
    'power law': (k) => numbers(k, (i) => (i + 1) ** -0.5),
    flat: (k) => numbers(k, (i) => 1 - 1e-3 * i),
    'rank five': (k) => numbers(k, (i) => (i < 5 ? 5 - i : 0)),
    steep: (k) => numbers(k, (i) => 10 ** (-i / 2)),
    tied: (k) => numbers(k, (i) => (i < 30 ? 1 : 0.5)),
    zero: (k) => numbers(k, () => 0),
    one: (k) => numbers(k, () => 1),
  };

  it.each(Object.keys(spectra))('of a spectrum %s, with or without restarts', (kind) => {
    // at most 176 vectors: the flat spectrum restarts
    const values = spectra[kind]!(200);
    for (const b of [withSpectrum(200, 230, values, 3), diagonal(values, 230)]) {
      inWasm((workspace) => {
        const view = viewOf(loaded(b, workspace));
        const before = wasm.memory().liveBuffers;
        const triplets = runNow(leadingTriplets(view, 6, 1e-10, workspace));
        expect(wasm.memory().liveBuffers).toBe(before);
        expectTriplets('leading', b, triplets, values.slice(0, 7), values[0]! || 1, { value: 4e-15, residual: 1e-10 });
        // of the transposed matrix, seen through a view
        const flipped = transposed(viewOf(loaded(transposeMatrix(b), workspace)));
        const other = runNow(leadingTriplets(flipped, 6, 1e-10, workspace));
        expectTriplets('leading', b, other, values.slice(0, 7), values[0]! || 1, { value: 4e-15, residual: 1e-10 });
      });
    }
  });

  it('of other types and sizes, and to other tolerances', () => {
    const values = numbers(260, (i) => 1 / (1 + i));
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const original = withSpectrum(260, 260, values, 9);
      const rounded = toHost(original, dtype);
      const b: Matrix = { rows: 260, cols: 260, data: convertHost(rounded.data, dtype, 'f64') };
      const found = [1e-3, 1e-12].map((tolerance) =>
        inWasm((workspace) => {
          const own = runNow(leadingTriplets(workspace.load(rounded), 20, tolerance, workspace));
          const same = runNow(leadingTriplets(viewOf(loaded(b, workspace)), 20, tolerance, workspace));
          expect([bits(own.s), bits(own.u.data)]).toEqual([bits(same.s), bits(same.u.data)]);
          return own;
        }),
      );
      const [loose, tight] = found as [Triplets, Triplets];
      // as far from the values before rounding as the rounding allows (Weyl)
      const value = frobenius(difference(original, b));
      expectTriplets('leading tight', b, tight, values.slice(0, 21), 1, { value, residual: 1e-12 });
      expectTriplets('leading loose', b, loose, [...tight.s], 1, { value: 1e-6, residual: 1e-3, rounding: 2e-6 });
      expect(largestOf(loose.residuals)).toBeGreaterThan(1e-12);
    }
  });
});

/** The triangle itself, with zeros elsewhere. */
function triangleOf({ data, rows: n, cols }: Matrix, side: 'lower' | 'upper', unit = false): Matrix {
  const out = zeroMatrix(n, n);
  for (let i = 0; i < n; i++) {
    const [from, to] = side === 'lower' ? [0, i + 1] : [i, n];
    out.data.set(data.subarray(i * cols + from, i * cols + to), i * n + from);
    if (unit) out.data[i * n + i] = 1;
  }
  return out;
}

/** a in a matrix of the workspace with longer rows, what lies beyond being NaN. */
function padded(a: Matrix, more: number, workspace: Workspace): Matrix {
  const out = workspace.matrix(a.rows, a.cols + more);
  out.data.fill(NaN);
  for (let i = 0; i < a.rows; i++) out.data.set(a.data.subarray(i * a.cols, (i + 1) * a.cols), i * out.cols);
  return out;
}

/** Sizes around those of a block of 96 and of the tiles. */
const orders = fc.oneof(
  { arbitrary: fc.integer({ min: 1, max: 41 }), weight: 14 },
  { arbitrary: fc.constantFrom(95, 96, 97, 98, 192, 193, 200, 289, 385), weight: 1 },
);

/** T x = right to rounding. */
function expectSolved(what: string, t: Matrix, x: Matrix, right: Matrix): void {
  const residual = frobenius(difference(multiplyMatrices(t, copy(x)), right));
  expectWithin(what, residual, 4 * EPSILON * frobenius(t) * frobenius(copy(x)));
}

describe('choleskyFactor and substitute', () => {
  function definite(n: number, condition: number, seed: number): Matrix {
    const { q } = qr(gaussian(n, n, seed));
    const values = numbers(n, (i) => condition ** (-i / Math.max(1, n - 1)));
    return multiplyMatrices(scaleColumns(q, values), transposeMatrix(q));
  }

  it('factorise to rounding and solve with both triangles, from below the diagonal or above it', () => {
    fc.assert(
      fc.property(
        orders,
        fc.integer({ min: 1, max: 17 }),
        fc.constantFrom(1, 1e4, 1e9),
        fc.constantFrom(0, 0.5, -1e-10),
        fc.constantFrom(0, 3, 8),
        seeds,
        (n, b, condition, delta, more, seed) => {
          inWasm((workspace) => {
            const g = definite(n, condition, seed);
            const shifted = copy(g);
            for (let i = 0; i < n; i++) shifted.data[i * (n + 1)]! += delta;
            // nothing above the diagonal may matter, nor what is beyond the rows
            const own = padded(g, more, workspace);
            for (let i = 0; i < n; i++) own.data.fill(NaN, i * own.cols + i + 1, (i + 1) * own.cols);
            const { l: matrix, inverses } = runNow(choleskyFactor(own, delta, workspace))!;
            expect(matrix).toBe(own);
            const l = triangleOf(own, 'lower');
            const lt = transposeMatrix(l);
            const error = frobenius(difference(multiplyMatrices(l, lt), symmetric(shifted)));
            expectWithin('cholesky L Lᵀ', error, 2e-15 * frobenius(shifted));
            for (let i = 0; i < n; i++) {
              expect(l.data[i * (n + 1)]).toBeGreaterThan(0);
              expect(own.data.subarray(i * own.cols + i + 1, (i + 1) * own.cols).every(Number.isNaN)).toBe(true);
            }

            const right = gaussian(n, b, seed + 1);
            const lower: Triangle = {
              matrix: viewOf(matrix, 0, 0, n, n),
              side: 'lower',
              inverses,
              inversesTransposed: false,
            };
            const across: Triangle = {
              matrix: viewOf(matrix, 0, 0, n, n),
              side: 'upper',
              acrossDiagonal: true,
              inverses,
              inversesTransposed: true,
            };
            const upper: Triangle = {
              matrix: viewOf(matrix, 0, 0, n, n),
              side: 'upper',
              inverses,
              inversesTransposed: true,
            };
            const solved = (t: Triangle, from: Matrix): Matrix => {
              const x = loaded(from, workspace);
              substitute(t, x, workspace);
              return x;
            };
            const y = solved(lower, right);
            expectSolved('cholesky lower', l, y, right);
            const x = solved(across, y);
            expectSolved('cholesky across', lt, x, copy(y));
            mirror(own, 'lower', workspace);
            const mirrored = solved(upper, y);
            expectSolved('cholesky upper', lt, mirrored, copy(y));
            const residual = frobenius(difference(multiplyMatrices(shifted, copy(x)), right));
            expectWithin('cholesky whole', residual, 1e-15 * Math.sqrt(n) * (1 + delta) * frobenius(copy(x)));
            for (const m of [y, x, mirrored, own, inverses]) workspace.free(m);
          });
        },
      ),
      {
        numRuns: 200,
        examples: [95, 96, 97, 98, 192, 193, 200].map((n) => [n, 16, 1e4, 0, 8, n]),
      },
    );
  });

  it('is undefined where the matrix is not positive definite, and keeps no memory', () => {
    const gram = multiplyMatrices(gaussian(100, 3, 1), transposeMatrix(gaussian(100, 3, 1)));
    const cases: [Matrix, number, boolean][] = [
      [zeroMatrix(5, 5), 0, false],
      [zeroMatrix(5, 5), 1e-300, true],
      [diagonal(numbers(120, (i) => (i === 110 ? -1 : 1))), 0, false],
      [diagonal(numbers(120, (i) => (i === 110 ? -1 : 1))), 1.5, true],
      [diagonal(numbers(120, () => 1)), -1, false],
      [diagonal(numbers(120, () => 1)), -0.9, true],
      [diagonal(numbers(120, () => 1)), -2, false],
      [diagonal(numbers(200, (i) => (i === 150 ? NaN : 1))), 0, false],
      [diagonal(numbers(200, (i) => (i === 199 ? 5e-324 : 1))), 0, true],
      [gram, -1e-3, false],
      [gram, 1e-3, true],
    ];
    for (const [g, delta, isDefinite] of cases) {
      inWasm((workspace) => {
        const own = loaded(g, workspace);
        const before = wasm.memory().liveBytes;
        const factor = runNow(choleskyFactor(own, delta, workspace));
        expect(factor !== undefined).toBe(isDefinite);
        if (factor) workspace.free(factor.inverses);
        expect(wasm.memory().liveBytes).toBe(before);
      });
    }
  });

  it('mirrors either triangle onto the other, and leaves the rest alone', () => {
    for (const n of [1, 2, 31, 95, 96, 97, 193, 200]) {
      inWasm((workspace) => {
        const a = gaussian(n, n, n);
        for (const from of ['lower', 'upper'] as const) {
          const own = padded(a, 3, workspace);
          mirror(own, from, workspace);
          for (let i = 0; i < n; i++) {
            const expected = numbers(n, (j) => a.data[(from === 'lower') === i >= j ? i * n + j : j * n + i]!);
            expect([...own.data.subarray(i * own.cols, i * own.cols + n)]).toEqual(expected);
            expect([...own.data.subarray(i * own.cols + n, (i + 1) * own.cols)]).toEqual([NaN, NaN, NaN]);
          }
        }
      });
    }
  });
});

/** The lower triangle on both sides. */
function symmetric(a: Matrix): Matrix {
  const l = triangleOf(a, 'lower');
  const out = transposeMatrix(l);
  for (let i = 0; i < a.rows; i++) for (let j = 0; j <= i; j++) out.data[i * a.rows + j] = l.data[i * a.rows + j]!;
  return out;
}

describe('luFactor', () => {
  /** The four triangles as minor.ts has them, and each as a matrix. */
  function trianglesOf(f: LuFactor): Record<'l' | 'u' | 'ut' | 'lt', [Triangle, Matrix]> {
    const l = triangleOf(f.lu, 'lower', true);
    const u = triangleOf(f.lu, 'upper');
    const [lu, other] = [f.lu, f.transposed].map((m) => viewOf(m, 0, 0, m.rows, m.rows)) as [View, View];
    return {
      l: [{ matrix: lu, side: 'lower', inverses: f.inversesL, inversesTransposed: false }, l],
      u: [{ matrix: lu, side: 'upper', inverses: f.inversesUt, inversesTransposed: true }, u],
      ut: [{ matrix: other, side: 'lower', inverses: f.inversesUt, inversesTransposed: false }, transposeMatrix(u)],
      lt: [{ matrix: other, side: 'upper', inverses: f.inversesL, inversesTransposed: true }, transposeMatrix(l)],
    };
  }

  const permuted = (a: Matrix, rows: ArrayLike<number>): Matrix => ({
    ...a,
    data: Float64Array.from({ length: a.data.length }, (_, t) => {
      return a.data[rows[Math.floor(t / a.cols)]! * a.cols + (t % a.cols)]!;
    }),
  });

  /** ‖P B − L U‖ once the form of the factors is checked. */
  function backwardError(b: Matrix, f: LuFactor): number {
    const n = b.rows;
    expect([...f.rows].sort((p, q) => p - q)).toEqual(numbers(n, (i) => i));
    const l = triangleOf(f.lu, 'lower', true);
    // a quotient is made as a product with a reciprocal
    expectWithin('lu |L|', largestMagnitudeOf(l), 1 + EPSILON);
    const [one, other] = [triangleOf(f.lu, 'lower'), triangleOf(f.lu, 'upper')];
    expect(frobenius(difference(triangleOf(f.transposed, 'upper'), transposeMatrix(one)))).toBe(0);
    expect(triangleOf(f.transposed, 'lower')).toEqual(transposeMatrix(other));
    return frobenius(difference(multiplyMatrices(l, other), permuted(b, f.rows)));
  }

  const kinds: Record<string, (n: number, seed: number) => Matrix> = {
    gaussian: (n, seed) => gaussian(n, n, seed),
    orthogonal: (n, seed) => qr(gaussian(n, n, seed)).q,
    'of condition 1e10': (n, seed) =>
      withSpectrum(
        n,
        n,
        numbers(n, (i) => 10 ** ((-10 * i) / n)),
        seed,
      ),
    'with graded columns': (n, seed) =>
      scaleColumns(
        gaussian(n, n, seed),
        numbers(n, (i) => 10 ** ((8 * i) / n)),
      ),
    'with graded rows': (n, seed) =>
      transposeMatrix(
        scaleColumns(
          gaussian(n, n, seed),
          numbers(n, (i) => 10 ** ((-8 * i) / n)),
        ),
      ),
    sparse: (n, seed) => {
      const a = gaussian(n, n, seed);
      const kept = new Philox(seed, 1).uniformArray(n * n, 0, 1);
      return {
        ...a,
        data: a.data.map(
          (x, i) => (i % (n + 1) === seed % n || kept[i]! < 0.2 ? x : 0) + (i % (n + 1) === 0 ? 0.1 : 0),
        ),
      };
    },
    'a permutation': (n, seed) => {
      const order = [...gaussian(1, n, seed).data].map((x, i) => [x, i] as const).sort((p, q) => p[0] - q[0]);
      return permuted(
        diagonal(numbers(n, () => 1)),
        order.map(([, i]) => i),
      );
    },
  };

  it('gives factors of the permuted matrix to rounding, no multiplier above one, and solves with all of them', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.keys(kinds)),
        orders,
        fc.integer({ min: 1, max: 17 }),
        fc.constantFrom(0, 3, 8),
        seeds,
        (kind, n, columnsOfRight, more, seed) => {
          inWasm((workspace) => {
            const b = kinds[kind]!(n, seed);
            const own = padded(b, more, workspace);
            const f = runNow(luFactor(own, 1e-300, workspace));
            expect(f.lu).toBe(own);
            expectWithin('lu P B − L U', backwardError(b, f), 2 * Math.sqrt(n) * EPSILON * frobenius(b));
            if (kind === 'a permutation') expect(backwardError(b, f)).toBe(0);

            const right = gaussian(n, columnsOfRight, seed + 5);
            const { l, u, ut, lt } = trianglesOf(f);
            const solve = ([t, dense]: [Triangle, Matrix], x: Matrix): void => {
              const before = copy(x);
              substitute(t, x, workspace);
              // inverses that serve two triangles: an inverse to one side, and to the other only as far as |T| |T⁻¹| allows
              const inverse = loaded(diagonal(numbers(n, () => 1)), workspace);
              substitute(t, inverse, workspace);
              const sizes = [dense, copy(inverse), dense, copy(inverse), before].map((m): Matrix => ({
                ...m,
                data: m.data.map(Math.abs),
              }));
              workspace.free(inverse);
              const bound = frobenius(sizes.reduceRight((product, m) => multiplyMatrices(m, product)));
              const residual = frobenius(difference(multiplyMatrices(dense, copy(x)), before));
              expectWithin('lu triangle', residual, 2 * EPSILON * bound);
            };
            // B⁻¹ = U⁻¹ L⁻¹ P, and its transpose
            const x = loaded(permuted(right, f.rows), workspace);
            solve(l, x);
            solve(u, x);
            expectWithin(
              'lu B x',
              frobenius(difference(multiplyMatrices(b, copy(x)), right)),
              2 * Math.sqrt(n) * EPSILON * frobenius(b) * frobenius(copy(x)),
            );
            const y = loaded(right, workspace);
            solve(ut, y);
            solve(lt, y);
            const back = new Int32Array(n);
            f.rows.forEach((to, from) => (back[to] = from));
            const z = permuted(copy(y), back);
            expectWithin(
              'lu Bᵀ z',
              frobenius(difference(multiplyMatrices(transposeMatrix(b), z), right)),
              2 * Math.sqrt(n) * EPSILON * frobenius(b) * frobenius(z),
            );
            // nothing else is kept
            for (const m of [x, y, f.lu, f.transposed, f.inversesL, f.inversesUt]) workspace.free(m);
          });
        },
      ),
      {
        numRuns: 200,
        examples: [95, 96, 97, 98, 192, 193, 200].map((n) => ['gaussian', n, 16, 8, n]),
      },
    );
  });

  it('keeps nothing in memory but what it returns', () => {
    inWasm((workspace) => {
      const own = loaded(gaussian(100, 100, 1), workspace);
      const before = wasm.memory().liveBuffers;
      runNow(luFactor(own, 0, workspace));
      expect(wasm.memory().liveBuffers).toBe(before + 3);
    });
  });

  it('replaces the pivots of singular matrices, and what comes of them is finite', () => {
    const withoutColumns = (n: number, gone: readonly number[]): Matrix => {
      const scales = numbers(n, (i) => (gone.includes(i) ? 0 : 1));
      return scaleColumns(gaussian(n, n, 3), scales);
    };
    // the matrix, and how many pivots are nothing: exactly, or what rounding leaves
    const cases: [Matrix, number | undefined][] = [
      [zeroMatrix(1, 1), 1],
      [zeroMatrix(100, 100), 100],
      [{ rows: 40, cols: 40, data: new Float64Array(1600).fill(-1) }, 39],
      [{ rows: 200, cols: 200, data: new Float64Array(40000).fill(1) }, 199],
      [withoutColumns(30, [0]), 1],
      [withoutColumns(98, [3, 50, 97]), 3],
      [withoutColumns(200, [95, 96, 150, 199]), 4],
      [multiplyMatrices(gaussian(120, 7, 1), gaussian(7, 120, 2)), undefined],
      [diagonal(numbers(97, (i) => (i === 20 ? -1e-30 : i === 96 ? 1e-30 : 1))), 2],
    ];
    for (const [b, count] of cases) {
      inWasm((workspace) => {
        const n = b.rows;
        const size = frobenius(b) || 1;
        const least = EPSILON * size;
        const f = runNow(luFactor(loaded(b, workspace), least, workspace));
        const pivots = numbers(n, (i) => Math.abs(f.lu.data[i * (n + 1)]!));
        for (const pivot of pivots) expect(pivot).toBeGreaterThanOrEqual(least);
        const replaced = pivots.filter((pivot) => pivot === least).length;
        if (count === undefined) expect(pivots.filter((pivot) => pivot < 100 * least).length).toBe(n - 7);
        else expect(replaced).toBe(count);
        expectWithin('lu singular', backwardError(b, f), least * Math.sqrt(n) + Math.sqrt(n) * EPSILON * size);
        for (const m of [f.lu, f.transposed, f.inversesL, f.inversesUt])
          expect(m.data.every(Number.isFinite)).toBe(true);
        const right = gaussian(n, 5, 4);
        for (const [t] of Object.values(trianglesOf(f))) {
          const x = loaded(right, workspace);
          substitute(t, x, workspace);
          expect(x.data.every(Number.isFinite)).toBe(true);
        }
      });
    }
    // the sign of what is replaced stays
    const signs = [-1e-30, 1e-30].map((x) => runNow(luFactor(diagonal([x]), 1e-20, host)).lu.data[0]);
    expect(signs).toEqual([-1e-20, 1e-20]);
  });
});

describe('minorTriplets', () => {
  interface Made {
    b: Matrix;
    /** Left singular vectors. */
    u: Matrix;
  }

  /** Singular vectors are the same for all spectra. */
  const vectors = new Map<string, [Matrix, Matrix]>();

  function made(k: number, n: number, values: readonly number[]): Made {
    let known = vectors.get(`${k} ${n}`);
    if (!known) {
      known = [qr(gaussian(k, k, 4)).q, transposeMatrix(qr(gaussian(n, k, 5)).q)];
      vectors.set(`${k} ${n}`, known);
    }
    const [u, vt] = known;
    return { b: multiplyMatrices(scaleColumns(u, values), vt), u };
  }

  /** What was done, in order: factorisations and Krylov spaces. */
  function watched<T>(steps: Steps<T>): { result: T; stages: string[] } {
    const stages: string[] = [];
    const first = new Map<string, number>();
    let last = '';
    for (;;) {
      const step = steps.next();
      if (step.done) return { result: step.value, stages };
      const { stage, done } = step.value;
      if (!['lu', 'gram', 'cholesky', 'krylov'].includes(stage)) continue;
      if (!first.has(stage)) first.set(stage, done);
      if (stage !== last || (stage === 'cholesky' && done === first.get(stage))) stages.push(stage);
      last = stage;
      if (stages.length > 20) throw new Error(`no end: ${stages.join(' ')}`);
    }
  }

  const rowNorm = (b: Matrix): number => largestOf(numbers(b.rows, (i) => norm(b.data, i * b.cols, b.cols)));

  interface Spectrum {
    of: (i: number, k: number) => number;
    /** What has to happen on the way. */
    square?: RegExp;
    wide?: RegExp;
    /** The error of the values and the residuals, relative to the largest value. */
    value?: number;
    residual?: number;
    /** Whether the six stand apart from the others, and the left vectors are determined. */
    apart?: boolean;
  }

  /** One inverse is enough; the guessed shift is too high; the shift is made better after a look. */
  const [byLu, afresh, again] = [/^lu krylov$/, /cholesky cholesky krylov$/, /krylov cholesky krylov$/];
  const spectra: Record<string, Spectrum> = {
    'near zero': { of: (i, k) => 1 - i / k, square: byLu, wide: afresh },
    'away from zero': { of: (i, k) => 2 - i / k, square: /^lu krylov gram cholesky krylov$/ },
    // the digits of a Gram matrix do not reach as far, nor do those of right vectors
    'over six digits': { of: (i, k) => 10 ** ((-6 * i) / k), square: byLu, value: 1e-13, residual: 3e-7, apart: false },
    'like weights': { of: (i, k) => (1 + i) ** -0.3 - 0.9 * k ** -0.3, square: again, wide: again },
    'tied at the end': { of: (i, k) => (i >= k - 10 ? 0.5 : 2 - i / k), apart: false },
    'of one value': { of: () => 1, apart: false },
    'of two values': { of: (i, k) => (i < k - 6 ? 1 : 0.5), square: byLu, wide: afresh },
    'of three values': { of: (i, k) => (i < 20 ? 3 : i < k - 6 ? 1 : 0.5), square: byLu },
    'with one outlier': { of: (i, k) => (i < k - 1 ? 1 : 1e-6), square: byLu, wide: afresh, apart: false },
    'that ends below the guess': { of: (i, k) => (i < k - 12 ? 1 : 0.1 + 0.01 * (k - i)), wide: afresh },
    'that ends far above the guess': { of: (i, k) => 1 + 3 * (1 - i / k) ** 4, square: again, wide: again },
  };

  it.each(Object.keys(spectra))('of a spectrum %s, of square and wide matrices', (kind) => {
    const { of, square, wide, value = 4e-15, residual = 1e-8, apart = true } = spectra[kind]!;
    for (const [k, n] of [
      [130, 130],
      [130, 150],
      [256, 256], // with padded rows
      [97, 300],
    ] as const) {
      const values = numbers(k, (i) => of(i, k));
      const { b, u } = made(k, n, values);
      inWasm((workspace) => {
        const view = viewOf(loaded(b, workspace));
        const before = wasm.memory().liveBuffers;
        const { result, stages } = watched(minorTriplets(view, 6, workspace, { luFrom: 0 }));
        expect(wasm.memory().liveBuffers).toBe(before);
        const way = k === n ? square : wide;
        if (way) expect(stages.join(' ')).toMatch(way);
        const { triplets, guards, size } = result!;
        expect(guards).toBe(4);
        expectWithin('minor size', Math.abs(size - rowNorm(b)), 1e-15 * values[0]!);
        expectTriplets(`minor ${kind} ${k === n ? 'square' : 'wide'}`, b, triplets, values.slice(-10), values[0]!, {
          value,
          residual,
        });
        if (apart) {
          expectWithin('minor angle', sineBetween(columns(triplets.u, 4, 10), columns(u, k - 6, k)), 2e-9);
        }
      });
    }
  });

  it.each([
    ['k − 3', 3, (i: number, k: number) => (i < k - 3 ? 1 - i / k : 0)],
    ['k − 30', 10, (i: number, k: number) => (i < k - 30 ? 1 - i / k : 0)],
    ['five', 10, (i: number) => (i < 5 ? 5 - i : 0)],
  ] as const)('of rank %s: finds vectors of the null space, and says how good the rest is', (_, zeros, of) => {
    for (const n of [130, 150]) {
      const values = numbers(130, (i) => of(i, 130));
      const { b, u } = made(130, n, values);
      inWasm((workspace) => {
        const before = wasm.memory().liveBuffers;
        const view = viewOf(loaded(b, workspace));
        const { triplets } = watched(minorTriplets(view, 6, workspace, { luFrom: 0 })).result!;
        expect(wasm.memory().liveBuffers).toBe(before + 1);
        // Ritz values of a subspace: none below the exact one, and what is said of them is true
        expectTriplets('minor deficient', b, triplets, [...triplets.s], values[0]!, { value: 0 });
        triplets.s.forEach((s, i) => expect(s).toBeGreaterThanOrEqual(values[120 + i]! - 1e-15));
        const kernel = columns(triplets.u, 10 - zeros, 10);
        expectWithin('minor deficient uᵀB', frobenius(multiplyMatrices(transposeMatrix(kernel), b)), 1e-8 * values[0]!);
        const exact = columns(u, values.indexOf(0), 130);
        expectWithin('minor deficient angle', sineBetween(kernel, exact), 1e-8);
      });
    }
  });

  it('of other types, of transposed views and in plain loops, alike', () => {
    const original = withSpectrum(
      100,
      140,
      numbers(100, (i) => 1.2 - i / 100),
      8,
    );
    for (const dtype of ['f64', 'f32', 'bf16', 'f16'] as const) {
      const rounded = toHost(original, dtype);
      const b: Matrix = { ...original, data: convertHost(rounded.data, dtype, 'f64') };
      for (const square of [false, true]) {
        const cut = (v: View): View => (square ? { ...v, cols: 100 } : v);
        inWasm((workspace) => {
          const find = (v: View, w: Workspace = workspace): Triplets =>
            (runNow(minorTriplets(v, 3, w, { luFrom: 0 })) as Minor).triplets;
          const expected = find(cut(viewOf(loaded(b, workspace))));
          const own = find(cut(workspace.load(rounded)));
          expect([own.s, own.u.data, own.vt.data].map(bits)).toEqual(
            [expected.s, expected.u.data, expected.vt.data].map(bits),
          );
          const others = dtype === 'f64' ? [find(cut(viewOf(b)), host)] : [];
          if (!square) others.push(find(transposed(viewOf(loaded(transposeMatrix(b), workspace)))));
          for (const other of others) {
            for (let i = 0; i < 7; i++) expectWithin('minor alike', Math.abs(other.s[i]! - expected.s[i]!), 4e-15);
            expectWithin('minor alike angle', sineBetween(columns(other.u, 4, 7), columns(expected.u, 4, 7)), 1e-9);
          }
        });
      }
    }
  });

  it('is undefined for the zero matrix, and keeps no memory', () => {
    for (const cols of [100, 120]) {
      inWasm((workspace) => {
        const b = viewOf(workspace.matrix(100, cols));
        const before = wasm.memory().liveBuffers;
        expect(runNow(minorTriplets(b, 3, workspace, { luFrom: 0 }))).toBeUndefined();
        expect(wasm.memory().liveBuffers).toBe(before);
      });
    }
  });
});
