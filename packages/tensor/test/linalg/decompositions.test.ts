/** Decompositions with certificates, by every method, against one-sided Jacobi in plain loops and LAPACK. */
import fc from 'fast-check';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createGpuBackend } from '../../src/backends/gpu/index.js';
import { createWasmBackend } from '../../src/backends/wasm/index.js';
import { setBackend } from '../../src/context.js';
import type { DType } from '../../src/dtype.js';
import type { HostTensor } from '../../src/host.js';
import {
  leadingSubspace,
  minorSubspace,
  singularValues,
  svd,
  windowSubspace,
  type Method,
  type Progress,
  type Subspace,
  type SubspaceCache,
  type SubspaceOptions,
} from '../../src/linalg/index.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { qr } from '../../src/linalg/qr.js';
import { runNow } from '../../src/linalg/steps.js';
import { jacobiSvd, type Svd } from '../../src/linalg/svd.js';
import { openSafetensorsFile } from '../../src/node.js';
import { Philox } from '../../src/random.js';
import { tensor } from '../../src/tensor.js';
import {
  bits,
  columns,
  diagonal,
  difference,
  frobenius,
  fromHost,
  gaussian,
  numbers,
  orthogonalityError,
  productOf,
  reference,
  residualOf,
  sineBetween,
  toHost,
  withSpectrum,
} from './matrices.js';

// --- What is promised -----------------------------------------------------------------------------------------------

const EPSILON = Number.EPSILON;
/** Of a singular value, relative to the largest; the iterative methods have the square of a residual over a gap as well. */
const VALUE: Record<Method, number> = {
  jacobi: 40 * EPSILON,
  tridiagonal: 40 * EPSILON,
  'shift-invert': 1e-13,
  'golub-kahan': 1e-13,
};
const RESIDUAL: Record<Method, number> = {
  jacobi: 1e-13,
  tridiagonal: 1e-13,
  'shift-invert': 1e-7,
  'golub-kahan': 1e-7,
};
const ORTHOGONALITY = 1e-13;

// --- Backends, matrices and checks ----------------------------------------------------------------------------------

const wasm = createWasmBackend({ threads: 1 });
const [two, four] = [createWasmBackend({ threads: 2 }), createWasmBackend({ threads: 4 })];
const gpu = createGpuBackend('cpu');
let previous: ReturnType<typeof setBackend>;
beforeAll(async () => {
  previous = setBackend(wasm);
  await Promise.all([two.ready(), four.ready()]);
});
afterAll(async () => {
  if (previous) setBackend(previous);
  await Promise.all([wasm.close(), two.close(), four.close()]);
});

const DTYPES = ['f32', 'f64', 'bf16', 'f16'] as const;
const ROUNDING: Record<string, number> = { f64: 2 ** -50, f32: 2 ** -24, bf16: 2 ** -24, f16: 2 ** -24 };
const seeds = fc.integer({ min: 0, max: 2 ** 40 });

/** Whatever runs leaves no memory behind. */
async function clean<T>(work: () => Promise<T>): Promise<T> {
  const before = wasm.memory();
  try {
    return await work();
  } finally {
    expect([wasm.memory().liveBytes, wasm.memory().liveBuffers]).toEqual([before.liveBytes, before.liveBuffers]);
  }
}

/** The largest norm of a row of the shorter side, to which shift-invert relates its certificate. */
function rowNorm(a: Matrix): number {
  const b = a.rows <= a.cols ? a : transposeMatrix(a);
  return numbers(b.rows, (i) => norm(b.data, i * b.cols, b.cols)).reduce((p, q) => Math.max(p, q), 0);
}

/** Distance of the window of exact values to the others, and to the zeros of the longer side; Infinity when there are none. */
function gapOf(a: Matrix, s: Float64Array, from: number, to: number): { own: number; longer: number } {
  const own = Math.min(from > 0 ? s[from - 1]! - s[from]! : Infinity, to < s.length ? s[to - 1]! - s[to]! : Infinity);
  return { own, longer: a.rows === a.cols ? own : Math.min(own, s[to - 1]!) };
}

