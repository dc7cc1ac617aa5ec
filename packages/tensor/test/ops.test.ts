/**
 * The ops: shapes, broadcasting, options and checks. The kernels behind them have their own suite (kernels/); here every op is compared
 * with plain loops over nested indices that share no code with it.
 */
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import * as t from '../src/index.js';
import { Philox, Tensor, TensorError, createWasmBackend, intTensor, scope, setBackend, tensor } from '../src/index.js';
import type { DType, WasmBackend } from '../src/index.js';
import { decode16, encode16 } from './kernels/reference.js';

let backend: WasmBackend;
let other: WasmBackend;

beforeAll(() => {
  backend = createWasmBackend({ threads: 2 });
  other = createWasmBackend({ threads: 1 });
  setBackend(backend);
});
afterEach(() => {
  // every test runs in scopes: nothing may be left
  expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
  expect(other.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
});
afterAll(async () => {
  await backend.close();
  await other.close();
});

// ---- plain arrays to compare with ----

interface Plain {
  shape: readonly number[];
  data: ArrayLike<number>;
}

const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Every index of a shape, the last dimension fastest. */
function indices(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>(
    (all, d) => all.flatMap((index) => Array.from({ length: d }, (_, i) => [...index, i])),
    [[]],
  );
}

/** Position of an index in row-major order. */
const offset = (shape: readonly number[], index: readonly number[]): number =>
  index.reduce((at, i, d) => at * shape[d]! + i, 0);

const at = (x: Plain, index: readonly number[]): number => x.data[offset(x.shape, index)]!;

/** A plain array of `shape` from its value at each index, rounded to f32. */
function plain(shape: readonly number[], value: (index: number[]) => number): Plain {
  return { shape, data: Float32Array.from(indices(shape), value) };
}

const normal = (shape: readonly number[], seed: number): Plain => ({
  shape,
  data: new Philox(seed).normalArray(sizeOf(shape)),
});

const upload = ({ shape, data }: Plain): Tensor => tensor(Float32Array.from(data), shape);

/** Equal shape and equal bits (0 and −0 are the same here). */
function expectExactly(actual: Tensor, expected: Plain): void {
  expect(actual.shape).toEqual(expected.shape);
  expect(Array.from(actual.dataSync(), (x) => x + 0)).toEqual(Array.from(expected.data, (x) => x + 0));
}

/** Equal shape, and every element within its own tolerance. */
function expectWithin(actual: Tensor, expected: Plain, tolerance: (i: number) => number): void {
  expect(actual.shape).toEqual(expected.shape);
  actual.dataSync().forEach((x, i) => {
    const error = Math.abs(x - expected.data[i]!);
    if (!(error <= tolerance(i))) {
      throw new Error(`element ${i}: expected ${expected.data[i]} ± ${tolerance(i)}, got ${x}`);
    }
  });
}

const seed = fc.integer({ min: 0, max: 2 ** 31 - 1 });
const dimension = fc.oneof(
  { weight: 1, arbitrary: fc.constant(0) },
  { weight: 12, arbitrary: fc.integer({ min: 1, max: 5 }) },
);
const shapes = (minLength: number, maxLength = 4): fc.Arbitrary<number[]> =>
  fc.array(dimension, { minLength, maxLength });
const check = (property: fc.IRawProperty<unknown>, numRuns = 100): void => {
  fc.assert(property as fc.IProperty<unknown>, { numRuns });
};

// ---- elementwise ----

/** Two shapes that broadcast: each lacks some leading dimensions of a common shape and has ones in place of others. */
const broadcastPair = shapes(0).chain((full) => {
  const part = fc
    .record({
      rank: fc.integer({ min: 0, max: full.length }),
      ones: fc.array(fc.boolean(), { minLength: full.length, maxLength: full.length }),
    })
    .map(({ rank, ones }) => full.map((d, i) => (ones[i] ? 1 : d)).slice(full.length - rank));
  return fc.record({ a: part, b: part, seed });
});

describe('broadcasting', () => {
  const ops = {
    add: [t.add, (a: number, b: number) => a + b],
    sub: [t.sub, (a: number, b: number) => a - b],
    mul: [t.mul, (a: number, b: number) => a * b],
    div: [t.div, (a: number, b: number) => a / b],
    maximum: [t.maximum, Math.max],
    minimum: [t.minimum, Math.min],
  } as const;

  /** NumPy's rule, read from its manual: align at the end, a missing dimension counts as 1. */
  function reference(f: (a: number, b: number) => number, a: Plain, b: Plain): Plain {
    const rank = Math.max(a.shape.length, b.shape.length);
    const padded = (x: Plain): Plain => ({
      ...x,
      shape: [...Array<number>(rank - x.shape.length).fill(1), ...x.shape],
    });
    const [x, y] = [padded(a), padded(b)];
    const shape = x.shape.map((d, i) => (d === 1 ? y.shape[i]! : d));
    const own = (p: Plain, index: number[]): number =>
      at(
        p,
        index.map((i, d) => (p.shape[d] === 1 ? 0 : i)),
      );
    return plain(shape, (index) => f(own(x, index), own(y, index)));
  }

  test.each(Object.entries(ops))('%s over random shapes of rank 0 to 4', (_, [op, f]) => {
    check(
      fc.property(broadcastPair, ({ a, b, seed }) => {
        const [x, y] = [normal(a, seed), normal(b, seed + 1)];
        // one rounding to f32 after an f64 operation on f32 numbers is exact rounding: the results are equal, not close
        scope(() => expectExactly(op(upload(x), upload(y)), reference(f, x, y)));
      }),
      200,
    );
  });

  test('a long vector that threads share, against a row and a scalar', () => {
    const [x, row] = [normal([300, 257], 1), normal([257], 2)];
    scope(() => {
      const a = upload(x);
      expectExactly(
        t.mul(a, upload(row)),
        plain(x.shape, ([i, j]) => at(x, [i!, j!]) * at(row, [j!])),
      );
      expectExactly(
        t.sub(tensor(3), a),
        plain(x.shape, (index) => 3 - at(x, index)),
      );
    });
  });
});

test('unary ops are the functions of their names', () => {
  const functions: Record<string, [(x: Tensor) => Tensor, (x: number) => number]> = {
    neg: [t.neg, (x) => -x],
    abs: [t.abs, Math.abs],
    exp: [t.exp, Math.exp],
    log: [t.log, Math.log],
    sqrt: [t.sqrt, Math.sqrt],
    rsqrt: [t.rsqrt, (x) => 1 / Math.sqrt(x)],
    square: [t.square, (x) => x * x],
    sigmoid: [t.sigmoid, (x) => 1 / (1 + Math.exp(-x))],
    tanh: [t.tanh, Math.tanh],
    silu: [t.silu, (x) => x / (1 + Math.exp(-x))],
    relu: [t.relu, (x) => Math.max(x, 0)],
    affine: [(x) => t.affine(x, 1.5, -0.25), (x) => 1.5 * x - 0.25],
  };
  const positive = { shape: [2, 1, 3], data: Float32Array.of(0.25, 0.5, 0.75, 1.5, 2, 3) };
  for (const [name, [op, f]] of Object.entries(functions)) {
    const x = ['log', 'sqrt', 'rsqrt'].includes(name)
      ? positive
      : { ...positive, data: positive.data.map((v, i) => (i % 2 ? v : -v)) };
    const expected = { shape: x.shape, data: Float64Array.from(x.data, f) };
    scope(() => expectWithin(op(upload(x)), expected, (i) => 2e-6 * Math.max(1, Math.abs(expected.data[i]!))));
  }
});

test('swiglu is silu(gate) · up', () => {
  const [gate, up] = [normal([3, 5], 1), normal([3, 5], 2)];
  const expected = plain([3, 5], (i) => (at(gate, i) / (1 + Math.exp(-at(gate, i)))) * at(up, i));
  scope(() => expectWithin(t.swiglu(upload(gate), upload(up)), expected, () => 1e-6));
});

// ---- matmul ----

const matmulCase = fc.record({
  lead: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 2 }),
  m: fc.integer({ min: 0, max: 13 }),
  n: fc.integer({ min: 0, max: 17 }),
  k: fc.integer({ min: 0, max: 11 }),
  /** Which operands have the leading dimensions; one that does not is shared. */
  shared: fc.constantFrom('none', 'a', 'b'),
  transposeA: fc.boolean(),
  transposeB: fc.boolean(),
  dtypeB: fc.constantFrom('f32', 'bf16', 'f16'),
  alpha: fc.constantFrom(1, -0.5),
  into: fc.boolean(),
  seed,
});

