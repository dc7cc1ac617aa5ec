import fc from 'fast-check';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { cholesky } from '../src/linalg/cholesky.js';
import { jacobi } from '../src/linalg/jacobi.js';
import {
  identity,
  matrixFromHost,
  multiplyMatrices,
  norm,
  transposeMatrix,
  zeroMatrix,
  type Matrix,
} from '../src/linalg/matrix.js';
import { qr, qrPivoted } from '../src/linalg/qr.js';
import { runNow } from '../src/linalg/steps.js';
import { svdMatrix, type Svd } from '../src/linalg/svd.js';
import { HostWorkspace } from '../src/linalg/workspace.js';
import { openSafetensorsFile } from '../src/node.js';
import { Philox } from '../src/random.js';

// --- Matrices and measures ------------------------------------------------------------------------------------------

function gaussian(rows: number, cols: number, seed: number): Matrix {
  return { rows, cols, data: Float64Array.from(new Philox(seed).normalArray(rows * cols)) };
}

/** a · diag(scales) */
function scaleColumns(a: Matrix, scales: ArrayLike<number>): Matrix {
  return { ...a, data: a.data.map((x, i) => x * scales[i % a.cols]!) };
}

function product({ u, s, vt }: Svd): Matrix {
  return multiplyMatrices(scaleColumns(u, s), vt);
}

function largestDifference(a: Matrix, b: Matrix): number {
  expect([a.rows, a.cols]).toEqual([b.rows, b.cols]);
  return a.data.reduce((most, x, i) => Math.max(most, Math.abs(x - b.data[i]!)), 0);
}

/** How far the columns of a are from orthonormal. */
function orthonormalityError(a: Matrix): number {
  return largestDifference(multiplyMatrices(transposeMatrix(a), a), identity(a.cols));
}

const frobenius = (a: Matrix): number => norm(a.data, 0, a.data.length);

/** Everything that makes a decomposition a thin SVD of `a`, up to `tolerance` relative to the norm of `a`. */
function expectSvd(a: Matrix, svd: Svd, tolerance: number): void {
  const { u, s, vt } = svd;
  const k = Math.min(a.rows, a.cols);
  expect([u.rows, u.cols, s.length, vt.rows, vt.cols]).toEqual([a.rows, k, k, k, a.cols]);
  expect(largestDifference(product(svd), a)).toBeLessThanOrEqual(tolerance * frobenius(a));
  expect(orthonormalityError(u)).toBeLessThan(tolerance);
  expect(orthonormalityError(transposeMatrix(vt))).toBeLessThan(tolerance);
  for (let i = 0; i < k; i++) expect(s[i]).toBeGreaterThanOrEqual(s[i + 1] ?? 0);
}

/** A matrix with the given singular values and random singular vectors. */
function withSpectrum(rows: number, cols: number, spectrum: readonly number[], seed: number): Matrix {
  const k = spectrum.length;
  const u = qr(gaussian(rows, k, seed)).q;
  const v = qr(gaussian(cols, k, seed + 1)).q;
  return multiplyMatrices(scaleColumns(u, spectrum), transposeMatrix(v));
}

const seeds = fc.integer({ min: 0, max: 2 ** 40 });

const spectra: Record<string, (k: number, random: Philox) => number[]> = {
  random: (k, random) => [...random.uniformArray(k, 0.01, 1)],
  decaying: (k) => Array.from({ length: k }, (_, i) => 10 ** -i),
  clustered: (k, random) => [...random.uniformArray(k)].map((x) => 1 + 1e-13 * x),
  'two clusters': (k) => Array.from({ length: k }, (_, i) => (i < k / 2 ? 1 : 1e-9)),
  tied: (k) => Array.from({ length: k }, () => 3),
  'rank-deficient': (k, random) => [...random.uniformArray(k)].map((x) => (x < 0.5 ? 0 : x)),
  'rank one': (k) => Array.from({ length: k }, (_, i) => (i === 0 ? 2 : 0)),
  zero: (k) => Array.from({ length: k }, () => 0),
};

