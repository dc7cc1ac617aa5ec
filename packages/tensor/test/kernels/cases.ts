/**
 * The table of kernels: for each one random inputs, the call, what it should give and how exactly.
 *
 * Inputs are drawn by fast-check as sizes, flags and a seed; arrays are made from the seed, so a failure prints a handful of numbers
 * that reproduce it (`fc.assert` also prints its own seed and path).
 */
import fc from 'fast-check';
import type {
  AdamWSpec,
  AttentionSpec,
  Backend,
  BinaryOp,
  SgdSpec,
  Shape4,
  Storage,
  UnaryOp,
} from '../../src/backend.js';
import { convertHost, int8Parts } from '../../src/dtype.js';
import type { DType, HostArray } from '../../src/dtype.js';
import * as reference from './reference.js';
import type { Numbers } from './reference.js';
import type { Session } from './session.js';

/** The kernels: all of a backend but its memory. */
export const MEMORY = [
  'name',
  'synchronous',
  'upload',
  'assign',
  'capture',
  'read',
  'readSync',
  'free',
  'memory',
  'workspace',
  'resetPeak',
] as const;
export type KernelName = Exclude<keyof Backend, (typeof MEMORY)[number]>;

/** A result on the backend; f32 unless said otherwise. */
type Result = Storage | { storage: Storage; dtype: DType };
/** What a result should hold: within `relative` of the value, or of `scale` where that is larger. */
interface Expected {
  values: Numbers;
  /** Magnitude of what was added up; the largest expected value by default. */
  scale?: number;
}

export interface Case<Input> {
  inputs: fc.Arbitrary<Input>;
  call(backend: Backend, session: Session, input: Input): Record<string, Result>;
  expected(input: Input): Record<string, Expected>;
  /** Relative tolerance; f32 rounds to 6·10⁻⁸. */
  relative: number;
}

/** One entry of the table with the type of its input sealed in. */
function kernel<Input>(entry: Case<Input>): Case<unknown> {
  return entry as Case<unknown>;
}

// ---- random inputs ----

const seed = fc.integer({ min: 0, max: 2 ** 31 - 1 });
/** Sizes around the widths of vector registers and tiles. */
const size = fc.oneof(
  { weight: 2, arbitrary: fc.constantFrom(0, 1) },
  { weight: 8, arbitrary: fc.integer({ min: 2, max: 20 }) },
  { weight: 2, arbitrary: fc.constantFrom(31, 32, 33, 63, 64, 65) },
);
const sizeFrom1 = size.map((n) => Math.max(n, 1));
const small = fc.integer({ min: 0, max: 5 });
/** Lengths of flat arrays: now and then long enough to be split over threads. */
const length = fc.oneof({ weight: 9, arbitrary: size }, { weight: 1, arbitrary: fc.constantFrom(1000, 4096, 20_011) });

/** Uniform numbers in [−1, 1), reproducible from a seed (xorshift). */
function random(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) | 1;
  const next = (): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31;
  };
  for (let i = 0; i < 8; i++) next();
  return next;
}

function floats(seed: number, n: number, value: (u: number) => number = (u) => u): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length: n }, () => value(next()));
}

/** Whole numbers in 0 … end − 1. */
function ids(seed: number, n: number, end: number): Int32Array {
  const next = random(seed);
  return Int32Array.from({ length: n }, () => Math.floor(((next() + 1) / 2) * end));
}

const maxAbs = (x: Numbers): number => Array.from(x).reduce((max, v) => Math.max(max, Math.abs(v)), 0);
const absolute = (x: Numbers): number[] => Array.from(x, Math.abs);
const f32 = (x: number[]): Float32Array => Float32Array.from(x);
const times = (magnitude: number) => (u: number) => u * magnitude;

// ---- elementwise ----

/** Where each function is defined and does not overflow. */
const UNARY_VALUES: Record<UnaryOp, (u: number) => number> = {
  neg: times(1e15),
  abs: times(1e15),
  exp: times(80),
  log: (u) => 10 ** (u * 30),
  sqrt: (u) => 10 ** (u * 30),
  rsqrt: (u) => 10 ** (u * 30),
  square: times(1e15),
  sigmoid: times(100),
  tanh: times(100),
  silu: times(100),
  relu: times(1e15),
};
/** Functions whose small values come from cancellation: exact to f32 around 1, not around 0. */
const AROUND_ONE: readonly UnaryOp[] = ['log', 'tanh'];
/** Below this, results may be flushed to zero. */
const TINY = 1e-30;

const shape4 = fc.tuple(small, small, small, fc.oneof(small, size));

const unary = kernel({
  inputs: fc.record({
    op: fc.constantFrom(...(Object.keys(UNARY_VALUES) as UnaryOp[])),
    n: length,
    /** Values near zero, or over the whole range. */
    magnitude: fc.constantFrom(0.01, 1),
    seed,
  }),
  call: (backend, s, i) => ({ y: backend.unary(i.op, s.f32(unaryInput(i)), i.n) }),
  expected: (i) => ({
    y: { values: reference.unary(i.op, unaryInput(i)), scale: AROUND_ONE.includes(i.op) ? 1 : TINY },
  }),
  relative: 2e-6,
});

function unaryInput(i: { op: UnaryOp; n: number; magnitude: number; seed: number }): Float32Array {
  return floats(i.seed, i.n, (u) => UNARY_VALUES[i.op](u * i.magnitude));
}

