/**
 * The derivative of every op against finite differences of its value, over random shapes. The table below has an entry for every op that
 * ops.ts exports. fast-check draws sizes, options and a seed; the numbers come from the seed, so a failure prints what reproduces it.
 */
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Philox, Tensor, createWasmBackend, intTensor, scope, setBackend } from '@milora/tensor';
import * as t from '@milora/tensor';
import type { WasmBackend } from '@milora/tensor';
import { AutogradError, Variable, checkpoint, gradcheck, record } from '@milora/autograd';
import type { GradcheckOptions } from '@milora/autograd';
import * as ops from '../src/ops.js';

const RUNS = 200;

let backend: WasmBackend;
beforeAll(() => {
  backend = createWasmBackend({ threads: 1 });
  setBackend(backend);
});
afterEach(() => {
  expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
});
afterAll(() => backend.close());

// ---- random inputs ----

/** Seeded tensors, with values where the op under test is smooth: a step of 0.04 to either side must stay there. */
class Values {
  readonly random: Philox;
  constructor(seed: number) {
    this.random = new Philox(seed);
  }
  private make(shape: readonly number[], value: (u: number) => number): Tensor {
    const data = this.random.uniformArray(sizeOf(shape), -1, 1).map(value);
    return Tensor.fromHost({ dtype: 'f32', shape, data });
  }
  /** Anything in [−1.5, 1.5). */
  any(shape: readonly number[]): Tensor {
    return this.make(shape, (u) => 1.5 * u);
  }
  /** Positive, in [0.5, 2). */
  positive(shape: readonly number[]): Tensor {
    return this.make(shape, (u) => 1.25 + 0.75 * u);
  }
  /** Of either sign, 0.3 … 1.5 away from zero. */
  awayFromZero(shape: readonly number[]): Tensor {
    return this.make(shape, (u) => Math.sign(u) * 0.3 + 1.2 * u);
  }
  ids(end: number, shape: readonly number[]): Tensor {
    return intTensor(
      Array.from({ length: sizeOf(shape) }, () => this.random.int(end)),
      shape,
    );
  }
}

const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
const seed = fc.integer({ min: 0, max: 2 ** 31 - 1 });
const dimension = fc.integer({ min: 1, max: 4 });
const shapes = (minLength: number, maxLength: number): fc.Arbitrary<number[]> =>
  fc.array(dimension, { minLength, maxLength });

/** Two shapes that broadcast. */
const pair = shapes(0, 4).chain((full) => {
  const part = fc
    .record({ rank: fc.nat(full.length), ones: fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }) })
    .map(({ rank, ones }) => full.map((d, i) => (ones[i] ? 1 : d)).slice(full.length - rank));
  return fc.record({ a: part, b: part });
});

/** A shape and one of its axes, from either end. */
const withAxis = shapes(1, 4).chain((shape) =>
  fc.record({ shape: fc.constant(shape), axis: fc.integer({ min: -shape.length, max: shape.length - 1 }) }),
);

// ---- the table ----

interface Case {
  /** What the derivative is taken with respect to. */
  inputs: Tensor[];
  fn: (...inputs: Variable[]) => Variable;
  options?: GradcheckOptions;
}

interface Entry {
  params: fc.Arbitrary<unknown>;
  build: (params: unknown, values: Values) => Case;
}

/** One entry with the type of its parameters sealed in. */
function op<P>(params: fc.Arbitrary<P>, build: (params: P, values: Values) => Case): Entry {
  return { params, build: build as Entry['build'] };
}

const unary = (f: (x: Variable) => Variable, kind: 'any' | 'positive' | 'awayFromZero' = 'any'): Entry =>
  op(shapes(0, 4), (shape, values) => ({ inputs: [values[kind](shape)], fn: f }));

const binary = (f: (a: Variable, b: Variable) => Variable, kind: 'any' | 'awayFromZero' = 'any'): Entry =>
  op(pair, ({ a, b }, values) => ({ inputs: [values.any(a), values[kind](b)], fn: f }));

