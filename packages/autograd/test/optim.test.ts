/** Optimisers, clipping and schedules against PyTorch's and Hugging Face's formulas, written out again in float64. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Philox, createWasmBackend, scope, setBackend, tensor } from '@milora/tensor';
import type { HostTensor, Tensor, WasmBackend } from '@milora/tensor';
import {
  AdamW,
  AutogradError,
  SGD,
  Variable,
  add,
  clipGradNorm,
  constantSchedule,
  cosineSchedule,
  linearSchedule,
  schedules,
  sum,
} from '@milora/autograd';
import type { AdamWOptions, SGDOptions } from '@milora/autograd';

let backend: WasmBackend;
beforeAll(() => {
  backend = createWasmBackend({ threads: 1 });
  setBackend(backend);
});
afterEach(() => {
  expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
});
afterAll(() => backend.close());

// ---- parameters and gradients ----

const SHAPES = { weight: [3, 5], bias: [7] };
type Name = keyof typeof SHAPES;
const NAMES = Object.keys(SHAPES) as Name[];
const size = (name: Name): number => SHAPES[name].reduce((a, b) => a * b, 1);

/** The numbers of a run: the same for the optimiser and its reference. */
function numbersOf(seed: number, steps: number): Record<Name, { start: Float32Array; gradients: Float32Array[] }> {
  const random = new Philox(seed);
  const one = (name: Name) => ({
    start: random.normalArray(size(name)),
    gradients: Array.from({ length: steps }, () => random.normalArray(size(name))),
  });
  return { weight: one('weight'), bias: one('bias') };
}

function parameters(values: Record<Name, Float32Array>): Record<Name, Variable> {
  const make = (name: Name): Variable =>
    new Variable(tensor(values[name], SHAPES[name]).keep(), { requiresGrad: true });
  return { weight: make('weight'), bias: make('bias') };
}

function free(p: Record<Name, Variable>): void {
  for (const name of NAMES) {
    p[name].zeroGrad();
    p[name].value.dispose();
  }
}

/** Puts a gradient in place, as backward does. */
function give(p: Variable, gradient: Float32Array): void {
  p.zeroGrad();
  scope(() => p.backward({ gradient: tensor(gradient, p.shape) }));
}

/** Largest difference, relative to the largest expected value. */
function expectClose(actual: Tensor, expected: readonly number[], tolerance: number): void {
  const data = actual.dataSync();
  expect(data.length).toBe(expected.length);
  const largest = Math.max(...expected.map(Math.abs));
  const error = Math.max(...Array.from(data, (x, i) => Math.abs(x - expected[i]!))) / largest;
  expect(error).toBeLessThan(tolerance);
}

const STEPS = 50;
/** 50 steps round some 10 times each to 2^-24 = 6e-8, in both directions: 3e-6 is the sum of all if they all went one way. */
const TOLERANCE = 3e-6;

// ---- AdamW ----

/** torch.optim.AdamW on one parameter: `_single_tensor_adamw`. */
class ReferenceAdamW {
  m: number[];
  v: number[];
  steps = 0;
  constructor(
    readonly p: number[],
    readonly options: Required<AdamWOptions>,
  ) {
    this.m = p.map(() => 0);
    this.v = p.map(() => 0);
  }
  step(g: ArrayLike<number>, lr: number): void {
    const { betas, eps, weightDecay } = this.options;
    this.steps++;
    for (let i = 0; i < this.p.length; i++) {
      this.p[i]! *= 1 - lr * weightDecay;
      this.m[i] = betas[0] * this.m[i]! + (1 - betas[0]) * g[i]!;
      this.v[i] = betas[1] * this.v[i]! + (1 - betas[1]) * g[i]! ** 2;
      const mHat = this.m[i]! / (1 - betas[0] ** this.steps);
      const vHat = this.v[i]! / (1 - betas[1] ** this.steps);
      this.p[i]! -= (lr * mHat) / (Math.sqrt(vHat) + eps);
    }
  }
}

