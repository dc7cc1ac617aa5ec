/** What is particular to the GPU.js backend: availability of its modes, asynchronous devices, large indices, many sizes. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { createGpuBackend, type GpuMode } from '../../src/backends/gpu/index.js';

afterEach(() => {
  vi.unstubAllGlobals();
});

describe('modes', () => {
  test.each(['webgl2', 'webgpu'] as const)('%s is refused where the device is missing', (mode) => {
    vi.stubGlobal('navigator', {});
    expect(() => createGpuBackend(mode)).toThrow(
      expect.objectContaining({
        code: 'backend-unavailable',
        message: expect.stringContaining(`gpu/${mode}: expected`),
      }),
    );
  });

  test('an unknown mode is refused', () => {
    expect(() => createGpuBackend('async' as GpuMode)).toThrow(
      expect.objectContaining({ code: 'backend-unavailable' }),
    );
  });

  test('webgpu without an adapter says so when a result is read', async () => {
    vi.stubGlobal('navigator', { gpu: { requestAdapter: () => Promise.resolve(null) } });
    const backend = createGpuBackend('webgpu');
    expect(backend.synchronous).toBe(false);
    const y = backend.unary('neg', backend.upload(Float32Array.of(1), 'f32'), 1);
    expect(() => backend.readSync(y, 'f32', 1)).toThrow(expect.objectContaining({ code: 'asynchronous' }));
    await expect(backend.read(y, 'f32', 1)).rejects.toMatchObject({ code: 'backend-unavailable' });
  });
});

describe.each(['cpu', 'webasm'] as const)('gpu/%s', (mode) => {
  // f32 counts by ones only up to here: an index that becomes a float on the way is off above it
  const limit = 2 ** 24;

  test('indices above 2^24 are exact', () => {
    const backend = createGpuBackend(mode);
    const n = limit + 64;
    const data = Float32Array.from({ length: n }, (_, i) => i % 1021);
    const x = backend.upload(data, 'f32');
    const end = (count: number): number[] => [...data.subarray(n - count)];

    expect([...backend.readSync(backend.slice(x, 1, n, 1, n - 33, 33), 'f32', 33)]).toEqual(end(33));
    const last = backend.upload(Int32Array.of(n / 32 - 1), 'i32');
    expect([...backend.readSync(backend.gatherRows(x, 'f32', last, 1, n / 32, 32), 'f32', 32)]).toEqual(end(32));
    // x as two rows of two blocks each, the blocks in the other order
    const quarter = n / 4;
    const swapped = backend.permute(x, [1, 2, 2, quarter], [0, 2, 1, 3]);
    const y = backend.readSync(swapped, 'f32', n);
    expect([...y.subarray(2 * quarter, 2 * quarter + 64)]).toEqual([...data.subarray(quarter, quarter + 64)]);
    expect([...y.subarray(n - 64)]).toEqual(end(64));
  });

  test('more sizes than kernels are kept', () => {
    const backend = createGpuBackend(mode);
    for (let round = 0; round < 2; round++) {
      for (let n = 1; n <= 300; n++) {
        const y = backend.fill(n, n);
        expect(backend.readSync(y, 'f32', n).at(-1)).toBe(n);
        backend.free(y);
      }
    }
    expect(backend.memory().liveBytes).toBe(0);
  });
});
