import type { Variable } from '@milora/autograd';
import type { LlamaForCausalLM } from '@milora/llama';
import { scope } from '@milora/tensor';
import { afterEach, describe, expect, it } from 'vitest';
import { inject } from '../src/adapter.js';
import type { AdapterConfig } from '../src/adapter.js';
import { BatchIterator } from '../src/batches.js';
import type { BatchOptions } from '../src/batches.js';
import { MiloraError } from '../src/errors.js';
import { loraInit, miloraInit } from '../src/inits.js';
import type { Init } from '../src/inits.js';
import { Trainer } from '../src/trainer.js';
import type { StepEvent, TrainEvent, TrainOptions, TrainerState } from '../src/trainer.js';
import { distance, examplesOf, liveBytes, parametersOf, randomModel, tinyConfig, tinyModel } from './tiny.js';

const EXAMPLES = examplesOf(11, 7, 19, 5);

const models: LlamaForCausalLM[] = [];
const trainers: Trainer[] = [];
afterEach(() => {
  trainers.splice(0).forEach((trainer) => trainer.dispose());
  models.splice(0).forEach((model) => model.dispose());
});

interface Setup {
  init?: Init;
  adapter?: Partial<AdapterConfig>;
  batches?: Partial<BatchOptions>;
  train?: Partial<TrainOptions>;
}

/** A model with its adapter, batches and trainer, always the same for the same setup. */
async function setup({ init = miloraInit, adapter = {}, batches = {}, train = {} }: Setup = {}): Promise<Trainer> {
  const model = tinyModel();
  models.push(model);
  await inject(model, init, { rank: 2, alpha: 4, seed: 3, ...adapter });
  const iterator = new BatchIterator(EXAMPLES, { batchSize: 2, seed: 8, ...batches });
  const trainer = new Trainer(model, iterator, { steps: 6, lr: 0.01, schedule: 'constant', ...train });
  trainers.push(trainer);
  return trainer;
}

async function collect(trainer: Trainer, until = Infinity): Promise<TrainEvent[]> {
  const events: TrainEvent[] = [];
  for await (const event of trainer.run()) {
    events.push(event);
    if (event.step >= until && event.type === 'step') break;
  }
  return events;
}

const steps = (events: readonly TrainEvent[]): StepEvent[] => events.filter((event) => event.type === 'step');
const losses = (events: readonly TrainEvent[]): number[] => steps(events).map(({ loss }) => loss);
const isStep = (event: TrainEvent): boolean => event.type === 'step';

describe('memory', () => {
  it('is the same after 10 steps and after 2,000', async () => {
    const start = liveBytes();
    const model = randomModel(tinyConfig({ numHiddenLayers: 1 }), 1);
    const adapter = await inject(model, miloraInit, { rank: 2, dropout: 0.1, targetModules: ['q_proj', 'down_proj'] });
    const batches = new BatchIterator(EXAMPLES, { batchSize: 1, seed: 1 });
    const trainer = new Trainer(model, batches, { steps: 2000, lr: 1e-3, accumulation: 1 });
    const bytes = new Map<number, number>();
    for await (const event of trainer.run()) bytes.set(event.step, liveBytes());
    expect(bytes.get(10)).toBeGreaterThan(start);
    expect(bytes.get(2000)).toBe(bytes.get(10));
    // not at any step between either
    expect(new Set([...bytes.values()].slice(9)).size).toBe(1);
    trainer.dispose();
    adapter.unload();
    model.dispose();
    expect(liveBytes()).toBe(start);
  });
});

