/** The wasm backend's own promises: threads change nothing but the time, memory grows without loss, closing ends the threads. */
import { readdirSync } from 'node:fs';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import * as t from '../src/index.js';
import { Philox, Tensor, createWasmBackend, scope } from '../src/index.js';
import type { HostArray, WasmBackend } from '../src/index.js';

/** Operands on the backend under test: the same numbers on each. */
interface Operands {
  /** Normal numbers. */
  f32(...shape: number[]): Tensor;
  /** Whole numbers from 0 to end − 1. */
  ids(end: number, ...shape: number[]): Tensor;
  zeros(...shape: number[]): Tensor;
}

function operandsOn(backend: WasmBackend): Operands {
  const random = new Philox(2024);
  const size = (shape: number[]): number => shape.reduce((a, b) => a * b, 1);
  return {
    f32: (...shape) => Tensor.fromHost({ shape, dtype: 'f32', data: random.normalArray(size(shape)) }, backend),
    ids(end, ...shape) {
      const data = Int32Array.from({ length: size(shape) }, () => random.int(end));
      return Tensor.fromHost({ shape, dtype: 'i32', data }, backend);
    },
    zeros: (...shape) => t.zeros(shape, { backend }),
  };
}

/** Work of every kind, large enough to be split among threads (some 16,000 elements are worth a thread), in uneven parts. */
const work: Record<string, (on: Operands) => Tensor[]> = {
  'gemm, many rows': ({ f32 }) => [t.matmul(f32(1003, 77), f32(77, 50))],
  'gemm, many columns': ({ f32 }) => [t.matmul(f32(19, 96), f32(1501, 96), { transposeB: true })],
  'gemm, long inner size': ({ f32 }) => [t.matmul(f32(603, 130), f32(603, 101), { transposeA: true, alpha: 0.3 })],
  'gemm, a batch added to a result': ({ f32 }) => [t.matmul(f32(3, 70, 64), f32(3, 64, 90), { into: f32(3, 70, 90) })],
  'gemm, bf16 and f16 weights': ({ f32 }) => [
    t.matmul(f32(100, 65), t.cast(f32(203, 65), 'bf16'), { transposeB: true }),
    t.matmul(f32(100, 65), t.cast(f32(203, 65), 'f16'), { transposeB: true }),
  ],
  gemv: ({ f32 }) =>
    (['f32', 'bf16', 'f16', 'int8'] as const).flatMap((dtype) => [
      t.matmul(f32(1, 515), t.cast(f32(2003, 515), dtype), { transposeB: true }),
      t.matmul(f32(3, 96), t.cast(f32(1001, 96), dtype), { transposeB: true, alpha: 0.3, into: f32(3, 1001) }),
    ]),
  attention({ f32, ids }) {
    const [q, k, v, dout] = [f32(2, 150, 6, 20), f32(2, 170, 2, 20), f32(2, 170, 2, 20), f32(2, 150, 6, 20)];
    // windows between two random keys: some are empty
    const ranges = ids(171, 2, 150, 2);
    const { out, lse } = t.attention(q, k, v, ranges);
    const d = t.attentionGrad(dout, q, k, v, ranges, out, lse);
    return [out, lse, d.q, d.k, d.v];
  },
  'softmax and its derivative'({ f32 }) {
    const [x, dy] = [f32(703, 65), f32(703, 65)];
    const y = t.softmax(x);
    const z = t.logSoftmax(x);
    return [y, z, t.softmaxGrad(dy, y), t.logSoftmaxGrad(dy, z)];
  },
  'rmsNorm and its derivatives'({ f32 }) {
    const [x, weight, dy] = [f32(601, 99), f32(99), f32(601, 99)];
    const { y, inv } = t.rmsNorm(x, weight, 1e-5);
    return [y, inv, t.rmsNormGradInput(dy, x, weight, inv), t.rmsNormGradWeight(dy, x, inv)];
  },
  'crossEntropy and its derivative'({ f32, ids }) {
    const [logits, labels, dloss] = [f32(301, 333), ids(333, 301), f32(301)];
    const { loss, lse } = t.crossEntropy(logits, labels);
    return [loss, lse, t.crossEntropyGrad(dloss, logits, labels, lse)];
  },
  sums({ f32 }) {
    const x = f32(37, 5001);
    return [t.sum(x), t.sum(x, { axis: 0 }), t.sum(x, { axis: 1 }), t.sum(f32(20_003, 7), { axis: 0 })];
  },
  adamw({ f32, zeros }) {
    const n = 150_001;
    const [p, m, v] = [f32(n), zeros(n), zeros(n)];
    for (let step = 1; step <= 3; step++) {
      const [biasCorrection1, biasCorrection2] = [1 - 0.9 ** step, 1 - 0.999 ** step];
      const spec = {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weightDecay: 0.1,
        biasCorrection1,
        biasCorrection2,
      };
      t.adamw([{ p, g: f32(n), m, v }], spec);
    }
    return [p, m, v];
  },
  sgd({ f32 }) {
    const [p, buffer] = [f32(150_001), f32(150_001)];
    t.sgd(p, f32(150_001), buffer, { lr: 0.1, momentum: 0.9, dampening: 0.1, weightDecay: 0.01, nesterov: true });
    return [p, buffer];
  },
  elementwise({ f32 }) {
    const [x, y] = [f32(300, 501), f32(300, 501)];
    const changed = t.affine(x, 2, -1);
    t.axpy(changed, y, 0.5);
    t.scaleBy(changed, f32(1));
    const d = t.swigluGrad(f32(300, 501), x, y);
    const unary = [t.exp, t.sigmoid, t.silu, t.relu, t.square].map((f) => f(x));
    return [changed, ...unary, t.mul(x, f32(501)), t.add(x, f32(300, 1)), t.swiglu(x, y), d.gate, d.up];
  },
  'rows of tables'({ f32, ids }) {
    const [table, index] = [f32(500, 66), ids(500, 2003)];
    const rows = t.gatherRows(table, index);
    return [rows, t.scatterAddRows(rows, index, 500), t.argmax(rows), t.cast(t.cast(table, 'bf16'), 'f32')];
  },
  rope: ({ f32, ids }) => [t.rope(f32(400, 6, 16), ids(50, 400), f32(50, 8), f32(50, 8))],
};