test('matmul: leading dimensions, shared matrices, transposes, alpha, into, 16-bit weights', () => {
  check(
    fc.property(matmulCase, ({ lead, m, n, k, shared, transposeA, transposeB, dtypeB, alpha, into, seed }) => {
      const a = normal([...(shared === 'a' ? [] : lead), ...(transposeA ? [k, m] : [m, k])], seed);
      const raw = normal([...(shared === 'b' ? [] : lead), ...(transposeB ? [n, k] : [k, n])], seed + 1);
      const b =
        dtypeB === 'f32' ? raw : { ...raw, data: Array.from(raw.data, (x) => decode16(encode16(x, dtypeB), dtypeB)) };
      const shape = [...lead, m, n];
      const c = normal(shape, seed + 2);
      const magnitude: number[] = [];
      const expected = indices(shape).map((index) => {
        const [outer, i, j] = [index.slice(0, -2), index.at(-2)!, index.at(-1)!];
        const terms = Array.from({ length: k }, (_, l) => {
          const left = at(a, [...(shared === 'a' ? [] : outer), ...(transposeA ? [l, i] : [i, l])]);
          return left * at(b, [...(shared === 'b' ? [] : outer), ...(transposeB ? [j, l] : [l, j])]);
        });
        const before = into ? at(c, index) : 0;
        magnitude.push(Math.abs(before) + terms.reduce((sum, x) => sum + Math.abs(alpha * x), 0));
        return before + alpha * terms.reduce((sum, x) => sum + x, 0);
      });
      scope(() => {
        const sum = upload(c);
        const options = { transposeA, transposeB, alpha, ...(into ? { into: sum } : {}) };
        const y = t.matmul(upload(a), t.cast(upload(raw), dtypeB), options);
        if (into) expect(y).toBe(sum);
        // at most k + 2 roundings of 2^-24 each, relative to what was added up
        expectWithin(y, { shape, data: expected }, (i) => (k + 2) * 2 ** -24 * magnitude[i]!);
      });
    }),
    300,
  );
});

// ---- reductions and rows ----

const reduced = shapes(1).chain((shape) =>
  fc.record({
    shape: fc.constant(shape),
    axis: fc.option(fc.integer({ min: -shape.length, max: shape.length - 1 }), { nil: undefined }),
    keepDims: fc.boolean(),
    seed,
  }),
);

test('sum, max and mean over an axis or all elements', () => {
  check(
    fc.property(reduced, ({ shape, axis, keepDims, seed }) => {
      const x = normal(shape, seed);
      const gone = axis === undefined ? shape.map((_, d) => d) : [(axis + shape.length) % shape.length];
      const kept = shape.map((d, i) => (gone.includes(i) ? 1 : d));
      const resultShape = keepDims ? kept : shape.filter((_, d) => !gone.includes(d));
      const groups = indices(kept).map((index) =>
        indices(shape)
          .filter((i) => i.every((v, d) => gone.includes(d) || v === index[d]))
          .map((i) => at(x, i)),
      );
      const magnitude = groups.map((g) => g.reduce((s, v) => s + Math.abs(v), 0));
      const sums = groups.map((g) => g.reduce((s, v) => s + v, 0));
      const options = { keepDims, ...(axis === undefined ? {} : { axis }) };
      scope(() => {
        const input = upload(x);
        expectWithin(t.sum(input, options), { shape: resultShape, data: sums }, (i) => 1e-6 * magnitude[i]!);
        expectExactly(t.max(input, options), { shape: resultShape, data: groups.map((g) => Math.max(...g)) });
        if (groups.some((g) => g.length === 0)) return;
        const means = sums.map((s, i) => s / groups[i]!.length);
        expectWithin(t.mean(input, options), { shape: resultShape, data: means }, (i) => 1e-6 * magnitude[i]!);
      });
    }),
    200,
  );
});

