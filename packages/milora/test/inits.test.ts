/**
 * The algebra of docs/milora.md on random weights whose singular values are known.
 *
 * Bounds. ε = 2⁻²⁴ is half a unit in the last place of float32. The weight, A, B and W_res are each rounded once, everything
 * else is float64. With ‖·‖ the Frobenius norm: the weight is off by at most ε‖W‖, and so are its singular values; s·B·A by
 * 2ε·s‖B‖‖A‖ ≤ 2ε√r‖W‖, since s‖B‖‖A‖ is the sum of r singular values. `rounding(r)` adds these up, with room for
 * float64. Factors themselves have a sign (and a rotation where singular values tie): only products are compared.
 */
import { Philox, multiplyMatrices, qr, svdMatrix, transposeMatrix } from '@milora/tensor';
import type { HostTensor, Matrix } from '@milora/tensor';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MiloraError } from '../src/errors.js';
import {
  decompose,
  factorsInit,
  loraInit,
  methods,
  micaInit,
  middleInit,
  miloraInit,
  pissaInit,
  randomInit,
  residualOf,
  windowInit,
} from '../src/inits.js';
import type { AdapterInit, Init, InitOptions } from '../src/inits.js';
import { scaling } from '../src/peftConfig.js';
import { middle, minor, principal, range } from '../src/window.js';
import type { Window } from '../src/window.js';

const EPSILON = 2 ** -24;
const rounding = (rank: number): number => (4 + 2 * Math.sqrt(rank)) * EPSILON;
const runs = { numRuns: 250, seed: 20250711 };

const matrix = (rows: number, cols: number, data: ArrayLike<number>): Matrix => ({
  rows,
  cols,
  data: Float64Array.from(data),
});
const times = (...factors: [Matrix, ...Matrix[]]): Matrix => factors.reduce(multiplyMatrices);
const norm = ({ data }: Matrix): number => Math.hypot(...data);
const minus = (a: Matrix, b: Matrix): Matrix =>
  matrix(
    a.rows,
    a.cols,
    a.data.map((x, i) => x - b.data[i]!),
  );
const scaled = (a: Matrix, s: number): Matrix =>
  matrix(
    a.rows,
    a.cols,
    a.data.map((x) => s * x),
  );

/** A weight with its known decomposition W = u · diag(s) · vt, up to the rounding of W to float32. */
interface Known {
  weight: HostTensor;
  w: Matrix;
  u: Matrix;
  s: number[];
  k: number;
}

function known(out: number, inner: number, spectrum: readonly number[], seed: number): Known {
  const random = new Philox(seed, 7);
  const k = Math.min(out, inner);
  const orthonormal = (n: number): Matrix => qr(matrix(n, k, random.normalArray(n * k))).q;
  const [u, v] = [orthonormal(out), orthonormal(inner)];
  const s = [...spectrum].sort((a, b) => b - a);
  const us = matrix(
    out,
    k,
    u.data.map((x, i) => x * s[i % k]!),
  );
  const data = Float32Array.from(times(us, transposeMatrix(v)).data);
  return { weight: { dtype: 'f32', shape: [out, inner], data }, w: matrix(out, inner, data), u, s, k };
}

const spectra: Record<string, (k: number, random: Philox) => number[]> = {
  gaussian: (k, random) => [...random.normalArray(k)].map(Math.abs),
  decaying: (k) => Array.from({ length: k }, (_, i) => 2 ** -i),
  deficient: (k, random) => Array.from({ length: k }, (_, i) => (i < k / 2 ? 1 + random.uniform() : 0)),
  clustered: (k, random) => Array.from({ length: k }, (_, i) => (i < k / 2 ? 1 : 0.01) * (1 + 1e-5 * random.uniform())),
  tied: (k) => Array.from({ length: k }, (_, i) => (i < k / 3 ? 3 : 1)),
  zero: (k) => Array.from({ length: k }, () => 0),
};