/** Matrices of all shapes and spectra, with the singular values they were made from. */
const matrices = fc
  .record({
    rows: fc.integer({ min: 1, max: 24 }),
    cols: fc.integer({ min: 1, max: 24 }),
    kind: fc.constantFrom(...Object.keys(spectra)),
    scale: fc.constantFrom(1, 1, 1e6, 1e-6, 1e150, 1e-150, 1e-300, 1e300),
    seed: seeds,
  })
  .map(({ rows, cols, kind, scale, seed }) => {
    const spectrum = spectra[kind]!(Math.min(rows, cols), new Philox(seed, 9)).map((x) => x * scale);
    return { matrix: withSpectrum(rows, cols, spectrum, seed), spectrum: spectrum.sort((x, y) => y - x), kind, scale };
  });

// --- Tests ----------------------------------------------------------------------------------------------------------

describe('svdMatrix', () => {
  it('agrees with LAPACK in float64', async () => {
    const file = await openSafetensorsFile(fileURLToPath(new URL('./fixtures/svd.safetensors', import.meta.url)));
    const names = file.names().filter((name) => !name.includes('.'));
    expect(names).toHaveLength(14);
    for (const name of names) {
      const a = matrixFromHost(await file.read(name));
      const golden = (await file.read(`${name}.singular_values_f64`)).data;
      const svd = svdMatrix(a);
      expectSvd(a, svd, 1e-13);
      for (let i = 0; i < golden.length; i++) {
        expect(Math.abs(svd.s[i]! - golden[i]!), `${name}[${i}]`).toBeLessThanOrEqual(1e-13 * golden[0]!);
      }
    }
    await file.close();
  });

  it('holds for all shapes, spectra and scales', () => {
    fc.assert(
      fc.property(matrices, ({ matrix, spectrum }) => {
        const svd = svdMatrix(matrix);
        expectSvd(matrix, svd, 1e-13);
        spectrum.forEach((value, i) => expect(Math.abs(svd.s[i]! - value)).toBeLessThanOrEqual(1e-14 * spectrum[0]!));
      }),
      { numRuns: 600 },
    );
  });

  it('of a transposed matrix exchanges u and v', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 1, max: 16 }), seeds, (rows, cols, seed) => {
        const a = gaussian(rows, cols, seed);
        const { u, s, vt } = svdMatrix(a);
        const other = svdMatrix(transposeMatrix(a));
        for (let i = 0; i < s.length; i++) expect(Math.abs(s[i]! - other.s[i]!)).toBeLessThan(1e-13 * s[0]!);
        // a triplet's outer product does not depend on its sign; close singular values would mix them
        for (let i = 0; i < s.length; i++) {
          const above = (s[i - 1] ?? Infinity) - s[i]!;
          const below = s[i]! - (s[i + 1] ?? -Infinity);
          if (Math.min(above, below) < 1e-3 * s[0]!) continue;
          for (let r = 0; r < rows; r++) {
            for (let c = 0; c < cols; c++) {
              const here = u.data[r * s.length + i]! * vt.data[i * cols + c]!;
              const there = other.u.data[c * s.length + i]! * other.vt.data[i * rows + r]!;
              expect(Math.abs(here - there)).toBeLessThan(1e-11);
            }
          }
        }
      }),
      { numRuns: 200 },
    );
  });

  it('keeps every singular value of graded matrices to relative accuracy', () => {
    // singular values from mpmath 1.3 with 120 digits
    const b = [
      [1, -5, 3, -8, -7, 8],
      [-6, 2, 9, -8, 7, -3],
      [-8, -7, 4, 4, -7, -2],
      [-7, 8, 4, -8, 9, -6],
      [-2, 9, -8, 9, 9, 3],
      [-8, -2, -8, 8, -5, 0],
    ];
    const columns = [0, -60, -12, -45, -30, -24];
    const rows = [-33, 0, -70, -18, -51, -6];
    const golden = {
      columns: [
        14.7648230691313298, 0.00382601733189385702, 5.48759348036649055e-7, 1.50486743729459628e-8,
        2.51516912222482963e-13, 1.50178894749499144e-18,
      ],
      rows: [
        15.5889771065796417, 0.194288064829727967, 3.21968310844125761e-5, 1.24430893294976755e-9,
        4.94642200903199325e-15, 2.29363986078829164e-21,
      ],
      both: [
        6.00130234397521295, 7.62773890778448041e-5, 8.64240216776351019e-13, 3.33972774757847401e-19,
        1.08517613801994305e-27, 3.20778407117094047e-39,
      ],
    };
    for (const [kind, expected] of Object.entries(golden)) {
      const a = zeroMatrix(6, 6);
      b.forEach((row, i) =>
        row.forEach((x, j) => {
          a.data[i * 6 + j] = x * 2 ** ((kind === 'columns' ? 0 : rows[i]!) + (kind === 'rows' ? 0 : columns[j]!));
        }),
      );
      for (const matrix of [a, transposeMatrix(a)]) {
        const { s } = svdMatrix(matrix);
        expected.forEach((value, i) => expect(Math.abs(s[i]! / value - 1), `${kind}[${i}]`).toBeLessThan(2e-14));
      }
    }
  });

  it('has the exact determinant as the product of its singular values, however the columns or rows are scaled', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 7 }).chain((n) =>
          fc.record({
            integers: fc.array(fc.array(fc.integer({ min: -20, max: 20 }), { minLength: n, maxLength: n }), {
              minLength: n,
              maxLength: n,
            }),
            exponents: fc.array(fc.integer({ min: -100, max: 30 }), { minLength: n, maxLength: n }),
          }),
        ),
        fc.boolean(),
        ({ integers, exponents }, scaleRows) => {
          const exact = Number(determinant(integers.map((row) => row.map(BigInt))));
          const n = integers.length;
          const data = Float64Array.from(integers.flat(), (x, i) => {
            return x * 2 ** exponents[scaleRows ? Math.floor(i / n) : i % n]!;
          });
          const { s } = svdMatrix({ rows: n, cols: n, data });
          const logarithm = s.reduce((sum, x) => sum + Math.log2(x), 0) - exponents.reduce((a, e) => a + e, 0);
          // the condition of the unscaled matrix is what the accuracy may depend on
          const plain = svdMatrix({ rows: n, cols: n, data: Float64Array.from(integers.flat()) }).s;
          fc.pre(exact !== 0 && plain[0]! / plain[n - 1]! < 1e4);
          expect(Math.abs(logarithm - Math.log2(Math.abs(exact)))).toBeLessThan(1e-11);
        },
      ),
      { numRuns: 500 },
    );
  });

  it('is deterministic, with the largest entry of each left vector positive', () => {
    fc.assert(
      fc.property(matrices, ({ matrix }) => {
        const { u, s, vt } = svdMatrix(matrix);
        expect(svdMatrix({ ...matrix, data: matrix.data.slice() })).toEqual({ u, s, vt });
        for (let c = 0; c < s.length; c++) {
          const column = Array.from({ length: u.rows }, (_, i) => u.data[i * s.length + c]!);
          expect(Math.max(...column)).toBe(Math.max(...column.map(Math.abs)));
        }
      }),
      { numRuns: 100 },
    );
  });

  it('leaves its argument alone', () => {
    const a = gaussian(7, 5, 1);
    const before = a.data.slice();
    svdMatrix(a);
    expect(a.data).toEqual(before);
  });

  it('handles edge shapes and exact cases', () => {
    for (const [rows, cols] of [
      [0, 0],
      [0, 3],
      [4, 0],
    ] as const) {
      expectSvd(zeroMatrix(rows, cols), svdMatrix(zeroMatrix(rows, cols)), 1e-15);
    }
    expect(svdMatrix(identity(5))).toEqual({ u: identity(5), s: new Float64Array(5).fill(1), vt: identity(5) });
    const row: Matrix = { rows: 1, cols: 3, data: Float64Array.of(-2, 1, 2) };
    expect(svdMatrix(row).s[0]).toBeCloseTo(3, 15);
    expectSvd(row, svdMatrix(row), 1e-15);
    expectSvd(transposeMatrix(row), svdMatrix(transposeMatrix(row)), 1e-15);
    // the smallest and the largest numbers there are
    for (const x of [5e-324, 1e-310, 1.7e308]) {
      expect(svdMatrix({ rows: 2, cols: 2, data: Float64Array.of(x, 0, 0, -x) }).s).toEqual(Float64Array.of(x, x));
    }
    expectSvd(zeroMatrix(60, 60), svdMatrix(zeroMatrix(60, 60)), 1e-13);
  });

  it('refuses NaN and infinities, naming the first', () => {
    for (const bad of [NaN, Infinity, -Infinity]) {
      const a = gaussian(3, 4, 1);
      a.data[6] = bad;
      a.data[11] = NaN;
      expect(() => svdMatrix(a)).toThrow(
        expect.objectContaining({ code: 'non-finite', message: `svd: expected finite entries, got ${bad} at [1, 2]` }),
      );
    }
  });
});