test('sumTo undoes broadcasting: ⟨sumTo(x), y⟩ = ⟨x, y broadcast⟩', () => {
  check(
    fc.property(broadcastPair, ({ a, b, seed }) => {
      const full = t.broadcastShape('test', a, b);
      const [x, y] = [normal(full, seed), normal(a, seed + 1)];
      scope(() => {
        const [big, small] = [upload(x), upload(y)];
        const down = t.sumTo(big, a);
        expect(down.shape).toEqual(a);
        const left = Array.from(down.dataSync()).reduce((s, v, i) => s + v * y.data[i]!, 0);
        const right = Array.from(t.mul(big, small).dataSync()).reduce((s, v) => s + v, 0);
        expect(Math.abs(left - right)).toBeLessThanOrEqual(1e-5 * (1 + sizeOf(full)));
      });
    }),
    200,
  );
});

test('argmax, softmax and logSoftmax work along the last dimension', () => {
  const x = { shape: [2, 1, 3], data: Float32Array.of(1, 3, 3, 0, -1, -2) };
  scope(() => {
    const input = upload(x);
    const best = t.argmax(input);
    expect([best.dtype, ...best.shape]).toEqual(['i32', 2, 1]);
    expect([...best.dataSync()]).toEqual([1, 0]);
    const e = (v: number): number => Math.exp(v);
    const rows = [e(1) + 2 * e(3), 1 + e(-1) + e(-2)];
    const p = plain(x.shape, (i) => e(at(x, i)) / rows[i[0]!]!);
    expectWithin(t.softmax(input), p, () => 1e-6);
    expectWithin(t.logSoftmax(input), { ...p, data: Array.from(p.data, Math.log) }, () => 2e-6);
  });
});

test('crossEntropy and rmsNorm keep the leading dimensions', () => {
  scope(() => {
    const logits = upload({ shape: [2, 1, 2], data: [0, Math.log(3), 5, 5] });
    const { loss, lse } = t.crossEntropy(logits, intTensor([1, -100], [2, 1]));
    expectWithin(loss, { shape: [2, 1], data: [Math.log(4 / 3), 0] }, () => 1e-6);
    expectWithin(lse, { shape: [2, 1], data: [Math.log(4), 5 + Math.log(2)] }, () => 1e-6);
    const { y, inv } = t.rmsNorm(upload({ shape: [1, 1, 2], data: [3, 4] }), tensor([1, 2]), 0);
    expectWithin(y, { shape: [1, 1, 2], data: [3 / Math.sqrt(12.5), 8 / Math.sqrt(12.5)] }, () => 1e-6);
    expectWithin(inv, { shape: [1, 1], data: [1 / Math.sqrt(12.5)] }, () => 1e-6);
  });
});

// ---- layout ----

test('permute and transpose move every element to its place', () => {
  const permuted = shapes(0).chain((shape) => {
    const order = shape.map((_, i) => i);
    const perm = fc.shuffledSubarray(order, { minLength: order.length, maxLength: order.length });
    return fc.record({ shape: fc.constant(shape), perm, seed });
  });
  check(
    fc.property(permuted, ({ shape, perm, seed }) => {
      const x = normal(shape, seed);
      const moved = plain(
        perm.map((d) => shape[d]!),
        (index) =>
          at(
            x,
            shape.map((_, d) => index[perm.indexOf(d)]!),
          ),
      );
      scope(() => {
        const input = upload(x);
        expectExactly(t.permute(input, perm), moved);
        if (shape.length < 2) return;
        const turned = [...shape.slice(0, -2), shape.at(-1)!, shape.at(-2)!];
        const swap = (i: number[]): number[] => [...i.slice(0, -2), i.at(-1)!, i.at(-2)!];
        expectExactly(
          t.transpose(input),
          plain(turned, (i) => at(x, swap(i))),
        );
      });
    }),
    200,
  );
});

/** A shape, one of its axes counted from either end, and a range along it. */
const ranged = shapes(1)
  .chain((shape) => fc.record({ shape: fc.constant(shape), axis: fc.integer({ min: 0, max: shape.length - 1 }) }))
  .chain(({ shape, axis }) =>
    fc.record({
      shape: fc.constant(shape),
      axis: fc.constant(axis),
      negative: fc.boolean(),
      cut: fc.tuple(fc.nat(shape[axis]!), fc.nat(shape[axis]!)),
      after: fc.nat(3),
      seed,
    }),
  );

test('slice, pad, concat and write along any axis', () => {
  check(
    fc.property(ranged, ({ shape, axis, negative, cut, after, seed }) => {
      const x = normal(shape, seed);
      const [start, end] = [Math.min(...cut), Math.max(...cut)];
      const ax = negative ? axis - shape.length : axis;
      const size = (n: number): number[] => shape.map((d, i) => (i === axis ? n : d));
      const shift = (index: number[], by: number): number[] => index.map((v, i) => (i === axis ? v + by : v));
      scope(() => {
        const input = upload(x);
        const part = t.slice(input, ax, start, end - start);
        expectExactly(
          part,
          plain(size(end - start), (i) => at(x, shift(i, start))),
        );
        const total = start + shape[axis]! + after;
        const inside = (i: number[]): boolean => i[axis]! >= start && i[axis]! < start + shape[axis]!;
        expectExactly(
          t.pad(input, ax, start, total),
          plain(size(total), (i) => (inside(i) ? at(x, shift(i, -start)) : 0)),
        );
        const pieces = [[0, start] as const, [start, end] as const, [end, shape[axis]!] as const];
        expectExactly(
          t.concat(
            pieces.map(([from, to]) => t.slice(input, ax, from, to - from)),
            ax,
          ),
          x,
        );
        // what was cut out, doubled and written back
        const copy = t.affine(input, 1);
        t.write(copy, t.affine(part, 2), ax, start);
        const cutOut = (i: number[]): boolean => i[axis]! >= start && i[axis]! < end;
        expectExactly(
          copy,
          plain(shape, (i) => at(x, i) * (cutOut(i) ? 2 : 1)),
        );
      });
    }),
    200,
  );
});