const size = fc.oneof(
  { weight: 1, arbitrary: fc.constant(1) },
  { weight: 6, arbitrary: fc.integer({ min: 1, max: 14 }) },
);

/** Weights of any shape (square in a quarter of the cases), rank, spectrum, scale, and settings of the scaling. */
const cases = fc
  .record({
    out: size,
    inner: size,
    square: fc.integer({ min: 0, max: 3 }).map((n) => n === 0),
    spectrum: fc.constantFrom(...Object.keys(spectra)),
    magnitude: fc.constantFrom(1, 1e-6, 1e6),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    alpha: fc.constantFrom<number>(0.5, 1, 3, 16, 64),
    useRslora: fc.boolean(),
    seed: fc.nat(),
  })
  .map(({ out, inner, square, spectrum, magnitude, share, alpha, useRslora, seed }) => {
    const shape: [number, number] = [out, square ? out : inner];
    const k = Math.min(...shape);
    const values = spectra[spectrum]!(k, new Philox(seed, 3)).map((s) => s * magnitude);
    const rank = 1 + Math.min(k - 1, Math.floor(share * k));
    return { shape, values, seed, rank, alpha, useRslora, s: scaling(rank, alpha, useRslora) };
  });
type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

const optionsOf = ({ rank, alpha, useRslora, seed }: Case): InitOptions => ({
  rank,
  alpha,
  useRslora,
  random: new Philox(seed),
  module: 'layer',
});

interface Started extends Known {
  init: AdapterInit;
  a: Matrix;
  b: Matrix;
  /** s·B·A. */
  product: Matrix;
  residual: Matrix;
  /** Largest allowed difference of norms: rounding times ‖W‖. */
  bound: number;
}

async function start(given: Case, init: Init): Promise<Started> {
  const weight = known(...given.shape, given.values, given.seed);
  const [out, inner] = given.shape;
  const result = await init(weight.weight, optionsOf(given));
  const rank = result.a.length / inner;
  const [a, b] = [matrix(rank, inner, result.a), matrix(out, rank, result.b)];
  const residual = matrix(out, inner, result.residual ?? residualOf(weight.weight, result.a, result.b, given.s));
  const bound = rounding(rank) * norm(weight.w);
  return { ...weight, init: result, a, b, product: scaled(times(b, a), given.s), residual, bound };
}

const windowMethods: [string, Init, ((k: number, rank: number) => Window) | undefined][] = [
  ['milora', miloraInit, minor],
  ['pissa', pissaInit, principal],
  ['middle', middleInit, middle],
  ['random', randomInit, undefined],
  [
    'a range',
    windowInit((k, rank) => range(k, Math.floor((k - rank) / 3), Math.floor((k - rank) / 3) + rank)),
    undefined,
  ],
];