describe('jacobi', () => {
  it('decomposes wide matrices in few sweeps', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 12 }), fc.integer({ min: 0, max: 8 }), seeds, (k, more, seed) => {
        const b = gaussian(k, k + more, seed);
        const { j, s, w, sweeps } = runNow(jacobi(b, new HostWorkspace()));
        expectSvd(b, sorted({ u: transposeMatrix(j), s, vt: w }), 1e-13);
        expect(sweeps).toBeLessThan(15);
      }),
      { numRuns: 200 },
    );
  });
});

/** The triplets in descending order. */
function sorted({ u, s, vt }: Svd): Svd {
  const order = [...s.keys()].sort((x, y) => s[y]! - s[x]!);
  const k = s.length;
  return {
    u: { ...u, data: u.data.map((_, i) => u.data[i - (i % k) + order[i % k]!]!) },
    s: Float64Array.from(order, (i) => s[i]!),
    vt: { ...vt, data: vt.data.map((_, i) => vt.data[order[Math.floor(i / vt.cols)]! * vt.cols + (i % vt.cols)]!) },
  };
}

/** Exact determinant by fraction-free elimination (Bareiss 1968). */
function determinant(a: bigint[][]): bigint {
  const m = a.map((row) => [...row]);
  let sign = 1n;
  let previous = 1n;
  for (let k = 0; k < m.length - 1; k++) {
    const pivot = m.findIndex((row, i) => i >= k && row[k] !== 0n);
    if (pivot < 0) return 0n;
    if (pivot !== k) {
      [m[k], m[pivot]] = [m[pivot]!, m[k]!];
      sign = -sign;
    }
    for (let i = k + 1; i < m.length; i++) {
      for (let j = k + 1; j < m.length; j++) {
        m[i]![j] = (m[i]![j]! * m[k]![k]! - m[i]![k]! * m[k]![j]!) / previous;
      }
    }
    previous = m[k]![k]!;
  }
  return sign * m.at(-1)!.at(-1)!;
}