test('concat of one tensor is that tensor', () => {
  scope(() => expectExactly(t.concat([tensor([1, 2, 3])], 0), { shape: [3], data: [1, 2, 3] }));
});

// ---- tables ----

const lookup = fc.record({
  rows: fc.integer({ min: 1, max: 6 }),
  width: fc.integer({ min: 0, max: 9 }),
  idShape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 3 }),
  dtype: fc.constantFrom('f32', 'bf16', 'f16'),
  seed,
});

test('gatherRows reads rows, scatterAddRows adds them up', () => {
  check(
    fc.property(lookup, ({ rows, width, idShape, dtype, seed }) => {
      const raw = normal([rows, width], seed);
      const table =
        dtype === 'f32' ? raw : { ...raw, data: Array.from(raw.data, (x) => decode16(encode16(x, dtype), dtype)) };
      const random = new Philox(seed, 1);
      const ids = { shape: idShape, data: Array.from({ length: sizeOf(idShape) }, () => random.int(rows)) };
      const dy = normal([...idShape, width], seed + 1);
      scope(() => {
        const index = intTensor(ids.data, idShape);
        expectExactly(
          t.gatherRows(t.cast(upload(raw), dtype), index),
          plain([...idShape, width], (i) => at(table, [at(ids, i.slice(0, -1)), i.at(-1)!])),
        );
        const sums = plain([rows, width], ([r, c]) =>
          // summed in f32 in the order of the ids, as the contract says
          indices(idShape).reduce((s, i) => (at(ids, i) === r ? Math.fround(s + at(dy, [...i, c!])) : s), 0),
        );
        expectExactly(t.scatterAddRows(upload(dy), index, rows), sums);
      });
    }),
    200,
  );
});

// ---- cast ----

describe('cast', () => {
  test.each(['bf16', 'f16'] as const)('%s → f32 → %s gives back every pattern', (dtype) => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
    scope(() => {
      const wide = t.cast(Tensor.fromHost({ dtype, shape: [65536], data: bits }), 'f32');
      const values = wide.dataSync();
      expect(values.findIndex((x, i) => !Object.is(x, decode16(bits[i]!, dtype)))).toBe(-1);
      const back = t.cast(wide, dtype);
      expect(back.dtype).toBe(dtype);
      const wrong = back.dataSync().findIndex((x, i) => x !== bits[i] && !Number.isNaN(values[i]));
      expect(wrong).toBe(-1);
    });
  });

  test('rounds to nearest even: known patterns', () => {
    // 1 + 2^-8 and 1 + 3·2^-8 lie between two bf16 numbers, 1 + 2^-11 and 1 + 3·2^-11 between two f16 numbers
    const cases: [number, number, number][] = [
      [1, 0x3f80, 0x3c00],
      [1 + 2 ** -8, 0x3f80, 0x3c04],
      [1 + 3 * 2 ** -8, 0x3f82, 0x3c0c],
      [1 + 2 ** -11, 0x3f80, 0x3c00],
      [1 + 3 * 2 ** -11, 0x3f80, 0x3c02],
      [-2, 0xc000, 0xc000],
      [65504, 0x4780, 0x7bff],
      [65520, 0x4780, 0x7c00],
      [2 ** -24, 0x3380, 0x0001],
      [2 ** -25, 0x3300, 0x0000],
      [3.4028234663852886e38, 0x7f80, 0x7c00],
      [-Infinity, 0xff80, 0xfc00],
    ];
    scope(() => {
      const x = tensor(cases.map(([value]) => value));
      expect([...t.cast(x, 'bf16').dataSync()]).toEqual(cases.map(([, bf16]) => bf16));
      expect([...t.cast(x, 'f16').dataSync()]).toEqual(cases.map(([, , f16]) => f16));
    });
  });

  test('rounds to the nearest number of the format', () => {
    const values = fc.array(fc.float({ noNaN: true }), { minLength: 1, maxLength: 20 });
    check(
      fc.property(values, fc.constantFrom('bf16' as const, 'f16' as const), (data, dtype) => {
        scope(() => {
          const y = t.cast(tensor(data), dtype).dataSync();
          expect([...y]).toEqual(data.map((x) => encode16(x, dtype)));
        });
      }),
      200,
    );
  });

  test('i32 truncates, f64 and f32 convert, other pairs go through f32', () => {
    scope(() => {
      const x = tensor([1.75, -1.75, 3]);
      expect([...t.cast(x, 'i32').dataSync()]).toEqual([1, -1, 3]);
      expect([...t.cast(x, 'f64').dataSync()]).toEqual([1.75, -1.75, 3]);
      expect([...t.cast(tensor([1 / 3], [1], { dtype: 'f64' }), 'f32').dataSync()]).toEqual([Math.fround(1 / 3)]);
      const half = t.cast(x, 'f16');
      expect([...t.cast(half, 'i32').dataSync()]).toEqual([1, -1, 3]);
      expect([...t.cast(intTensor([5]), 'bf16').dataSync()]).toEqual([0x40a0]);
    });
  });

  test('to the same dtype shares the memory', () => {
    scope(() => {
      const x = tensor([1, 2]);
      const y = t.cast(x, 'f32');
      expect(x.shared).toBe(true);
      expectExactly(y, { shape: [2], data: [1, 2] });
    });
  });
});

// ---- making tensors ----

