/** Full thin SVD in float64 of random matrices, in seconds. */
import { Philox, svdMatrix } from '@milora/tensor';
import type { SuiteOptions } from './suite.js';

export async function svd({ emit }: SuiteOptions): Promise<void> {
  for (const n of [64, 128, 256, 512]) {
    const data = Float64Array.from(new Philox(n).normalArray(n * n));
    const times: number[] = [];
    for (let i = 0; i < (n < 512 ? 3 : 1); i++) {
      const start = performance.now();
      svdMatrix({ rows: n, cols: n, data: data.slice() });
      times.push((performance.now() - start) / 1000);
    }
    const value = times.sort((a, b) => a - b)[times.length >> 1]!;
    emit({ suite: 'svd', case: `full ${n}x${n}`, metric: 'time', value, unit: 's', threads: 1, backend: 'host' });
    await Promise.resolve();
  }
}