/** Everything that a decomposition of `host` promises, for triplets from … to − 1. */
function expectSubspace(host: HostTensor, found: Subspace, from: number, to: number, exact: Svd): void {
  const a = fromHost(host);
  const [m, n, r] = [a.rows, a.cols, to - from];
  const { u, s, vt, certificate } = found;
  const { method, residual, orthogonality, gap, angle, verdict } = certificate;
  expect([found.from, u.rows, u.cols, s.length, vt.rows, vt.cols]).toEqual([from, m, r, r, r, n]);
  expect([u.data.length, vt.data.length]).toEqual([m * r, r * n]);

  const size = exact.s[0]!;
  const unit = size || 1;
  for (let i = 0; i < r; i++) {
    expect(s[i]).toBeGreaterThanOrEqual(s[i + 1] ?? 0);
    const error = Math.abs(s[i]! - exact.s[from + i]!) / unit;
    expect(error, `s[${i}] by ${method}`).toBeLessThanOrEqual(
      Math.max(VALUE[method], verdict === 'tied' ? residual : 0),
    );
  }

  // the certificate says what is measured
  const measured = residualOf(a, found);
  const related = (method === 'shift-invert' ? rowNorm(a) : size) || 1;
  expect(Math.abs(measured / related - residual)).toBeLessThanOrEqual(1e-3 * residual + 1e-14);
  expect(residual).toBeLessThanOrEqual(RESIDUAL[method]);
  const measuredOrthogonality = Math.max(orthogonalityError(u), orthogonalityError(transposeMatrix(vt)));
  if (method === 'jacobi' || method === 'tridiagonal') {
    expect(Math.abs(measuredOrthogonality - orthogonality)).toBeLessThan(1e-14);
  } else expect(measuredOrthogonality).toBeLessThanOrEqual(orthogonality + 1e-14); // of the guards as well
  expect(orthogonality).toBeLessThanOrEqual(ORTHOGONALITY);

  const exactGap = gapOf(a, exact.s, from, to).longer;
  if (exactGap === Infinity) expect(gap).toBe(Infinity);
  else expect(Math.abs(gap - exactGap / related)).toBeLessThanOrEqual(2 * VALUE[method] + 10 * residual + 4e-16);

  // the angle bound holds
  const exactU = columns(exact.u, from, to);
  const exactV = columns(transposeMatrix(exact.vt), from, to);
  const real = Math.max(sineBetween(u, exactU), sineBetween(transposeMatrix(vt), exactV));
  // the reference is off as well
  const rounding = Math.min(1, 1e-13 + (100 * EPSILON * unit) / exactGap);
  expect(real).toBeLessThanOrEqual(angle * 1.01 + rounding);
  if (angle <= 1e-5 && verdict !== 'tied') {
    expect(verdict).toBe('determined');
    // of the projectors U Uᵀ the distance is the sine
    expect(real).toBeLessThan(1e-5 + rounding);
  }
  if (verdict === 'sensitive') expect(angle).toBeGreaterThan(1e-5);
  const tie = ROUNDING[host.dtype]! * related;
  if (exactGap > 2 * tie + 1e-13 * unit) expect(verdict).not.toBe('tied');
  if (exactGap < tie / 2 - 4 * residual * related - 40 * EPSILON * unit) expect(verdict).toBe('tied');

  // the entry of largest magnitude in each column of u is positive
  for (let c = 0; c < r; c++) {
    const column = numbers(m, (i) => u.data[i * r + c]!);
    expect(Math.max(...column)).toBe(Math.max(...column.map(Math.abs)));
  }
}

const spectra: Record<string, (k: number, random: Philox) => number[]> = {
  random: (k, random) => [...random.uniformArray(k, 0.01, 1)],
  'power law': (k) => numbers(k, (i) => (i + 1) ** -0.7),
  clustered: (k, random) => [...random.uniformArray(k)].map((x) => 1 + 1e-9 * x),
  'two clusters': (k) => numbers(k, (i) => (i < k / 2 ? 1 : 1e-3)),
  tied: (k) => numbers(k, () => 3),
  'tied in threes': (k) => numbers(k, (i) => 2 - (i - (i % 3)) / k),
  'rank-deficient': (k, random) => [...random.uniformArray(k)].map((x) => (x < 0.5 ? 0 : x)),
  'rank one': (k) => numbers(k, (i) => (i === 0 ? 2 : 0)),
  zero: (k) => numbers(k, () => 0),
};

/** Matrices of all shapes, spectra, scales and types; some are Gaussian, diagonal, or of few whole numbers. */
const matrices = fc.record({
  shape: fc.oneof(
    fc.tuple(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 60 })),
    fc.tuple(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 8 })),
    fc.constantFrom<[number, number]>([1, 1], [1, 30], [30, 1], [24, 24], [12, 13], [40, 60]),
  ),
  kind: fc.constantFrom(...Object.keys(spectra), 'gaussian', 'diagonal', 'whole numbers', 'identity'),
  dtype: fc.constantFrom(...DTYPES),
  scale: fc.constantFrom(0, 0, 0, 1, -1),
  flipped: fc.boolean(),
  seed: seeds,
});

function matrixOf({
  shape,
  kind,
  dtype,
  scale,
  flipped,
  seed,
}: typeof matrices extends fc.Arbitrary<infer T> ? T : never): HostTensor {
  const [rows, cols] = flipped ? [shape[1], shape[0]] : shape;
  const k = Math.min(rows, cols);
  const random = new Philox(seed, 9);
  let a: Matrix;
  if (kind === 'gaussian') a = gaussian(rows, cols, seed);
  else if (kind === 'whole numbers') a = { rows, cols, data: gaussian(rows, cols, seed).data.map(Math.round) };
  else if (kind === 'identity' || kind === 'diagonal') {
    a = zeroMatrix(rows, cols);
    for (let i = 0; i < k; i++) a.data[i * cols + i] = kind === 'identity' ? 1 : random.int(4) - 1;
  } else
    a = withSpectrum(
      rows,
      cols,
      spectra[kind]!(k, random).sort((x, y) => y - x),
      seed,
    );
  // 16-bit floats hold little more than a factor of 2¹⁰ either way without loss
  const exponent = scale * ({ f64: 900, f32: 90, bf16: 90, f16: 4 } as Record<DType, number>)[dtype];
  return toHost({ ...a, data: a.data.map((x) => x * 2 ** exponent) }, dtype);
}