const reduction = (f: typeof ops.sum): Entry =>
  op(
    fc.record({ at: withAxis, all: fc.boolean(), keepDims: fc.boolean() }),
    ({ at: { shape, axis }, all, keepDims }, values) => ({
      inputs: [values.any(shape)],
      fn: (x) => f(x, all ? { keepDims } : { axis, keepDims }),
    }),
  );

/** Targets of a loss: class ids, about a quarter of them ignored, at times all. */
const targets = (rows: number, classes: number) =>
  fc.array(fc.oneof({ weight: 3, arbitrary: fc.nat(classes - 1) }, { weight: 1, arbitrary: fc.constant(-100) }), {
    minLength: rows,
    maxLength: rows,
  });

const lossCase = fc
  .record({ lead: shapes(1, 2), width: dimension, classes: fc.integer({ min: 1, max: 7 }) })
  .chain((sizes) =>
    fc.record({
      sizes: fc.constant(sizes),
      targets: targets(sizeOf(sizes.lead), sizes.classes),
      normalizer: fc.option(fc.constantFrom(1, 3), { nil: undefined }),
    }),
  )
  .map(({ sizes, targets, normalizer }) => ({
    ...sizes,
    targets,
    options: normalizer === undefined ? {} : { normalizer },
  }));

const attentionCase = fc.record({
  batch: fc.constantFrom(1, 1, 2),
  queries: fc.integer({ min: 1, max: 4 }),
  keys: fc.integer({ min: 1, max: 5 }),
  kvHeads: fc.constantFrom(1, 2),
  group: fc.constantFrom(1, 2, 3),
  headDim: fc.integer({ min: 1, max: 5 }),
  /** Random windows are empty now and then; causal ones are when there are more queries than keys. */
  windows: fc.constantFrom('causal', 'all', 'random', 'empty'),
  scale: fc.option(fc.constant(0.7), { nil: undefined }),
});

function windows(kind: string, batch: number, queries: number, keys: number, values: Values): Tensor {
  if (kind === 'causal') return t.causalRanges(batch, queries, keys);
  const rows = Array.from({ length: batch * queries }, (_, row): [number, number] => {
    if (kind === 'all') return [0, keys];
    if (kind === 'empty' && row === 0) return [0, 0];
    const [a, b] = [values.random.int(keys + 1), values.random.int(keys + 1)];
    return [Math.min(a, b), Math.max(a, b)];
  });
  return intTensor(rows.flat(), [batch, queries, 2]);
}