/** An operand of `shape` that is broadcast along some dimensions. */
function operand(shape: readonly number[], broadcast: readonly boolean[], seed: number, op: BinaryOp) {
  const own = shape.map((d, i) => (broadcast[i] ? 1 : d));
  const strides = own.map((_, i) => (broadcast[i] ? 0 : own.slice(i + 1).reduce((a, b) => a * b, 1)));
  const n = own.reduce((a, b) => a * b, 1);
  // divisors stay away from zero
  const data = floats(seed, n, (u) => (op === 'div' ? Math.sign(u) * (0.1 + Math.abs(u)) : u * 100));
  return { data, strides: strides as unknown as Shape4 };
}

const broadcasts = fc.oneof(
  fc.constant([false, false, false, false]),
  fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
);

const binary = kernel({
  inputs: fc
    .record({
      op: fc.constantFrom<BinaryOp>('add', 'sub', 'mul', 'div', 'max', 'min'),
      shape: shape4,
      broadcastA: broadcasts,
      broadcastB: broadcasts,
      seed,
    })
    .map(({ op, shape, broadcastA, broadcastB, seed }) => ({
      op,
      shape,
      broadcastA,
      broadcastB,
      seed,
      a: operand(shape, broadcastA, seed, op),
      b: operand(shape, broadcastB, seed + 1, op),
    })),
  call: (backend, s, { op, shape, a, b }) => ({
    y: backend.binary(op, s.f32(a.data), s.f32(b.data), shape, a.strides, b.strides),
  }),
  expected: ({ op, shape, a, b }) => ({
    y: {
      values: reference.binary(op, a.data, b.data, shape, a.strides, b.strides),
      scale: op === 'add' || op === 'sub' ? 100 : TINY,
    },
  }),
  relative: 3e-7,
});

const swigluInput = fc
  .record({ n: length, magnitude: fc.constantFrom(1, 100), seed })
  .map(({ n, magnitude, seed }) => ({
    n,
    magnitude,
    seed,
    dy: floats(seed, n),
    gate: floats(seed + 1, n, times(magnitude)),
    up: floats(seed + 2, n, times(3)),
  }));

const CASTS: readonly { from: DType; to: DType }[] = [
  { from: 'f32', to: 'bf16' },
  { from: 'f32', to: 'f16' },
  { from: 'bf16', to: 'f32' },
  { from: 'f16', to: 'f32' },
  { from: 'f32', to: 'i32' },
  { from: 'i32', to: 'f32' },
  { from: 'f32', to: 'f64' },
  { from: 'f64', to: 'f32' },
];

/** Values at the edges of the 16-bit formats: limits, ties, subnormals. */
const EDGES = [
  0,
  -0,
  Infinity,
  -Infinity,
  NaN,
  65504,
  65519.99,
  65520,
  -65536,
  2 ** -24,
  2 ** -25,
  1.5 * 2 ** -25,
  2 ** -14,
];
EDGES.push(
  1 + 2 ** -8,
  1 + 3 * 2 ** -8,
  1 + 2 ** -11,
  1 + 3 * 2 ** -11,
  3.4e38,
  2 ** -126,
  2 ** -133,
  2 ** -134,
  1.5 * 2 ** -134,
);

function castInput({ from, to, n, seed }: { from: DType; to: DType; n: number; seed: number }): HostArray {
  const next = random(seed);
  switch (from) {
    case 'int8':
      throw new Error('cast: rows of int8 have kernels of their own');
    case 'bf16':
    case 'f16':
      return Uint16Array.from({ length: n }, () => Math.floor((next() + 1) * 32768));
    case 'i32':
      return Int32Array.from({ length: n }, () => Math.trunc(next() * 2 ** 24));
    case 'f64':
      return Float64Array.from({ length: n }, () => next() * 10 ** (next() * 30));
    case 'f32':
      if (to === 'i32') return floats(seed, n, (u) => u * 2 ** 20);
      return Float32Array.from({ length: n }, () => {
        const edge = EDGES[Math.floor((next() + 1) * 2 * EDGES.length)];
        return edge ?? next() * (to === 'f16' ? 2 ** (next() * 28 - 10) : 2 ** (next() * 140));
      });
  }
}

function castValue(x: number, from: DType, to: DType): number {
  if (from === 'bf16' || from === 'f16') return reference.decode16(x, from);
  if (to === 'bf16' || to === 'f16') return reference.encode16(x, to);
  return to === 'i32' ? Math.trunc(x) : to === 'f32' ? Math.fround(x) : x;
}

// ---- layout ----

const block = fc.record({ outer: small, n: size, inner: small, seed });

/** Columns start … start + count − 1 of a block. */
const range = block
  .chain((b) => fc.record({ start: fc.integer({ min: 0, max: b.n }) }).map((i) => ({ ...b, ...i })))
  .chain((b) => fc.record({ count: fc.integer({ min: 0, max: b.n - b.start }) }).map((i) => ({ ...b, ...i })));

const permutations = fc
  .shuffledSubarray([0, 1, 2, 3], { minLength: 4, maxLength: 4 })
  .map((p) => p as unknown as Shape4);

const gather = fc.record({ count: size, rows: sizeFrom1, width: size, seed });