describe('resume', () => {
  const hard: Setup = {
    adapter: { dropout: 0.3 },
    batches: { mode: 'pack', maxLength: 12, shuffle: true },
    train: { steps: 8, accumulation: 2, schedule: 'cosine', warmupSteps: 2 },
  };

  /** A state as a file would hold it: copies of plain data. */
  const stored = async (trainer: Trainer): Promise<TrainerState> => structuredClone(await trainer.state());

  it.each([0, 1, 2, 3, 5, 7])('after step %i goes on with the same bits', async (at) => {
    const whole = await setup(hard);
    const expected = await collect(whole);
    expect(new Set(losses(expected)).size).toBe(8);

    const first = await setup(hard);
    const before = at === 0 ? [] : await collect(first, at);
    const state = await stored(first);
    // the interrupted run goes on a little before it dies: the state is a copy
    if (at > 0) await collect(first, at + 1);

    const second = await setup(hard);
    second.load(state);
    const after = await collect(second);
    expect([...losses(before), ...losses(after)]).toEqual(losses(expected));
    expect(steps(after).map(({ gradNorm }) => gradNorm)).toEqual(steps(expected.slice(at)).map((e) => e.gradNorm));
    expect(await parametersOf(second.model)).toEqual(await parametersOf(whole.model));
    // and the state at the end is the same too: moments, position, generators
    expect(await second.state()).toEqual(await whole.state());
  });

  it('works in the middle of an epoch, when state() is taken at every step of one run', async () => {
    const states: TrainerState[] = [];
    const whole = await setup(hard);
    const all: number[] = [];
    for await (const event of whole.run()) {
      if (event.type !== 'step') continue;
      all.push(event.loss);
      states.push(await stored(whole));
    }
    expect(new Set(states.map(({ position }) => `${position.epoch} ${position.index}`)).size).toBeGreaterThan(3);
    const other = await setup(hard);
    // backwards through time on one trainer
    for (const at of [6, 2, 4]) {
      other.load(states[at - 1]!);
      expect(losses(await collect(other))).toEqual(all.slice(at));
    }
  });

  it('keeps the best validation loss', async () => {
    const validate = scripted([5, 3, 4, 3.5, 2]);
    const first = await setup({ train: { steps: 6, evalEvery: 2, validate } });
    for await (const event of first.run()) if (event.type === 'eval' && event.step === 4) break;
    const state = await stored(first);
    expect(state).toMatchObject({ step: 4, best: 3 });
    const second = await setup({ train: { steps: 6, evalEvery: 2, validate: scripted([3.2]) } });
    second.load(state);
    expect(await collect(second)).toMatchObject([
      { type: 'step', step: 5 },
      { type: 'step', step: 6 },
      { type: 'eval', step: 6, loss: 3.2, best: false },
      { type: 'end', step: 6, finished: true },
    ]);
  });

  it('refuses a state of other parameters, and changes nothing', async () => {
    const trainer = await setup();
    const before = await trainer.state();
    const other = await setup({ adapter: { rank: 3 } });
    const attempt = async (): Promise<void> => trainer.load(await other.state());
    await expect(attempt()).rejects.toThrow(MiloraError);
    await expect(attempt()).rejects.toThrow(/other names or shapes: model\.layers\.0\.self_attn\.q_proj\.lora_a/);
    const fewer = await setup({ adapter: { targetModules: ['q_proj'] } });
    await expect((async () => fewer.load(before))()).rejects.toMatchObject({ code: 'state' });
    expect(await trainer.state()).toEqual(before);
  });
});

/** A validation that gives scripted losses. */
function scripted(values: readonly number[]): () => Promise<number> {
  const rest = [...values];
  return () => Promise.resolve(rest.shift()!);
}

describe('accumulation', () => {
  it('of batches gives the loss and gradients of one big batch, whatever their numbers of targets', async () => {
    const gradients = async (batchSize: number): Promise<Map<string, Float64Array>> => {
      const { model } = await setup();
      const batches = new BatchIterator(EXAMPLES.slice(0, 6), { batchSize, seed: 8, shuffle: false });
      const parts = Array.from({ length: 6 / batchSize }, () => batches.nextBatch());
      const normalizer = parts.reduce((n, { targets }) => n + targets, 0);
      if (batchSize < 6) expect(new Set(parts.map(({ targets }) => targets)).size).toBeGreaterThan(1);
      for (const part of parts) scope(() => model.loss(part, part.labels, { normalizer }).backward());
      const out = new Map<string, Float64Array>();
      for (const [name, { grad }] of model.trainable()) out.set(name, Float64Array.from(await grad!.data()));
      model.zeroGrad();
      return out;
    };
    const whole = await gradients(6);
    for (const size of [1, 2, 3]) {
      for (const [name, gradient] of await gradients(size)) {
        // the same products, summed in another order
        expect(distance(gradient, whole.get(name)!)).toBeLessThan(1e-6);
      }
    }
  });

  it('shows in the trainer as the same steps', async () => {
    const run = async (batchSize: number, accumulation: number): Promise<StepEvent[]> => {
      const options = { batches: { batchSize, shuffle: false }, train: { steps: 3, accumulation, lr: 1e-3 } };
      return steps(await collect(await setup(options)));
    };
    // 11 examples: three steps of three do not reach the short last batch
    const whole = await run(3, 1);
    for (const [i, { loss, gradNorm, tokens }] of (await run(1, 3)).entries()) {
      expect(tokens).toBe(whole[i]!.tokens);
      expect(Math.abs(loss / whole[i]!.loss - 1)).toBeLessThan(1e-5);
      // Adam divides by tiny second moments, which magnifies rounding
      expect(Math.abs(gradNorm / whole[i]!.gradNorm - 1)).toBeLessThan(1e-3);
    }
  });
});

