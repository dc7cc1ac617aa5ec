import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TensorError } from '../../src/errors.js';
import { tridiagonalEigen, type Eigen } from '../../src/linalg/divideAndConquer.js';
import { identity, multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { qr } from '../../src/linalg/qr.js';
import { loewnerWeights, SecularEquation, secularVectors } from '../../src/linalg/secular.js';
import { runNow } from '../../src/linalg/steps.js';
import { svdMatrix } from '../../src/linalg/svd.js';
import { symmetricEigen, symmetricValues } from '../../src/linalg/symmetricEigen.js';
import { applyQ, tridiagonalise } from '../../src/linalg/tridiagonal.js';
import { tridiagonalValues } from '../../src/linalg/tridiagonalQl.js';
import { HostWorkspace, type MultiplyOptions, type View } from '../../src/linalg/workspace.js';
import { Philox } from '../../src/random.js';

// --- What is promised, in units of rounding -------------------------------------------------------------------------

const EPSILON = Number.EPSILON;
/** Largest entry of |A V − V Λ|, and largest error of a value, relative to the largest |eigenvalue|. */
const RESIDUAL = 30 * EPSILON;
const VALUE = 40 * EPSILON;
/** Largest entry of |VᵀV − I|. */
const ORTHOGONALITY = 50 * EPSILON;

// --- Matrices and measures ------------------------------------------------------------------------------------------

/** Counts its operations, and the matrices not given back. */
class CountingWorkspace extends HostWorkspace {
  products = 0;
  readonly live = new Set<unknown>();

  override matrix(rows: number, cols: number): Matrix {
    const m = super.matrix(rows, cols);
    this.live.add(m.data);
    return m;
  }

  override free(m?: { data: unknown }): void {
    expect(this.live.delete(m?.data)).toBe(true);
  }

  override multiply(c: View, a: View, b: View, options?: MultiplyOptions): void {
    this.products++;
    super.multiply(c, a, b, options);
  }
}

const host = new HostWorkspace();

function gaussian(rows: number, cols: number, seed: number): Matrix {
  return { rows, cols, data: Float64Array.from(new Philox(seed).normalArray(rows * cols)) };
}

const copy = (a: Matrix): Matrix => ({ ...a, data: a.data.slice() });

function scaleColumns(a: Matrix, scales: ArrayLike<number>): Matrix {
  return { ...a, data: a.data.map((x, i) => x * scales[i % a.cols]!) };
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a.length).toBe(b.length);
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
}

const largest = (x: Float64Array): number => x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

/** The average of a and aᵀ, which is exactly symmetric. */
function symmetrised(a: Matrix): Matrix {
  const t = transposeMatrix(a);
  return { ...a, data: a.data.map((x, i) => (x + t.data[i]!) / 2) };
}

/** A symmetric matrix with the given eigenvalues and random eigenvectors. */
function withSpectrum(spectrum: readonly number[], seed: number): Matrix {
  const n = spectrum.length;
  const { q } = qr(gaussian(n, n, seed));
  return symmetrised(multiplyMatrices(scaleColumns(q, spectrum), transposeMatrix(q)));
}

function fromTridiagonal(d: ArrayLike<number>, e: ArrayLike<number>): Matrix {
  const n = d.length;
  const out = zeroMatrix(n, n);
  for (let i = 0; i < n; i++) {
    out.data[i * n + i] = d[i]!;
    if (i + 1 < n) out.data[i * n + i + 1] = out.data[(i + 1) * n + i] = e[i]!;
  }
  return out;
}

/** Everything that makes `eigen` the spectrum of a. */
function expectEigen(a: Matrix, { values, vectors }: Eigen): void {
  const n = a.rows;
  expect([values.length, vectors.rows, vectors.cols]).toEqual([n, n, n]);
  for (let i = 1; i < n; i++) expect(values[i]).toBeGreaterThanOrEqual(values[i - 1]!);
  const left = multiplyMatrices(a, vectors).data;
  const right = scaleColumns(vectors, values).data;
  // the subnormal numbers of a matrix near the end of the range have an absolute error
  expect(largestDifference(left, right)).toBeLessThanOrEqual(RESIDUAL * largest(values) + 1e-322);
  const gram = multiplyMatrices(transposeMatrix(vectors), vectors);
  expect(largestDifference(gram.data, identity(n).data)).toBeLessThanOrEqual(ORTHOGONALITY);
}

const sizes = fc.oneof(fc.integer({ min: 1, max: 90 }), fc.constantFrom(1, 2, 3, 31, 32, 33, 34, 63, 64, 65, 66));
const seeds = fc.integer({ min: 0, max: 2 ** 40 });

