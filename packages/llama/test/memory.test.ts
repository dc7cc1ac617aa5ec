import { getBackend, scope } from '@milora/tensor';
import { describe, expect, it } from 'vitest';
import { generate, generateBatch } from '../src/generate.js';
import { configOf, logitsOf, randomModel } from './models.js';

const live = (): number => getBackend().memory().liveBytes;
const ids = [1, 2, 3, 4, 5];
const input = { inputIds: ids, batch: 1, length: ids.length };

describe('live bytes', () => {
  it.each([false, true])('stay constant over losses and gradients, with checkpointing: %s', async (checkpointing) => {
    const start = live();
    const model = randomModel(configOf({ attentionBias: true }), 1);
    model.requiresGrad(true);
    model.gradientCheckpointing = checkpointing;
    const step = (): Promise<number> =>
      scope(() => {
        const loss = model.loss(input, ids);
        loss.backward();
        return loss.item();
      });
    const losses = [await step()];
    model.zeroGrad();
    const before = live();
    for (let i = 0; i < 20; i++) {
      losses.push(await step());
      model.zeroGrad();
      expect(live()).toBe(before);
    }
    expect(new Set(losses).size).toBe(1);
    model.dispose();
    expect(live()).toBe(start);
  });

  it.each([true, false])('stay constant over generation, with cache: %s', async (useCache) => {
    const start = live();
    const model = randomModel(configOf(), 1);
    await logitsOf(model, input);
    const before = live();
    const during: number[] = [];
    for await (const _ of generate(model, ids, { useCache, maxNewTokens: 12 })) during.push(live());
    // while it runs there is the cache at most, and after the first token the recording of a step
    expect(new Set(during.slice(1)).size).toBe(1);
    expect(live()).toBe(before);
    for await (const _ of generateBatch(model, [[1], ids], { useCache })) break;
    expect(live()).toBe(before);
    model.dispose();
    expect(live()).toBe(start);
  });

  it('stay constant over refusals', async () => {
    const model = randomModel(configOf(), 1);
    await logitsOf(model, input);
    const before = live();
    for (const bad of [[1, 2, 99], [-1], []]) {
      await expect(logitsOf(model, { inputIds: bad, batch: 1, length: bad.length })).rejects.toThrow();
    }
    expect(() => scope(() => model.loss(input, [1, 2, 3, 4, 99]))).toThrow(/below 19/);
    expect(live()).toBe(before);
    model.dispose();
  });
});