/** A table of rows in f32, 16 bits or int8, and its values. */
function table(
  seed: number,
  n: number,
  dtype: 'f32' | 'bf16' | 'f16' | 'int8',
  shape: readonly number[],
): { data: HostArray; values: Numbers } {
  const values = floats(seed, n);
  if (dtype === 'f32') return { data: values, values };
  if (dtype === 'int8') {
    const data = convertHost(values, 'f32', 'int8', shape);
    const { q, scales } = int8Parts(data, shape);
    return { data, values: reference.dequantizeRows(q, scales, shape.at(-1)!) };
  }
  const data = Uint16Array.from(values, (v) => reference.encode16(v, dtype));
  return { data, values: Array.from(data, (bits) => reference.decode16(bits, dtype)) };
}

// ---- rows ----

const matrix = fc.record({ rows: size, columns: sizeFrom1, seed });
const maybeEmptyMatrix = fc.record({ rows: size, columns: size, seed });
/** Logits, up to sizes that would overflow a naive softmax. */
const logits = fc.record({ rows: size, columns: sizeFrom1, seed, magnitude: fc.constantFrom(1, 30, 1e4) });

const rmsInput = fc
  .record({
    rows: size,
    columns: sizeFrom1,
    seed,
    magnitude: fc.constantFrom(1e-3, 1, 100),
    eps: fc.constantFrom(1e-5, 1e-6),
  })
  .map(({ rows, columns, seed, magnitude, eps }) => {
    const x = floats(seed, rows * columns, times(magnitude));
    const weight = floats(seed + 1, columns, times(2));
    const dy = floats(seed + 2, rows * columns);
    const inv = f32(reference.rmsNorm(x, weight, rows, columns, eps).inv);
    return { rows, columns, seed, magnitude, eps, x, weight, dy, inv };
  });

const crossEntropyInput = logits.map((i) => ({
  ...i,
  logits: floats(i.seed, i.rows * i.columns, times(i.magnitude)),
  // about one row in four is ignored
  labels: ids(i.seed + 1, i.rows, i.columns + Math.ceil(i.columns / 3)).map((label) =>
    label < i.columns ? label : -100,
  ),
  dloss: floats(i.seed + 2, i.rows),
}));

// ---- matmul, rope, attention ----

const matmulInput = fc
  .record({
    batch: fc.oneof({ weight: 3, arbitrary: fc.constant(1) }, { weight: 2, arbitrary: fc.constantFrom(0, 2, 3) }),
    m: size,
    n: size,
    k: fc.oneof({ weight: 8, arbitrary: size }, { weight: 1, arbitrary: fc.constantFrom(257, 300, 600) }),
    transposeA: fc.boolean(),
    transposeB: fc.boolean(),
    sharedA: fc.boolean(),
    sharedB: fc.boolean(),
    dtypeB: fc.constantFrom('f32', 'bf16', 'f16', 'int8'),
    alpha: fc.constantFrom(1, -0.5, 0.3),
    into: fc.boolean(),
    /** Depths of further products. */
    plus: fc.array(fc.constantFrom(0, 1, 3, 8, 16, 130), { maxLength: 2 }),
    seed,
  })
  // int8 has its scales by rows of one transposed matrix
  .map((i) => (i.dtypeB === 'int8' ? { ...i, transposeB: true, sharedB: true } : i))
  .map((i) => {
    const { batch, m, n, k, transposeA, transposeB, sharedA, sharedB, dtypeB, alpha, into, seed } = i;
    const strideA = sharedA ? 0 : m * k;
    const strideB = sharedB ? 0 : k * n;
    const spec = { batch, m, n, k, transposeA, transposeB, strideA, strideB, dtypeB, alpha };
    return {
      ...i,
      spec,
      a: floats(seed, (sharedA ? 1 : batch) * m * k),
      b: table(seed + 1, (sharedB ? 1 : batch) * k * n, dtypeB, [n, k]),
      c: into ? floats(seed + 2, batch * m * n) : undefined,
      plus: (batch === 1 ? i.plus : []).map((k, t) => ({
        spec: { ...spec, k, transposeA: false, transposeB: t === 0, dtypeB: t === 0 ? dtypeB : 'f32', alpha: t - 0.5 },
        a: floats(seed + 3 + t, m * k),
        b: table(seed + 5 + t, k * n, t === 0 ? dtypeB : 'f32', [n, k]),
      })),
    };
  });

const ropeInput = fc
  .record({
    tokens: size,
    heads: small,
    half: fc.constantFrom(1, 2, 3, 4, 5, 8, 16, 32),
    maxPositions: sizeFrom1,
    inverse: fc.boolean(),
    seed,
  })
  .map((i) => ({
    ...i,
    x: floats(i.seed, i.tokens * i.heads * i.half * 2),
    positions: ids(i.seed + 1, i.tokens, i.maxPositions),
    cos: floats(i.seed + 2, i.maxPositions * i.half, (u) => Math.cos(u * 3)),
    sin: floats(i.seed + 2, i.maxPositions * i.half, (u) => Math.sin(u * 3)),
  }));