describe('AdamW', () => {
  const cases: Required<AdamWOptions>[] = [
    { lr: 0.01, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0 },
    { lr: 0.02, betas: [0.9, 0.95], eps: 1e-6, weightDecay: 0.1 },
    { lr: 0.05, betas: [0.5, 0.9], eps: 0.1, weightDecay: 0.01 },
  ];

  test.each(cases)('50 steps with $lr, $betas, $eps, $weightDecay', async (options) => {
    const data = numbersOf(1, STEPS);
    const p = parameters({ weight: data.weight.start, bias: data.bias.start });
    const optimizer = new AdamW(Object.entries(p), options);
    const reference = Object.fromEntries(
      NAMES.map((name) => [name, new ReferenceAdamW([...data[name].start], options)]),
    ) as Record<Name, ReferenceAdamW>;
    for (let step = 0; step < STEPS; step++) {
      // the rate changes from step to step, as with a schedule
      optimizer.lr = options.lr * (1 - step / 100);
      for (const name of NAMES) {
        give(p[name], data[name].gradients[step]!);
        reference[name].step(data[name].gradients[step]!, optimizer.lr);
      }
      optimizer.step();
    }
    const { step, tensors } = await optimizer.stateDict();
    expect(step).toBe(STEPS);
    expect([...tensors.keys()].sort()).toEqual(NAMES.flatMap((n) => [`${n}.exp_avg`, `${n}.exp_avg_sq`]).sort());
    scope(() => {
      for (const name of NAMES) {
        expectClose(p[name].value, reference[name].p, TOLERANCE);
        expectClose(tensorOf(tensors.get(`${name}.exp_avg`)!), reference[name].m, TOLERANCE);
        expectClose(tensorOf(tensors.get(`${name}.exp_avg_sq`)!), reference[name].v, TOLERANCE);
      }
    });
    optimizer.dispose();
    free(p);
  });

  test('the first step moves by the rate, whatever the gradient', () => {
    const p = new Variable(tensor([1, 1, 1]), { requiresGrad: true });
    const optimizer = new AdamW([['p', p]], { lr: 0.125, eps: 0 });
    give(p, Float32Array.of(0.001, -3, 100));
    optimizer.step();
    const error = Math.max(...p.value.dataSync().map((x, i) => Math.abs(x - [0.875, 1.125, 0.875][i]!)));
    expect(error).toBeLessThan(2e-7);
    optimizer.dispose();
    p.zeroGrad();
    p.value.dispose();
  });
});

const tensorOf = (host: HostTensor): Tensor => tensor(host.data, host.shape);

// ---- SGD ----

/** torch.optim.SGD on one parameter: `_single_tensor_sgd`. */
class ReferenceSGD {
  buffer: number[] | undefined;
  constructor(
    readonly p: number[],
    readonly options: Required<SGDOptions>,
  ) {}
  step(gradient: ArrayLike<number>): void {
    const { lr, momentum, dampening, weightDecay, nesterov } = this.options;
    const g = this.p.map((x, i) => gradient[i]! + weightDecay * x);
    let direction = g;
    if (momentum !== 0) {
      this.buffer = this.buffer?.map((b, i) => momentum * b + (1 - dampening) * g[i]!) ?? [...g];
      direction = nesterov ? g.map((x, i) => x + momentum * this.buffer![i]!) : this.buffer;
    }
    direction.forEach((d, i) => (this.p[i]! -= lr * d));
  }
}

describe('SGD', () => {
  const plain = { lr: 0.05, momentum: 0, dampening: 0, weightDecay: 0, nesterov: false };
  const cases: Required<SGDOptions>[] = [
    plain,
    { ...plain, weightDecay: 0.1 },
    { ...plain, momentum: 0.9 },
    { ...plain, momentum: 0.9, dampening: 0.5 },
    { ...plain, momentum: 0.9, nesterov: true, weightDecay: 0.01 },
    // without momentum there is no buffer to dampen
    { ...plain, dampening: 0.5 },
  ];

  test.each(cases)('50 steps with %o', (options) => {
    const data = numbersOf(2, STEPS);
    const p = parameters({ weight: data.weight.start, bias: data.bias.start });
    const optimizer = new SGD(Object.entries(p), options);
    const reference = Object.fromEntries(
      NAMES.map((name) => [name, new ReferenceSGD([...data[name].start], options)]),
    ) as Record<Name, ReferenceSGD>;
    for (let step = 0; step < STEPS; step++) {
      for (const name of NAMES) {
        give(p[name], data[name].gradients[step]!);
        reference[name].step(data[name].gradients[step]!);
      }
      optimizer.step();
    }
    for (const name of NAMES) expectClose(p[name].value, reference[name].p, TOLERANCE);
    optimizer.dispose();
    free(p);
  });
});

// ---- what optimisers share ----

const optimizers = {
  AdamW: (p: Record<string, Variable>) => new AdamW(Object.entries(p), { lr: 0.05, weightDecay: 0.1 }),
  SGD: (p: Record<string, Variable>) =>
    new SGD(Object.entries(p), { lr: 0.05, momentum: 0.9, dampening: 0.1, weightDecay: 0.1 }),
};