const table: Record<string, Entry> = {
  add: binary(ops.add),
  sub: binary(ops.sub),
  mul: binary(ops.mul),
  div: binary(ops.div, 'awayFromZero'),
  affine: op(fc.record({ shape: shapes(0, 4), factor: fc.constantFrom(2, -0.5, 0) }), ({ shape, factor }, values) => ({
    inputs: [values.any(shape)],
    fn: (x) => ops.affine(x, factor, 0.3),
  })),
  neg: unary(ops.neg),
  exp: unary(ops.exp),
  log: unary(ops.log, 'positive'),
  sqrt: unary(ops.sqrt, 'positive'),
  square: unary(ops.square),
  sigmoid: unary(ops.sigmoid),
  tanh: unary(ops.tanh),
  relu: unary(ops.relu, 'awayFromZero'),
  silu: unary(ops.silu),
  swiglu: op(shapes(0, 3), (shape, values) => ({ inputs: [values.any(shape), values.any(shape)], fn: ops.swiglu })),
  dropout: op(
    fc.record({ shape: shapes(0, 3), p: fc.constantFrom(0, 0.1, 0.5, 0.9), seed }),
    ({ shape, p, seed }, values) => ({
      inputs: [values.any(shape)],
      // the same mask every time
      fn: (x) => ops.dropout(x, p, new Philox(seed)),
    }),
  ),
  sum: reduction(ops.sum),
  mean: reduction(ops.mean),
  reshape: op(fc.tuple(shapes(0, 4), fc.boolean()), ([shape, flat], values) => ({
    inputs: [values.any(shape)],
    fn: (x) => (flat ? ops.reshape(x, -1) : ops.reshape(x, ...[...shape].reverse())),
  })),
  permute: op(
    shapes(0, 4).chain((shape) => {
      const order = shape.map((_, i) => i);
      return fc.tuple(fc.constant(shape), fc.shuffledSubarray(order, { minLength: order.length }));
    }),
    ([shape, perm], values) => ({ inputs: [values.any(shape)], fn: (x) => ops.permute(x, perm) }),
  ),
  slice: op(
    fc.record({ at: withAxis, cut: fc.tuple(fc.nat(3), fc.nat(3)) }),
    ({ at: { shape, axis }, cut }, values) => {
      const n = shape.at(axis)!;
      const start = Math.min(cut[0], n - 1);
      const count = Math.min(cut[1] + 1, n - start);
      return { inputs: [values.any(shape)], fn: (x) => ops.slice(x, axis, start, count) };
    },
  ),
  concat: op(
    fc.record({ at: withAxis, sizes: fc.array(dimension, { minLength: 1, maxLength: 3 }), twice: fc.boolean() }),
    ({ at: { shape, axis }, sizes, twice }, values) => {
      const index = axis < 0 ? axis + shape.length : axis;
      return {
        inputs: sizes.map((size) => values.any(shape.map((d, i) => (i === index ? size : d)))),
        // one part may occur twice
        fn: (...parts) => ops.concat(twice ? [...parts, parts[0]!] : parts, axis),
      };
    },
  ),
  embedding: op(
    fc.record({ rows: dimension, width: dimension, idShape: shapes(0, 3) }),
    ({ rows, width, idShape }, values) => {
      // few rows and many ids: repeated ids are the rule
      const ids = values.ids(rows, idShape);
      return { inputs: [values.any([rows, width])], fn: (weight) => ops.embedding(weight, ids) };
    },
  ),
  matmul: op(
    fc.record({
      lead: shapes(0, 2),
      m: dimension,
      k: dimension,
      n: dimension,
      shared: fc.constantFrom('none', 'a', 'b'),
    }),
    ({ lead, m, k, n, shared }, values) => ({
      inputs: [
        values.any([...(shared === 'a' ? [] : lead), m, k]),
        values.any([...(shared === 'b' ? [] : lead), k, n]),
      ],
      fn: ops.matmul,
    }),
  ),
  linear: op(
    fc.record({ lead: shapes(0, 3), inputs: dimension, outputs: dimension, bias: fc.boolean() }),
    ({ lead, inputs, outputs, bias }, values) => ({
      inputs: [values.any([...lead, inputs]), values.any([outputs, inputs]), ...(bias ? [values.any([outputs])] : [])],
      fn: ops.linear,
    }),
  ),
  softmax: unary(ops.softmax),
  logSoftmax: unary(ops.logSoftmax),
  rmsNorm: op(
    fc.record({ lead: shapes(0, 3), width: dimension, eps: fc.constantFrom(1e-5, 0.1) }),
    ({ lead, width, eps }, values) => ({
      inputs: [values.awayFromZero([...lead, width]), values.any([width])],
      fn: (x, weight) => ops.rmsNorm(x, weight, eps),
    }),
  ),
  rope: op(
    fc.record({ lead: shapes(1, 2), heads: dimension, half: fc.integer({ min: 1, max: 3 }) }),
    ({ lead, heads, half }, values) => {
      const angles = Array.from({ length: 10 }, (_, p) =>
        Array.from({ length: half }, (_, j) => p * 10 ** (-j / half)),
      );
      const [cos, sin] = [t.tensor(angles.map((a) => a.map(Math.cos))), t.tensor(angles.map((a) => a.map(Math.sin)))];
      const positions = values.ids(10, lead);
      return { inputs: [values.any([...lead, heads, 2 * half])], fn: (x) => ops.rope(x, positions, cos, sin) };
    },
  ),
  attention: op(attentionCase, (c, values) => {
    const ranges = windows(c.windows, c.batch, c.queries, c.keys, values);
    const shape = [c.batch, c.keys, c.kvHeads, c.headDim];
    return {
      inputs: [values.any([c.batch, c.queries, c.kvHeads * c.group, c.headDim]), values.any(shape), values.any(shape)],
      fn: (q, k, v) => ops.attention(q, k, v, ranges, c.scale),
    };
  }),
  crossEntropy: op(lossCase, ({ lead, classes, targets, options }, values) => ({
    inputs: [values.any([...lead, classes])],
    fn: (logits) => ops.crossEntropy(logits, targets, options),
  })),
  linearCrossEntropy: op(lossCase, ({ lead, width, classes, targets, options }, values) => ({
    inputs: [values.any([...lead, width]), values.any([classes, width])],
    fn: (x, weight) => ops.linearCrossEntropy(x, weight, targets, options),
  })),
};
// softmax needs a dimension to run along
for (const f of ['softmax', 'logSoftmax'] as const) table[f]!.params = shapes(1, 4);