describe('tensor', () => {
  test('takes its shape from the nesting and its dtype from the array', () => {
    scope(() => {
      const nested = tensor([
        [[1], [2]],
        [[3], [4]],
      ]);
      expectExactly(nested, { shape: [2, 2, 1], data: [1, 2, 3, 4] });
      expect(tensor(5).shape).toEqual([]);
      expect(tensor([]).shape).toEqual([0]);
      expect(tensor([[], []]).shape).toEqual([2, 0]);
      expect(tensor(Float64Array.of(0.1)).dtype).toBe('f64');
      expect(tensor(Int32Array.of(1, 2), [2, 1]).dtype).toBe('i32');
      expect(tensor([1.9, 2], [2], { dtype: 'i32' }).dataSync()).toEqual(Int32Array.of(1, 2));
      expect(tensor([1, -2], [2], { dtype: 'bf16' }).dataSync()).toEqual(Uint16Array.of(0x3f80, 0xc000));
      expect(tensor(Uint16Array.of(0x3f80), [1], { dtype: 'bf16' }).dataSync()).toEqual(Uint16Array.of(0x3f80));
      expectExactly(t.full([2, 2], 7), { shape: [2, 2], data: [7, 7, 7, 7] });
      expectExactly(t.ones([0, 3]), { shape: [0, 3], data: [] });
      expectExactly(t.zeros([1]), { shape: [1], data: [0] });
    });
  });

  test('copies: neither the given array nor the one read is the memory', async () => {
    const given = Float32Array.of(1, 2);
    const x = tensor(given);
    given[0] = 9;
    const read = x.dataSync();
    read[1] = 9;
    expect([...(await x.data())]).toEqual([1, 2]);
    expect(await x.toHost()).toEqual({ shape: [2], dtype: 'f32', data: Float32Array.of(1, 2) });
    x.dispose();
  });

  test('item reads the only element of any dtype', async () => {
    const x = [tensor([[4.5]]), tensor([2.5], [1], { dtype: 'bf16' }), intTensor([3])];
    expect(await Promise.all(x.map((y) => y.item()))).toEqual([4.5, 2.5, 3]);
    for (const y of x) y.dispose();
  });

  test('reshape keeps the order and may leave one size open', () => {
    scope(() => {
      const x = tensor([
        [1, 2, 3],
        [4, 5, 6],
      ]);
      expectExactly(x.reshape(3, -1), { shape: [3, 2], data: [1, 2, 3, 4, 5, 6] });
      expectExactly(tensor([7]).reshape(), { shape: [], data: [7] });
      expectExactly(t.zeros([0, 3]).reshape(-1, 3), { shape: [0, 3], data: [] });
    });
  });
});

// ---- updates ----

test('axpy, scaleBy, adamw and sgd change the tensor in place; its reshapes see it', () => {
  scope(() => {
    const x = tensor([1, 2, 3]);
    const view = x.reshape(3, 1);
    t.axpy(x, tensor([[1], [1], [1]]), -2);
    t.scaleBy(x, tensor([10]));
    expectExactly(view, { shape: [3, 1], data: [-10, 0, 10] });

    const p = tensor([1]);
    const adam = {
      lr: 0.5,
      beta1: 0.5,
      beta2: 0.75,
      eps: 0,
      weightDecay: 0.5,
      biasCorrection1: 0.5,
      biasCorrection2: 0.25,
    };
    const [m, v] = [tensor([0]), tensor([0])];
    t.adamw([{ p, g: tensor([2]), m, v }], adam);
    // p·(1 − 0.25) − 0.5 · (1 / 0.5) / √(1 / 0.25)
    for (const [state, value] of [
      [p, 0.25],
      [m, 1],
      [v, 1],
    ] as const)
      expectExactly(state, { shape: [1], data: [value] });

    const [q, buffer] = [tensor([4]), tensor([1])];
    t.sgd(q, tensor([1]), buffer, { lr: 0.5, momentum: 0.5, dampening: 0.5, weightDecay: 0.25, nesterov: true });
    // g = 1 + 0.25 · 4; buffer = 0.5 · 1 + 0.5 · g; q = 4 − 0.5 · (g + 0.5 · buffer)
    expectExactly(buffer, { shape: [1], data: [1.5] });
    expectExactly(q, { shape: [1], data: [2.625] });
  });
});

// ---- attention windows ----

describe('causalRanges', () => {
  const ranges = (...args: Parameters<typeof t.causalRanges>): number[] =>
    scope(() => {
      const r = t.causalRanges(...args);
      expect(r.shape).toEqual([args[0], args[1], 2]);
      return [...r.dataSync()];
    });

  test('without a mask, query t sees keys 0 … t', () => {
    expect(ranges(1, 3, 3)).toEqual([0, 1, 0, 2, 0, 3]);
  });
  test('with more keys than queries, the queries are the last ones', () => {
    expect(ranges(1, 2, 5)).toEqual([0, 4, 0, 5]);
  });
  test('cuts padding off either side; a query before the first key sees nothing', () => {
    expect(ranges(2, 3, 3, [0, 1, 1, 1, 1, 0])).toEqual([1, 1, 1, 2, 1, 3, 0, 1, 0, 2, 0, 2]);
  });
  test('a row of zeros sees nothing', () => {
    expect(ranges(1, 2, 2, [0, 0])).toEqual([0, 0, 0, 0]);
  });
  test('a hole is refused', () => {
    expect(() => t.causalRanges(2, 3, 3, [1, 1, 1, 1, 0, 1])).toThrow(
      new TensorError('mask', 'attention mask: expected one run of ones in row 1, got a zero at 1 inside it'),
    );
  });
  test('a mask of another size is refused', () => {
    expect(() => t.causalRanges(2, 2, 3, [1, 1, 1])).toThrow(
      new TensorError('mask', 'attention mask: expected 2·3 entries, got 3'),
    );
  });
});

// ---- what is refused ----