const resultsOn = (backend: WasmBackend, name: string): HostArray[] =>
  scope(() => work[name]!(operandsOn(backend)).map((result) => result.dataSync()));

/** Where the bytes of two arrays first differ; −1 when they are equal. */
function difference(a: HostArray, b: HostArray): number {
  const [x, y] = [a, b].map((data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength)) as [Buffer, Buffer];
  return x.equals(y) ? -1 : x.findIndex((byte, i) => byte !== y[i]);
}

describe('threads', () => {
  let one: WasmBackend;
  const more: WasmBackend[] = [];
  beforeAll(async () => {
    one = createWasmBackend({ threads: 1 });
    more.push(createWasmBackend({ threads: 2 }), createWasmBackend({ threads: 4 }));
    // work may begin before the threads have started, and would then be done by one
    await Promise.all(more.map((backend) => backend.ready()));
  });
  afterAll(async () => {
    for (const backend of [one, ...more]) {
      expect(backend.memory().liveBytes).toBe(0);
      await backend.close();
    }
  });

  test.each(Object.keys(work))('%s: the same bits from 1, 2 and 4 threads', (name) => {
    const expected = resultsOn(one, name);
    expect(expected.every((data) => data.some((x) => x !== 0))).toBe(true);
    for (const backend of more) {
      // twice: which thread takes which part is up to the moment
      for (let run = 0; run < 2; run++) {
        resultsOn(backend, name).forEach((data, i) => {
          const at = difference(data, expected[i]!);
          if (at >= 0) {
            throw new Error(
              `${backend.threads} threads, result ${i}: expected the bits of one thread, got others at byte ${at}`,
            );
          }
        });
      }
    }
  });

  // sizes around those at which a thread's share, but not the whole, is narrow enough for another way of computing
  const side = fc.constantFrom(7, 16, 31, 32, 60, 64, 200, 1040);
  const products = fc.record({
    m: side,
    n: side,
    k: fc.constantFrom(64, 600, 700),
    transposeA: fc.boolean(),
    transposeB: fc.boolean(),
    alpha: fc.constantFrom(1, 0.3),
    added: fc.boolean(),
    rank: fc.constantFrom(0, 8),
  });

  test('products of any shape have the same bits from 1, 2 and 4 threads', () => {
    fc.assert(
      fc.property(products, ({ m, n, k, transposeA, transposeB, alpha, added, rank }) => {
        const bits = (backend: WasmBackend): HostArray =>
          scope(() => {
            const { f32 } = operandsOn(backend);
            const [a, b] = [transposeA ? f32(k, m) : f32(m, k), transposeB ? f32(n, k) : f32(k, n)];
            const plus = rank > 0 ? [{ a: f32(m, rank), b: f32(rank, n) }] : [];
            const options = { transposeA, transposeB, alpha, plus, ...(added ? { into: f32(m, n) } : {}) };
            return t.matmul(a, b, options).dataSync();
          });
        const expected = bits(one);
        for (const backend of more) expect(difference(bits(backend), expected)).toBe(-1);
      }),
      { numRuns: 150 },
    );
  });

  test('are as many as asked for', () => {
    expect([one, ...more].map((backend) => backend.threads)).toEqual([1, 2, 4]);
  });

  test.each([0, -1, 65, 1.5, NaN])('%d of them are refused', (threads) => {
    expect(() => createWasmBackend({ threads })).toThrow(
      expect.objectContaining({
        code: 'threads',
        message: `threads: expected a whole number from 1 to 64, got ${threads}`,
      }),
    );
  });

  test('close() ends them', async () => {
    const count = (): number => (process.platform === 'linux' ? readdirSync('/proc/self/task').length : NaN);
    const before = count();
    const backend = createWasmBackend({ threads: 4 });
    await backend.ready();
    const during = count();
    await backend.close();
    if (process.platform === 'linux') {
      expect(during).toBeGreaterThanOrEqual(before + 3);
      expect(count()).toBeLessThanOrEqual(during - 3);
    }
    await expect(backend.close()).resolves.toBeUndefined();
    // what comes later runs on the caller, and does not wait for the dead
    const y = backend.affine(backend.fill(100_000, 2), 100_000, 3, 1);
    expect(backend.readSync(y, 'f32', 100_000).every((v) => v === 7)).toBe(true);
  });
});

