/** int8 storage: what it holds, how exact it is, and what it refuses. The kernels themselves are in the table of kernels. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  Philox,
  cast,
  convertHost,
  gatherRows,
  hostLength,
  int8Parts,
  intTensor,
  matmul,
  scope,
  tensor,
} from '../src/index.js';

const coded = (code: string): unknown => expect.objectContaining({ code });

describe('host conversion', () => {
  test('scales each row by its largest entry and rounds to nearest, ties to even', () => {
    const x = Float32Array.of(127, 0.5, 1.5, -2.5, -254, 1, 3, 0);
    const data = convertHost(x, 'f32', 'int8', [2, 4]);
    const { q, scales } = int8Parts(data, [2, 4]);
    expect([...scales]).toEqual([1, 2]);
    expect([...q]).toEqual([127, 0, 2, -2, -127, 0, 2, 0]);
    expect([...convertHost(data, 'int8', 'f32', [2, 4])]).toEqual([127, 0, 2, -2, -254, 0, 4, 0]);
  });

  test('is off by half a step of the row at most, and exact the second time', () => {
    const shapes = fc.record({
      rows: fc.integer({ min: 0, max: 9 }),
      columns: fc.integer({ min: 0, max: 9 }),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(shapes, ({ rows, columns, seed }) => {
        const x = new Philox(seed).normalArray(rows * columns);
        const data = convertHost(x, 'f32', 'int8', [rows, columns]);
        expect(data.length).toBe(hostLength('int8', [rows, columns]));
        const { scales } = int8Parts(data, [rows, columns]);
        const back = convertHost(data, 'int8', 'f32', [rows, columns]);
        back.forEach((v, i) => {
          expect(Math.abs(v - x[i]!)).toBeLessThanOrEqual(scales[Math.floor(i / columns)]! * 0.500001);
        });
        expect(convertHost(back, 'f32', 'int8', [rows, columns])).toEqual(data);
      }),
      { numRuns: 200 },
    );
  });

  test('needs a shape, and finite values', () => {
    const data = convertHost(new Float32Array(6), 'f32', 'int8', [2, 3]);
    expect(() => convertHost(data, 'int8', 'f32')).toThrow(coded('dtype'));
    expect(() => convertHost(data, 'int8', 'f32', [3, 2])).toThrow(/20 bytes|16 bytes/);
    expect(() => convertHost(Float32Array.of(1, NaN), 'f32', 'int8', [1, 2])).toThrow(
      /finite values, got NaN at entry 1/,
    );
  });
});

describe('ops', () => {
  test('cast goes there and back, and products and rows read it', () => {
    scope(() => {
      const w = tensor([1, -0.5, 0.25, 8, 2, 4], [2, 3]);
      const q = cast(w, 'int8');
      const exact = cast(q, 'f32');
      expect(q.dtype).toBe('int8');
      const x = tensor([1, 2, 3], [1, 3]);
      const [y, expected] = [matmul(x, q, { transposeB: true }), matmul(x, exact, { transposeB: true })].map((r) => [
        ...r.dataSync(),
      ]);
      y!.forEach((v, i) => expect(v).toBeCloseTo(expected![i]!, 5));
      expect(gatherRows(q, intTensor([1])).dataSync()).toEqual(exact.dataSync().slice(3));
      expect(cast(cast(q, 'bf16'), 'f32').dataSync()).toEqual(cast(cast(exact, 'bf16'), 'f32').dataSync());
    });
  });

  test('rows stay rows, and only a transposed matrix is read by row', () => {
    scope(() => {
      const q = cast(tensor(new Float32Array(6), [2, 3]), 'int8');
      expect(q.reshape(1, 2, 3).shape).toEqual([1, 2, 3]);
      expect(() => q.reshape(3, 2)).toThrow(coded('shape'));
      expect(() => matmul(tensor([1, 2], [1, 2]), q)).toThrow(/transposeB/);
    });
  });

  test('an input that is not finite gives no number, as in f32', () => {
    scope(() => {
      const q = cast(tensor([1, 2, 3, 4], [2, 2]), 'int8');
      expect([...matmul(tensor([1, NaN], [1, 2]), q, { transposeB: true }).dataSync()]).toEqual([NaN, NaN]);
      expect([...matmul(tensor([1e-42, 0], [1, 2]), q, { transposeB: true }).dataSync()].every(Number.isFinite)).toBe(
        true,
      );
    });
  });
});