describe('a step', () => {
  /** Loss, gradients and their norm before the first step of a setup. */
  async function firstGradients(options: Setup): Promise<{ loss: number; gradients: Float64Array; norm: number }> {
    const { model } = await setup(options);
    const batch = new BatchIterator(EXAMPLES, { batchSize: 2, seed: 8 }).nextBatch();
    const loss = await scope(() => {
      const value = model.loss(batch, batch.labels);
      value.backward();
      return value.item();
    });
    const parts: number[] = [];
    for (const [, { grad }] of model.trainable()) parts.push(...(await grad!.data()));
    model.zeroGrad();
    return { loss, gradients: Float64Array.from(parts), norm: Math.hypot(...parts) };
  }
  const weights = async (model: LlamaForCausalLM): Promise<Float64Array> => {
    const parts: number[] = [];
    for (const [, { value }] of model.trainable()) parts.push(...(await value.data()));
    return Float64Array.from(parts);
  };

  it('reports loss, gradient norm before clipping, rate and tokens', async () => {
    const { loss, norm } = await firstGradients({});
    const trainer = await setup({ train: { maxGradNorm: 1e-3 } });
    const batch = new BatchIterator(EXAMPLES, { batchSize: 2, seed: 8 }).nextBatch();
    const [event] = steps(await collect(trainer, 1));
    expect(event).toMatchObject({ type: 'step', step: 1, steps: 6, loss, lr: 0.01, tokens: batch.tokens });
    expect(Math.abs(event!.gradNorm / norm - 1)).toBeLessThan(1e-5);
    expect(event!.seconds).toBeGreaterThan(0);
  });

  it.each([0, 1e-7, 1e6])('clips all gradients together to norm %d, 0 for never', async (maxGradNorm) => {
    const { gradients, norm } = await firstGradients({});
    const trainer = await setup({ train: { maxGradNorm } });
    const before = await weights(trainer.model);
    await collect(trainer, 1);
    const after = await weights(trainer.model);
    // Adam's first step is lr · g / (|g| + eps), eps = 1e-8: it shows the size of g when g is as small as eps
    const factor = maxGradNorm > 0 ? Math.min(1, maxGradNorm / (norm + 1e-6)) : 1;
    gradients.forEach((g, i) => {
      const clipped = g * factor;
      const expected = (0.01 * clipped) / (Math.abs(clipped) + 1e-8);
      // float32 holds weights near 1 to 6e-8; gradients within rounding of zero have no sign to compare
      if (Math.abs(g) > 1e-5 * norm) expect(Math.abs(before[i]! - after[i]! - expected)).toBeLessThan(2e-6);
    });
  });

  it('decays weights apart from the gradient', async () => {
    const [plain, decayed] = [await setup(), await setup({ train: { weightDecay: 0.5 } })];
    const before = await weights(plain.model);
    await collect(plain, 1);
    await collect(decayed, 1);
    const [a, b] = [await weights(plain.model), await weights(decayed.model)];
    a.forEach((x, i) => expect(Math.abs(x - b[i]! - 0.01 * 0.5 * before[i]!)).toBeLessThan(5e-7));
  });

  it.each([
    ['constant', [0, 0.5, 1, 1, 1, 1]],
    ['linear', [0, 0.5, 1, 0.75, 0.5, 0.25]],
    ['cosine', [0, 0.5, 1, 0.5 + Math.SQRT1_2 / 2, 0.5, 0.5 - Math.SQRT1_2 / 2]],
  ] as const)('follows the %s schedule with warmup', async (schedule, factors) => {
    const events = steps(await collect(await setup({ train: { schedule, warmupSteps: 2, lr: 2e-3 } })));
    events.forEach(({ lr }, i) => expect(lr).toBeCloseTo(2e-3 * factors[i]!, 12));
    expect(events).toHaveLength(6);
  });

  it('takes the default schedule, which is linear', async () => {
    const trainer = new Trainer((await setup()).model, new BatchIterator(EXAMPLES, { batchSize: 2, seed: 1 }), {
      steps: 4,
      lr: 1,
    });
    trainers.push(trainer);
    const [first, second] = [(await collect(trainer, 1))[0], (await collect(trainer, 2))[0]];
    expect([first, second].map((event) => (event as StepEvent).lr)).toEqual([1, 0.75]);
  });
});