describe.each(windowMethods)('%s', (name, method, window) => {
  const holds = (check: (started: Started, given: Case) => void | Promise<void>): Promise<void> =>
    fc.assert(
      fc.asyncProperty(cases, async (given) => check(await start(given, method), given)),
      runs,
    );

  it('splits the weight: W_res + s·B·A = W', async () => {
    await holds(({ w, residual, product }) => {
      // the residual absorbs the rounding of A and B, so only its own is left
      const limit = residual.data.map((x, i) => EPSILON * Math.abs(x) + 1e-13 * (Math.abs(w.data[i]!) + Math.abs(x)));
      residual.data.forEach((x, i) => {
        expect(Math.abs(x + product.data[i]! - w.data[i]!)).toBeLessThanOrEqual(limit[i]! + 1e-45);
      });
    });
  });

  it('takes the window it is named after', async () => {
    await holds(({ init, k }, { rank }) => {
      expect(init.residual).toBeDefined();
      expect(init.trains).toEqual({ a: true, b: true });
      expect(init.window).toHaveLength(rank);
      if (window) expect(init.window).toEqual(window(k, rank));
    });
  });

  it('shares its singular values equally: s·BᵀB = s·A·Aᵀ = diag(S_window)', async () => {
    await holds(({ a, b, s, init, bound }, given) => {
      const expected = init.window!.map((index) => s[index]!);
      for (const gram of [times(transposeMatrix(b), b), times(a, transposeMatrix(a))]) {
        gram.data.forEach((x, at) => {
          const [i, j] = [Math.floor(at / gram.cols), at % gram.cols];
          expect(Math.abs(given.s * x - (i === j ? expected[i]! : 0))).toBeLessThanOrEqual(bound);
        });
      }
    });
  });

  it('leaves nothing of its subspace behind: BᵀW_res = 0 and W_res·Aᵀ = 0', async () => {
    await holds(({ a, b, residual, bound }) => {
      expect(norm(times(transposeMatrix(b), residual))).toBeLessThanOrEqual(bound * norm(b));
      expect(norm(times(residual, transposeMatrix(a)))).toBeLessThanOrEqual(bound * norm(a));
    });
  });

  it('leaves the other singular values: rank(W_res) = k − r', async () => {
    await holds(({ residual, s, k, init, bound }) => {
      const rest = [...Array(k).keys()].filter((i) => !init.window!.includes(i)).map((i) => s[i]!);
      const left = svdMatrix(residual).s;
      left.forEach((value, i) => expect(Math.abs(value - (rest[i] ?? 0))).toBeLessThanOrEqual(bound));
    });
  });

  it('is orthogonal to the singular vectors outside the window: U_pᵀB = 0, where they are determined', async () => {
    let compared = 0;
    await holds(({ b, u, s, k, init, bound }) => {
      const inside = init.window!;
      const outside = [...Array(k).keys()].filter((i) => !inside.includes(i));
      const gaps = outside.flatMap((i) => inside.map((j) => Math.abs(s[i]! - s[j]!)));
      const gap = Math.min(...gaps, Infinity);
      // Davis & Kahan: the subspaces turn by the change of W over the gap of their singular values
      if (outside.length === 0 || !(gap > 1e-3 * s[0]!)) return;
      compared++;
      const rest = matrix(u.rows, outside.length, times(u, selection(k, outside)).data);
      expect(norm(times(transposeMatrix(rest), b))).toBeLessThanOrEqual((2 * bound * norm(b)) / gap);
    });
    expect(compared).toBeGreaterThan(50);
  });

  it(`is the same whatever alpha and rsLoRA scale by (${name})`, async () => {
    await holds(async ({ product, bound }, given) => {
      const plain = await start({ ...given, alpha: given.rank, useRslora: false, s: 1 }, method);
      expect(norm(minus(product, plain.product))).toBeLessThanOrEqual(bound);
    });
  });
});

/** `[k, n]`: picks columns. */
function selection(k: number, columns: readonly number[]): Matrix {
  const out = matrix(k, columns.length, new Float64Array(k * columns.length));
  columns.forEach((column, j) => (out.data[column * columns.length + j] = 1));
  return out;
}

