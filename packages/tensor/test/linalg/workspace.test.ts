/** The workspace in wasm memory, on both builds and any number of threads, against the plain loops that define it. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createWasmBackend, type WasmBackend } from '../../src/backends/wasm/index.js';
import { convertHost, type DType } from '../../src/dtype.js';
import { multiplyMatrices, norm, transposeMatrix, zeroMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { JACOBI_BLOCK } from '../../src/linalg/rotations.js';
import { mirror } from '../../src/linalg/substitution.js';
import { HostWorkspace, transposed, viewOf, type View, type Workspace } from '../../src/linalg/workspace.js';
import { Philox } from '../../src/random.js';
import { bits, difference, frobenius, gaussian, numbers, orthogonalityError } from './matrices.js';

// --- What is promised -----------------------------------------------------------------------------------------------

const EPSILON = Number.EPSILON;
/** Error of a sum of n products, relative to the sum of their magnitudes: far below the n·ε of the worst case. */
const sumError = (n: number, epsilon = EPSILON): number => (2 + 2 * Math.sqrt(n)) * epsilon;

// --- Backends and operands ------------------------------------------------------------------------------------------

const backends: WasmBackend[] = (['relaxed', 'strict'] as const).flatMap((build) =>
  [1, 2, 4].map((threads) => createWasmBackend({ threads, build })),
);
beforeAll(() => Promise.all(backends.map((backend) => backend.ready())));
afterAll(() => Promise.all(backends.map((backend) => backend.close())));
const one = backends[0]!;

const host = new HostWorkspace();
const DTYPES = ['f64', 'f32', 'bf16', 'f16'] as const;

/** A part of a larger matrix of random numbers, transposed or not, with its frame. */
interface Operand {
  rows: number;
  cols: number;
  above: number;
  left: number;
  right: number;
  transpose: boolean;
  dtype: DType;
  seed: number;
}

/** The operand in a workspace; its frame is of numbers as well, or of NaN. */
function place({ rows, cols, above, left, right, transpose, dtype, seed }: Operand, workspace: Workspace): View {
  const [r, c] = transpose ? [cols, rows] : [rows, cols];
  const width = left + c + right;
  const values = Float64Array.from(new Philox(seed).normalArray((above + r + 1) * width));
  for (let i = 0; i < values.length; i++) {
    const inside = i >= above * width && i < (above + r) * width && i % width >= left && i % width < left + c;
    if (!inside) values[i] = NaN;
  }
  const data = convertHost(values, 'f64', dtype);
  const view = workspace.load({ dtype, shape: [above + r + 1, width], data });
  const part: View = { ...view, at: above * width + left, rows: r, cols: c };
  return transpose ? transposed(part) : part;
}

const entryOf = (v: View, i: number, j: number): number => {
  const x = v.data[v.at + i * v.rowStride + j * v.colStride]!;
  return v.dtype === 'bf16' || v.dtype === 'f16' ? convertHost(Uint16Array.of(x), v.dtype, 'f64')[0]! : x;
};

interface Product {
  a: Operand;
  b: Operand;
  c: { above: number; left: number; right: number };
  sign: 1 | -1;
  only: 'lower' | 'upper' | undefined;
  single: boolean;
}

/** c's whole store after c ← c ± a·b. */
function productOn(workspace: Workspace, { a, b, c, sign, only, single }: Product): Float64Array {
  const [x, y] = [place(a, workspace), place(b, workspace)];
  const store = workspace.matrix(c.above + a.rows + 1, c.left + b.cols + c.right);
  store.data.set(new Philox(a.seed + b.seed).normalArray(store.data.length));
  workspace.multiply(viewOf(store, c.above, c.left, a.rows, b.cols), x, y, {
    sign,
    single,
    ...(only ? { only } : {}),
  });
  const out = store.data.slice();
  for (const m of [x, y, store]) workspace.free(m);
  return out;
}

