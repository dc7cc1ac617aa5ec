/** The parts of the iterative methods: blocks of vectors, block Lanczos, Golub–Kahan, and the shifted inverse. */
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { createWasmBackend } from '../../src/backends/wasm/index.js';
import { blockLanczos, type Operator, type RitzPairs } from '../../src/linalg/blockLanczos.js';
import { orthogonalise, orthonormalise, startBlock, storeBlock } from '../../src/linalg/blockVectors.js';
import { leadingTriplets } from '../../src/linalg/golubKahan.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { minorTriplets } from '../../src/linalg/minor.js';
import { qr } from '../../src/linalg/qr.js';
import { factorise, mirrorFactor, solve } from '../../src/linalg/shiftInvert.js';
import { runNow, type Steps } from '../../src/linalg/steps.js';
import { HostWorkspace, transposed, viewOf, type Workspace } from '../../src/linalg/workspace.js';
import { Philox } from '../../src/random.js';
import {
  columns,
  diagonal,
  difference,
  frobenius,
  gaussian,
  numbers,
  orthogonalityError,
  reference,
  residualOf,
  scaleColumns,
  sineBetween,
  withSpectrum,
} from './matrices.js';

const wasm = createWasmBackend({ threads: 1 });
afterAll(() => wasm.close());

const host = new HostWorkspace();
const seeds = fc.integer({ min: 0, max: 2 ** 40 });
const copy = (a: Matrix): Matrix => ({ ...a, data: a.data.slice() });

/** Runs in wasm memory, none of which may be left but what the result holds, which `done` copies and frees. */
function inWasm<T>(run: (workspace: Workspace) => T): T {
  const before = wasm.memory().liveBytes;
  const workspace = wasm.workspace();
  try {
    return run(workspace);
  } finally {
    workspace.close();
    expect(wasm.memory().liveBytes).toBe(before);
  }
}

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