describe('small matrices', () => {
  it('have windows, leading and minor triplets and singular values as Jacobi in plain loops says', async () => {
    await fc.assert(
      fc.asyncProperty(
        matrices,
        fc.constantFrom<Method | undefined>(undefined, 'jacobi', 'tridiagonal'),
        fc.nat(),
        fc.nat(),
        async (drawn, method, first, length) => {
          const host = matrixOf(drawn);
          const exact = reference(fromHost(host));
          const k = exact.s.length;
          const from = first % k;
          const to = from + 1 + (length % (k - from));
          const options: SubspaceOptions = { ...(method && { method }) };
          await clean(async () => {
            for (const [found, i, j] of [
              [() => svd(host, options), 0, k],
              [() => windowSubspace(host, from, to, options), from, to],
              [() => leadingSubspace(host, to, options), 0, to],
              [() => minorSubspace(host, k - from, options), from, k],
            ] as const) {
              const result = await found().catch((error: unknown) => {
                // the tridiagonal form is not for graded matrices
                if (method !== 'tridiagonal') throw error;
                expect(error).toMatchObject({ code: 'method' });
                expect(exact.s[k - 1]).toBeLessThanOrEqual(1e-6 * exact.s[0]!);
              });
              if (!result) continue;
              expect(result.certificate.method).toBe(method ?? 'jacobi');
              expectSubspace(host, result, i, j, exact);
            }
            const values = await singularValues(host, options);
            expect(values.s.length).toBe(k);
            expect(values.method).toBe(method ?? 'jacobi');
            const allowed = values.error + 40 * EPSILON * exact.s[0]!;
            values.s.forEach((s, i) => expect(Math.abs(s - exact.s[i]!)).toBeLessThanOrEqual(allowed));
            if (method !== 'tridiagonal') expect(values.error).toBeLessThanOrEqual(1e-13 * exact.s[0]!);
          });
        },
      ),
      { numRuns: 150 },
    );
  });

  it('agree with LAPACK in float64', async () => {
    const path = fileURLToPath(new URL('../fixtures/svd.safetensors', import.meta.url));
    const file = await openSafetensorsFile(path);
    const names = file.names().filter((name) => !name.includes('.'));
    expect(names).toHaveLength(14);
    for (const name of names) {
      const host = await file.read(name);
      const golden = (await file.read(`${name}.singular_values_f64`)).data as Float64Array;
      const k = golden.length;
      for (const run of [singularValues(host), svd(host), minorSubspace(host, k), leadingSubspace(host, 1)]) {
        const { s } = await run;
        s.forEach((x, i) => expect(Math.abs(x - golden[i]!), name).toBeLessThanOrEqual(1e-13 * golden[0]!));
      }
    }
    await file.close();
  });
});