/** Exported for ops in other files, and no ops themselves. */
const HELPERS = ['addProduct', 'asRows'];

test('the table has every op', () => {
  expect(Object.keys(table).sort()).toEqual(
    Object.keys(ops)
      .filter((name) => !HELPERS.includes(name))
      .sort(),
  );
});

describe('the derivative is that of the value', () => {
  test.each(Object.entries(table))('%s', async (_, { params, build }) => {
    await fc.assert(
      fc.asyncProperty(params, seed, async (params, seed) => {
        await scope(async () => {
          const { inputs, fn, options } = build(params, new Values(seed));
          await gradcheck(fn, inputs, new Philox(seed, 1), { samples: 6, ...options });
        });
      }),
      { numRuns: RUNS },
    );
  });

  test('of ops in a row and side by side', async () => {
    // every input is used more than once, through views, broadcasting and products that add into a gradient
    const fn = (x: Variable, w: Variable, b: Variable): Variable => {
      const h = ops.rmsNorm(ops.linear(x, w, b), b, 1e-5);
      const gated = ops.swiglu(ops.linear(h, w), ops.add(h, x));
      const mixed = ops.matmul(ops.reshape(gated, 2, 3, 4), ops.permute(w, [1, 0]));
      return ops.sub(ops.mul(ops.softmax(mixed), ops.reshape(x, 2, 3, 4)), ops.mean(ops.square(h)));
    };
    await fc.assert(
      fc.asyncProperty(seed, async (seed) => {
        await scope(async () => {
          const values = new Values(seed);
          const inputs = [values.any([6, 4]), values.any([4, 4]), values.awayFromZero([4])];
          await gradcheck(fn, inputs, new Philox(seed, 1), { step: 0.01, tolerance: 5e-3, samples: 5 });
        });
      }),
      { numRuns: 50 },
    );
  });
});

describe('gradcheck', () => {
  const values = (): Values => new Values(1);
  const check = (fn: (x: Variable) => Variable, shape: number[], options?: GradcheckOptions): Promise<number> =>
    scope(() => gradcheck(fn, [values().awayFromZero(shape)], new Philox(1), options));

  test('fails on a wrong derivative and says where', async () => {
    // the derivative of x² is not x
    const wrong = (x: Variable): Variable =>
      record('wrong', t.square(x.value), [x], (dy, to) => to.add(0, t.mul(dy, x.value)));
    await expect(check(wrong, [2, 3])).rejects.toThrow(AutogradError);
    await expect(check(wrong, [2, 3])).rejects.toThrow(
      /^gradcheck: expected derivative -?[\d.]+ of input 0 at entry 0 \(relative tolerance 0\.002\), got -?[\d.]+$/,
    );
  });

  test('fails when one entry of many is off by one percent', async () => {
    const off = (x: Variable): Variable =>
      record('off', t.affine(x.value, 1), [x], (dy, to) => {
        const factor = t.tensor([1, 1, 1, 1.01, 1, 1]);
        to.add(0, t.mul(dy, factor));
      });
    // the differences are relative to the largest entry, so all weights are alike here
    const even = (x: Variable): Variable => ops.affine(ops.mul(off(x), new Variable(t.ones([6]))), 1);
    await expect(check((x) => ops.sum(even(x)), [6])).rejects.toMatchObject({ code: 'gradcheck' });
    expect(await check((x) => ops.sum(even(x)), [6], { tolerance: 0.02 })).toBeGreaterThan(0.005);
  });

  test('fails when a derivative is missing or not a number', async () => {
    const nothing = (x: Variable): Variable => record('nothing', t.affine(x.value, 2), [x], () => undefined);
    const nan = (x: Variable): Variable =>
      record('nan', t.affine(x.value, 2), [x], (dy, to) => to.add(0, t.affine(dy, NaN)));
    await expect(check(nothing, [3])).rejects.toMatchObject({ code: 'gradcheck' });
    await expect(check(nan, [3])).rejects.toMatchObject({ code: 'gradcheck' });
  });

  test('returns the largest relative difference of a right one', async () => {
    const worst = await check((x) => ops.exp(x), [5]);
    expect(worst).toBeGreaterThan(0);
    expect(worst).toBeLessThan(1e-3);
  });
});