const spectra: Record<string, (n: number, random: Philox) => number[]> = {
  random: (n, random) => [...random.normalArray(n)],
  positive: (n, random) => [...random.uniformArray(n, 0.01, 1)],
  clustered: (n, random) => [...random.uniformArray(n)].map((x) => 1 + 1e-13 * x),
  'two clusters': (n, random) => [...random.uniformArray(n)].map((x) => (x < 0.5 ? 1 : -1 + 1e-9 * x)),
  tied: (n) => Array.from({ length: n }, () => -3),
  'tied in threes': (n) => Array.from({ length: n }, (_, i) => i - (i % 3)),
  'rank-deficient': (n, random) => [...random.uniformArray(n)].map((x) => (x < 0.6 ? 0 : x)),
  'rank one': (n) => Array.from({ length: n }, (_, i) => (i === 0 ? 2 : 0)),
  zero: (n) => Array.from({ length: n }, () => 0),
  graded: (n) => Array.from({ length: n }, (_, i) => (-1) ** i * 1e12 ** (-i / n)),
  'Gram of a decaying spectrum': (n) => Array.from({ length: n }, (_, i) => 0.7 ** (2 * i)),
};

const dense = fc
  .record({
    n: sizes,
    kind: fc.constantFrom(...Object.keys(spectra)),
    scale: fc.constantFrom(1, 1, 1, 1e150, 1e-150, 1e-300, 1e300),
    seed: seeds,
  })
  .map(({ n, kind, scale, seed }) => {
    const spectrum = spectra[kind]!(n, new Philox(seed, 9)).sort((x, y) => x - y);
    const a = withSpectrum(spectrum, seed);
    return { a: { ...a, data: a.data.map((x) => x * scale) }, spectrum: spectrum.map((x) => x * scale), kind, scale };
  });

type Bands = [diagonal: number[], offDiagonal: number[]];
const bands = (n: number, { d, e }: { d: (i: number) => number; e: (i: number) => number }): Bands => [
  Array.from({ length: n }, (_, i) => d(i)),
  Array.from({ length: n - 1 }, (_, i) => e(i)),
];

const tridiagonals: Record<string, (n: number, random: Philox) => Bands> = {
  random: (n, random) => [[...random.normalArray(n)], [...random.normalArray(n - 1)]],
  'one two one': (n) => bands(n, { d: () => 2, e: () => -1 }),
  Wilkinson: (n) => bands(n, { d: (i) => Math.abs(i - (n - 1) / 2), e: () => 1 }),
  'glued Wilkinson': (n, random) => {
    const period = 3 + Math.floor(20 * random.uniformArray(1)[0]!);
    const glue = 10 ** (-16 * random.uniformArray(1)[0]!);
    return bands(n, {
      d: (i) => Math.abs((i % period) - (period - 1) / 2),
      e: (i) => (i % period === period - 1 ? glue : 1),
    });
  },
  'falling by 1e12': (n, random) => {
    const x = random.normalArray(2 * n);
    return bands(n, { d: (i) => x[i]! * 1e12 ** (-i / n), e: (i) => x[n + i]! * 1e12 ** (-i / n) });
  },
  'rising by 1e12': (n, random) => {
    const x = random.normalArray(2 * n);
    return bands(n, { d: (i) => x[i]! * 1e12 ** (i / n), e: (i) => x[n + i]! * 1e12 ** (i / n) });
  },
  'all magnitudes': (n, random) => {
    const x = random.uniformArray(2 * n);
    return bands(n, { d: (i) => 10 ** (-20 * x[i]!), e: (i) => -(10 ** (-20 * x[n + i]!)) });
  },
  'small integers': (n, random) => {
    const x = random.uniformArray(2 * n);
    return bands(n, { d: (i) => Math.floor(3 * x[i]!), e: (i) => Math.floor(3 * x[n + i]!) - 1 });
  },
  'nearly tied': (n, random) => {
    const x = random.normalArray(2 * n);
    return bands(n, { d: (i) => 1 + 1e-14 * x[i]!, e: (i) => 1e-14 * x[n + i]! });
  },
};

const tridiagonalMatrices = fc
  .record({
    n: sizes,
    kind: fc.constantFrom(...Object.keys(tridiagonals)),
    scale: fc.constantFrom(1, 1, 1, 1e150, 1e-150, 1e-280, 1e290),
    seed: seeds,
  })
  .map(({ n, kind, scale, seed }) => {
    const [d, e] = tridiagonals[kind]!(n, new Philox(seed, 5));
    return { d: Float64Array.from(d, (x) => x * scale), e: Float64Array.from(e, (x) => x * scale), kind, seed };
  });

// --- Tests ----------------------------------------------------------------------------------------------------------