describe('large matrices', () => {
  const large: [string, number, number, (i: number, k: number) => number, DType][] = [
    ['power law', 192, 192, (i) => (i + 1) ** -0.5, 'f32'],
    ['power law, tall', 288, 200, (i) => (i + 1) ** -0.5, 'bf16'],
    ['linear, wide', 224, 320, (i, k) => 1 - (i + 0.5) / k, 'f32'],
    ['away from zero', 256, 256, (i, k) => 2 - i / k, 'f64'],
    ['rank-deficient', 200, 240, (i) => (i < 120 ? 1 - i / 150 : 0), 'f64'],
    ['rank-deficient, rounded', 256, 256, (i) => (i < 3 ? 3 - i : 0), 'f32'],
    ['tied at both edges', 256, 260, (i, k) => (i < 20 ? 2 : i >= k - 20 ? 0.25 : 1.5 - i / k), 'f64'],
    ['ending in one small value', 256, 256, (i, k) => (i === k - 1 ? 1e-4 : 1 - i / (2 * k)), 'f64'],
    ['steep', 256, 256, (i) => 10 ** (-i / 20), 'f64'],
    ['scaled down', 192, 192, (i) => 2 ** -950 / (i + 1), 'f64'],
  ];
  const cases = [
    ...large.map(([name, rows, cols, of, dtype]) => {
      const spectrum = numbers(Math.min(rows, cols), (i) => of(i, Math.min(rows, cols)));
      return [name, (): HostTensor => toHost(withSpectrum(rows, cols, spectrum, 7), dtype)] as const;
    }),
    ['Gaussian', (): HostTensor => toHost(gaussian(192, 256, 3), 'f32')] as const,
    ['Gaussian, f16', (): HostTensor => toHost(gaussian(256, 256, 4), 'f16')] as const,
    ['identity', (): HostTensor => toHost(diagonal(numbers(256, () => 1)), 'f32')] as const,
    ['zero', (): HostTensor => toHost(zeroMatrix(192, 200), 'f32')] as const,
  ];
  const seen = new Set<Method>();

  it.each(cases)('%s', async (_, make) => {
    const host = make();
    const k = Math.min(...host.shape);
    const workspace = wasm.workspace();
    const exact = runNow(jacobiSvd(fromHost(host), workspace));
    workspace.close();
    for (const [from, to] of [
      [0, 8],
      [k - 4, k],
      [k - 8, k],
      [40, 48],
      [0, k],
    ] as const) {
      const found = await clean(() => windowSubspace(host, from, to));
      seen.add(found.certificate.method);
      // what is wanted of everybody: float32's own rounding is larger
      found.s.forEach((s, i) => expect(Math.abs(s - exact.s[from + i]!)).toBeLessThanOrEqual(1e-7 * exact.s[0]!));
      if (to - from < k) expectSubspace(host, found, from, to, exact);
      else {
        const a = fromHost(host);
        const error = frobenius(difference(productOf(found), a));
        expect(error).toBeLessThanOrEqual(1e-13 * frobenius(a));
        expect(found.certificate.orthogonality).toBeLessThan(ORTHOGONALITY);
      }
    }
    const values = await clean(() => singularValues(host));
    values.s.forEach((s, i) =>
      expect(Math.abs(s - exact.s[i]!)).toBeLessThanOrEqual(values.error + 1e-14 * exact.s[0]!),
    );
    const tight = await clean(() => singularValues(host, { tolerance: 1e-13 }));
    tight.s.forEach((s, i) => expect(Math.abs(s - exact.s[i]!)).toBeLessThanOrEqual(1e-13 * exact.s[0]!));
  });

  it('were decomposed by every method', () => {
    expect([...seen].sort()).toEqual(['golub-kahan', 'jacobi', 'shift-invert', 'tridiagonal']);
  });

  it('give the same bits on any number of threads, and nearly the same on the host', async () => {
    const host = toHost(gaussian(256, 270, 8), 'f32');
    const run = async (backend: SubspaceOptions['backend']): Promise<{ text: string[]; all: Subspace[] }> => {
      const options = { ...(backend && { backend }) };
      const all = [await minorSubspace(host, 8, options), await leadingSubspace(host, 8, options)];
      if (backend !== gpu) all.push(await windowSubspace(host, 100, 104, options));
      return { text: all.flatMap(({ u, s, vt }) => [u.data, s, vt.data].map(bits)), all };
    };
    const single = await run(wasm);
    expect(single.all.map(({ certificate }) => certificate.method)).toEqual([
      'shift-invert',
      'golub-kahan',
      'tridiagonal',
    ]);
    for (const backend of [wasm, two, four, undefined]) {
      const { text, all } = await run(backend);
      expect(text.every((x, i) => x === single.text[i])).toBe(true);
      expect(all.map(({ certificate }) => certificate)).toEqual(single.all.map(({ certificate }) => certificate));
    }
    const plain = (await run(gpu)).all;
    plain.forEach((found, i) => {
      const other = single.all[i]!;
      expect(found.certificate.method).toBe(other.certificate.method);
      found.s.forEach((s, j) => expect(Math.abs(s - other.s[j]!)).toBeLessThan(1e-11 * 40));
      const bound = found.certificate.angle + other.certificate.angle + 1e-12;
      expect(sineBetween(found.u, other.u)).toBeLessThan(bound);
      expect(sineBetween(transposeMatrix(found.vt), transposeMatrix(other.vt))).toBeLessThan(bound);
    });
  });
});