describe('builds', () => {
  const relaxed = ((): WasmBackend | undefined => {
    try {
      return createWasmBackend({ threads: 1, build: 'relaxed' });
    } catch {
      return undefined; // an engine without relaxed SIMD
    }
  })();
  const strict = createWasmBackend({ threads: 1, build: 'strict' });
  afterAll(async () => {
    await relaxed?.close();
    await strict.close();
  });

  test('are what was asked for; auto takes the relaxed one where there is one', async () => {
    const auto = createWasmBackend({ threads: 1 });
    expect(strict.build).toBe('strict');
    expect(auto.build).toBe(relaxed ? 'relaxed' : 'strict');
    await auto.close();
  });

  // a fused multiply-add rounds once where the strict build rounds twice
  test.skipIf(!relaxed).each(Object.keys(work))('%s: relaxed and strict agree to 1e-5 of the largest value', (name) => {
    const expected = resultsOn(strict, name);
    resultsOn(relaxed!, name).forEach((data, i) => {
      const finite = (x: number): boolean => Number.isFinite(x);
      const largest = Array.from(expected[i]!).reduce((max, x) => (finite(x) ? Math.max(max, Math.abs(x)) : max), 0);
      data.forEach((x, j) => {
        const y = expected[i]![j]!;
        if (x !== y && !(Math.abs(x - y) <= 1e-5 * largest)) {
          throw new Error(`result ${i}, element ${j}: expected ${y} ± ${1e-5 * largest}, got ${x}`);
        }
      });
    });
  });
});

