/**
 * Causal attention in the shapes of the models (B rows of T tokens, H query and G key/value heads of size D), forward and
 * forward + backward: GFLOPS over the causal half, two operations per multiply-add, and peak bytes of tensors.
 */
import { parseLlamaConfig } from '@milora/llama';
import { Philox, Tensor, attention as forward, attentionGrad, causalRanges, scope } from '@milora/tensor';
import { SIZES, configs } from '../configs.js';
import { attentionFlops, attentionGradFlops, causalPairs, fraction } from './roofline.js';
import { Timer, openBackend } from './suite.js';
import type { SuiteOptions } from './suite.js';

interface Shape {
  batch: number;
  length: number;
  heads: number;
  kvHeads: number;
  headDim: number;
}

function shapesOf(options: SuiteOptions): Shape[] {
  return (options.sizes ?? SIZES).flatMap((size) => {
    const { batch, seq, model } = configs[size];
    const config = parseLlamaConfig({ model_type: 'llama', ...model }, 'configs.json');
    const long = size === '135M' && !options.sizes ? [seq, 2048] : [seq];
    return (options.batches ?? [batch]).flatMap((rows) =>
      (options.lengths ?? long).map((length) => ({
        batch: rows,
        length,
        heads: config.numAttentionHeads,
        kvHeads: config.numKeyValueHeads,
        headDim: config.headDim,
      })),
    );
  });
}

export async function attention(options: SuiteOptions): Promise<void> {
  for (const name of options.backends) {
    const { backend, label, threads, close } = await openBackend(name, options.threads);
    const timer = new Timer(options, name);
    const random = new Philox(0);
    for (const { batch, length, heads, kvHeads, headDim } of shapesOf(options)) {
      const shape = `${batch}x${length}x${heads}x${kvHeads}x${headDim}`;
      const make = (count: number): Tensor => {
        const data = random.normalArray(batch * length * count * headDim);
        return Tensor.fromHost({ dtype: 'f32', shape: [batch, length, count, headDim], data }, backend).keep();
      };
      const ranges = causalRanges(batch, length, length, undefined, backend).keep();
      const [q, k, v, dout] = [make(heads), make(kvHeads), make(kvHeads), make(heads)] as const;
      const pairs = causalPairs(Array.from({ length: batch }, () => length));
      const there = attentionFlops(pairs, heads, headDim);
      const cases = [
        { pass: 'forward', flops: there, run: () => void forward(q, k, v, ranges) },
        {
          pass: 'forward + backward',
          flops: there + attentionGradFlops(pairs, heads, headDim),
          run: () => {
            const { out, lse } = forward(q, k, v, ranges);
            attentionGrad(dout, q, k, v, ranges, out, lse);
          },
        },
      ];
      for (const { pass, flops, run } of cases) {
        const of = `${shape} ${pass}`;
        if (!timer.fits(`attention ${of}`, flops)) continue;
        backend.resetPeak();
        const time = await timer.median(`attention ${of}`, flops, () => scope(run));
        if (time === undefined) continue;
        const common = { suite: 'attention', case: of, threads, backend: label };
        options.emit({ ...common, metric: 'throughput', value: flops / time / 1e9, unit: 'GFLOPS' });
        options.emit({ ...common, metric: 'peak', value: backend.memory().peakBytes, unit: 'bytes' });
        if (options.limits && name === 'wasm') {
          const value = fraction(options.limits, flops, time);
          options.emit({ ...common, metric: 'fraction', value, unit: 'of the limit' });
        }
      }
      for (const tensor of [q, k, v, dout, ranges]) tensor.dispose();
    }
    await close();
  }
}