const attentionInput = fc
  .record({
    batch: fc.constantFrom(0, 1, 1, 2),
    queries: fc.oneof(
      { weight: 9, arbitrary: fc.integer({ min: 0, max: 9 }) },
      { weight: 2, arbitrary: fc.constantFrom(31, 49, 64, 97, 110) },
    ),
    keys: fc.oneof(
      { weight: 9, arbitrary: fc.integer({ min: 0, max: 12 }) },
      { weight: 2, arbitrary: fc.constantFrom(33, 64, 70, 110) },
    ),
    kvHeads: fc.constantFrom(1, 1, 2, 3),
    group: fc.constantFrom(1, 1, 2, 3),
    headDim: fc.constantFrom(1, 2, 3, 4, 5, 8, 13, 16),
    /** Size of queries and keys: 30 makes a softmax that is all but one-hot. */
    magnitude: fc.constantFrom(1, 30),
    /** What queries see: earlier keys, all, a packed row of several texts, or anything. */
    windows: fc.constantFrom('causal', 'all', 'packed', 'random'),
    seed,
  })
  .map((i) => {
    const { batch, queries, keys, kvHeads, group, headDim, magnitude, windows, seed } = i;
    const heads = kvHeads * group;
    const spec: AttentionSpec = { batch, queries, keys, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim) };
    const [sizeQ, sizeK] = [batch * queries * heads * headDim, batch * keys * kvHeads * headDim];
    const ranges = ids(seed + 3, batch * queries * 2, keys + 1);
    for (let row = 0; row < batch * queries; row++) {
      if (windows === 'random') continue;
      const last = Math.max(0, keys - queries + (row % queries) + 1);
      const first = windows === 'packed' ? last - (last % 17) : 0;
      ranges.set([first, windows === 'all' ? keys : last], row * 2);
    }
    const input = {
      q: floats(seed, sizeQ, times(magnitude)),
      k: floats(seed + 1, sizeK, times(magnitude)),
      v: floats(seed + 2, sizeK),
      dout: floats(seed + 4, sizeQ),
      ranges,
    };
    // scores carry rounding errors in proportion to their size, and exp passes them on
    const largest = 1 + spec.scale * headDim * magnitude ** 2;
    return { ...i, spec, ...input, largest };
  });

// ---- updates ----

const stateInput = fc.record({ n: length, seed });

const adamwInput = fc
  .record({
    n: length,
    seed,
    step: fc.constantFrom(1, 2, 100),
    beta2: fc.constantFrom(0.999, 0.95),
    weightDecay: fc.constantFrom(0, 0.1),
    lr: fc.constantFrom(1e-3, 0.1),
    factor: fc.constantFrom(undefined, 0.5),
    /** Whether another parameter comes before this one, or after. */
    last: fc.boolean(),
  })
  .map((i) => {
    const beta1 = 0.9;
    const spec: AdamWSpec = {
      lr: i.lr,
      beta1,
      beta2: i.beta2,
      eps: 1e-8,
      weightDecay: i.weightDecay,
      biasCorrection1: 1 - beta1 ** i.step,
      biasCorrection2: 1 - i.beta2 ** i.step,
    };
    const zeroState = i.step === 1 ? 0 : 1;
    return {
      ...i,
      spec,
      p: floats(i.seed, i.n),
      g: floats(i.seed + 1, i.n),
      m: floats(i.seed + 2, i.n, times(zeroState)),
      v: floats(i.seed + 3, i.n, (u) => zeroState * u * u),
    };
  });

const sgdInput = fc
  .record({
    n: length,
    seed,
    lr: fc.constantFrom(1e-2, 0.5),
    momentum: fc.constantFrom(0, 0.9),
    dampening: fc.constantFrom(0, 0.1),
    weightDecay: fc.constantFrom(0, 0.01),
    nesterov: fc.boolean(),
  })
  .map(({ n, seed, ...spec }) => ({
    n,
    seed,
    spec: spec satisfies SgdSpec,
    p: floats(seed, n),
    g: floats(seed + 1, n),
    buf: floats(seed + 2, n),
  }));

