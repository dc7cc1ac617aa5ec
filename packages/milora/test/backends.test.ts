import { SGD } from '@milora/autograd';
import { createWasmBackend, scope } from '@milora/tensor';
import type { Backend } from '@milora/tensor';
import { createGpuBackend } from '@milora/tensor/gpu';
import { describe, expect, it } from 'vitest';
import { inject } from '../src/adapter.js';
import type { AdapterConfig } from '../src/adapter.js';
import { loraInit, miloraInit, pissaInit } from '../src/inits.js';
import type { Init } from '../src/inits.js';
import { BATCH, LABELS, distance, logitsOf, tinyModel } from './tiny.js';

interface Step {
  loss: number;
  gradients: Map<string, Float64Array>;
  /** After one step of SGD. */
  logits: Float64Array;
}

/** One training step on a backend, dropout included: its masks come from the seed, not from the device. */
async function stepOn(backend: Backend, init: Init, config: AdapterConfig, checkpointing: boolean): Promise<Step> {
  const model = tinyModel(1, backend);
  const adapter = await inject(model, init, config);
  model.gradientCheckpointing = checkpointing;
  model.train();
  const optimizer = new SGD(model.trainable(), { lr: 0.1 });
  const gradients = new Map<string, Float64Array>();
  const loss = await scope(async () => {
    const value = model.loss(BATCH, LABELS);
    value.backward();
    for (const [name, { grad }] of model.trainable()) gradients.set(name, Float64Array.from(await grad!.data()));
    optimizer.step();
    optimizer.zeroGrad();
    return value.item();
  });
  model.eval();
  const logits = await logitsOf(model, BATCH);
  optimizer.dispose();
  adapter.unload();
  model.dispose();
  return { loss, gradients, logits };
}

const settings: [string, Init, AdapterConfig, boolean][] = [
  ['milora, residual', miloraInit, { rank: 3, alpha: 6 }, false],
  ['pissa, offset, dropout', pissaInit, { rank: 3, form: 'offset', dropout: 0.2 }, false],
  [
    'lora, all linear layers, dropout, gradient checkpointing',
    loraInit,
    { rank: 2, targetModules: 'all-linear', dropout: 0.1 },
    true,
  ],
];

describe.each(settings)('one training step, %s', (_, init, config, checkpointing) => {
  const backends: [string, () => Backend][] = [
    ['gpu/cpu', () => createGpuBackend('cpu')],
    ['gpu/webasm', () => createGpuBackend('webasm')],
    ['wasm, strict build', () => createWasmBackend({ threads: 1, build: 'strict' })],
  ];
  const expected = stepOn(createWasmBackend({ threads: 1 }), init, config, checkpointing);

  it.each(backends)('is the same on %s as on wasm', async (_, make) => {
    const [mine, wasm] = [await stepOn(make(), init, config, checkpointing), await expected];
    // float32 sums in other orders over two layers; the limits are those of golden.ts for loss, gradients and logits
    expect(Math.abs(mine.loss - wasm.loss) / wasm.loss).toBeLessThan(1e-6);
    expect([...mine.gradients.keys()]).toEqual([...wasm.gradients.keys()]);
    for (const [name, gradient] of wasm.gradients) {
      const largest = Math.max(...gradient.map(Math.abs));
      const scaled = (x: Float64Array): Float64Array => x.map((g) => g / (largest || 1));
      expect(distance(scaled(mine.gradients.get(name)!), scaled(gradient))).toBeLessThan(1e-4);
    }
    expect(distance(mine.logits, wasm.logits)).toBeLessThan(2e-5);
  });

  it.each([2, 3])('has the same bits with %i threads', async (threads) => {
    expect(await stepOn(createWasmBackend({ threads }), init, config, checkpointing)).toEqual(await expected);
  });
});
