/** Single-precision matrix products, in GFLOPS (two operations per multiply-add). */
import { Philox, Tensor, matmul } from '@milora/tensor';
import { gemmPeer, ratio } from './peers.js';
import { fraction } from './roofline.js';
import { PEERS, Timer, openBackend } from './suite.js';
import type { Result, SuiteOptions } from './suite.js';

export async function gemm(options: SuiteOptions): Promise<void> {
  const { shapes, emit } = options;
  const ours: Result[] = [];
  for (const name of options.backends) {
    const { backend, label, threads, close } = await openBackend(name, options.threads);
    const timer = new Timer(options, name);
    const random = new Philox(0);
    for (const [m, k, n] of shapes) {
      const of = `${m}x${k}x${n}`;
      const flops = 2 * m * n * k;
      if (!timer.fits(`gemm ${of}`, flops)) continue;
      const make = (shape: number[]): Tensor =>
        Tensor.fromHost({ dtype: 'f32', shape, data: random.normalArray(shape[0]! * shape[1]!) }, backend);
      const [a, b] = [make([m, k]), make([k, n])];
      const time = await timer.median(`gemm ${of}`, flops, () => matmul(a, b).dispose());
      a.dispose();
      b.dispose();
      if (time === undefined) continue;
      const common = { suite: 'gemm', case: of, threads, backend: label };
      const result = { ...common, metric: 'throughput', value: flops / time / 1e9, unit: 'GFLOPS' };
      emit(result);
      if (name !== 'wasm') continue;
      ours.push(result);
      if (options.limits) {
        const value = fraction(options.limits, flops, time, 4 * (m * k + k * n + m * n));
        emit({ ...common, metric: 'fraction', value, unit: 'of the limit' });
      }
    }
    await close();
  }
  for (const peer of options.peers ? PEERS.gemm : []) {
    for (const theirs of await gemmPeer(peer, options)) {
      emit(theirs);
      const mine = ours.find((result) => result.case === theirs.case);
      if (mine) emit(ratio(mine, theirs));
    }
  }
}