const f = (...shape: number[]): Tensor => t.zeros(shape);
const i = (...shape: number[]): Tensor => intTensor(new Int32Array(sizeOf(shape)), shape);
const elsewhere = (...shape: number[]): Tensor => t.zeros(shape, { backend: other });
const gone = (...shape: number[]): Tensor => {
  const x = t.zeros(shape);
  x.dispose();
  return x;
};
const adam = { lr: 1, beta1: 0, beta2: 0, eps: 1, weightDecay: 0, biasCorrection1: 1, biasCorrection2: 1 };
const sgd = { lr: 1, momentum: 0, dampening: 0, weightDecay: 0, nesterov: false };

describe('errors', () => {
  const toF32 = "; cast(x, 'f32') converts";
  const refused: [call: () => unknown, code: string, message: string][] = [
    // making
    [() => tensor([1, 2, 3], [2, 2]), 'shape', 'tensor: expected 4 elements for shape [2, 2], got 3'],
    [() => tensor([1], [-1]), 'shape', 'tensor: expected -1 elements for shape [-1], got 1'],
    [() => tensor([[1, 2], [3]]), 'shape', 'tensor: expected nested arrays of shape [2, 2], got a ragged one'],
    [() => tensor([1, [2]]), 'shape', 'tensor: expected nested arrays of shape [2], got a ragged one'],
    [() => tensor(Uint16Array.of(1)), 'dtype', 'tensor: expected dtype bf16 or f16 with a Uint16Array, got none'],
    [() => f(2, 3).reshape(4), 'shape', 'reshape: expected 6 elements as in [2, 3], got shape [4]'],
    [() => f(2, 3).reshape(4, -1), 'shape', 'reshape: expected 6 elements as in [2, 3], got shape [4, -1]'],
    [() => f(4).reshape(-1, -1), 'shape', 'reshape: expected 4 elements as in [4], got shape [-1, -1]'],
    // elementwise
    [() => t.add(f(2, 3), f(2)), 'shape', 'add: expected a shape that broadcasts with [2, 3], got [2]'],
    [() => t.sub(f(0), f(2)), 'shape', 'sub: expected a shape that broadcasts with [0], got [2]'],
    [() => t.mul(f(1, 1, 1, 1, 2), f(2)), 'shape', 'mul: expected tensors of rank 4 or less, got rank 5'],
    [() => t.div(i(2), f(2)), 'dtype', 'div: expected a of dtype f32, got i32'],
    [() => t.maximum(f(2), t.cast(f(2), 'bf16')), 'dtype', `max: expected b of dtype f32, got bf16${toF32}`],
    [() => t.minimum(f(2), elsewhere(2)), 'backend', 'min: expected operands on one backend, got wasm and wasm'],
    [() => t.exp(i(2)), 'dtype', 'exp: expected x of dtype f32, got i32'],
    [() => t.affine(t.cast(f(2), 'f64'), 2), 'dtype', `affine: expected x of dtype f32, got f64${toF32}`],
    [() => t.swiglu(f(2), f(3)), 'shape', 'swiglu: expected up of shape [2], got [3]'],
    [() => t.swiglu(i(2), f(2)), 'dtype', 'swiglu: expected gate of dtype f32, got i32'],
    [() => t.swiglu(f(2), i(2)), 'dtype', 'swiglu: expected up of dtype f32, got i32'],
    [() => t.swigluGrad(f(1), f(2), f(2)), 'shape', 'swigluGrad: expected dy of shape [2], got [1]'],
    [() => t.cast(f(2), 'i8' as DType), 'dtype', 'cast: expected a dtype of f32, f64, i32, bf16, f16, int8, got i8'],
    // layout
    [
      () => t.permute(f(2, 3), [0, 0]),
      'shape',
      'permute: expected a permutation of 2 dimensions (at most 4), got [0, 0]',
    ],
    [() => t.permute(f(2, 3), [0]), 'shape', 'permute: expected a permutation of 2 dimensions (at most 4), got [0]'],
    [
      () => t.permute(f(1, 1, 1, 1, 1), [0, 1, 2, 3, 4]),
      'shape',
      'permute: expected a permutation of 5 dimensions (at most 4), got [0, 1, 2, 3, 4]',
    ],
    [() => t.permute(i(2), [0]), 'dtype', 'permute: expected x of dtype f32, got i32'],
    [() => t.transpose(f(2)), 'shape', 'transpose: expected rank 2 or more, got shape [2]'],
    [() => t.slice(f(2, 3), 1, 2, 2), 'shape', 'slice: expected a range inside 0 … 3 of axis 1, got 2 … 4'],
    [() => t.slice(f(2, 3), 2, 0, 1), 'shape', 'slice: expected an axis from -2 to 1, got 2'],
    [() => t.slice(i(2), 0, 0, 1), 'dtype', 'slice: expected x of dtype f32, got i32'],
    [() => t.pad(f(3), 0, 1, 3), 'shape', 'pad: expected room for 3 elements at 1, got 3'],
    [() => t.pad(i(3), 0, 1, 9), 'dtype', 'pad: expected x of dtype f32, got i32'],
    [() => t.concat([], 0), 'shape', 'concat: expected at least one tensor, got none'],
    [
      () => t.concat([f(2, 3), f(2, 2)], 0),
      'shape',
      'concat: expected shapes equal to [2, 3] but for axis 0, got [2, 2]',
    ],
    [() => t.concat([f(2), f(2, 2)], 0), 'shape', 'concat: expected shapes equal to [2] but for axis 0, got [2, 2]'],
    [() => t.concat([f(2), i(2)], 0), 'dtype', 'concat: expected every part of dtype f32, got i32'],
    [() => t.concat([i(2), f(2)], 0), 'dtype', 'concat: expected every part of dtype f32, got i32'],
    [() => t.concat([f(2), elsewhere(2)], 0), 'backend', 'concat: expected operands on one backend, got wasm and wasm'],
    [() => t.gatherRows(f(2), i(1)), 'shape', 'gatherRows: expected a table [rows, width], got [2]'],
    [
      () => t.gatherRows(i(2, 2), i(1)),
      'dtype',
      'gatherRows: expected table of dtype f32 or bf16 or f16 or int8, got i32',
    ],
    [() => t.gatherRows(f(2, 2), f(1)), 'dtype', 'gatherRows: expected ids of dtype i32, got f32'],
    [() => t.scatterAddRows(f(2, 3), i(3), 4), 'shape', 'scatterAddRows: expected dy of shape [3, 3], got [2, 3]'],
    [() => t.scatterAddRows(f(2, 3), f(2), 4), 'dtype', 'scatterAddRows: expected ids of dtype i32, got f32'],
    [() => t.scatterAddRows(i(2, 3), i(2), 4), 'dtype', 'scatterAddRows: expected dy of dtype f32, got i32'],
    // matmul
    [() => t.matmul(f(3), f(3, 2)), 'shape', 'matmul: expected operands of rank 2 or more, got [3] and [3, 2]'],
    [() => t.matmul(f(2, 3), f(2, 3)), 'shape', 'matmul: expected equal inner sizes, got [2, 3] · [2, 3]'],
    [
      () => t.matmul(f(2, 3), f(2, 3), { transposeA: true, transposeB: true }),
      'shape',
      'matmul: expected equal inner sizes, got [2, 3]ᵀ · [2, 3]ᵀ',
    ],
    [
      () => t.matmul(f(2, 2, 3), f(3, 3, 2)),
      'shape',
      'matmul: expected equal leading dimensions, or a plain matrix, got [2, 2, 3] and [3, 3, 2]',
    ],
    [() => t.matmul(t.cast(f(2, 2), 'bf16'), f(2, 2)), 'dtype', `matmul: expected a of dtype f32, got bf16${toF32}`],
    [() => t.matmul(f(2, 2), i(2, 2)), 'dtype', 'matmul: expected b of dtype f32 or bf16 or f16 or int8, got i32'],
    [() => t.matmul(f(2, 3), f(3, 2), { into: f(2, 3) }), 'shape', 'matmul: expected into of shape [2, 2], got [2, 3]'],
    [() => t.matmul(f(2, 3), f(3, 2), { into: i(2, 2) }), 'dtype', 'matmul: expected into of dtype f32, got i32'],
    [
      () => t.matmul(f(2, 3), f(3, 2), { into: elsewhere(2, 2) }),
      'backend',
      'matmul: expected operands on one backend, got wasm and wasm',
    ],
    [
      () => t.matmul(f(2, 3), elsewhere(3, 2)),
      'backend',
      'matmul: expected operands on one backend, got wasm and wasm',
    ],
    // rows
    [() => t.sum(f(2, 3), { axis: -3 }), 'shape', 'sum: expected an axis from -2 to 1, got -3'],
    [() => t.sum(f(2, 3), { axis: 0.5 }), 'shape', 'sum: expected an axis from -2 to 1, got 0.5'],
    [() => t.max(i(2)), 'dtype', 'max: expected x of dtype f32, got i32'],
    [() => t.sumTo(f(2, 2, 3), [4, 3]), 'shape', 'sumTo: expected a shape that broadcasts to [2, 2, 3], got [4, 3]'],
    [() => t.argmax(i(2)), 'dtype', 'argmax: expected x of dtype f32, got i32'],
    [() => t.softmax(f()), 'shape', 'softmax: expected a tensor of rank 1 or more, got shape []'],
    [() => t.softmax(i(2)), 'dtype', 'softmax: expected x of dtype f32, got i32'],
    [() => t.softmaxGrad(f(2), f(3)), 'shape', 'softmaxGrad: expected dy of shape [3], got [2]'],
    [() => t.logSoftmax(i(2)), 'dtype', 'logSoftmax: expected x of dtype f32, got i32'],
    [() => t.logSoftmaxGrad(f(2), f(3)), 'shape', 'logSoftmaxGrad: expected dy of shape [3], got [2]'],
    [() => t.rmsNorm(f(2, 3), f(2), 1), 'shape', 'rmsNorm: expected weight of shape [3], got [2]'],
    [() => t.rmsNorm(i(2), f(2), 1), 'dtype', 'rmsNorm: expected x of dtype f32, got i32'],
    [() => t.rmsNorm(f(2), i(2), 1), 'dtype', 'rmsNorm: expected weight of dtype f32, got i32'],
    [
      () => t.rmsNormGradInput(f(3), f(2, 3), f(3), f(2)),
      'shape',
      'rmsNormGradInput: expected dy of shape [2, 3], got [3]',
    ],
    [
      () => t.rmsNormGradWeight(f(2, 3), f(2, 3), f(3)),
      'shape',
      'rmsNormGradWeight: expected inv of shape [2], got [3]',
    ],
    [() => t.crossEntropy(f(2, 3), i(3)), 'shape', 'crossEntropy: expected 2 labels for logits [2, 3], got [3]'],
    [() => t.crossEntropy(i(2, 3), i(2)), 'dtype', 'crossEntropy: expected logits of dtype f32, got i32'],
    [() => t.crossEntropy(f(2, 3), f(2)), 'dtype', 'crossEntropy: expected labels of dtype i32, got f32'],
    [
      () => t.crossEntropyGrad(f(3), f(2, 3), i(2), f(2)),
      'shape',
      'crossEntropyGrad: expected 2 losses, labels and lse for logits [2, 3], got [3], [2], [2]',
    ],
    // LLaMA
    [
      () => t.rope(f(2, 1, 4), i(3), f(5, 2), f(5, 2)),
      'shape',
      'rope: expected positions for 2 tokens and tables of width D/2 of an even D, got 3 positions, tables [5, 2], x [2, 1, 4]',
    ],
    [
      () => t.rope(f(2, 1, 3), i(2), f(5, 1), f(5, 1)),
      'shape',
      'rope: expected positions for 2 tokens and tables of width D/2 of an even D, got 2 positions, tables [5, 1], x [2, 1, 3]',
    ],
    [() => t.rope(f(2, 1, 4), i(2), f(5, 2), f(5, 1)), 'shape', 'rope: expected sin of shape [5, 2], got [5, 1]'],
    [() => t.rope(i(2, 1, 4), i(2), f(5, 2), f(5, 2)), 'dtype', 'rope: expected x of dtype f32, got i32'],
    [() => t.rope(f(2, 1, 4), f(2), f(5, 2), f(5, 2)), 'dtype', 'rope: expected positions of dtype i32, got f32'],
    [
      () => t.attention(f(2, 4), f(1, 2, 1, 4), f(1, 2, 1, 4), i(1, 2, 2)),
      'shape',
      'attention: expected q [B, T, H, D] and k [B, S, G, D], got [2, 4], [1, 2, 1, 4]',
    ],
    [
      () => t.attention(f(1, 2, 1, 4), f(2, 2, 1, 4), f(2, 2, 1, 4), i(1, 2, 2)),
      'shape',
      'attention: expected k of shape [1, 2, 1, 4], got [2, 2, 1, 4]',
    ],
    [
      () => t.attention(f(1, 2, 1, 4), f(1, 2, 1, 4), f(1, 3, 1, 4), i(1, 2, 2)),
      'shape',
      'attention: expected v of shape [1, 2, 1, 4], got [1, 3, 1, 4]',
    ],
    [
      () => t.attention(f(1, 2, 3, 4), f(1, 2, 2, 4), f(1, 2, 2, 4), i(1, 2, 2)),
      'shape',
      'attention: expected query heads a multiple of 2 key/value heads, got 3',
    ],
    [
      () => t.attention(f(1, 2, 1, 4), f(1, 2, 1, 4), f(1, 2, 1, 4), i(1, 3, 2)),
      'shape',
      'attention: expected ranges of shape [1, 2, 2], got [1, 3, 2]',
    ],
    [
      () => t.attention(f(1, 2, 1, 4), f(1, 2, 1, 4), f(1, 2, 1, 4), f(1, 2, 2)),
      'dtype',
      'attention: expected ranges of dtype i32, got f32',
    ],
    [
      () => t.attention(f(1, 2, 1, 4), i(1, 2, 1, 4), f(1, 2, 1, 4), i(1, 2, 2)),
      'dtype',
      'attention: expected k of dtype f32, got i32',
    ],
    [
      () => t.attention(f(1, 2, 1, 4), elsewhere(1, 2, 1, 4), f(1, 2, 1, 4), i(1, 2, 2)),
      'backend',
      'attention: expected operands on one backend, got wasm and wasm',
    ],
    [
      () => {
        const [q, k, ranges] = [f(1, 2, 1, 4), f(1, 2, 1, 4), i(1, 2, 2)];
        const { out, lse } = t.attention(q, k, k, ranges);
        t.attentionGrad(f(1, 2, 4), q, k, k, ranges, out, lse);
      },
      'shape',
      'attentionGrad: expected dout of shape [1, 2, 1, 4], got [1, 2, 4]',
    ],
    // updates
    [() => t.axpy(f(2), f(3)), 'shape', 'axpy: expected as many elements as [2], got [3]'],
    [() => t.axpy(i(2), f(2)), 'dtype', 'axpy: expected y of dtype f32, got i32'],
    [() => t.axpy(f(2), i(2)), 'dtype', 'axpy: expected x of dtype f32, got i32'],
    [() => t.write(f(2, 3), f(2, 2), 1, 2), 'shape', 'write: expected a range inside 0 … 3, got 2 … 4'],
    [() => t.write(f(2, 3), f(1, 2), 1, 0), 'shape', 'write: expected x of shape [2, 2], got [1, 2]'],
    [() => t.write(i(2), f(1), 0, 0), 'dtype', 'write: expected y of dtype f32, got i32'],
    [() => t.write(f(2), i(1), 0, 0), 'dtype', 'write: expected x of dtype f32, got i32'],
    [() => t.scaleBy(f(2), f(2)), 'shape', 'scaleBy: expected a factor of one element, got [2]'],
    [() => t.scaleBy(i(2), f(1)), 'dtype', 'scaleBy: expected y of dtype f32, got i32'],
    [() => t.scaleBy(f(2), i(1)), 'dtype', 'scaleBy: expected factor of dtype f32, got i32'],
    [() => t.adamw([{ p: f(2), g: f(3), m: f(2), v: f(2) }], adam), 'shape', 'adamw: expected g of shape [2], got [3]'],
    [() => t.adamw([{ p: f(2), g: f(2), m: f(2), v: f(3) }], adam), 'shape', 'adamw: expected v of shape [2], got [3]'],
    [
      () => t.adamw([{ p: t.cast(f(2), 'bf16'), g: f(2), m: f(2), v: f(2) }], adam),
      'dtype',
      `adamw: expected p of dtype f32, got bf16${toF32}`,
    ],
    [() => t.sgd(f(2), f(2), f(1), sgd), 'shape', 'sgd: expected buf of shape [2], got [1]'],
    [() => t.sgd(f(2), i(2), f(2), sgd), 'dtype', 'sgd: expected g of dtype f32, got i32'],
    // freed
    [
      () => t.add(f(2), gone(2)),
      'disposed',
      'tensor: expected a live tensor, got one of shape [2] that was freed. Return it from its scope, or keep() it.',
    ],
  ];

  test.each(refused.map(([call, code, message]) => ({ message, code, call })))(
    '$message',
    ({ call, code, message }) => {
      let caught: unknown;
      scope(() => {
        try {
          call();
        } catch (error) {
          caught = error;
        }
      });
      expect(caught).toBeInstanceOf(TensorError);
      expect((caught as TensorError).message).toBe(message);
      expect((caught as TensorError).code).toBe(code);
      expect(message).toMatch(/^[\w ]+: expected .*, got /);
    },
  );

  test('of asynchronous reads reject', async () => {
    const x = gone(3);
    await expect(x.data()).rejects.toMatchObject({ code: 'disposed' });
    expect(() => x.dataSync()).toThrow(expect.objectContaining({ code: 'disposed' }));
    const y = f(2);
    await expect(y.item()).rejects.toMatchObject({
      code: 'shape',
      message: 'item: expected one element, got shape [2]',
    });
    y.dispose();
  });
});