/** Bits on every backend: those of one build agree. Returns one result for each build. */
function onAll(run: (workspace: Workspace) => Float64Array): Float64Array[] {
  const results: Float64Array[] = [];
  for (const backend of backends) {
    const before = backend.memory();
    const workspace = backend.workspace();
    const out = run(workspace);
    workspace.close();
    expect([backend.memory().liveBytes, backend.memory().liveBuffers]).toEqual([before.liveBytes, before.liveBuffers]);
    if (backend.threads === 1) results.push(out);
    else expect(bits(out) === bits(results.at(-1)!), `${backend.threads} threads give other bits`).toBe(true);
  }
  return results;
}

/** Every entry within rounding of the plain loops', the untouched ones equal to the bit. */
function expectProduct(product: Product): void {
  const { a, b, c, only, single } = product;
  const limit = sumError(a.cols, single ? 2 ** -24 : EPSILON);
  const expected = productOn(host, product);
  const [x, y] = [place(a, host), place(b, host)];
  const before = Float64Array.from(new Philox(a.seed + b.seed).normalArray(expected.length));
  const width = c.left + b.cols + c.right;
  for (const actual of onAll((workspace) => productOn(workspace, product))) {
    for (let at = 0; at < expected.length; at++) {
      const [i, j] = [Math.floor(at / width) - c.above, (at % width) - c.left];
      const otherTriangle = (only === 'lower' && j > i) || (only === 'upper' && j < i);
      const outside = i < 0 || i >= a.rows || j < 0 || j >= b.cols || otherTriangle;
      if (outside) {
        if (!Object.is(actual[at], before[at])) expect.fail(`[${i}, ${j}] is not of the result and changed`);
        continue;
      }
      const error = Math.abs(actual[at]! - expected[at]!);
      // cheap first: only where the entry itself does not tell
      if (error <= limit * Math.abs(expected[at]!)) continue;
      let size = Math.abs(before[at]!);
      for (let k = 0; k < a.cols; k++) size += Math.abs(entryOf(x, i, k) * entryOf(y, k, j));
      if (!(error <= limit * size)) expect.fail(`[${i}, ${j}]: ${actual[at]} instead of ${expected[at]}`);
    }
  }
}

const seeds = fc.integer({ min: 0, max: 2 ** 40 });
// sizes of tiles, panels and strips, and anything else
const sizes = fc.oneof(
  fc.integer({ min: 0, max: 70 }),
  fc.constantFrom(0, 1, 2, 3, 4, 5, 6, 7, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65),
);
const frame = fc.integer({ min: 0, max: 3 });
const operands = (rows: number, cols: number): fc.Arbitrary<Operand> =>
  fc.record({
    rows: fc.constant(rows),
    cols: fc.constant(cols),
    above: frame,
    left: frame,
    right: frame,
    transpose: fc.boolean(),
    dtype: fc.constantFrom(...DTYPES),
    seed: seeds,
  });
const products = fc
  .tuple(sizes, sizes, sizes, fc.constantFrom(undefined, undefined, 'lower', 'upper'))
  .chain(([m, k, n, only]) =>
    fc.record({
      a: operands(m, k),
      b: operands(k, only ? m : n),
      c: fc.record({ above: frame, left: frame, right: frame }),
      sign: fc.constantFrom<1 | -1>(1, -1),
      only: fc.constant(only as Product['only']),
      single: fc.boolean(),
    }),
  );

// --- Tests ----------------------------------------------------------------------------------------------------------