describe('windows of one weight', () => {
  it('that share nothing and leave nothing out add up to it', async () => {
    await fc.assert(
      fc.asyncProperty(cases, fc.infiniteStream(fc.integer({ min: 1, max: 5 })), async (given, lengths) => {
        const { w, k } = known(...given.shape, given.values, given.seed);
        let rest = w;
        for (let from = 0; from < k;) {
          const to = Math.min(k, from + lengths.next().value!);
          const rank = to - from;
          const part = { ...given, rank, s: scaling(rank, given.alpha, given.useRslora) };
          const first = from;
          rest = minus(
            rest,
            (
              await start(
                part,
                windowInit((all) => range(all, first, to)),
              )
            ).product,
          );
          from = to;
        }
        expect(norm(rest)).toBeLessThanOrEqual(rounding(k) * norm(w));
      }),
      runs,
    );
  });

  it.each([
    ['milora', miloraInit, (k: number, rank: number) => k - rank - 1],
    ['pissa', pissaInit, (_: number, rank: number) => rank],
  ])('are nested: one rank more of %s adds one triplet', async (_, method, added) => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const more = { ...given, rank: given.rank + 1, s: scaling(given.rank + 1, given.alpha, given.useRslora) };
        fc.pre(more.rank <= Math.min(...given.shape));
        const [small, large] = [await start(given, method), await start(more, method)];
        const difference = svdMatrix(minus(large.product, small.product)).s;
        const expected = small.s[added(small.k, given.rank)]!;
        difference.forEach((value, i) =>
          expect(Math.abs(value - (i === 0 ? expected : 0))).toBeLessThanOrEqual(2 * large.bound),
        );
      }),
      runs,
    );
  });

  it('of milora hold the least of the weight that r directions can hold, of pissa the most', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        for (const method of [miloraInit, pissaInit]) {
          const { product, s, init, bound } = await start(given, method);
          const expected = Math.hypot(...init.window!.map((i) => s[i]!));
          expect(Math.abs(norm(product) - expected)).toBeLessThanOrEqual(bound);
        }
        const { rank } = given;
        const [least, most] = [await start(given, miloraInit), await start(given, pissaInit)];
        expect(norm(least.product)).toBeLessThanOrEqual(norm(most.product) + rounding(rank) * norm(least.w));
      }),
      runs,
    );
  });
});

describe('lora', () => {
  it('starts from B = 0 and A within 1/√in, whatever the weight', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const { init, a, residual, w } = await start(given, loraInit);
        expect(init).toMatchObject({ residual: undefined, trains: { a: true, b: true } });
        expect(init.window).toBeUndefined();
        expect(init.b).toEqual(new Float32Array(given.shape[0] * given.rank));
        expect(a.rows).toBe(given.rank);
        const limit = Math.fround(1 / Math.sqrt(given.shape[1]));
        for (const x of a.data) expect(Math.abs(x)).toBeLessThanOrEqual(limit);
        expect(residual).toEqual(w);
      }),
      runs,
    );
  });

  it('is uniform, as PyTorch’s kaiming_uniform with a = √5', () => {
    const weight: HostTensor = { dtype: 'f32', shape: [64, 400], data: new Float32Array(64 * 400) };
    const { a } = loraInit(weight, { rank: 64, alpha: 1, useRslora: false, random: new Philox(5), module: 'layer' });
    const bound = 1 / Math.sqrt(400);
    const moment = (p: number): number => a.reduce((sum, x) => sum + (x / bound) ** p, 0) / a.length;
    // 25,600 draws of a uniform on [−1, 1]: four standard errors of each moment
    expect(Math.abs(moment(1))).toBeLessThan(4 * Math.sqrt(1 / 3 / a.length));
    expect(Math.abs(moment(2) - 1 / 3)).toBeLessThan(4 * Math.sqrt(4 / 45 / a.length));
    expect(Math.abs(moment(4) - 1 / 5)).toBeLessThan(4 * Math.sqrt(16 / 225 / a.length));
    expect(Math.max(...a)).toBeGreaterThan(0.999 * bound);
  });

  it('depends on the generator alone', () => {
    const weight: HostTensor = { dtype: 'f32', shape: [3, 5], data: new Float32Array(15) };
    const a = (seed: number): Float32Array =>
      loraInit(weight, { rank: 2, alpha: 4, useRslora: false, random: new Philox(seed), module: 'layer' }).a;
    expect(a(1)).toEqual(a(1));
    expect(a(1)).not.toEqual(a(2));
  });
});