describe('invariants', () => {
  const shapes = fc.record({
    rows: fc.integer({ min: 2, max: 30 }),
    cols: fc.integer({ min: 2, max: 30 }),
    r: fc.nat(),
    seed: seeds,
  });
  /** Projector onto the columns of a. */
  const sameSpan = (a: Matrix, b: Matrix, { angle }: Subspace['certificate'], other: Subspace): void => {
    expect(sineBetween(a, b)).toBeLessThanOrEqual(angle + other.certificate.angle + 1e-10);
  };

  it('a power of two scales the singular values and nothing else', async () => {
    await fc.assert(
      fc.asyncProperty(shapes, fc.integer({ min: -900, max: 900 }), async ({ rows, cols, seed }, p) => {
        const a = gaussian(rows, cols, seed);
        const scaled = { ...a, data: a.data.map((x) => x * 2 ** p) };
        for (const method of ['jacobi', 'tridiagonal'] as const) {
          const [one, other] = [await svd(toHost(a, 'f64'), { method }), await svd(toHost(scaled, 'f64'), { method })];
          expect(bits(other.s)).toBe(bits(one.s.map((x) => x * 2 ** p)));
          expect([bits(other.u.data), bits(other.vt.data)]).toEqual([bits(one.u.data), bits(one.vt.data)]);
          expect(other.certificate).toEqual(one.certificate);
        }
      }),
      { numRuns: 40 },
    );
  });

  it('transposition exchanges u and v, a permutation permutes them, a rotation rotates them', async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ rows, cols, r, seed }) => {
        const a = gaussian(rows, cols, seed);
        const k = Math.min(rows, cols);
        const count = 1 + (r % k);
        const whole = await minorSubspace(toHost(a, 'f64'), count);
        const near = (other: Subspace): void => {
          other.s.forEach((s, i) => expect(Math.abs(s - whole.s[i]!)).toBeLessThan(1e-13 * frobenius(a)));
        };
        const flipped = await minorSubspace(toHost(transposeMatrix(a), 'f64'), count);
        near(flipped);
        sameSpan(flipped.u, transposeMatrix(whole.vt), whole.certificate, flipped);
        sameSpan(transposeMatrix(flipped.vt), whole.u, whole.certificate, flipped);

        const order = numbers(rows, (i) => i).sort((i, j) => ((i * 7919 + seed) % 101) - ((j * 7919 + seed) % 101));
        const permuteRows = (x: Matrix): Matrix => {
          const out = zeroMatrix(x.rows, x.cols);
          order.forEach((from, to) => out.data.set(x.data.subarray(from * x.cols, (from + 1) * x.cols), to * x.cols));
          return out;
        };
        const permuted = await minorSubspace(toHost(permuteRows(a), 'f64'), count);
        near(permuted);
        sameSpan(permuted.u, permuteRows(whole.u), whole.certificate, permuted);
        sameSpan(transposeMatrix(permuted.vt), transposeMatrix(whole.vt), whole.certificate, permuted);

        const { q } = qr(gaussian(rows, rows, seed + 1));
        const rotated = await minorSubspace(toHost(multiplyMatrices(q, a), 'f64'), count);
        near(rotated);
        sameSpan(rotated.u, multiplyMatrices(q, whole.u), whole.certificate, rotated);
      }),
      { numRuns: 60 },
    );
  });

  it('windows that cover all add up to the matrix, and each lies in the next larger one', async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ rows, cols, r, seed }) => {
        const a = gaussian(rows, cols, seed);
        const host = toHost(a, 'f64');
        const k = Math.min(rows, cols);
        const [first, second] = [r % k, (r + (seed % k)) % k].sort((x, y) => x - y) as [number, number];
        const sum = zeroMatrix(rows, cols);
        for (const [from, to] of [
          [0, first],
          [first, second],
          [second, k],
        ] as const) {
          if (from === to) continue;
          const piece = productOf(await windowSubspace(host, from, to));
          sum.data.forEach((x, i) => (sum.data[i] = x + piece.data[i]!));
        }
        expect(frobenius(difference(sum, a))).toBeLessThan(1e-13 * frobenius(a));
        const minor = await minorSubspace(host, k - first);
        if (first === 0) return;
        const larger = await minorSubspace(host, k - first + 1);
        expect(sineBetween(minor.u, larger.u)).toBeLessThanOrEqual(larger.certificate.angle + 1e-10);
        expect(sineBetween(transposeMatrix(minor.vt), transposeMatrix(larger.vt))).toBeLessThanOrEqual(
          larger.certificate.angle + 1e-10,
        );
      }),
      { numRuns: 60 },
    );
  });

  it('hold for the iterative methods as well', async () => {
    const a = gaussian(256, 256, 11);
    const host = toHost(a, 'f64');
    const [top, middle, bottom] = [
      await leadingSubspace(host, 6),
      await windowSubspace(host, 6, 248),
      await minorSubspace(host, 8),
    ];
    expect([top, middle, bottom].map(({ certificate }) => certificate.method)).toEqual([
      'golub-kahan',
      'tridiagonal',
      'shift-invert',
    ]);
    const pieces = [top, middle, bottom].map(productOf);
    const sum = { ...a, data: a.data.map((_, i) => pieces.reduce((x, { data }) => x + data[i]!, 0)) };
    const angles = [top, middle, bottom].reduce((x, { certificate }) => x + certificate.angle, 0);
    expect(frobenius(difference(sum, a))).toBeLessThan((2 * angles + 1e-13) * frobenius(a));
    const larger = await minorSubspace(host, 9);
    expect(sineBetween(bottom.u, larger.u)).toBeLessThan(bottom.certificate.angle + larger.certificate.angle + 1e-12);
    const scaled = await minorSubspace(toHost({ ...a, data: a.data.map((x) => x * 2 ** 300) }, 'f64'), 8);
    expect([bits(scaled.u.data), bits(scaled.s)]).toEqual([
      bits(bottom.u.data),
      bits(bottom.s.map((x) => x * 2 ** 300)),
    ]);
  });

  it('equal input gives equal bits, from tensors of the backend or the host, and leaves it alone', async () => {
    for (const dtype of DTYPES) {
      const host = toHost(gaussian(30, 20, 5), dtype);
      const before = host.data.slice();
      const [one, other] = [await minorSubspace(host, 4), await minorSubspace(host, 4, { backend: four })];
      expect(Array.from(host.data)).toEqual(Array.from(before));
      expect(bits(other.u.data)).toBe(bits(one.u.data));
      if (dtype === 'f32') {
        const live = tensor(host.data as Float32Array, [30, 20]);
        expect(bits((await minorSubspace(live, 4)).u.data)).toBe(bits(one.u.data));
        live.dispose();
      }
    }
  });
});