describe('symmetricEigen', () => {
  it('holds for all sizes, spectra and scales', () => {
    fc.assert(
      fc.property(dense, ({ a, spectrum }) => {
        const eigen = runNow(symmetricEigen(copy(a), host));
        expectEigen(a, eigen);
        // the matrix itself has its spectrum only up to the rounding of two products
        const size = largest(Float64Array.from(spectrum));
        expect(largestDifference(eigen.values, spectrum)).toBeLessThanOrEqual(VALUE * size + 1e-322);
        const values = runNow(symmetricValues(copy(a), host));
        expect(largestDifference(eigen.values, values)).toBeLessThanOrEqual(VALUE * size + 1e-322);
      }),
      { numRuns: 200 },
    );
  });

  it('agrees with one-sided Jacobi on the shifted matrix', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 40 }), seeds, (n, seed) => {
        const a = symmetrised(gaussian(n, n, seed));
        const shift = norm(a.data, 0, n * n);
        const { s } = svdMatrix({ ...a, data: a.data.map((x, i) => (i % (n + 1) === 0 ? x + shift : x)) });
        const { values } = runNow(symmetricEigen(copy(a), host));
        const shifted = Float64Array.from(s, (x) => x - shift).sort();
        expect(largestDifference(values, shifted)).toBeLessThanOrEqual(VALUE * shift);
      }),
      { numRuns: 200 },
    );
  });

  it('solves the matrix of ones and the Hilbert matrix', () => {
    const fill = (n: number, entry: (i: number, j: number) => number): Matrix => ({
      ...zeroMatrix(n, n),
      data: Float64Array.from({ length: n * n }, (_, at) => entry(Math.floor(at / n), at % n)),
    });
    for (const n of [2, 32, 33, 80]) {
      const ones = fill(n, () => 1);
      const eigen = runNow(symmetricEigen(copy(ones), host));
      expectEigen(ones, eigen);
      expect(Math.abs(eigen.values[n - 1]! - n)).toBeLessThanOrEqual(VALUE * n);
      const hilbert = fill(n, (i, j) => 1 / (i + j + 1));
      expectEigen(hilbert, runNow(symmetricEigen(copy(hilbert), host)));
    }
  });

  it('gives all memory back but the vectors, also when stopped in between', () => {
    const workspace = new CountingWorkspace();
    const start = (): [Matrix, ReturnType<typeof symmetricEigen>] => {
      const a = workspace.matrix(80, 80);
      a.data.set(symmetrised(gaussian(80, 80, 3)).data);
      return [a, symmetricEigen(a, workspace)];
    };
    const [a, steps] = start();
    const stages = new Map<string, number>();
    let count = 0;
    let before = 0;
    for (let step = steps.next(); ; step = steps.next()) {
      if (step.done) {
        expect(workspace.live).toEqual(new Set([a.data, step.value.vectors.data]));
        break;
      }
      expect(step.value.done).toBeGreaterThanOrEqual(before);
      before = step.value.done;
      stages.set(step.value.stage, 1);
      count++;
    }
    expect(before).toBeLessThanOrEqual(1);
    expect([...stages.keys()]).toEqual(['tridiagonal', 'divide and conquer', 'vectors']);
    for (let stop = 1; stop <= count; stop++) {
      workspace.live.clear();
      const [other, stopped] = start();
      for (let i = 0; i < stop; i++) stopped.next();
      stopped.return(undefined as never);
      expect(workspace.live).toEqual(new Set([other.data]));
    }
  });

  it('names what it cannot take', () => {
    const a = identity(3);
    a.data[5] = NaN;
    expect(() => runNow(symmetricEigen(a, host))).toThrow(
      new TensorError('non-finite', 'symmetricEigen: expected finite entries, got NaN at [1, 2]'),
    );
    a.data[5] = -Infinity;
    expect(() => runNow(symmetricValues(a, host))).toThrow('expected finite entries, got -Infinity at [1, 2]');
    expect(() => runNow(symmetricEigen(zeroMatrix(3, 2), host))).toThrow('expected a square matrix, got [3, 2]');
  });
});

