import fc from 'fast-check';
import ndarray from 'ndarray';
import { expect, it } from 'vitest';
import type { HostTensor } from '../src/host.js';
import { fromNdarray, toNdarray } from '../src/ndarray.js';

const counting = (shape: number[]): HostTensor => {
  const size = shape.reduce((a, b) => a * b, 1);
  return { dtype: 'f32', shape, data: Float32Array.from({ length: size }, (_, i) => i) };
};

it('a view shares the memory of its tensor, and the way back too', () => {
  for (const shape of [[], [0], [3], [2, 3], [2, 0, 3], [1, 2, 1, 4]]) {
    const host = counting(shape);
    const view = toNdarray(host);
    expect(view.data).toBe(host.data);
    const back = fromNdarray(view);
    expect(back).toEqual(host);
    expect(back.data.buffer).toBe(host.data.buffer);
  }
  const host = counting([2, 3]);
  toNdarray(host).set(1, 2, 50);
  expect(host.data[5]).toBe(50);
});

it('strided views are copied in row-major order', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 }).chain((shape) =>
        fc.record({
          shape: fc.constant(shape),
          order: fc.shuffledSubarray([...shape.keys()], { minLength: shape.length }),
          low: fc.tuple(...shape.map((d) => fc.integer({ min: 0, max: d - 1 }))),
          steps: fc.tuple(...shape.map(() => fc.constantFrom(1, 2, -1, -2))),
        }),
      ),
      ({ shape, order, low, steps }) => {
        const view = toNdarray(counting(shape))
          .lo(...low)
          .step(...steps)
          .transpose(...order);
        const host = fromNdarray(view);
        expect(host.shape).toEqual(view.shape);
        // ndarray's own `get` at every index, the last running fastest
        const at = (rest: number[], index: number[]): number[] =>
          rest.length === 0
            ? [view.get(...index)]
            : Array.from({ length: rest[0]! }, (_, i) => at(rest.slice(1), [...index, i])).flat();
        expect([...host.data]).toEqual(at(view.shape, []));
      },
    ),
    { numRuns: 300 },
  );
});

it('dtypes that a view cannot tell apart are refused', () => {
  expect(() => toNdarray({ dtype: 'bf16', shape: [1], data: Uint16Array.of(0x3f80) })).toThrow('got bf16; convertHost');
  expect(() => fromNdarray(ndarray([1, 2]) as never)).toThrow(
    'expected a Float32Array, Float64Array or Int32Array, got Array',
  );
  expect(fromNdarray(ndarray(Int32Array.of(1, 2)))).toEqual({ dtype: 'i32', shape: [2], data: Int32Array.of(1, 2) });
});