describe('multiply', () => {
  it('is the product of the plain loops, for all shapes, parts and types, with the same bits on any number of threads', () => {
    fc.assert(fc.property(products, expectProduct), { numRuns: 400 });
  });

  // across blocks of 320 in depth, of 96 and 192 rows, of 1024 columns, and strips of 16
  it.each([
    [200, 700, 333, undefined],
    [97, 321, 17, undefined],
    [7, 641, 1030, undefined],
    [193, 330, 3, undefined],
    [600, 5, 2, undefined],
    [2, 5, 1100, undefined],
    [113, 650, 113, 'lower'],
    [208, 321, 208, 'lower'],
    [1, 1000, 1, 'lower'],
    [113, 650, 113, 'upper'],
    [208, 321, 208, 'upper'],
  ] as const)('[%i, %i] · [%i], only one triangle: %s', (m, k, n, only) => {
    fc.assert(
      fc.property(operands(m, k), operands(k, n), fc.constantFrom<1 | -1>(1, -1), (a, b, sign) => {
        for (const single of [false, true])
          expectProduct({ a, b, c: { above: 1, left: 2, right: 1 }, sign, only, single });
      }),
      { numRuns: 1 },
    );
  });

  // a narrow product in float32 reads such rows in place, 2048 of the depth at a time
  it.each([
    [13, 2100, 9],
    [50, 2049, 33],
    [200, 4100, 64],
  ] as const)('[%i, %i] · [%i] of float32 rows, in float32', (rows, cols, n) => {
    const [a, b] = [
      { rows, cols, above: 1, left: 2, right: 1, transpose: false, dtype: 'f32' as const, seed: 1 },
      { rows: cols, cols: n, above: 0, left: 1, right: 0, transpose: false, dtype: 'f64' as const, seed: 2 },
    ];
    expectProduct({ a, b, c: { above: 1, left: 0, right: 2 }, sign: -1, only: undefined, single: true });
  });

  it('adds up: a product in two halves of the depth at a block’s edge has the same bits', () => {
    const workspace = one.workspace();
    const [a, b] = [gaussian(50, 700, 1), gaussian(700, 40, 2)].map(({ rows, cols, data }) =>
      workspace.load({ dtype: 'f64', shape: [rows, cols], data }),
    );
    const [whole, halves] = [workspace.matrix(50, 40), workspace.matrix(50, 40)];
    workspace.multiply(viewOf(whole), a!, b!);
    workspace.multiply(viewOf(halves), { ...a!, cols: 320 }, { ...b!, rows: 320 });
    workspace.multiply(viewOf(halves), { ...a!, at: 320, cols: 380 }, { ...b!, at: 320 * 40, rows: 380 });
    expect(bits(halves.data)).toBe(bits(whole.data));
    workspace.close();
  });

  it('refuses operands that do not fit, on all workspaces', () => {
    const wasm = one.workspace();
    for (const workspace of [host, wasm]) {
      const [a, b, c] = [workspace.matrix(2, 3), workspace.matrix(3, 4), workspace.matrix(2, 4)];
      const f32 = workspace.load({ dtype: 'f32', shape: [2, 4], data: new Float32Array(8) });
      for (const [z, x, y] of [
        [viewOf(c), viewOf(a), viewOf(c)],
        [viewOf(a), viewOf(a), viewOf(b)],
        [viewOf(b), viewOf(a), viewOf(b)],
        [transposed(viewOf(c)), transposed(viewOf(b)), transposed(viewOf(a))],
        ...(workspace === wasm ? [[f32, viewOf(a), viewOf(b)] as const] : []),
      ] as const) {
        expect(() => workspace.multiply(z, x, y)).toThrow(expect.objectContaining({ code: 'shape' }));
      }
      expect(() => workspace.multiply(viewOf(c), viewOf(a), viewOf(c))).toThrow(
        'multiply: expected c = a · b with contiguous rows, got f64 [2, 4] = f64 [2, 3] · f64 [2, 4]',
      );
    }
    wasm.close();
  });
});