describe('mica', () => {
  it('freezes orthonormal minor directions and starts from A = 0', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async (given) => {
        const { init, b, w, s, k, residual } = await start(given, micaInit);
        expect(init).toMatchObject({
          residual: undefined,
          trains: { a: true, b: false },
          window: minor(k, given.rank),
        });
        expect(init.a).toEqual(new Float32Array(given.rank * given.shape[1]));
        expect(residual).toEqual(w);
        const gram = times(transposeMatrix(b), b);
        gram.data.forEach((x, at) => {
          expect(Math.abs(x - (Math.floor(at / gram.cols) === at % gram.cols ? 1 : 0))).toBeLessThanOrEqual(
            4 * EPSILON,
          );
        });
        // ‖BᵀW‖² is least over all orthonormal B at the sum of the smallest squares, also where they tie
        const least = Math.hypot(...s.slice(k - given.rank));
        const own = norm(times(transposeMatrix(b), w));
        expect(Math.abs(own - least)).toBeLessThanOrEqual(rounding(given.rank) * Math.sqrt(given.rank) * norm(w));
      }),
      runs,
    );
  });
});

describe('refusals', () => {
  const weight = (data: number[]): HostTensor => ({ dtype: 'f32', shape: [2, 3], data: Float32Array.from(data) });
  const options: InitOptions = { rank: 2, alpha: 2, useRslora: false, random: new Philox(1), module: 'h.0.q_proj' };

  it.each(Object.entries(methods))('%s: a rank above min(out, in)', async (_, init) => {
    const attempt = async (): Promise<AdapterInit> => init(weight([1, 2, 3, 4, 5, 6]), { ...options, rank: 3 });
    await expect(attempt()).rejects.toThrow(MiloraError);
    await expect(attempt()).rejects.toThrow(/h\.0\.q_proj: expected a rank ≤ 2.* shape \[2, 3\], got 3/);
  });

  it.each([NaN, Infinity, -Infinity])('a weight with %s, naming module and entry', async (bad) => {
    const attempt = async (): Promise<AdapterInit> => miloraInit(weight([1, 2, 3, 4, bad, 6]), options);
    await expect(attempt()).rejects.toThrow(MiloraError);
    await expect(attempt()).rejects.toThrow(new RegExp(`h\\.0\\.q_proj: .*finite.* got ${bad} at \\[1, 1\\]`));
    await expect(decompose(weight([1, 2, 3, 4, bad, 6]), 'h.0.q_proj')).rejects.toMatchObject({ code: 'non-finite' });
  });

  it('factors made elsewhere that do not cover the module', () => {
    const init = factorsInit(new Map([['other', { a: new Float32Array(6), b: new Float32Array(4) }]]), true);
    expect(() => init(weight([1, 2, 3, 4, 5, 6]), options)).toThrow(/h\.0\.q_proj: expected factors A and B, got none/);
  });
});

describe('16-bit weights', () => {
  it('are decomposed as the values they hold', async () => {
    // 1.5, −2, 0.25, 3, 1, −0.5 in bf16 and in float32
    const bits = Uint16Array.of(0x3fc0, 0xc000, 0x3e80, 0x4040, 0x3f80, 0xbf00);
    const values = Float32Array.of(1.5, -2, 0.25, 3, 1, -0.5);
    const options: InitOptions = { rank: 1, alpha: 1, useRslora: false, random: new Philox(1), module: 'layer' };
    // the certificates need not agree: what counts as a tie depends on the rounding of the input
    const { certificate: _, ...narrow } = await miloraInit({ dtype: 'bf16', shape: [2, 3], data: bits }, options);
    const { certificate: __, ...wide } = await miloraInit({ dtype: 'f32', shape: [2, 3], data: values }, options);
    expect(narrow).toEqual(wide);
    expect(residualOf({ dtype: 'bf16', shape: [2, 3], data: bits }, narrow.a, narrow.b, 1)).toEqual(
      residualOf({ dtype: 'f32', shape: [2, 3], data: values }, narrow.a, narrow.b, 1),
    );
  });
});