describe.each(Object.entries(optimizers))('%s', (kind, create) => {
  test('continues to the bit from a saved state', async () => {
    const data = numbersOf(3, 10);
    const run = (p: Record<Name, Variable>, optimizer: AdamW | SGD, from: number, to: number): void => {
      for (let step = from; step < to; step++) {
        for (const name of NAMES) give(p[name], data[name].gradients[step]!);
        optimizer.step();
      }
    };
    const read = (p: Record<Name, Variable>) => ({
      weight: p.weight.value.dataSync() as Float32Array,
      bias: p.bias.value.dataSync() as Float32Array,
    });
    const p = parameters({ weight: data.weight.start, bias: data.bias.start });
    const optimizer = create(p);
    run(p, optimizer, 0, 6);
    const saved = { values: read(p), state: await optimizer.stateDict() };
    run(p, optimizer, 6, 10);

    const q = parameters(saved.values);
    const resumed = create(q);
    // a state of its own is replaced
    for (const name of NAMES) give(q[name], new Float32Array(size(name)));
    resumed.loadStateDict(saved.state);
    expect(resumed.steps).toBe(6);
    run(q, resumed, 6, 10);
    expect(read(q)).toEqual(read(p));
    expect(await resumed.stateDict()).toEqual(await optimizer.stateDict());
    for (const o of [optimizer, resumed]) o.dispose();
    for (const x of [p, q]) free(x);
  });

  test('leaves parameters without a gradient as they are, and gives them no state', async () => {
    const data = numbersOf(4, 1);
    const p = parameters({ weight: data.weight.start, bias: data.bias.start });
    const optimizer = create(p);
    give(p.weight, data.weight.gradients[0]!);
    optimizer.step();
    expect(p.bias.value.dataSync()).toEqual(data.bias.start);
    expect(p.weight.value.dataSync()).not.toEqual(data.weight.start);
    const state = await optimizer.stateDict();
    expect([...state.tensors.keys()].every((key) => key.startsWith('weight.'))).toBe(true);
    // and such a state can be loaded
    optimizer.loadStateDict(state);
    expect(await optimizer.stateDict()).toEqual(state);
    optimizer.zeroGrad();
    expect(p.weight.grad).toBeUndefined();
    optimizer.dispose();
    free(p);
  });

  test('refuses a state that is not its own, naming every tensor, and keeps what it has', async () => {
    const data = numbersOf(5, 1);
    const p = parameters({ weight: data.weight.start, bias: data.bias.start });
    const optimizer = create(p);
    for (const name of NAMES) give(p[name], data[name].gradients[0]!);
    optimizer.step();
    const before = await optimizer.stateDict();
    const [first] = [...before.tensors.keys()].filter((key) => key.startsWith('weight'));
    const [biasKey] = [...before.tensors.keys()].filter((key) => key.startsWith('bias'));
    const wrong = new Map<string, HostTensor>([
      ...before.tensors,
      [first!, { dtype: 'f32', shape: [5, 3], data: new Float32Array(15) }],
      [biasKey!, { dtype: 'f64', shape: [7], data: new Float64Array(7) }],
      ['other.exp_avg', { dtype: 'f32', shape: [1], data: new Float32Array(1) }],
    ]);
    expect(() => optimizer.loadStateDict({ step: 9, tensors: wrong })).toThrow(
      new AutogradError(
        'state',
        'optimizer state: expected the tensors of this optimizer, got\n' +
          `${first}: expected shape [3,5], got [5,3]\n${biasKey}: expected dtype f32, got f64\nother.exp_avg: unknown`,
      ),
    );
    expect(await optimizer.stateDict()).toEqual(before);
    if (kind === 'AdamW') {
      const half = new Map(before.tensors);
      half.delete('weight.exp_avg_sq');
      expect(() => optimizer.loadStateDict({ step: 9, tensors: half })).toThrow(
        expect.objectContaining({
          message: 'optimizer state: expected the tensors of this optimizer, got\nweight.exp_avg_sq: missing',
        }),
      );
    }
    optimizer.dispose();
    free(p);
  });

  test('needs parameters', () => {
    expect(() => create({})).toThrow(new AutogradError('optimizer', 'optimizer: expected parameters, got none'));
  });
});

// ---- clipping ----