describe('qr', () => {
  it('gives orthonormal q and upper triangular r with a diagonal ≥ 0', () => {
    fc.assert(
      fc.property(matrices, ({ matrix: a }) => {
        const { q, r } = qr(a);
        expectQr(q, r, a);
      }),
      { numRuns: 300 },
    );
  });

  it('with pivoting permutes the columns and orders the diagonal', () => {
    fc.assert(
      fc.property(matrices, ({ matrix: a, spectrum, scale }) => {
        const { q, r, permutation } = qrPivoted(a);
        const permuted = zeroMatrix(a.rows, a.cols);
        permuted.data.forEach((_, i) => {
          permuted.data[i] = a.data[i - (i % a.cols) + permutation[i % a.cols]!]!;
        });
        expect([...permutation].sort((x, y) => x - y)).toEqual(Array.from({ length: a.cols }, (_, j) => j));
        expectQr(q, r, permuted);
        for (let i = 1; i < r.rows; i++) {
          const above = r.data[(i - 1) * r.cols + i - 1]!;
          expect(r.data[i * r.cols + i]!).toBeLessThanOrEqual(above * (1 + 1e-7) + 1e-14 * scale);
        }
        // as many entries of the diagonal are above rounding as singular values are
        const rank = spectrum.filter((x) => x > 1e-12 * scale).length;
        const visible = Array.from({ length: r.rows }, (_, i) => r.data[i * r.cols + i]!).filter(
          (x) => x > 1e-13 * scale,
        );
        expect(visible.length).toBeGreaterThanOrEqual(rank);
      }),
      { numRuns: 300 },
    );
  });

  function expectQr(q: Matrix, r: Matrix, a: Matrix): void {
    expect(orthonormalityError(q)).toBeLessThan(1e-13);
    expect(largestDifference(multiplyMatrices(q, r), a)).toBeLessThanOrEqual(1e-13 * frobenius(a));
    for (let i = 0; i < r.rows; i++) {
      expect(r.data[i * r.cols + i]).toBeGreaterThanOrEqual(0);
      for (let j = 0; j < i; j++) expect(r.data[i * r.cols + j]).toBe(0);
    }
  }
});