describe('allFinite', () => {
  it('finds the one infinity or NaN, wherever it is, and nothing else', () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.integer({ min: 1, max: 300 }), fc.constantFrom(65535, 65536, 65537, 200_003)),
        fc.constantFrom(...DTYPES),
        fc.constantFrom(NaN, Infinity, -Infinity),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (length, dtype, bad, where) => {
          const largest = { f64: Number.MAX_VALUE, f32: 3.4028234663852886e38, bf16: 3.3895e38, f16: 65504 }[dtype];
          const good = Float64Array.from({ length }, (_, i) => [largest, -largest, 0, 1e-320, -1][i % 5]!);
          const worse = good.slice();
          worse[Math.floor(where * length)] = bad;
          for (const [values, expected] of [
            [good, true],
            [worse, false],
          ] as const) {
            const tensor = { dtype, shape: [1, length], data: convertHost(values.slice(), 'f64', dtype) };
            expect(host.allFinite(host.load(tensor))).toBe(expected);
            onAll((workspace) => {
              expect(workspace.allFinite(workspace.load(tensor))).toBe(expected);
              return new Float64Array(0);
            });
          }
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe('rounded', () => {
  it('is a copy whose entries are those of float32', () => {
    const m = gaussian(13, 7, 3);
    const expected = bits(Float64Array.from(m.data, Math.fround));
    for (const workspace of [host, one.workspace()]) {
      const copy = workspace.matrix(13, 7);
      copy.data.set(m.data);
      const { rows, cols, data } = workspace.rounded(copy);
      expect([rows, cols, bits(Float64Array.from(data))]).toEqual([13, 7, expected]);
      expect(bits(copy.data)).toBe(bits(m.data));
      workspace.close();
    }
  });
});

describe('rows and vectors', () => {
  const cases = fc.record({
    rows: fc.integer({ min: 0, max: 40 }),
    cols: fc.oneof(fc.integer({ min: 0, max: 70 }), fc.constantFrom(300, 1000)),
    left: frame,
    right: frame,
    upright: fc.boolean(),
    tau: fc.double({ min: -3, max: 3, noNaN: true }),
    seed: seeds,
  });

  it('rowsTimes is the product with a vector', () => {
    fc.assert(
      fc.property(cases, ({ rows, cols, left, right, upright, seed }) => {
        const run = (workspace: Workspace): Float64Array => {
          const a = workspace.matrix(rows, left + cols + right);
          a.data.set(new Philox(seed).normalArray(a.data.length));
          const x = workspace.matrix(2, cols + 1);
          x.data.set(new Philox(seed, 1).normalArray(x.data.length));
          const y = workspace.matrix(1, rows + 2).data.fill(7);
          const vector: View = { ...viewOf({ rows: 1, cols: rows + 2, data: y }, 0, 1, 1, rows) };
          workspace.rowsTimes(
            upright ? { ...transposed(vector), rowStride: 1 } : vector,
            viewOf(a, 0, left, rows, cols),
            viewOf(x, 1, 0, 1, cols),
          );
          return y.slice();
        };
        const expected = run(host);
        const [a, x] = [new Philox(seed).normalArray(rows * (left + cols + right)), new Philox(seed, 1)];
        const vector = x.normalArray(2 * (cols + 1)).subarray(cols + 1);
        for (const actual of onAll(run)) {
          expect([actual[0], actual[rows + 1]]).toEqual([7, 7]);
          for (let i = 0; i < rows; i++) {
            let size = 0;
            for (let t = 0; t < cols; t++) size += Math.abs(a[i * (left + cols + right) + left + t]! * vector[t]!);
            expect(Math.abs(actual[i + 1]! - expected[i + 1]!)).toBeLessThanOrEqual(sumError(cols) * size);
          }
        }
      }),
      { numRuns: 100 },
    );
  });

  it('symmetricTimes is the product with a vector, and reads the upper triangle only', () => {
    const sizes = fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constantFrom(127, 128, 500, 1025));
    fc.assert(
      fc.property(sizes, frame, seeds, (n, left, seed) => {
        const run = (workspace: Workspace): Float64Array => {
          const a = workspace.matrix(n, left + n);
          a.data.set(new Philox(seed).normalArray(a.data.length));
          for (let i = 0; i < n; i++) a.data.fill(NaN, i * a.cols, i * a.cols + left + i);
          const x = workspace.matrix(1, n);
          x.data.set(new Philox(seed, 1).normalArray(n));
          const y = workspace.matrix(1, n + 2);
          y.data.fill(7);
          workspace.symmetricTimes(viewOf(y, 0, 1, 1, n), viewOf(a, 0, left), viewOf(x));
          return y.data.slice();
        };
        const [a, x] = [new Philox(seed).normalArray(n * (left + n)), new Philox(seed, 1).normalArray(n)];
        for (const actual of [run(host), ...onAll(run)]) {
          expect([actual[0], actual[n + 1]]).toEqual([7, 7]);
          for (let i = 0; i < n; i++) {
            let [sum, size] = [0, 0];
            for (let j = 0; j < n; j++) {
              const term = a[Math.min(i, j) * (left + n) + left + Math.max(i, j)]! * x[j]!;
              sum += term;
              size += Math.abs(term);
            }
            expect(Math.abs(actual[i + 1]! - sum)).toBeLessThanOrEqual(sumError(n) * size);
          }
        }
      }),
      { numRuns: 60 },
    );
  });

  it('transpose exchanges rows and columns, and writes nothing beside', () => {
    const sizes = fc.oneof(fc.integer({ min: 0, max: 40 }), fc.constantFrom(200));
    fc.assert(
      fc.property(sizes, sizes, frame, frame, seeds, (rows, cols, left, right, seed) => {
        const run = (workspace: Workspace): Float64Array => {
          const [to, from] = [workspace.matrix(rows, left + cols + 1), workspace.matrix(cols, right + rows)];
          to.data.fill(7);
          from.data.set(new Philox(seed).normalArray(from.data.length));
          workspace.transpose(viewOf(to, 0, left, rows, cols), viewOf(from, 0, right));
          return to.data.slice();
        };
        const source = new Philox(seed).normalArray(cols * (right + rows));
        const width = left + cols + 1;
        const expected = Float64Array.from({ length: rows * width }, (_, at) => {
          const [i, j] = [Math.floor(at / width), (at % width) - left];
          return j >= 0 && j < cols ? source[j * (right + rows) + right + i]! : 7;
        });
        for (const actual of [run(host), ...onAll(run)]) expect(bits(actual)).toBe(bits(expected));
      }),
      { numRuns: 60 },
    );
  });

  it('reflectRows reflects every row and nothing beside', () => {
    fc.assert(
      fc.property(cases, ({ rows, cols, left, right, tau, seed }) => {
        const width = left + cols + right;
        const run = (workspace: Workspace): Float64Array => {
          const a = workspace.matrix(rows, width);
          a.data.set(new Philox(seed).normalArray(a.data.length));
          const v = workspace.matrix(1, cols);
          v.data.set(new Philox(seed, 1).normalArray(cols));
          workspace.reflectRows(viewOf(a, 0, left, rows, cols), viewOf(v), tau);
          return a.data.slice();
        };
        const [expected, before] = [run(host), new Philox(seed).normalArray(rows * width)];
        const v = new Philox(seed, 1).normalArray(cols);
        for (const actual of onAll(run)) {
          for (let i = 0; i < rows; i++) {
            let size = 0;
            for (let t = 0; t < cols; t++) size += Math.abs(before[i * width + left + t]! * v[t]!);
            for (let j = 0; j < width; j++) {
              const [now, at] = [actual[i * width + j]!, j - left];
              const inside = at >= 0 && at < cols;
              const bound = inside ? Math.abs(before[i * width + j]!) + Math.abs(tau * v[at]!) * size : 0;
              const wanted = inside ? expected[i * width + j]! : before[i * width + j]!;
              // `expect` for each entry would take most of the time
              if (!(Math.abs(now - wanted) <= sumError(cols) * bound)) expect.fail(`${now} instead of ${wanted}`);
            }
          }
        }
      }),
      { numRuns: 100 },
    );
  });
});

it('mirror copies one triangle onto the other and leaves it and the diagonal', () => {
  fc.assert(
    fc.property(
      fc.oneof(fc.integer({ min: 0, max: 70 }), fc.constantFrom(96, 97, 200)),
      fc.constantFrom<'lower' | 'upper'>('lower', 'upper'),
      seeds,
      (n, from, seed) => {
        const run = (workspace: Workspace): Float64Array => {
          const a = workspace.matrix(n, n);
          a.data.set(new Philox(seed).normalArray(n * n));
          mirror(a, from, workspace);
          return a.data.slice();
        };
        const before = new Philox(seed).normalArray(n * n);
        const expected = Float64Array.from(before, (_, at) => {
          const [i, j] = [Math.floor(at / n), at % n];
          return before[(from === 'lower' ? j <= i : j >= i) ? at : j * n + i]!;
        });
        for (const actual of [run(host), ...onAll(run)]) expect(bits(actual)).toBe(bits(expected));
      },
    ),
    { numRuns: 60 },
  );
});

describe('jacobiRound', () => {
  /** As in jacobi.ts. */
  const toleranceOf = (n: number): number => EPSILON * Math.max(8, Math.sqrt(n));

  /** Largest cosine between two rows of the first n columns, of which one is in block p and one in q. */
  function largestCosine(x: Matrix, n: number, p: number, q: number): number {
    let most = 0;
    const rowsOf = (block: number): number[] =>
      numbers(JACOBI_BLOCK, (i) => block * JACOBI_BLOCK + i).filter((i) => i < x.rows);
    for (const i of rowsOf(p)) {
      for (const j of rowsOf(q)) {
        if (i === j) continue;
        const [a, b] = [i, j].map((row) => x.data.subarray(row * x.cols, row * x.cols + n));
        const dot = a!.reduce((sum, value, t) => sum + value * b![t]!, 0);
        const size = norm(a!, 0, n) * norm(b!, 0, n);
        if (size > 0) most = Math.max(most, Math.abs(dot) / size);
      }
    }
    return most;
  }

  /** Sweeps over a pair of blocks, within both and between them, until nothing is rotated any more. */
  function orthogonalise(
    workspace: Workspace,
    x: Matrix,
    n: number,
    [p, q]: [number, number],
  ): { sweeps: number; out: Matrix } {
    const own = workspace.matrix(x.rows, x.cols);
    own.data.set(x.data);
    const rounds =
      p === q
        ? [[p, p]]
        : [
            [p, p, q, q],
            [p, q],
          ];
    for (let sweeps = 1; sweeps <= 30; sweeps++) {
      const rotations = rounds.map((pairs) => workspace.jacobiRound(own, n, pairs, toleranceOf(n)));
      if (rotations.every((count) => count === 0)) return { sweeps, out: { ...own, data: own.data.slice() } };
    }
    throw new Error('jacobiRound: expected to come to an end, got none in 30 sweeps');
  }

  it('makes the rows of a pair orthogonal, by rotations that it writes beside them', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 60 }),
        fc.constantFrom(1, 2, 5, 30, 64, 127, 130, 400),
        fc.double({ min: 0, max: 8, noNaN: true }),
        seeds,
        (rows, n, grading, seed) => {
          const blocks = Math.ceil(rows / JACOBI_BLOCK);
          const [p, q]: [number, number] = seed % 3 === 0 ? [0, 0] : [0, seed % blocks];
          // [B | I] with rows of very different sizes
          const x = zeroMatrix(rows, n + rows);
          const b = gaussian(rows, n, seed);
          for (let i = 0; i < rows; i++) {
            for (let t = 0; t < n; t++) x.data[i * x.cols + t] = b.data[i * n + t]! * 10 ** (-grading * (i / rows));
            x.data[i * x.cols + n + i] = 1;
          }
          const untouched = (i: number): boolean => ![p, q].includes(Math.floor(i / JACOBI_BLOCK));
          const check = (out: Matrix): void => {
            const [left, j] = [zeroMatrix(rows, n), zeroMatrix(rows, rows)];
            for (let i = 0; i < rows; i++) {
              left.data.set(out.data.subarray(i * out.cols, i * out.cols + n), i * n);
              j.data.set(out.data.subarray(i * out.cols + n, (i + 1) * out.cols), i * rows);
              const [from, to] = [i * x.cols, (i + 1) * x.cols];
              if (untouched(i)) expect(out.data.subarray(from, to)).toEqual(x.data.subarray(from, to));
            }
            const original = zeroMatrix(rows, n);
            for (let i = 0; i < rows; i++) original.data.set(x.data.subarray(i * x.cols, i * x.cols + n), i * n);
            expect(orthogonalityError(transposeMatrix(j))).toBeLessThan(2e-14);
            const error = frobenius(difference(multiplyMatrices(j, original), left));
            expect(error).toBeLessThanOrEqual(1e-14 * frobenius(original));
            if (rows <= n) {
              expect(largestCosine(out, n, p, q)).toBeLessThan(2 * toleranceOf(n) + 4 * EPSILON * Math.sqrt(n));
            }
          };
          fc.pre(rows <= n || grading < 1);
          if (rows > n) {
            // more rows than fit: one round only, rotations all the same
            const one = host.matrix(x.rows, x.cols);
            one.data.set(x.data);
            host.jacobiRound(one, n, [p, q], toleranceOf(n));
            check(one);
            onAll((workspace) => {
              const own = workspace.matrix(x.rows, x.cols);
              own.data.set(x.data);
              workspace.jacobiRound(own, n, [p, q], toleranceOf(n));
              const out = own.data.slice();
              check({ ...x, data: out });
              return out;
            });
            return;
          }
          const expected = orthogonalise(host, x, n, [p, q]);
          check(expected.out);
          onAll((workspace) => {
            const actual = orthogonalise(workspace, x, n, [p, q]);
            check(actual.out);
            expect(Math.abs(actual.sweeps - expected.sweeps)).toBeLessThanOrEqual(3);
            return actual.out.data;
          });
        },
      ),
      { numRuns: 25 },
    );
  });

  it('takes several pairs at once as one after the other, and counts nothing where nothing is to be done', () => {
    const x = gaussian(60, 100, 4);
    const run =
      (at: number[][]) =>
      (workspace: Workspace): Float64Array => {
        const own = workspace.matrix(60, 100);
        own.data.set(x.data);
        const rotations = at.map((pairs) => workspace.jacobiRound(own, 80, pairs, toleranceOf(80)));
        expect(rotations.reduce((p, q) => p + q, 0)).toBe(2 * 144 + 66);
        return own.data.slice();
      };
    const together = onAll(run([[0, 3, 1, 2, 4, 4]]));
    const apart = onAll(
      run([
        [1, 2],
        [4, 4],
        [0, 3],
      ]),
    );
    expect(apart.map(bits)).toEqual(together.map(bits));
    onAll((workspace) => {
      const own = workspace.matrix(30, 30);
      for (let i = 0; i < 30; i++) own.data[i * 31] = i === 3 ? 0 : i + 1;
      const before = own.data.slice();
      expect(workspace.jacobiRound(own, 30, [0, 1, 2, 2], toleranceOf(30))).toBe(0);
      expect(workspace.jacobiRound(own, 30, [], toleranceOf(30))).toBe(0);
      expect(bits(own.data)).toBe(bits(before));
      return own.data.slice();
    });
  });
});