describe('blockLanczos', () => {
  const operatorOf = (a: Matrix): Operator & { products: number } => ({
    size: a.rows,
    products: 0,
    apply(x) {
      this.products++;
      x.data.set(multiplyMatrices(a, x).data);
    },
  });

  function withValues(values: readonly number[], seed: number): Matrix {
    const { q } = qr(gaussian(values.length, values.length, seed));
    return multiplyMatrices(scaleColumns(q, values), transposeMatrix(q));
  }

  /** The pairs are eigenpairs of a as exactly as they say, and the `wanted` largest of `values`. */
  function expectPairs(
    a: Matrix,
    values: readonly number[],
    pairs: RitzPairs,
    wanted: number,
    tolerance: number,
  ): void {
    expect(pairs.converged).toBe(true);
    const { basis, coordinates, dimension: d } = pairs;
    const v = transposeMatrix({ rows: d, cols: a.rows, data: basis.data.slice(0, d * a.rows) });
    expect(orthogonalityError(v)).toBeLessThan(1e-12);
    const x = columns(multiplyMatrices(v, copy(coordinates)), 0, wanted);
    const size = Math.max(...values.map(Math.abs));
    const left = transposeMatrix(difference(multiplyMatrices(a, x), scaleColumns(x, pairs.values)));
    const sorted = [...values].sort((p, q) => q - p);
    for (let i = 0; i < wanted; i++) {
      const residual = norm(left.data, i * a.rows, a.rows);
      expect(Math.abs(residual - pairs.residuals[i]!)).toBeLessThan(1e-12 * size);
      expect(residual).toBeLessThanOrEqual(tolerance * Math.abs(pairs.values[i]!) + 1e-12 * size);
      expect(Math.abs(pairs.values[i]! - sorted[i]!)).toBeLessThanOrEqual(tolerance * size + 1e-12 * size);
    }
  }

  const run = (a: Matrix, options: Parameters<typeof blockLanczos>[1], workspace: Workspace = host): RitzPairs =>
    runNow(blockLanczos(operatorOf(a), options, workspace));

  it('finds the largest eigenpairs of all kinds of spectra, with restarts or without', () => {
    const spectra: Record<string, (n: number, random: Philox) => number[]> = {
      decaying: (n) => numbers(n, (i) => 0.9 ** i),
      random: (n, random) => [...random.uniformArray(n, 0.1, 1)],
      'of both signs': (n) => numbers(n, (i) => (i % 2 === 0 ? 1 : -1) * 0.95 ** i),
      'tied at the top': (n) => numbers(n, (i) => (i < 5 ? 2 : 1 / (1 + i))),
      'rank five': (n) => numbers(n, (i) => (i < 5 ? 5 - i : 0)),
    };
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.keys(spectra)),
        fc.integer({ min: 60, max: 120 }),
        fc.constantFrom(4, 8),
        fc.boolean(),
        seeds,
        (kind, n, block, restarts, seed) => {
          const values = spectra[kind]!(n, new Philox(seed, 3));
          const a = withValues(values, seed);
          const wanted = 4;
          const most = restarts ? wanted + 3 * block : n;
          const pairs = run(a, { wanted, tolerance: 1e-8, block, most, patience: 3000, seed });
          expectPairs(a, values, pairs, wanted, 1e-8);
          expect(pairs.dimension).toBeLessThanOrEqual(most);
        },
      ),
      { numRuns: 60 },
    );
  });

  it('takes the identity, and operators with two or three values, for what they are', () => {
    for (const values of [
      numbers(60, () => 1),
      numbers(60, (i) => (i < 30 ? 2 : 1)),
      numbers(60, (i) => (i < 3 ? 3 : i < 40 ? 2 : 1)),
      numbers(60, (i) => (i < 3 ? 1 : 0)),
    ]) {
      for (const a of [diagonal(values), withValues(values, 2)]) {
        for (const wanted of [1, 3]) {
          expectPairs(a, values, run(a, { wanted, tolerance: 1e-9, block: 4, most: 40, patience: 200 }), wanted, 1e-9);
        }
      }
    }
  });

  it('finds all copies of a value that is there more often than a block has vectors', () => {
    const values = numbers(100, (i) => (i < 12 ? 2 : 1 / (2 + i)));
    for (const a of [diagonal(values), withValues(values, 5)]) {
      expectPairs(a, values, run(a, { wanted: 12, tolerance: 1e-9, block: 4, most: 90 }), 12, 1e-9);
    }
  });

  it('is the same for the same seed, in any memory that it gives back, and another for another seed', () => {
    const a = withValues(
      numbers(80, (i) => 0.8 ** i),
      1,
    );
    const options = { wanted: 6, tolerance: 1e-9, block: 8, most: 48 };
    const found = inWasm((workspace) => {
      const both = [0, 0, 1].map((seed) => {
        const { basis, coordinates, values, ...rest } = run(a, { ...options, seed }, workspace);
        const out = { ...rest, values: values.slice(), basis: basis.data.slice() };
        const live = wasm.memory().liveBuffers;
        workspace.free(basis);
        workspace.free(coordinates);
        return { out, live };
      });
      // nothing but the two matrices
      const { liveBuffers } = wasm.memory();
      expect(both.map(({ live }) => live)).toEqual([liveBuffers + 2, liveBuffers + 2, liveBuffers + 2]);
      return both.map(({ out }) => out);
    });
    expect(found[1]).toEqual(found[0]);
    expect(found[2]!.basis).not.toEqual(found[0]!.basis);
    expect(Math.abs(found[2]!.values[5]! - found[0]!.values[5]!)).toBeLessThan(1e-9);
  });

  it('gives up when told to after a look, or when patience is at an end', () => {
    const a = withValues([...new Philox(3).uniformArray(90, 0.9, 1)], 1);
    let seen = 0;
    const look = {
      blocks: 3,
      leave: ({ values, residuals }: Pick<RitzPairs, 'values' | 'residuals'>): boolean => {
        seen++;
        expect(values.length).toBe(residuals.length);
        for (let i = 1; i < values.length; i++) expect(values[i]).toBeLessThanOrEqual(values[i - 1]!);
        return true;
      },
    };
    const left = run(a, { wanted: 4, tolerance: 1e-9, block: 4, most: 60, look });
    expect([seen, left.converged, left.dimension]).toEqual([1, false, 12]);
    const operator = operatorOf(a);
    const impatient = runNow(
      blockLanczos(operator, { wanted: 4, tolerance: 1e-15, block: 4, most: 60, patience: 6 }, host),
    );
    expect([impatient.converged, operator.products]).toEqual([false, 6]);
  });
});

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
    // most is 112: the flat spectrum restarts
    const values = spectra[kind]!(140);
    const a = withSpectrum(140, 170, values, 3);
    for (const b of [a, diagonal(values, 170)]) {
      inWasm((workspace) => {
        const view = viewOf(loaded(b, workspace));
        const before = wasm.memory().liveBuffers;
        const { triplets, converged } = runNow(leadingTriplets(view, 6, 1e-10, workspace));
        expect(wasm.memory().liveBuffers).toBe(before);
        expect([triplets.s.length, triplets.u.cols, triplets.vt.rows]).toEqual([7, 7, 7]);
        expect(converged).toBe(true);
        const size = values[0]! || 1;
        expect(orthogonalityError(triplets.u)).toBeLessThan(1e-13);
        expect(orthogonalityError(transposeMatrix(triplets.vt))).toBeLessThan(1e-13);
        expect(residualOf(b, triplets)).toBeLessThan(2e-10 * size);
        triplets.s.forEach((s, i) => expect(Math.abs(s - values[i]!)).toBeLessThan(2e-10 * size));
      });
    }
  });
});