describe('cholesky', () => {
  it('factorises aᵀa, and its transpose is the r of a', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 16 }), fc.integer({ min: 0, max: 16 }), seeds, (n, more, seed) => {
        const a = gaussian(n + more, n, seed);
        const gram = multiplyMatrices(transposeMatrix(a), a);
        for (let i = 0; i < n; i++) gram.data[i * n + i] = gram.data[i * n + i]! + 0.1;
        const l = cholesky(gram);
        expect(largestDifference(multiplyMatrices(l, transposeMatrix(l)), gram)).toBeLessThan(1e-13 * frobenius(gram));
        // aᵀa + 0.1 is the Gram matrix of a with √0.1 · identity below it
        const stacked = zeroMatrix(a.rows + n, n);
        stacked.data.set(a.data);
        for (let i = 0; i < n; i++) stacked.data[(a.rows + i) * n + i] = Math.sqrt(0.1);
        expect(largestDifference(transposeMatrix(l), qr(stacked).r)).toBeLessThan(1e-10 * frobenius(a));
      }),
      { numRuns: 200 },
    );
  });

  it('refuses what is not positive definite', () => {
    const indefinite: Matrix = { rows: 2, cols: 2, data: Float64Array.of(1, 2, 2, 1) };
    expect(() => cholesky(indefinite)).toThrow(/leading block of size 2 is not \(pivot -3\)/);
    expect(() => cholesky({ rows: 1, cols: 1, data: Float64Array.of(NaN) })).toThrow(
      expect.objectContaining({ code: 'not-positive-definite' }),
    );
    expect(() => cholesky(zeroMatrix(2, 3))).toThrow('cholesky: expected a square matrix, got [2, 3]');
  });
});

describe('matrices', () => {
  it('multiply as their entries say', () => {
    const sizes = fc.integer({ min: 0, max: 9 });
    fc.assert(
      fc.property(sizes, sizes, sizes, seeds, (m, k, n, seed) => {
        const a = gaussian(m, k, seed);
        const b = gaussian(k, n, seed + 1);
        const c = multiplyMatrices(a, b);
        for (let i = 0; i < m; i++) {
          for (let j = 0; j < n; j++) {
            let sum = 0;
            for (let t = 0; t < k; t++) sum += a.data[i * k + t]! * b.data[t * n + j]!;
            expect(c.data[i * n + j]).toBeCloseTo(sum, 12);
          }
        }
      }),
      { numRuns: 200 },
    );
    expect(() => multiplyMatrices(zeroMatrix(2, 3), zeroMatrix(2, 3))).toThrow('[2, 3] · [2, 3]');
  });

  it('come from two-dimensional tensors of any dtype', () => {
    const bf16 = { dtype: 'bf16', shape: [1, 2], data: Uint16Array.of(0x3f80, 0xc000) } as const;
    expect(matrixFromHost(bf16)).toEqual({ rows: 1, cols: 2, data: Float64Array.of(1, -2) });
    expect(() => matrixFromHost({ dtype: 'f32', shape: [2], data: new Float32Array(2) })).toThrow(
      '[rows, cols], got [2]',
    );
  });

  it('have norms that neither overflow nor underflow', () => {
    expect(norm(Float64Array.of(3e200, 4e200), 0, 2)).toBeCloseTo(5e200, -186);
    expect(norm(Float64Array.of(3e-320, 4e-320), 0, 2) / 5e-320).toBeCloseTo(1, 3);
    expect(norm(new Float64Array(3), 0, 3)).toBe(0);
  });
});
