import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Backend, Storage } from '../../src/backend.js';
import { createGpuBackend } from '../../src/backends/gpu/index.js';
import { testBackends } from './backends.js';
import { cases, MEMORY, type Case, type KernelName } from './cases.js';
import { Session } from './session.js';

const RUNS = 200;

test('the table has every kernel', () => {
  const backend = createGpuBackend('cpu');
  const methods = Object.getOwnPropertyNames(Object.getPrototypeOf(backend)).filter(
    (name) => name !== 'constructor' && !(MEMORY as readonly string[]).includes(name),
  );
  expect(Object.keys(cases).sort()).toEqual(methods.sort());
});

describe.each(testBackends())('$name', ({ create }) => {
  let backend: Backend;
  beforeAll(async () => {
    backend = await create();
  });
  afterAll(() => {
    // every call freed what it made
    expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
  });

  test.each(Object.keys(cases) as KernelName[])('%s', async (name) => {
    await fc.assert(
      fc.asyncProperty(cases[name].inputs, (input) => check(backend, cases[name], input)),
      { numRuns: RUNS },
    );
  });

  test('results of the same kernel are separate', async () => {
    const session = new Session(backend);
    const [x, y] = [session.f32(Float32Array.of(1, 2, 3)), session.f32(Float32Array.of(4, 5, 6))];
    const first = backend.unary('neg', x, 3);
    const second = backend.unary('neg', y, 3);
    expect([...(await backend.read(first, 'f32', 3))]).toEqual([-1, -2, -3]);
    expect([...(await backend.read(second, 'f32', 3))]).toEqual([-4, -5, -6]);
    session.free([first, second]);
  });

  test('uploads and reads are copies', async () => {
    const data = Float32Array.of(1, 2);
    const x = backend.upload(data, 'f32');
    data[0] = 9;
    const copy = await backend.read(x, 'f32', 2);
    copy[1] = 9;
    expect([...(await backend.read(x, 'f32', 2))]).toEqual([1, 2]);
    backend.free(x);
  });

  test('memory counts what lives', () => {
    const before = backend.memory();
    backend.resetPeak();
    const x = backend.fill(1000, 1);
    const y = backend.upload(new Uint16Array(10), 'bf16');
    const during = backend.memory();
    expect(during.liveBuffers - before.liveBuffers).toBe(2);
    expect(during.liveBytes - before.liveBytes).toBe(x.bytes + y.bytes);
    expect(x.bytes).toBeGreaterThanOrEqual(4000);
    backend.free(x);
    backend.free(y);
    const after = backend.memory();
    expect(after.liveBytes).toBe(before.liveBytes);
    expect(after.peakBytes).toBeGreaterThanOrEqual(before.liveBytes + 4020);
    backend.resetPeak();
    expect(backend.memory().peakBytes).toBe(before.liveBytes);
  });

  test('a freed storage is refused', async () => {
    const x = backend.fill(3, 1);
    backend.free(x);
    expect(() => backend.unary('neg', x, 3)).toThrow(expect.objectContaining({ code: 'disposed' }));
    expect(() => backend.free(x)).toThrow(expect.objectContaining({ code: 'disposed' }));
    // thrown at once or by the promise
    await expect((async () => backend.read(x, 'f32', 3))()).rejects.toMatchObject({ code: 'disposed' });
  });
});

/** Calls one kernel and compares every result with its reference. */
async function check(backend: Backend, entry: Case<unknown>, input: unknown): Promise<void> {
  const session = new Session(backend);
  const results = Object.entries(entry.call(backend, session, input)).map(([name, result]) => ({
    name,
    ...('storage' in result ? result : { storage: result satisfies Storage, dtype: 'f32' as const }),
  }));
  try {
    const expected = entry.expected(input);
    expect(results.map(({ name }) => name).sort()).toEqual(Object.keys(expected).sort());
    for (const { name, storage, dtype } of results) {
      const { values, scale } = expected[name]!;
      const actual = await backend.read(storage, dtype, values.length);
      compare(name, actual, values, entry.relative, scale ?? largest(values));
    }
    const changed = await session.changedOperands();
    if (changed.length > 0) throw new Error(`operands: expected to be left alone, got changes in ${changed.join()}`);
  } finally {
    session.free(results.map(({ storage }) => storage));
  }
}

function compare(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  relative: number,
  scale: number,
): void {
  if (actual.length !== expected.length) {
    throw new Error(`${name}: expected ${expected.length} elements, got ${actual.length}`);
  }
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!];
    // infinities and NaN must agree exactly
    if (a === e || (Number.isNaN(a) && Number.isNaN(e))) continue;
    const tolerance = relative * Math.max(Math.abs(e), scale);
    if (Number.isFinite(e) && Math.abs(a - e) <= tolerance) continue;
    throw new Error(`${name}[${i}]: expected ${e} ± ${tolerance}, got ${a}`);
  }
}

function largest(values: ArrayLike<number>): number {
  let max = 0;
  for (let i = 0; i < values.length; i++) {
    const magnitude = Math.abs(values[i]!);
    if (Number.isFinite(magnitude)) max = Math.max(max, magnitude);
  }
  return max;
}