// ---- what two ways to compute the same must agree on ----

/** Gradients of a loss with respect to leaves of the given values. */
function gradients(
  inputs: readonly Tensor[],
  loss: (...leaves: Variable[]) => Variable,
): { value: number[]; grads: number[][] } {
  const leaves = inputs.map((x) => new Variable(x, { requiresGrad: true }));
  return scope(() => {
    const y = loss(...leaves);
    y.backward();
    const result = {
      value: [...y.value.dataSync()],
      grads: leaves.map((leaf) => (leaf.grad ? [...leaf.grad.dataSync()] : [])),
    };
    for (const leaf of leaves) leaf.zeroGrad();
    return result;
  });
}

function expectClose(actual: readonly number[], expected: readonly number[], tolerance: number): void {
  expect(actual.length).toBe(expected.length);
  const largest = expected.reduce((max, x) => Math.max(max, Math.abs(x)), 1e-3);
  actual.forEach((x, i) => {
    if (!(Math.abs(x - expected[i]!) <= tolerance * largest)) {
      throw new Error(`entry ${i}: expected ${expected[i]} ± ${tolerance * largest}, got ${x}`);
    }
  });
}

describe('linearCrossEntropy is crossEntropy of linear', () => {
  const agree = (x: Tensor, w: Tensor, targets: number[], options: { normalizer?: number } = {}): void => {
    const fused = gradients([x, w], (x, w) => ops.linearCrossEntropy(x, w, targets, options));
    const plain = gradients([x, w], (x, w) => ops.crossEntropy(ops.linear(x, w), targets, options));
    // the same sums in another order
    expectClose(fused.value, plain.value, 1e-5);
    fused.grads.forEach((g, i) => expectClose(g, plain.grads[i]!, 1e-5));
  };

  test('in value and gradients, over random shapes, ignored rows and normalizers', () => {
    fc.assert(
      fc.property(lossCase, seed, ({ lead, width, classes, targets, options }, seed) => {
        const values = new Values(seed);
        scope(() => agree(values.any([...lead, width]), values.any([classes, width]), targets, options));
      }),
      { numRuns: RUNS },
    );
  });

  test('when the logits come in several chunks', () => {
    // 2^23 logits at a time: here 3 rows, so that 8 rows with a target make 3 chunks
    const [classes, width] = [2_700_001, 1];
    const values = new Values(3);
    const targets = [0, 5, -100, classes - 1, 77, -100, 1_234_567, 3, 3, 9];
    scope(() => agree(values.any([10, width]), values.any([classes, width]), targets));
  });

  test('when no row has a target: the loss is 0, and so are the gradients', () => {
    const values = new Values(4);
    scope(() => {
      const result = gradients([values.any([2, 3]), values.any([5, 3])], (x, w) =>
        ops.linearCrossEntropy(x, w, [-100, -1]),
      );
      expect(result).toEqual({ value: [0], grads: [Array(6).fill(0), Array(15).fill(0)] });
    });
  });

  test('under noGrad it makes no gradients and gives the same value', () => {
    const values = new Values(5);
    scope(() => {
      const [x, w] = [values.any([4, 3]), values.any([6, 3])];
      const leaves = [x, w].map((v) => new Variable(v)) as [Variable, Variable];
      const frozen = ops.linearCrossEntropy(...leaves, [1, 2, -100, 5]);
      expect(frozen.requiresGrad).toBe(false);
      const trained = gradients([x, w], (x, w) => ops.linearCrossEntropy(x, w, [1, 2, -100, 5]));
      expect([...frozen.value.dataSync()]).toEqual(trained.value);
    });
  });
});