describe('the shifted inverse', () => {
  function definite(n: number, condition: number, seed: number): Matrix {
    const { q } = qr(gaussian(n, n, seed));
    return multiplyMatrices(
      scaleColumns(
        q,
        numbers(n, (i) => condition ** (-i / Math.max(1, n - 1))),
      ),
      transposeMatrix(q),
    );
  }

  it('solves to rounding, with the factor as it is and mirrored', () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.integer({ min: 1, max: 220 }), fc.constantFrom(1, 95, 96, 97, 192, 193)),
        fc.integer({ min: 1, max: 17 }),
        fc.constantFrom(1, 1e4, 1e9),
        fc.constantFrom(0, 0.5),
        seeds,
        (n, b, condition, delta, seed) => {
          inWasm((workspace) => {
            const g = definite(n, condition, seed);
            const shifted = copy(g);
            for (let i = 0; i < n; i++) shifted.data[i * (n + 1)]! += delta;
            // only the lower triangle may matter
            const own = loaded(g, workspace);
            for (let i = 0; i < n; i++) own.data.fill(NaN, i * n + i + 1, (i + 1) * n);
            const factor = runNow(factorise(own, delta, workspace))!;
            expect(factor.mirrored).toBe(false);
            const right = gaussian(n, b, seed + 1);
            for (const mirrored of [false, true]) {
              if (mirrored) mirrorFactor(factor, workspace);
              const x = loaded(right, workspace);
              solve(factor, x, workspace);
              const residual = frobenius(difference(multiplyMatrices(shifted, copy(x)), right));
              expect(residual).toBeLessThanOrEqual(1e-14 * Math.sqrt(n) * (1 + delta) * frobenius(copy(x)));
            }
            const l = copy(own);
            for (let i = 0; i < n; i++) l.data.fill(0, i * n + i + 1, (i + 1) * n);
            const error = frobenius(difference(multiplyMatrices(l, transposeMatrix(l)), shifted));
            expect(error).toBeLessThan(1e-14 * frobenius(shifted));
          });
        },
      ),
      { numRuns: 40 },
    );
  });

  it('is undefined where the matrix is not positive definite, and keeps no memory', () => {
    const cases: [Matrix, number][] = [
      [zeroMatrix(5, 5), 0],
      [diagonal(numbers(120, (i) => (i === 110 ? -1 : 1))), 0],
      [diagonal(numbers(120, () => 1)), -1],
      [diagonal(numbers(120, () => 1)), -2],
      [diagonal(numbers(200, (i) => (i === 150 ? NaN : 1))), 0],
      [multiplyMatrices(gaussian(100, 3, 1), transposeMatrix(gaussian(100, 3, 1))), -1e-3],
    ];
    for (const [g, delta] of cases) {
      inWasm((workspace) => {
        const own = loaded(g, workspace);
        const before = wasm.memory().liveBytes;
        expect(runNow(factorise(own, delta, workspace))).toBeUndefined();
        expect(wasm.memory().liveBytes).toBe(before);
      });
    }
  });
});

describe('minorTriplets', () => {
  const run = <T>(steps: Steps<T>): T => runNow(steps);

  it.each([
    ['near zero', (i: number) => 1 - i / 130, false],
    ['away from zero', (i: number) => 2 - i / 130, true],
    ['tied at the end', (i: number) => (i >= 120 ? 0.5 : 2 - i / 130), undefined],
    ['of one value', () => 1, undefined],
  ] as const)('of a spectrum %s', (_, of, shifts) => {
    const values = numbers(130, of);
    for (const b of [withSpectrum(130, 150, values, 4), diagonal(values, 150)]) {
      inWasm((workspace) => {
        const view = viewOf(loaded(b, workspace));
        const before = wasm.memory().liveBuffers;
        const found = run(minorTriplets(view, 6, workspace))!;
        expect(wasm.memory().liveBuffers).toBe(before);
        const { triplets, size, shifted } = found;
        if (shifts !== undefined) expect(shifted).toBe(shifts);
        expect(triplets.s.length).toBe(10);
        expect(size).toBeLessThanOrEqual(values[0]! * (1 + 1e-14));
        expect(orthogonalityError(triplets.u)).toBeLessThan(1e-13);
        expect(orthogonalityError(transposeMatrix(triplets.vt))).toBeLessThan(1e-13);
        expect(residualOf(b, triplets)).toBeLessThan(1e-7);
        triplets.s.forEach((s, i) => expect(Math.abs(s - values[120 + i]!)).toBeLessThan(1e-9));
        const exact = reference(b);
        if (shifts !== undefined) {
          expect(sineBetween(columns(triplets.u, 4, 10), columns(exact.u, 124, 130))).toBeLessThan(1e-6);
        }
        // of the transposed matrix, seen through a view
        const flipped = viewOf(loaded(transposeMatrix(b), workspace));
        const other = run(minorTriplets(transposed(flipped), 6, workspace))!;
        other.triplets.s.forEach((s, i) => expect(Math.abs(s - triplets.s[i]!)).toBeLessThan(1e-9));
      });
    }
  });

  it('is undefined for the zero matrix', () => {
    inWasm((workspace) => {
      expect(run(minorTriplets(viewOf(workspace.matrix(100, 100)), 3, workspace))).toBeUndefined();
    });
  });
});
