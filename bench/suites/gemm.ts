/** Single-precision matrix products, in GFLOPS (two operations per multiply-add). */
import { Philox, Tensor, createWasmBackend, matmul } from '@milora/tensor';
import { configs } from '../configs.js';
import { medianSeconds } from './suite.js';
import type { SuiteOptions } from './suite.js';

export async function gemm({ threads, seconds, emit }: SuiteOptions): Promise<void> {
  const backend = createWasmBackend({ threads });
  await backend.ready();
  const random = new Philox(0);
  for (const [m, k, n] of configs.gemm) {
    const make = (shape: number[]): Tensor =>
      Tensor.fromHost({ dtype: 'f32', shape, data: random.normalArray(shape[0]! * shape[1]!) }, backend);
    const [a, b] = [make([m, k]), make([k, n])];
    const time = await medianSeconds(() => matmul(a, b).dispose(), seconds);
    emit({
      suite: 'gemm',
      case: `${m}x${k}x${n}`,
      metric: 'throughput',
      value: (2 * m * n * k) / time / 1e9,
      unit: 'GFLOPS',
      threads,
      backend: `${backend.name}-${backend.build}`,
    });
    a.dispose();
    b.dispose();
  }
  await backend.close();
}