describe('checkpoint', () => {
  const block = (w: Variable, b: Variable) => (x: Variable) => ops.rmsNorm(ops.silu(ops.linear(x, w, b)), b, 1e-5);

  test('gives the gradients that go without it', () => {
    fc.assert(
      fc.property(seed, fc.boolean(), (seed, trainInput) => {
        scope(() => {
          const values = new Values(seed);
          const [x, w, b] = [values.any([5, 4]), values.any([4, 4]), values.awayFromZero([4])];
          // parameters are used inside only; the input may need no gradient
          const run = (wrap: typeof checkpoint) =>
            gradients(trainInput ? [w, b, x] : [w, b], (w, b, leaf) => {
              const h = wrap(block(w!, b!), leaf ?? new Variable(x));
              return ops.sum(ops.square(wrap(block(w!, b!), h)));
            });
          const [checked, plain] = [run(checkpoint), run((fn, ...inputs) => fn(...inputs))];
          expect(checked.value).toEqual(plain.value);
          // a parameter that is used several times has its gradients added up in another order
          checked.grads.forEach((g, i) => expectClose(g, plain.grads[i]!, 1e-5));
        });
      }),
      { numRuns: 50 },
    );
  });

  test('drops the same elements when it runs again, and draws only once', () => {
    scope(() => {
      const x = new Values(6).any([40]);
      const run = (wrap: (fn: (x: Variable) => Variable, x: Variable) => Variable) => {
        const random = new Philox(6);
        const result = gradients([x], (x) => ops.sum(ops.square(wrap((v) => ops.dropout(v, 0.5, random), x))));
        return { ...result, state: random.state() };
      };
      expect(run((fn, x) => checkpoint(fn, x))).toEqual(run((fn, x) => fn(x)));
      // also when checkpoints nest
      expect(run((fn, x) => checkpoint((y) => checkpoint(fn, y), x))).toEqual(run((fn, x) => fn(x)));
    });
  });

  test('with several inputs, one of them used outside too', async () => {
    await scope(async () => {
      const values = new Values(7);
      const inputs = [values.any([3, 2]), values.any([3, 2])];
      const fn = (a: Variable, b: Variable): Variable =>
        ops.mul(
          checkpoint((a, b) => ops.mul(ops.square(a), ops.sigmoid(b)), a, b),
          a,
        );
      await gradcheck(fn, inputs, new Philox(7));
    });
  });

  test('keeps nothing of the inside until backward', () => {
    scope(() => {
      const values = new Values(8);
      const x = new Variable(values.any([8, 16]), { requiresGrad: true });
      const before = backend.memory().liveBuffers;
      const y = checkpoint((x) => ops.exp(ops.sigmoid(ops.tanh(ops.square(x)))), x);
      expect(backend.memory().liveBuffers).toBe(before + 1);
      ops.sum(y).backward();
      // the gradient, and the sum (a root keeps its value)
      expect(backend.memory().liveBuffers).toBe(before + 2);
      x.zeroGrad();
    });
  });

  test('without anything to differentiate it is the function', () => {
    scope(() => {
      const x = new Variable(t.tensor([1, 2]));
      const y = checkpoint((x) => ops.square(x), x);
      expect([y.requiresGrad, ...y.value.dataSync()]).toEqual([false, 1, 4]);
    });
  });
});