describe('clipGradNorm', () => {
  const clipped = (maxNorm: number): { norm: number; before: number[]; after: number[] } => {
    const data = numbersOf(6, 1);
    const p = parameters({ weight: data.weight.start, bias: data.bias.start });
    for (const name of NAMES) give(p[name], data[name].gradients[0]!);
    const norm = clipGradNorm(Object.values(p), maxNorm);
    const result = {
      norm: norm.dataSync()[0]!,
      before: NAMES.flatMap((name) => [...data[name].gradients[0]!]),
      after: NAMES.flatMap((name) => [...p[name].grad!.dataSync()]),
    };
    norm.dispose();
    free(p);
    return result;
  };
  const normOf = (x: readonly number[]): number => Math.sqrt(x.reduce((s, v) => s + v * v, 0));

  test('scales all gradients by one factor, as clip_grad_norm_', () => {
    const { norm, before, after } = clipped(0.5);
    const expected = normOf(before);
    // sums of 22 squares in f32, then a root: 1e-6 covers it
    expect(Math.abs(norm - expected)).toBeLessThan(1e-6 * expected);
    const factor = 0.5 / (expected + 1e-6);
    expect(factor).toBeLessThan(0.2);
    after.forEach((x, i) => expect(Math.abs(x - factor * before[i]!)).toBeLessThan(1e-6));
  });

  test('leaves gradients below the limit alone, to the bit', () => {
    const { norm, before, after } = clipped(100);
    expect(norm).toBeLessThan(100);
    expect(after).toEqual(before);
  });

  test('passes over parameters without a gradient; without any the norm is 0', () => {
    scope(() => {
      const [p, q] = [1, 2].map((x) => new Variable(tensor([x]), { requiresGrad: true })) as [Variable, Variable];
      expect([...clipGradNorm([p, q], 1).dataSync()]).toEqual([0]);
      p.backward({ gradient: tensor([-4]) });
      expect([...clipGradNorm([q, p], 1).dataSync()]).toEqual([4]);
      expect(q.grad).toBeUndefined();
      expect(Math.abs(p.grad!.dataSync()[0]! + 1)).toBeLessThan(1e-6);
      p.zeroGrad();
    });
  });

  test('scales the gradients of the two sides of a sum once each', () => {
    scope(() => {
      const [p, q] = [1, 2].map((x) => new Variable(tensor([x, x]), { requiresGrad: true })) as [Variable, Variable];
      sum(add(p, q)).backward();
      clipGradNorm([p, q], 1);
      for (const x of [p, q]) {
        x.grad!.dataSync().forEach((g) => expect(Math.abs(g - 0.5)).toBeLessThan(1e-6));
        x.zeroGrad();
      }
    });
  });
});

// ---- schedules ----

describe('schedules', () => {
  /** Factors at some steps; 12 digits. */
  const factors = (schedule: (step: number) => number, steps: readonly number[]): number[] =>
    steps.map((step) => Number(schedule(step).toFixed(12)));
  const digits = (values: readonly number[]): number[] => values.map((x) => Number(x.toFixed(12)));

  test('warmup grows in a straight line from 0', () => {
    const options = { warmupSteps: 4, totalSteps: 10 };
    for (const schedule of Object.values(schedules)) {
      expect(factors(schedule(options), [0, 1, 2, 3, 4])).toEqual([0, 0.25, 0.5, 0.75, 1]);
    }
  });

  test('constant stays', () => {
    const schedule = constantSchedule({ warmupSteps: 2, totalSteps: 5 });
    expect(factors(schedule, [0, 1, 2, 3, 100])).toEqual([0, 0.5, 1, 1, 1]);
  });

  test('linear: max(0, (total − step) / (total − warmup))', () => {
    const schedule = linearSchedule({ warmupSteps: 2, totalSteps: 10 });
    expect(factors(schedule, [0, 1, 2, 3, 6, 9, 10, 11])).toEqual([0, 0.5, 1, 0.875, 0.5, 0.125, 0, 0]);
  });

  test('cosine: (1 + cos(π (step − warmup) / (total − warmup))) / 2', () => {
    const schedule = cosineSchedule({ warmupSteps: 2, totalSteps: 8 });
    const [a, b] = [Math.sqrt(3) / 4, Math.SQRT1_2];
    expect(factors(schedule, [2, 3, 4, 5, 6, 7, 8, 9])).toEqual(digits([1, 0.5 + a, 0.75, 0.5, 0.25, 0.5 - a, 0, 0]));
    const quarter = cosineSchedule({ warmupSteps: 0, totalSteps: 4 });
    expect(factors(quarter, [0, 1, 2, 3, 4])).toEqual(digits([1, (1 + b) / 2, 0.5, (1 - b) / 2, 0]));
  });

  test('without warmup the first step has the full rate; all warmup ends at once', () => {
    for (const schedule of Object.values(schedules)) {
      expect(schedule({ warmupSteps: 0, totalSteps: 10 })(0)).toBe(1);
    }
    expect(factors(linearSchedule({ warmupSteps: 3, totalSteps: 3 }), [2, 3, 4])).toEqual(digits([2 / 3, 0, 0]));
  });

  test('are known by name', () => {
    expect(schedules).toEqual({ constant: constantSchedule, linear: linearSchedule, cosine: cosineSchedule });
  });
});