describe('events', () => {
  it('come in order: validation, steps with validations between, end', async () => {
    const validate = scripted([3, 2.5, 2.75, 2]);
    const events = await collect(await setup({ train: { steps: 5, evalEvery: 2, validate } }));
    expect(events.filter((event) => !isStep(event))).toEqual([
      { type: 'eval', step: 0, loss: 3, best: true },
      { type: 'eval', step: 2, loss: 2.5, best: true },
      { type: 'eval', step: 4, loss: 2.75, best: false },
      { type: 'eval', step: 5, loss: 2, best: true },
      { type: 'end', step: 5, finished: true },
    ]);
    expect(events.map(({ type, step }) => `${type} ${step}`)).toEqual([
      ...['eval 0', 'step 1', 'step 2', 'eval 2', 'step 3', 'step 4', 'eval 4', 'step 5', 'eval 5', 'end 5'],
    ]);
  });

  it('without validation are steps and an end', async () => {
    const events = await collect(await setup({ train: { steps: 2, evalEvery: 1 } }));
    expect(events.map(({ type }) => type)).toEqual(['step', 'step', 'end']);
  });

  it('stop after the step in which a signal came', async () => {
    const controller = new AbortController();
    const trainer = await setup({ train: { signal: controller.signal } });
    const events: TrainEvent[] = [];
    for await (const event of trainer.run()) {
      events.push(event);
      if (event.step === 3) controller.abort();
    }
    expect(events.map(({ type }) => type)).toEqual(['step', 'step', 'step', 'end']);
    expect(events.at(-1)).toEqual({ type: 'end', step: 3, finished: false });
    // the trainer stands where a new run would go on
    expect((await trainer.state()).step).toBe(3);
  });

  it('come in training mode, and leave evaluation mode behind, also when the listener leaves early', async () => {
    const trainer = await setup();
    for await (const { type } of trainer.run()) expect(trainer.model.training).toBe(type === 'step');
    expect(trainer.model.training).toBe(false);
    const other = await setup();
    await collect(other, 2);
    expect(other.model.training).toBe(false);
  });
});

describe('divergence', () => {
  it('ends the run with an error that says what to do', async () => {
    const trainer = await setup({ train: { lr: 1e30, maxGradNorm: 0 } });
    const attempt = collect(trainer);
    await expect(attempt).rejects.toThrow(MiloraError);
    await expect(attempt).rejects.toMatchObject({ code: 'diverged' });
    await expect(attempt).rejects.toThrow(/finite loss at step \d, got loss .*Lower the learning rate/);
    expect(trainer.model.training).toBe(false);
  });

  it('is reported for a model that is broken from the start, at step 1', async () => {
    const trainer = await setup({ init: loraInit });
    const [, parameter] = trainer.model.trainable()[0] as [string, Variable];
    const size = parameter.value.size;
    parameter.value.replaceStorage(parameter.value.backend.upload(new Float32Array(size).fill(NaN), 'f32'));
    await expect(collect(trainer)).rejects.toThrow(/at step 1, got loss NaN/);
  });
});

describe('full finetuning', () => {
  it('trains whatever is trainable, without an adapter', async () => {
    const model = tinyModel();
    models.push(model);
    model.requiresGrad(true);
    const batches = new BatchIterator(EXAMPLES, { batchSize: 4, seed: 2 });
    const trainer = new Trainer(model, batches, { steps: 12, lr: 0.01 });
    trainers.push(trainer);
    const all = losses(await collect(trainer));
    expect(all.at(-1)).toBeLessThan(0.8 * all[0]!);
    expect((await trainer.state()).parameters.size).toBe([...model.namedParameters()].length);
  });
});