describe('memory', () => {
  it('is of zeros, counted while it lives, and refused a second time', () => {
    const before = one.memory();
    const workspace = one.workspace();
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 0, max: 30 }), fc.integer({ min: 0, max: 30 }), fc.boolean())),
        (all) => {
          const empty = one.memory();
          const made = all.map(([rows, cols]) => {
            const m = workspace.matrix(rows, cols);
            expect(m.data.every((x) => x === 0)).toBe(true);
            expect([m.rows, m.cols, m.data.length]).toEqual([rows, cols, rows * cols]);
            m.data.fill(NaN);
            return m;
          });
          expect(one.memory().liveBuffers).toBe(empty.liveBuffers + all.length);
          const bytes = all.reduce((sum, [rows, cols]) => sum + Math.max(64, Math.ceil((rows * cols) / 8) * 64), 0);
          expect(one.memory().liveBytes).toBe(empty.liveBytes + bytes);
          made.filter((_, i) => all[i]![2]).forEach((m) => workspace.free(m));
          for (const m of made.filter((_, i) => all[i]![2])) {
            expect(() => workspace.free(m)).toThrow(
              expect.objectContaining({
                code: 'disposed',
                message: 'workspace: expected a live matrix of this workspace, got another',
              }),
            );
          }
          made.filter((_, i) => !all[i]![2]).forEach((m) => workspace.free(m));
          expect(one.memory().liveBytes).toBe(empty.liveBytes);
        },
      ),
      { numRuns: 50 },
    );
    workspace.matrix(3, 3);
    const other = one.workspace();
    const foreign = other.matrix(2, 2);
    expect(() => workspace.free(foreign)).toThrow('workspace: expected a live matrix of this workspace, got another');
    workspace.close();
    workspace.close();
    other.free(foreign);
    other.close();
    expect([one.memory().liveBytes, one.memory().liveBuffers]).toEqual([before.liveBytes, before.liveBuffers]);
  });

  it('takes tensors as they are, in their own type, and leaves the caller’s alone', () => {
    const values = new Philox(1).normalArray(12);
    const workspace = one.workspace();
    for (const dtype of DTYPES) {
      const data = convertHost(Float64Array.from(values), 'f64', dtype);
      const view = workspace.load({ dtype, shape: [3, 4], data });
      expect(view).toMatchObject({ dtype, at: 0, rows: 3, cols: 4, rowStride: 4, colStride: 1 });
      expect(Array.from(view.data)).toEqual(Array.from(data));
      view.data.fill(1);
      expect(Array.from(data)).toEqual(Array.from(convertHost(Float64Array.from(values), 'f64', dtype)));
    }
    workspace.close();
  });

  it('that grows leaves the matrices made before valid', () => {
    const backend = createWasmBackend({ threads: 1 });
    const workspace = backend.workspace();
    const [a, b] = [gaussian(40, 30, 1), gaussian(30, 20, 2)];
    const [x, y] = [a, b].map(({ rows, cols, data }) => workspace.load({ dtype: 'f64', shape: [rows, cols], data }));
    const small = workspace.matrix(40, 20);
    small.data[5] = 3;
    const reserved = backend.memory().reservedBytes;
    const large = workspace.matrix(1, reserved / 8 + 1000);
    expect(backend.memory().reservedBytes).toBeGreaterThan(reserved);
    large.data.fill(NaN);
    expect(Array.from(x!.data)).toEqual(Array.from(a.data));
    expect(small.data[5]).toBe(3);
    small.data[5] = 0;
    workspace.multiply(viewOf(small), x!, y!);
    // the same matrix is seen by scripts and kernels
    const error = frobenius(difference({ ...small, data: small.data.slice() }, multiplyMatrices(a, b)));
    expect(error).toBeLessThan(1e-14 * frobenius(a) * frobenius(b));
    expect(error).toBeGreaterThanOrEqual(0);
    for (const m of [small, large, x!, y!]) workspace.free(m);
    expect(backend.memory().liveBytes).toBe(0);
    workspace.close();
    return backend.close();
  });

  it('is counted at its peak', () => {
    const workspace = one.workspace();
    one.resetPeak();
    const base = one.memory().liveBytes;
    workspace.free(workspace.matrix(64, 64));
    expect(one.memory()).toMatchObject({ liveBytes: base, peakBytes: base + 64 * 64 * 8 });
    workspace.close();
  });
});