/** Every kernel of the contract; the type sees to it that none is missing. */
export const cases: Record<KernelName, Case<unknown>> = {
  fill: kernel({
    inputs: fc.record({ n: length, value: fc.constantFrom(0, 1, -2.5, 1e30, -Infinity) }),
    call: (backend, _, i) => ({ y: backend.fill(i.n, i.value) }),
    expected: (i) => ({ y: { values: reference.fill(i.n, i.value) } }),
    relative: 1e-7,
  }),
  unary,
  affine: kernel({
    inputs: fc.record({
      n: length,
      scale: fc.constantFrom(1, 0, -2.5, 1e-3),
      shift: fc.constantFrom(0, 1, -0.7),
      seed,
    }),
    call: (backend, s, i) => ({ y: backend.affine(s.f32(floats(i.seed, i.n)), i.n, i.scale, i.shift) }),
    // the two terms may cancel: rounding is relative to them
    expected: (i) => ({
      y: {
        values: reference.affine(floats(i.seed, i.n), i.scale, i.shift),
        scale: Math.abs(i.scale) + Math.abs(i.shift),
      },
    }),
    relative: 3e-7,
  }),
  binary,
  swiglu: kernel({
    inputs: swigluInput,
    call: (backend, s, i) => ({ y: backend.swiglu(s.f32(i.gate), s.f32(i.up), i.n) }),
    expected: (i) => ({ y: { values: reference.swiglu(i.gate, i.up), scale: TINY } }),
    relative: 2e-6,
  }),
  swigluGrad: kernel({
    inputs: swigluInput,
    call: (backend, s, i) => backend.swigluGrad(s.f32(i.dy), s.f32(i.gate), s.f32(i.up), i.n),
    expected: (i) => {
      const { gate, up } = reference.swigluGrad(i.dy, i.gate, i.up);
      return { gate: { values: gate, scale: 3 }, up: { values: up, scale: TINY } };
    },
    relative: 2e-6,
  }),
  cast: kernel({
    inputs: fc
      .record({ types: fc.constantFrom(...CASTS), n: length, seed })
      .map(({ types, n, seed }) => ({ ...types, n, seed, x: castInput({ ...types, n, seed }) })),
    call: (backend, s, { from, to, n, x }) => ({
      y: { storage: backend.cast(s.upload(x, from), n, from, to), dtype: to },
    }),
    expected: ({ from, to, x }) => ({ y: { values: Array.from(x, (v) => castValue(v, from, to)) } }),
    relative: 0,
  }),
  quantizeRows: kernel({
    inputs: maybeEmptyMatrix.chain((i) =>
      fc.constantFrom(0, 1, 1e-30, 1e30).map((m) => ({ ...i, m, x: floats(i.seed, i.rows * i.columns, times(m)) })),
    ),
    // read as the bytes they are: q that differ by the rounding of a tie fail, so the inputs have none
    call: (backend, s, i) => ({
      y: { storage: backend.quantizeRows(s.f32(i.x), i.rows, i.columns), dtype: 'int8' },
    }),
    expected: (i) => ({ y: { values: reference.quantizeRows(i.x, i.rows, i.columns) } }),
    relative: 0,
  }),
  dequantizeRows: kernel({
    inputs: maybeEmptyMatrix.map((i) => ({
      ...i,
      table: table(i.seed, i.rows * i.columns, 'int8', [i.rows, i.columns]),
    })),
    call: (backend, s, i) => ({ y: backend.dequantizeRows(s.upload(i.table.data, 'int8'), i.rows, i.columns) }),
    expected: (i) => ({ y: { values: i.table.values, scale: TINY } }),
    relative: 1e-7,
  }),

  permute: kernel({
    inputs: fc.record({ shape: shape4, perm: permutations, seed }).map((i) => {
      const n = i.shape.reduce((a, b) => a * b, 1);
      return { ...i, x: floats(i.seed, n) };
    }),
    call: (backend, s, i) => ({ y: backend.permute(s.f32(i.x), i.shape, i.perm) }),
    expected: (i) => ({ y: { values: reference.permute(i.x, i.shape, i.perm) } }),
    relative: 0,
  }),
  slice: kernel({
    inputs: range.map((i) => ({ ...i, x: floats(i.seed, i.outer * i.n * i.inner) })),
    call: (backend, s, i) => ({ y: backend.slice(s.f32(i.x), i.outer, i.n, i.inner, i.start, i.count) }),
    expected: (i) => ({ y: { values: reference.slice(i.x, i.outer, i.n, i.inner, i.start, i.count) } }),
    relative: 0,
  }),
  pad: kernel({
    inputs: fc.record({ block, before: small, after: small }).map(({ block: b, before, after }) => ({
      ...b,
      before,
      total: before + b.n + after,
      x: floats(b.seed, b.outer * b.n * b.inner),
    })),
    call: (backend, s, i) => ({ y: backend.pad(s.f32(i.x), i.outer, i.n, i.inner, i.before, i.total) }),
    expected: (i) => ({ y: { values: reference.pad(i.x, i.outer, i.n, i.inner, i.before, i.total) } }),
    relative: 0,
  }),
  concat: kernel({
    inputs: fc.record({ block, nb: size }).map(({ block: i, nb }) => ({
      ...i,
      nb,
      a: floats(i.seed, i.outer * i.n * i.inner),
      b: floats(i.seed + 1, i.outer * nb * i.inner),
    })),
    call: (backend, s, i) => ({ y: backend.concat(s.f32(i.a), s.f32(i.b), i.outer, i.n, i.nb, i.inner) }),
    expected: (i) => ({ y: { values: reference.concat(i.a, i.b, i.outer, i.n, i.nb, i.inner) } }),
    relative: 0,
  }),
  gatherRows: kernel({
    inputs: fc
      .record({ size: gather, dtype: fc.constantFrom('f32', 'bf16', 'f16', 'int8') })
      .map(({ size: i, dtype }) => ({
        ...i,
        dtype,
        table: table(i.seed, i.rows * i.width, dtype, [i.rows, i.width]),
        ids: ids(i.seed + 1, i.count, i.rows),
      })),
    call: (backend, s, i) => ({
      y: backend.gatherRows(s.upload(i.table.data, i.dtype), i.dtype, s.i32(i.ids), i.count, i.rows, i.width),
    }),
    expected: (i) => ({ y: { values: reference.gatherRows(i.table.values, i.ids, i.width), scale: TINY } }),
    relative: 1e-7,
  }),
  scatterAddRows: kernel({
    inputs: gather.map((i) => ({ ...i, dy: floats(i.seed, i.count * i.width), ids: ids(i.seed + 1, i.count, i.rows) })),
    call: (backend, s, i) => ({ y: backend.scatterAddRows(s.f32(i.dy), s.i32(i.ids), i.count, i.rows, i.width) }),
    // a row may be the running sum of all `count` entries, each rounding at the size of the partial sum
    expected: (i) => ({
      y: { values: reference.scatterAddRows(i.dy, i.ids, i.rows, i.width), scale: Math.max(1, i.count / 8) },
    }),
    relative: 1e-6,
  }),

  reduce: kernel({
    inputs: fc
      .oneof(
        { weight: 20, arbitrary: fc.record({ outer: small, n: size, inner: small, seed }) },
        // long sums of positive numbers: an f32 running sum would be off by 10⁻⁵ and more
        {
          weight: 1,
          arbitrary: fc.record({
            outer: fc.constantFrom(1, 2),
            n: fc.constantFrom(1025, 30_000, 200_003),
            inner: fc.constantFrom(1, 3),
            seed,
          }),
        },
      )
      .chain((i) => fc.constantFrom('sum', 'max').map((op) => ({ ...i, op })))
      .map((i) => ({ ...i, x: floats(i.seed, i.outer * i.n * i.inner, (u) => (i.n > 100 ? u + 1 : u)) })),
    call: (backend, s, i) => ({ y: backend.reduce(i.op, s.f32(i.x), i.outer, i.n, i.inner) }),
    expected: (i) => ({
      y: {
        values: reference.reduce(i.op, i.x, i.outer, i.n, i.inner),
        scale: i.op === 'sum' ? maxAbs(reference.reduce('sum', absolute(i.x), i.outer, i.n, i.inner)) : 0,
      },
    }),
    relative: 1e-6,
  }),
  squaredNorm: kernel({
    inputs: fc.record({ lengths: fc.array(length, { maxLength: 4 }), seed }).map((i) => ({
      parts: i.lengths.map((n, t) => floats(i.seed + t, n)),
    })),
    call: (backend, s, i) => ({ y: backend.squaredNorm(i.parts.map((x) => ({ x: s.f32(x), n: x.length }))) }),
    expected: (i) => ({
      y: { values: [i.parts.reduce((sum, x) => x.reduce((a, b) => a + b * b, sum), 0)], scale: TINY },
    }),
    relative: 2e-6,
  }),
  argmax: kernel({
    // few distinct values, so that ties are common
    inputs: matrix.map((i) => ({ ...i, x: floats(i.seed, i.rows * i.columns, (u) => Math.round(u * 5)) })),
    call: (backend, s, i) => ({ y: { storage: backend.argmax(s.f32(i.x), i.rows, i.columns), dtype: 'i32' } }),
    expected: (i) => ({ y: { values: reference.argmax(i.x, i.rows, i.columns) } }),
    relative: 0,
  }),
  softmax: kernel({
    inputs: logits.map((i) => ({ ...i, x: floats(i.seed, i.rows * i.columns, times(i.magnitude)) })),
    call: (backend, s, i) => ({ y: backend.softmax(s.f32(i.x), i.rows, i.columns) }),
    expected: (i) => ({ y: { values: reference.softmax(i.x, i.rows, i.columns) } }),
    relative: 4e-6,
  }),
  softmaxGrad: kernel({
    inputs: maybeEmptyMatrix.map((i) => ({
      ...i,
      dy: floats(i.seed, i.rows * i.columns),
      y: f32(reference.softmax(floats(i.seed + 1, i.rows * i.columns, times(5)), i.rows, i.columns)),
    })),
    call: (backend, s, i) => ({ dx: backend.softmaxGrad(s.f32(i.dy), s.f32(i.y), i.rows, i.columns) }),
    expected: (i) => ({ dx: { values: reference.softmaxGrad(i.dy, i.y, i.rows, i.columns), scale: maxAbs(i.y) } }),
    relative: 1e-6,
  }),
  logSoftmax: kernel({
    inputs: logits.map((i) => ({ ...i, x: floats(i.seed, i.rows * i.columns, times(i.magnitude)) })),
    call: (backend, s, i) => ({ y: backend.logSoftmax(s.f32(i.x), i.rows, i.columns) }),
    expected: (i) => ({ y: { values: reference.logSoftmax(i.x, i.rows, i.columns), scale: i.magnitude } }),
    relative: 2e-6,
  }),
  logSoftmaxGrad: kernel({
    inputs: maybeEmptyMatrix.map((i) => ({
      ...i,
      dy: floats(i.seed, i.rows * i.columns),
      y: f32(reference.logSoftmax(floats(i.seed + 1, i.rows * i.columns, times(5)), i.rows, i.columns)),
    })),
    call: (backend, s, i) => ({ dx: backend.logSoftmaxGrad(s.f32(i.dy), s.f32(i.y), i.rows, i.columns) }),
    expected: (i) => ({ dx: { values: reference.logSoftmaxGrad(i.dy, i.y, i.rows, i.columns), scale: i.columns } }),
    relative: 2e-6,
  }),
  rmsNorm: kernel({
    inputs: rmsInput,
    call: (backend, s, i) => backend.rmsNorm(s.f32(i.x), s.f32(i.weight), i.rows, i.columns, i.eps),
    expected: (i) => {
      const { y, inv } = reference.rmsNorm(i.x, i.weight, i.rows, i.columns, i.eps);
      return { y: { values: y, scale: TINY }, inv: { values: inv, scale: TINY } };
    },
    relative: 2e-6,
  }),
  rmsNormGradInput: kernel({
    inputs: rmsInput,
    call: (backend, s, i) => {
      const args = [s.f32(i.dy), s.f32(i.x), s.f32(i.weight), s.f32(i.inv), i.rows, i.columns] as const;
      return { dx: backend.rmsNormGradInput(...args) };
    },
    expected: (i) => ({
      dx: {
        values: reference.rmsNormGradInput(i.dy, i.x, i.weight, i.inv, i.rows, i.columns),
        scale: 2 * maxAbs(i.inv),
      },
    }),
    relative: 3e-6,
  }),
  rmsNormGradWeight: kernel({
    inputs: rmsInput,
    call: (backend, s, i) => ({
      dw: backend.rmsNormGradWeight(s.f32(i.dy), s.f32(i.x), s.f32(i.inv), i.rows, i.columns),
    }),
    expected: (i) => ({
      dw: {
        values: reference.rmsNormGradWeight(i.dy, i.x, i.inv, i.rows, i.columns),
        scale: maxAbs(reference.rmsNormGradWeight(absolute(i.dy), absolute(i.x), i.inv, i.rows, i.columns)),
      },
    }),
    relative: 1e-6,
  }),
  crossEntropy: kernel({
    inputs: crossEntropyInput,
    call: (backend, s, i) => backend.crossEntropy(s.f32(i.logits), s.i32(i.labels), i.rows, i.columns),
    expected: (i) => {
      const { loss, lse } = reference.crossEntropy(i.logits, i.labels, i.rows, i.columns);
      return { loss: { values: loss, scale: i.magnitude }, lse: { values: lse, scale: i.magnitude } };
    },
    relative: 2e-6,
  }),
  crossEntropyGrad: kernel({
    inputs: crossEntropyInput.map((i) => ({
      ...i,
      lse: f32(reference.crossEntropy(i.logits, i.labels, i.rows, i.columns).lse),
    })),
    call: (backend, s, i) => {
      const args = [s.f32(i.dloss), s.f32(i.logits), s.i32(i.labels), s.f32(i.lse), i.rows, i.columns] as const;
      return { dlogits: backend.crossEntropyGrad(...args) };
    },
    expected: (i) => ({
      dlogits: {
        values: reference.crossEntropyGrad(i.dloss, i.logits, i.labels, i.rows, i.columns),
        // lse is rounded in proportion to its size
        scale: 1 + i.magnitude,
      },
    }),
    relative: 1e-6,
  }),
  crossEntropyUpdate: kernel({
    inputs: fc
      .record({ i: crossEntropyInput, scale: fc.constantFrom(1, 0.25) })
      .map(({ i, scale }) => ({ ...i, scale })),
    call: (backend, s, i) => backend.crossEntropyUpdate(s.state(i.logits), s.i32(i.labels), i.rows, i.columns, i.scale),
    expected: (i) => ({
      loss: { values: reference.crossEntropy(i.logits, i.labels, i.rows, i.columns).loss, scale: i.magnitude },
      logits: {
        values: reference.crossEntropyGrad(
          new Float32Array(i.rows).fill(i.scale),
          i.logits,
          i.labels,
          i.rows,
          i.columns,
        ),
        // as for crossEntropyGrad: the definition goes by way of a rounded lse
        scale: i.scale * (1 + i.magnitude),
      },
    }),
    relative: 2e-6,
  }),

  matmul: kernel({
    inputs: matmulInput,
    call: (backend, s, i) => {
      const c = i.c && s.state(i.c);
      const plus = i.plus.map(({ a, b, spec }) => ({ ...spec, a: s.f32(a), b: s.upload(b.data, spec.dtypeB) }));
      return { c: backend.matmul(s.f32(i.a), s.upload(i.b.data, i.dtypeB), i.spec, c, plus) };
    },
    expected: (i) => {
      let values = reference.matmul(i.a, i.b.values, i.spec, i.c);
      let scale = 1 + maxAbs(reference.matmul(absolute(i.a), absolute(i.b.values), i.spec));
      for (const { a, b, spec } of i.plus) {
        values = reference.matmul(a, b.values, spec, values);
        scale += maxAbs(reference.matmul(absolute(a), absolute(b.values), spec));
      }
      return { c: { values, scale } };
    },
    relative: 1e-6,
  }),
  rope: kernel({
    inputs: ropeInput,
    call: (backend, s, i) => {
      const tables = [s.i32(i.positions), s.f32(i.cos), s.f32(i.sin)] as const;
      return { y: backend.rope(s.f32(i.x), ...tables, i.tokens, i.heads, i.half * 2, i.inverse) };
    },
    expected: (i) => ({
      y: {
        values: reference.rope(i.x, i.positions, i.cos, i.sin, i.tokens, i.heads, i.half * 2, i.inverse),
        scale: 1,
      },
    }),
    relative: 3e-7,
  }),
  attention: kernel({
    inputs: attentionInput,
    call: (backend, s, i) => backend.attention(s.f32(i.q), s.f32(i.k), s.f32(i.v), s.i32(i.ranges), i.spec),
    expected: (i) => {
      const { out, lse } = reference.attention(i.q, i.k, i.v, i.ranges, i.spec);
      return { out: { values: out, scale: i.largest }, lse: { values: lse, scale: i.largest } };
    },
    relative: 1e-6,
  }),
  attentionGrad: kernel({
    inputs: attentionInput.map((i) => {
      const { out, lse } = reference.attention(i.q, i.k, i.v, i.ranges, i.spec);
      return { ...i, out: f32(out), lse: f32(lse) };
    }),
    call: (backend, s, i) => {
      const forward = [s.f32(i.q), s.f32(i.k), s.f32(i.v), s.i32(i.ranges), s.f32(i.out), s.f32(i.lse)] as const;
      return backend.attentionGrad(s.f32(i.dout), ...forward, i.spec);
    },
    expected: (i) => {
      const { q, k, v } = reference.attentionGrad(i.dout, i.q, i.k, i.v, i.ranges, i.spec);
      const { scale, headDim, queries } = i.spec;
      // a gradient of a score is at most 2 · |dout · v| · scale
      const dScore = i.largest * 2 * headDim * scale * i.magnitude;
      return {
        q: { values: q, scale: dScore },
        k: { values: k, scale: dScore * Math.sqrt(i.group * queries) },
        v: { values: v, scale: i.largest * Math.sqrt(i.group * queries) },
      };
    },
    relative: 1e-6,
  }),

  axpy: kernel({
    inputs: fc.record({ state: stateInput, alpha: fc.constantFrom(1, -0.3, 0) }).map(({ state: i, alpha }) => ({
      ...i,
      alpha,
      y: floats(i.seed, i.n),
      x: floats(i.seed + 1, i.n),
    })),
    call: (backend, s, i) => ({ y: backend.axpy(s.state(i.y), s.f32(i.x), i.n, i.alpha) }),
    expected: (i) => ({ y: { values: reference.axpy(i.y, i.x, i.alpha), scale: 1 } }),
    relative: 3e-7,
  }),
  write: kernel({
    inputs: range.map((i) => ({
      ...i,
      y: floats(i.seed, i.outer * i.n * i.inner),
      x: floats(i.seed + 1, i.outer * i.count * i.inner),
    })),
    call: (backend, s, i) => ({
      y: backend.write(s.state(i.y), s.f32(i.x), i.outer, i.n, i.inner, i.start, i.count),
    }),
    expected: (i) => ({ y: { values: reference.write(i.y, i.x, i.outer, i.n, i.inner, i.start, i.count) } }),
    relative: 0,
  }),
  writeRows: kernel({
    inputs: fc
      .record({ batch: small, T: small, extra: small, width: size, seed })
      .map((i) => ({ ...i, S: i.T + i.extra }))
      .map((i) => ({
        ...i,
        y: floats(i.seed, i.batch * i.S * i.width),
        x: floats(i.seed + 1, i.batch * i.T * i.width),
        // another order in each b, no place twice
        positions: Int32Array.from(
          { length: i.batch * i.T },
          (_, n) => (i.S - (n % i.T) + 3 * Math.floor(n / i.T)) % i.S,
        ),
      })),
    call: (backend, s, i) => ({
      y: backend.writeRows(s.state(i.y), s.f32(i.x), s.i32(i.positions), i.batch, i.T, i.S, i.width),
    }),
    expected: (i) => ({ y: { values: reference.writeRows(i.y, i.x, i.positions, i.batch, i.T, i.S, i.width) } }),
    relative: 0,
  }),
  scaleBy: kernel({
    inputs: stateInput.map((i) => ({ ...i, y: floats(i.seed, i.n), factor: floats(i.seed + 1, 1) })),
    call: (backend, s, i) => ({ y: backend.scaleBy(s.state(i.y), s.f32(i.factor), i.n) }),
    expected: (i) => ({ y: { values: reference.scaleBy(i.y, i.factor), scale: TINY } }),
    relative: 3e-7,
  }),
  adamw: kernel({
    inputs: adamwInput,
    call: (backend, s, i) => {
      const part = { p: s.state(i.p), g: s.f32(i.g), m: s.state(i.m), v: s.state(i.v), n: i.n };
      const other = { p: s.state(i.g), g: s.f32(i.p), m: s.state(i.g), v: s.state(i.v), n: i.n };
      const parts = i.last ? [other, part] : [part, other];
      const next = backend.adamw(parts, i.spec, i.factor === undefined ? undefined : s.f32(Float32Array.of(i.factor)));
      const { p, m, v } = next[i.last ? 1 : 0]!;
      return { p, m, v };
    },
    expected: (i) => {
      const { p, m, v } = reference.adamw(i.p, i.g.map(times(i.factor ?? 1)), i.m, i.v, i.spec);
      // moments by their own size where they start from zero: 1 − β₂ must be right to the last digits
      const scale = i.step === 1 ? TINY : 1;
      return { p: { values: p, scale: 1 }, m: { values: m, scale }, v: { values: v, scale } };
    },
    relative: 1e-6,
  }),
  sgd: kernel({
    inputs: sgdInput,
    call: (backend, s, i) => backend.sgd(s.state(i.p), s.f32(i.g), s.state(i.buf), i.n, i.spec),
    expected: (i) => {
      const { p, buf } = reference.sgd(i.p, i.g, i.buf, i.spec);
      return { p: { values: p, scale: 1 }, buf: { values: buf, scale: 1 } };
    },
    relative: 5e-7,
  }),
};