describe('tridiagonalise', () => {
  it('gives Q and T with Q T Qᵀ = A', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          { arbitrary: fc.integer({ min: 1, max: 70 }), weight: 19 },
          { arbitrary: fc.integer({ min: 127, max: 131 }), weight: 1 },
        ),
        seeds,
        (n, seed) => {
          const a = symmetrised(gaussian(n, n, seed));
          const { diagonal, offDiagonal, reflectors } = runNow(tridiagonalise(copy(a), host));
          const q = identity(n);
          runNow(applyQ(reflectors, q, host));
          const gram = multiplyMatrices(transposeMatrix(q), q);
          expect(largestDifference(gram.data, identity(n).data)).toBeLessThanOrEqual(ORTHOGONALITY);
          const back = multiplyMatrices(
            multiplyMatrices(q, fromTridiagonal(diagonal, offDiagonal)),
            transposeMatrix(q),
          );
          expect(largestDifference(back.data, a.data)).toBeLessThanOrEqual(RESIDUAL * norm(a.data, 0, n * n));
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe('tridiagonalEigen', () => {
  it('holds for all sizes, spectra and scales', () => {
    fc.assert(
      fc.property(tridiagonalMatrices, ({ d, e }) => {
        const eigen = runNow(tridiagonalEigen(d, e, host));
        expectEigen(fromTridiagonal(d, e), eigen);
        const size = largest(eigen.values);
        expect(largestDifference(eigen.values, tridiagonalValues(d, e))).toBeLessThanOrEqual(VALUE * size + 1e-322);
      }),
      { numRuns: 400 },
    );
  });

  it('gives spectra that are known in closed form', () => {
    for (const n of [1, 2, 3, 32, 33, 64, 90]) {
      const check = ([d, e]: Bands, expected: number[]): void => {
        expected.sort((x, y) => x - y);
        const size = largest(Float64Array.from(expected));
        const values = tridiagonalValues(Float64Array.from(d), Float64Array.from(e));
        expect(largestDifference(values, expected)).toBeLessThanOrEqual(VALUE * size);
        const eigen = runNow(tridiagonalEigen(Float64Array.from(d), Float64Array.from(e), host));
        expect(largestDifference(eigen.values, expected)).toBeLessThanOrEqual(VALUE * size);
      };
      check(
        tridiagonals['one two one']!(n, new Philox(1)),
        Array.from({ length: n }, (_, i) => 4 * Math.sin(((i + 1) * Math.PI) / (2 * n + 2)) ** 2),
      );
      // Clement's matrix, made symmetric
      check(
        bands(n, { d: () => 0, e: (i) => Math.sqrt((i + 1) * (n - 1 - i)) }),
        Array.from({ length: n }, (_, i) => 2 * i - (n - 1)),
      );
    }
  });

  it('multiplies nothing where every value deflates', () => {
    const cases: Bands[] = [
      bands(200, { d: () => 5, e: () => 0 }),
      bands(200, { d: (i) => i % 7, e: () => 0 }),
      bands(200, { d: () => 0, e: () => 0 }),
      bands(200, { d: (i) => 10 ** (-300 * (i / 200)), e: (i) => 1e-18 * 10 ** (-300 * (i / 200)) }),
    ];
    for (const [d, e] of cases) {
      const workspace = new CountingWorkspace();
      const eigen = runNow(tridiagonalEigen(Float64Array.from(d), Float64Array.from(e), workspace));
      expect(workspace.products).toBe(0);
      expect(workspace.live).toEqual(new Set([eigen.vectors.data]));
      expectEigen(fromTridiagonal(d, e), eigen);
    }
  });
});

describe('SecularEquation', () => {
  it('has zeros that belong to nearly the same z, whose vectors are orthogonal', () => {
    let [steps, found] = [0, 0];
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 0, max: 12 }), seeds, (k, range, seed) => {
        const random = new Philox(seed);
        const gaps = random.uniformArray(k, 0.1, 1).map((x, i) => x * 10 ** (-range * random.uniformArray(k)[i]!));
        const d = Float64Array.from(gaps);
        for (let i = 1; i < k; i++) d[i] = d[i - 1]! + d[i]!;
        const z = Float64Array.from(
          random.normalArray(k),
          (x) => (x || 1) * 10 ** (-range * random.uniformArray(1)[0]!),
        );
        const length = norm(z, 0, k);
        for (let i = 0; i < k; i++) z[i] = z[i]! / length;

        const equation = new SecularEquation(d, z, k, 1);
        const vectors = zeroMatrix(k, k);
        const zeros = Array.from({ length: k }, (_, j) => equation.zero(j, vectors.data, j * k));
        steps += equation.steps;
        found += k;
        for (let j = 0; j < k; j++) {
          expect(zeros[j]).toBeGreaterThanOrEqual(d[j]!);
          if (j + 1 < k) expect(zeros[j]).toBeLessThanOrEqual(d[j + 1]!);
        }
        const weights = loewnerWeights(d, z, k, vectors.data, k);
        expect(largestDifference(weights, z)).toBeLessThanOrEqual(RESIDUAL);
        secularVectors(weights, Int32Array.from(d.keys()), k, vectors.data, k);
        const gram = multiplyMatrices(vectors, transposeMatrix(vectors));
        expect(largestDifference(gram.data, identity(k).data)).toBeLessThanOrEqual(ORTHOGONALITY);
      }),
      { numRuns: 300 },
    );
    // on average; about 3.2 with both models, 4.6 when one of them is wrong
    expect(steps / found).toBeLessThan(4);
  });
});