describe('graded matrices', () => {
  it.each([24, 100, 256])('of condition 1e12 keep every digit of every value, %i columns', async (n) => {
    // columns of very different lengths: their directions are well-conditioned
    const a = gaussian(n, n, n);
    const { q } = qr(a);
    const graded = { ...q, data: q.data.map((x, i) => x * 2 ** Math.round((-40 * (i % n)) / (n - 1))) };
    const exact = numbers(n, (i) => 2 ** Math.round((-40 * i) / (n - 1)));
    for (const options of [{}, { method: 'jacobi' as const }]) {
      const host = toHost(graded, 'f64');
      const near = (s: Float64Array, from: number): void =>
        s.forEach((x, i) => expect(Math.abs(x / exact[from + i]! - 1)).toBeLessThan(1e-12));
      near((await svd(host, options)).s, 0);
      near((await minorSubspace(host, 4, options)).s, n - 4);
      near((await windowSubspace(host, 5, 9, options)).s, 5);
      const jacobi = await singularValues(host, { ...options, tolerance: 1e-14 * 8 * Math.sqrt(n) });
      near(jacobi.s, 0);
    }
  });
});

describe('what is asked for', () => {
  const close = toHost(
    withSpectrum(
      30,
      30,
      numbers(30, (i) => (i === 20 ? 1 + 1e-9 : i === 19 ? 1 + 1.001e-9 : 2 - i / 30)).sort((x, y) => y - x),
      1,
    ),
    'f64',
  );
  const where = [...reference(fromHost(close)).s].findIndex((x) => Math.abs(x - 1) < 1e-7);

  it('is met, or refused with the reason', async () => {
    const host = toHost(gaussian(200, 200, 1), 'f32');
    for (const run of [leadingSubspace, minorSubspace]) {
      const { certificate } = await run(host, 4, { tolerance: 1e-13, angle: 1e-9 });
      expect(certificate.residual).toBeLessThanOrEqual(1e-13);
      expect(certificate.angle).toBeLessThanOrEqual(1e-9);
    }
    await expect(clean(() => minorSubspace(host, 4, { tolerance: 1e-20, name: 'w' }))).rejects.toMatchObject({
      code: 'tolerance',
      message: expect.stringMatching(
        /^w: expected a residual ≤ 1e-20, got \d\.\de-1\d; rounding does not allow less$/,
      ) as string,
    });
    const failure = await clean(() => windowSubspace(close, 0, where + 1, { angle: 1e-8 })).catch(
      (error: unknown) => error,
    );
    expect(failure).toMatchObject({
      code: 'tolerance',
      message: expect.stringMatching(
        /^matrix: expected an angle ≤ 1e-8, got \d\.\de-\d; the singular values next to the window are only \d\.\de-1\d · ‖A‖ away \((sensitive|determined)\): choose another rank$/,
      ) as string,
    });
    await expect(singularValues(host, { tolerance: 1e-18, name: 'w' })).rejects.toMatchObject({
      code: 'tolerance',
      message: expect.stringMatching(/^w: expected singular values within 1e-18 · s₁, got \d\.\de-1\d · s₁$/) as string,
    });
  });

  it('takes a slower method when the faster one is not good enough', async () => {
    const host = toHost(gaussian(224, 224, 2), 'f32');
    const fast = await minorSubspace(host, 8);
    expect(fast.certificate.method).toBe('shift-invert');
    const tolerance = fast.certificate.residual / 2;
    const { certificate } = await minorSubspace(host, 8, { tolerance });
    expect(certificate.method).toBe('tridiagonal');
    expect(certificate.residual).toBeLessThanOrEqual(tolerance);
  });

  it('refuses methods that are not for the matrix or the window', async () => {
    const small = toHost(gaussian(20, 20, 1), 'f32');
    const large = toHost(gaussian(192, 192, 1), 'f32');
    for (const [host, from, to, method] of [
      [small, 0, 2, 'golub-kahan'],
      [small, 18, 20, 'shift-invert'],
      [large, 1, 3, 'golub-kahan'],
      [large, 1, 3, 'shift-invert'],
      [large, 0, 100, 'golub-kahan'],
      [toHost(zeroMatrix(100, 100), 'f32'), 98, 100, 'shift-invert'],
      [toHost(zeroMatrix(100, 100), 'f32'), 98, 100, 'tridiagonal'],
    ] as const) {
      await expect(clean(() => windowSubspace(host, from, to, { method, name: 'w' }))).rejects.toMatchObject({
        code: 'method',
        message: `w: expected a matrix and a window that suit the method ${method}, got others; leave the method out`,
      });
    }
  });
});