describe('memory', () => {
  const MIB = 2 ** 20;

  test('grows beyond the first 16 MiB and keeps what it holds', async () => {
    const backend = createWasmBackend({ threads: 2 });
    await backend.ready();
    expect(backend.memory().reservedBytes).toBe(16 * MIB);
    const random = new Philox(7);
    const given = Array.from({ length: 10 }, () => random.normalArray(MIB));
    const tensors = given.map((data) => Tensor.fromHost({ dtype: 'f32', shape: [MIB], data }, backend));
    expect(backend.memory()).toMatchObject({ liveBytes: 40 * MIB, liveBuffers: 10 });
    expect(backend.memory().reservedBytes).toBeGreaterThanOrEqual(40 * MIB);
    for (const [i, x] of tensors.entries()) expect(difference(x.dataSync(), given[i]!)).toBe(-1);
    // threads that started before see the memory that came later
    const sum = t.add(tensors[0]!, tensors[9]!).dataSync();
    expect(sum.findIndex((x, i) => x !== Math.fround(given[0]![i]! + given[9]![i]!))).toBe(-1);
    await backend.close();
  });

  test('may grow in the middle of any op', async () => {
    const backend = createWasmBackend({ threads: 1 });
    const random = new Philox(8);
    const host = { dtype: 'f32', shape: [8, 16, 32, 64], data: random.uniformArray(2 ** 18, 0.5, 2) } as const;
    const x = Tensor.fromHost(host, backend);
    const row = Tensor.fromHost({ dtype: 'f32', shape: [16, 1, 64], data: random.normalArray(1024) }, backend);
    const ids = t.intTensor(
      Array.from({ length: 4096 }, () => random.int(4096)),
      [4096],
      { backend },
    );
    const half = t.cast(x, 'f16');
    const ops: Record<string, () => Tensor> = {
      fill: () => t.full(host.shape, 3, { backend }),
      log: () => t.log(x),
      exp: () => t.exp(x),
      broadcast: () => t.mul(x, row),
      permute: () => t.permute(x, [3, 1, 0, 2]),
      slice: () => t.slice(x, 1, 1, 14),
      pad: () => t.pad(x, 2, 1, 33),
      concat: () => t.concat([x, x], 3),
      max: () => t.max(t.concat([x, x], 0), { axis: 0 }),
      gatherRows: () => t.gatherRows(x.reshape(4096, 64), ids),
      'cast from f16': () => t.cast(half, 'f32'),
      'cast to f64': () => t.cast(x, 'f64'),
      upload: () => Tensor.fromHost(host, backend),
      matmul: () => t.matmul(x.reshape(4096, 64), x.reshape(64, 4096), { transposeA: true, transposeB: true }),
    };
    const entries = Object.entries(ops);
    const first = entries.map(([, op]) => scope(() => op().dataSync()));
    const grew = new Set<string>();
    const kept: Tensor[] = [];
    // the memory fills up in uneven steps until every op has been the one that made it grow, or the memory is large
    for (let round = 0; backend.memory().reservedBytes < 320 * MIB; round++) {
      const [name, op] = entries[round % entries.length]!;
      const before = backend.memory().reservedBytes;
      kept.push(op());
      if (backend.memory().reservedBytes > before) grew.add(name);
      expect(difference(kept.at(-1)!.dataSync(), first[round % entries.length]!)).toBe(-1);
    }
    expect(grew.size).toBeGreaterThanOrEqual(4);
    for (const [i, y] of kept.entries()) expect(difference(y.dataSync(), first[i % entries.length]!)).toBe(-1);
    expect(difference(x.dataSync(), host.data)).toBe(-1);
    await backend.close();
  });

  test('that is freed is used again', async () => {
    const backend = createWasmBackend({ threads: 1 });
    for (let i = 0; i < 100; i++) t.zeros([MIB], { backend }).dispose();
    expect(backend.memory()).toEqual({ liveBytes: 0, liveBuffers: 0, peakBytes: 4 * MIB, reservedBytes: 16 * MIB });
    await backend.close();
  });

  test('a request that no memory can hold is refused, and the backend goes on', async () => {
    const backend = createWasmBackend({ threads: 1 });
    for (const shape of [[2 ** 30], [2 ** 15, 2 ** 17], [2 ** 40]]) {
      expect(() => t.zeros(shape, { backend })).toThrow(expect.objectContaining({ code: 'out-of-memory' }));
    }
    expect(t.ones([3], { backend }).dataSync()).toEqual(Float32Array.of(1, 1, 1));
    await backend.close();
  });
});
