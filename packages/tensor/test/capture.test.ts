/** Recordings: a replay gives the bits that the calls themselves would give, on what is then in their inputs. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import * as t from '../src/index.js';
import { createGpuBackend } from '../src/backends/gpu/index.js';
import { Philox, Tensor, createWasmBackend, scope } from '../src/index.js';
import type { WasmBackend } from '../src/index.js';

/** What `step` reads: x and a row index are overwritten between replays, the rest stays. */
interface State {
  x: Tensor; // [1, 300]
  row: Tensor; // [1, 1] i32
  weights: Tensor[]; // [300, 300], in f32, bf16, f16 and int8
  wide: Tensor; // [5000, 300]
  norm: Tensor; // [300]
  cache: Tensor; // [1, 20, 5000]
}

function stateOn(backend: WasmBackend): State {
  const random = new Philox(7);
  const f32 = (...shape: number[]): Tensor => {
    const data = random.normalArray(shape.reduce((a, b) => a * b, 1));
    return Tensor.fromHost({ dtype: 'f32', shape, data }, backend);
  };
  return {
    x: f32(1, 300),
    row: t.intTensor([0], [1, 1], { backend }),
    weights: (['f32', 'bf16', 'f16', 'int8'] as const).map((dtype) => t.cast(f32(300, 300), dtype)),
    wide: f32(5000, 300),
    norm: f32(300),
    cache: t.zeros([1, 20, 5000], { backend }),
  };
}

/** Large and small commands in turn, so that threads meet, skip meetings and leave work to one of them. */
function step({ x, row, weights, wide, norm, cache }: State): Tensor[] {
  return scope(() => {
    let h = x;
    for (const w of weights) h = t.add(x, t.matmul(t.rmsNorm(h, norm, 1e-5).y, w, { transposeB: true }));
    const y = t.matmul(h, wide, { transposeB: true }); // [1, 5000]
    t.writeRows(cache, y.reshape(1, 1, 5000), row);
    const seen = t.softmax(cache.reshape(20, 5000));
    return [y, t.sum(seen, { axis: 0 }), t.argmax(y)];
  });
}

const bits = (x: Tensor): number[] => {
  const { buffer, byteOffset, byteLength } = x.dataSync();
  return [...new Int32Array(buffer, byteOffset, byteLength / 4)];
};

describe.each([1, 2, 4])('with %i threads', (threads) => {
  let backend: WasmBackend;
  beforeAll(async () => {
    backend = createWasmBackend({ threads });
    await backend.ready();
  });
  afterAll(async () => {
    expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
    await backend.close();
  });

  test('replays equal calls', () => {
    scope(() => {
      const [recorded, called] = [stateOn(backend), stateOn(backend)];
      let results!: Tensor[];
      const recording = backend.capture(() => (results = step(recorded)));
      const random = new Philox(8);
      for (let i = 0; i < 40; i++) {
        if (i > 0) {
          const [x, row] = [random.normalArray(300), Int32Array.of(i % 20)];
          for (const state of [recorded, called]) {
            state.x.assign(x);
            state.row.assign(row);
          }
          recording.replay();
        }
        const expected = scope(() => step(called).map(bits));
        expect(results.map(bits)).toEqual(expected);
      }
      recording.dispose();
      expect(() => results[0]!.dataSync()).toThrow(expect.objectContaining({ code: 'disposed' }));
    });
  });

  test('memory that is freed and made inside is used again, and given back in the end', () => {
    scope(() => {
      const state = stateOn(backend);
      const before = backend.memory();
      const recording = backend.capture(() => scope(() => void step(state)));
      const once = backend.memory().liveBytes;
      for (let i = 0; i < 5; i++) recording.replay();
      expect(backend.memory().liveBytes).toBe(once);
      // two vectors of 5000 or 20 · 5000 at most, whatever the number of layers
      expect(once - before.liveBytes).toBeLessThan(3 * 20 * 5000 * 4);
      recording.dispose();
      recording.dispose();
      expect(backend.memory()).toMatchObject({ liveBytes: before.liveBytes, liveBuffers: before.liveBuffers });
      expect(() => recording.replay()).toThrow(/live recording/);
    });
  });

  test('a replay without its inputs is refused', () => {
    scope(() => {
      const state = stateOn(backend);
      const recording = backend.capture(() => void step(state));
      state.norm.dispose();
      expect(() => recording.replay()).toThrow(expect.objectContaining({ code: 'disposed' }));
      recording.dispose();
    });
  });

  test('what cannot be recorded is refused, and nothing is left over', () => {
    scope(() => {
      const { x } = stateOn(backend);
      const before = backend.memory();
      const refused: (() => unknown)[] = [
        () => t.permute(x, [1, 0]),
        () => t.tanh(x),
        () => t.zeros([3], { backend }),
        () => t.slice(x, 1, 0, 3),
        () => t.cast(x, 'int8'),
        () => t.intTensor([1], [1], { backend }),
        () => backend.capture(() => undefined),
      ];
      for (const fn of refused) {
        expect(() => backend.capture(() => scope(() => (t.add(x, x), fn())))).toThrow(
          expect.objectContaining({ code: 'capture' }),
        );
        expect(backend.memory()).toMatchObject({ liveBytes: before.liveBytes, liveBuffers: before.liveBuffers });
      }
      expect(t.neg(x).dataSync()[0]).toBe(-x.dataSync()[0]!);
    });
  });
});

test('a recording goes on with one thread when the others have ended', async () => {
  const backend = createWasmBackend({ threads: 2 });
  await backend.ready();
  const state = stateOn(backend);
  let results!: Tensor[];
  const recording = backend.capture(() => (results = step(state)));
  const before = results.map(bits);
  await backend.close();
  recording.replay();
  expect(results.map(bits)).toEqual(before);
});

test('other backends do without', () => {
  expect(createGpuBackend('cpu').capture).toBeUndefined();
});