describe('bad input', () => {
  const good = toHost(gaussian(3, 4, 1), 'f32');
  const all = (a: HostTensor): Promise<unknown>[] => [
    svd(a, { name: 'w' }),
    singularValues(a, { name: 'w' }),
    leadingSubspace(a, 1, { name: 'w' }),
    minorSubspace(a, 1, { name: 'w' }),
    windowSubspace(a, 0, 1, { name: 'w' }),
  ];

  it.each([[[]], [[4]], [[2, 2, 1]], [[0, 3]], [[3, 0]], [[0, 0]]])('of shape %j', async (shape) => {
    const length = shape.reduce((x, y) => x * y, 1);
    for (const run of all({ dtype: 'f32', shape, data: new Float32Array(length) })) {
      await expect(run).rejects.toMatchObject({
        code: 'shape',
        message: `w: expected a matrix with at least one entry, got [${shape.join(', ')}]`,
      });
    }
  });

  it('of whole numbers', async () => {
    for (const host of [
      { dtype: 'i32', shape: [2, 2], data: new Int32Array(4) },
      { dtype: 'int8', shape: [2, 2], data: new Int8Array(12) },
    ] as const) {
      for (const run of all(host)) {
        await expect(run).rejects.toMatchObject({
          code: 'dtype',
          message: `w: expected f32, f64, bf16, f16, got ${host.dtype}; cast it first`,
        });
      }
    }
  });

  it('that is not finite, of every type, with its place', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...DTYPES),
        fc.constantFrom(NaN, Infinity, -Infinity),
        fc.nat(11),
        fc.nat(11),
        async (dtype, bad, i, j) => {
          const a = gaussian(3, 4, 1);
          a.data[i] = bad;
          a.data[j] = bad;
          const at = Math.min(i, j);
          for (const run of all(toHost(a, dtype))) {
            await expect(run).rejects.toMatchObject({
              code: 'non-finite',
              message: `w: expected finite entries, got ${bad} at [${Math.floor(at / 4)}, ${at % 4}]`,
            });
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  it('of windows', async () => {
    for (const [from, to] of [
      [0, 0],
      [2, 1],
      [-1, 2],
      [0, 4],
      [0.5, 2],
      [0, 1.5],
      [NaN, 2],
      [0, Infinity],
    ] as const) {
      await expect(windowSubspace(good, from, to)).rejects.toMatchObject({
        code: 'window',
        message: `matrix: expected a window 0 ≤ from < to ≤ 3 of whole numbers, got ${from} to ${to}`,
      });
    }
    for (const r of [0, -1, 4, 1.5, NaN]) {
      await expect(leadingSubspace(good, r)).rejects.toMatchObject({ code: 'window' });
      await expect(minorSubspace(good, r)).rejects.toMatchObject({ code: 'window' });
    }
  });
});

describe('steps', () => {
  const host = toHost(gaussian(256, 260, 6), 'f32');
  const small = toHost(gaussian(100, 130, 6), 'f32');
  const expectMethod =
    (method: Method) =>
    ({ certificate }: Subspace): void =>
      expect(certificate.method).toBe(method);
  const runs: [string, (options: SubspaceOptions) => Promise<unknown>][] = [
    ['shift-invert', (options) => minorSubspace(host, 8, options).then(expectMethod('shift-invert'))],
    ['golub-kahan', (options) => leadingSubspace(host, 8, options).then(expectMethod('golub-kahan'))],
    ['tridiagonal', (options) => windowSubspace(host, 90, 95, options)],
    ['jacobi', (options) => windowSubspace(small, 90, 95, { ...options, method: 'jacobi' })],
    ['singular values', (options) => singularValues(host, options)],
    ['singular values by Jacobi', (options) => singularValues(small, { ...options, method: 'jacobi' })],
  ];

  it.each(runs)('of %s report where they are', async (_, run) => {
    const seen: Progress[] = [];
    await clean(() => run({ onProgress: (progress) => void seen.push(progress) }));
    expect(seen.length).toBeGreaterThan(2);
    seen.forEach(({ stage, done }, i) => {
      expect(stage).toMatch(/^[a-z][a-z -]+$/);
      // never back, and never at the end before the end
      expect(done >= (seen[i - 1]?.done ?? 0) && done <= 1, `${stage}: ${done}`).toBe(true);
    });
    expect(seen[Math.floor(seen.length / 2)]!.done).toBeLessThan(0.96);
    expect(seen.at(-1)!.done).toBeGreaterThan(seen[0]!.done);
  });

  it.each(runs)('of %s stop when told to, wherever they are, and leave no memory', async (_, run) => {
    let total = 0;
    await run({ onProgress: () => void total++ });
    for (const share of [0, 0.4, 0.99]) {
      const stop = new AbortController();
      const last = 1 + Math.floor(share * (total - 1));
      let count = 0;
      const options: SubspaceOptions = {
        signal: stop.signal,
        onProgress: () => {
          count++;
          if (count === last) stop.abort(new Error(`enough after ${last}`));
        },
      };
      await expect(clean(() => run(options))).rejects.toThrow(`enough after ${last}`);
      expect(count).toBe(last);

      let thrown = 0;
      const throwing = (): void => {
        thrown++;
        if (thrown === last) throw new Error(`no more after ${last}`);
      };
      await expect(clean(() => run({ onProgress: throwing }))).rejects.toThrow(`no more after ${last}`);
    }
    await expect(clean(() => run({ signal: AbortSignal.abort('before') }))).rejects.toBe('before');
  });

  it('let the event loop go round, so that a timer can stop them', async () => {
    const big = toHost(gaussian(320, 320, 6), 'f32');
    const stop = new AbortController();
    setTimeout(() => stop.abort('late'), 5);
    await expect(clean(() => svd(big, { signal: stop.signal, backend: gpu }))).rejects.toBe('late');
  });
});

describe('a cache', () => {
  class Memory implements SubspaceCache {
    readonly entries = new Map<string, Subspace>();
    hits = 0;
    get(key: string): Promise<Subspace | undefined> {
      const found = this.entries.get(key);
      if (found) this.hits++;
      return Promise.resolve(found);
    }
    set(key: string, value: Subspace): Promise<void> {
      this.entries.set(key, value);
      return Promise.resolve();
    }
  }

  it('is asked first: the second call computes nothing', async () => {
    const cache = new Memory();
    const host = toHost(gaussian(20, 30, 1), 'f32');
    const first = await minorSubspace(host, 4, { cache });
    let stages = 0;
    const again = toHost(gaussian(20, 30, 1), 'f32');
    const second = await windowSubspace(again, 16, 20, { cache, onProgress: () => void stages++ });
    expect([second, stages, cache.hits, cache.entries.size]).toEqual([first, 0, 1, 1]);
    // a name, a backend or where progress goes are no part of the key
    await minorSubspace(host, 4, { cache, name: 'other', backend: four });
    expect(cache.hits).toBe(2);
  });

  it('has keys of their own for other tensors, windows, types and methods', async () => {
    const cache = new Memory();
    const a = gaussian(20, 30, 1);
    const other = { ...a, data: a.data.slice() };
    other.data[17]! += 1;
    for (const run of [
      minorSubspace(toHost(a, 'f32'), 4, { cache }),
      minorSubspace(toHost(a, 'f64'), 4, { cache }),
      minorSubspace(toHost(a, 'bf16'), 4, { cache }),
      minorSubspace(toHost(a, 'f16'), 4, { cache }),
      minorSubspace(toHost(other, 'f32'), 4, { cache }),
      minorSubspace({ ...toHost(a, 'f32'), shape: [30, 20] }, 4, { cache }),
      minorSubspace(toHost(a, 'f32'), 5, { cache }),
      leadingSubspace(toHost(a, 'f32'), 4, { cache }),
      svd(toHost(a, 'f32'), { cache }),
      minorSubspace(toHost(a, 'f32'), 4, { cache, method: 'jacobi' }),
      minorSubspace(toHost(a, 'f32'), 4, { cache, method: 'tridiagonal' }),
    ]) {
      await run;
    }
    expect([cache.entries.size, cache.hits]).toEqual([11, 0]);
  });

  it('is passed over and renewed by what needs more exactness', async () => {
    const cache = new Memory();
    const host = toHost(gaussian(224, 224, 2), 'f32');
    const loose = await minorSubspace(host, 8, { cache });
    expect(loose.certificate.method).toBe('shift-invert');
    const tolerance = loose.certificate.residual / 2;
    const tight = await minorSubspace(host, 8, { cache, tolerance });
    expect(tight.certificate.residual).toBeLessThanOrEqual(tolerance);
    expect([cache.entries.size, [...cache.entries.values()][0]]).toEqual([1, tight]);
    expect(await minorSubspace(host, 8, { cache })).toBe(tight);
    const { angle } = tight.certificate;
    await expect(minorSubspace(host, 8, { cache, angle: angle / 1e6 })).rejects.toMatchObject({ code: 'tolerance' });
    expect([...cache.entries.values()]).toEqual([tight]);
  });

  it('gets nothing of what failed or was stopped, and its failures come out', async () => {
    const cache = new Memory();
    const host = toHost(gaussian(20, 30, 1), 'f32');
    const refused = minorSubspace(host, 4, { cache, tolerance: 1e-30 });
    await expect(refused).rejects.toMatchObject({ code: 'tolerance' });
    await expect(minorSubspace(host, 4, { cache, signal: AbortSignal.abort('no') })).rejects.toBe('no');
    expect(cache.entries.size).toBe(0);
    const failing: SubspaceCache = {
      get: () => Promise.resolve(undefined),
      set: () => Promise.reject(new Error('full')),
    };
    await expect(clean(() => minorSubspace(host, 4, { cache: failing }))).rejects.toThrow('full');
  });
});
