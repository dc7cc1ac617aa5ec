import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { Philox, createWasmBackend, full, intTensor, scope, setBackend, tensor, zeros } from '@milora/tensor';
import * as t from '@milora/tensor';
import type { Tensor, WasmBackend } from '@milora/tensor';
import {
  AutogradError,
  Variable,
  add,
  affine,
  checkpoint,
  crossEntropy,
  dropout,
  exp,
  gradEnabled,
  linear,
  mean,
  mul,
  noGrad,
  record,
  reshape,
  square,
  sub,
  sum,
} from '@milora/autograd';

let backend: WasmBackend;
beforeAll(() => {
  backend = createWasmBackend({ threads: 1 });
  setBackend(backend);
});
afterEach(() => {
  expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
});
afterAll(() => backend.close());

const leaf = (data: t.TensorData): Variable => new Variable(tensor(data), { requiresGrad: true });
const numbers = (x: Tensor | undefined): number[] | undefined => x && [...x.dataSync()];
const live = (): number => backend.memory().liveBuffers;

/** A scope whose leaves' gradients, which outlive scopes, are freed at the end. */
function within(fn: (...leaves: Variable[]) => void, ...data: t.TensorData[]): void {
  scope(() => {
    const leaves = data.map(leaf);
    try {
      fn(...leaves);
    } finally {
      for (const x of leaves) x.zeroGrad();
    }
  });
}

describe('backward', () => {
  test('adds up the uses of a variable', () => {
    within(
      (x) => {
        // x² + 3x + x·x: 4x + 3
        const y = add(add(square(x!), affine(x!, 3)), mul(x!, x!));
        sum(y).backward();
        expect(numbers(x!.grad)).toEqual([7, 11, -1]);
      },
      [1, 2, -1],
    );
  });

  test('passes a diamond once', () => {
    within(
      (x) => {
        let runs = 0;
        const counted = (v: Variable): Variable =>
          record('counted', t.affine(v.value, 2), [v], (dy, to) => {
            runs++;
            to.add(0, t.affine(dy, 2));
          });
        const middle = counted(x!);
        const y = mul(square(middle), affine(middle, 1, 1));
        sum(y).backward();
        // m = 2x, y = m²(m + 1), dy/dx = 2(3m² + 2m)
        expect(numbers(x!.grad)).toEqual([2 * (3 * 36 + 12)]);
        expect(runs).toBe(1);
      },
      [3],
    );
  });

  test('passes diamonds in a row without exploding', () => {
    within(
      (x) => {
        let y = x!;
        for (let i = 0; i < 60; i++) y = affine(add(y, y), 0.5);
        sum(y).backward();
        // 2^60 paths, each worth 2^-60
        expect(numbers(x!.grad)).toEqual([1]);
      },
      [1],
    );
  });

  test('goes through 10,000 nodes without a deep stack', () => {
    within(
      (x) => {
        let y = x!;
        for (let i = 0; i < 10_000; i++) y = affine(y, 1, 1);
        expect(numbers(y.value)).toEqual([10_000]);
        y.backward();
        expect(numbers(x!.grad)).toEqual([1]);
      },
      [0],
    );
  });

  test('starts from a gradient when the value has more than one element', () => {
    within(
      (x) => {
        square(x!).backward({ gradient: tensor([10, 100]) });
        expect(numbers(x!.grad)).toEqual([20, 400]);
      },
      [1, 2],
    );
  });

  test('of a leaf gives it the gradient', () => {
    within(
      (x) => {
        x!.backward();
        x!.backward({ gradient: tensor([[2]]) });
        expect(numbers(x!.grad)).toEqual([3]);
      },
      [[5]],
    );
  });

  test('leaves alone what needs no gradient', () => {
    within(
      (x) => {
        const frozen = new Variable(tensor([5]));
        const y = mul(x!, square(frozen));
        y.backward();
        expect(frozen.grad).toBeUndefined();
        expect(frozen.value.disposed).toBe(false);
        expect(numbers(x!.grad)).toEqual([25]);
      },
      [2],
    );
  });

  test('twice adds to the gradients of leaves; zeroGrad starts over', () => {
    within(
      (x) => {
        for (let i = 0; i < 3; i++) sum(square(x!)).backward();
        expect(numbers(x!.grad)).toEqual([12, -6]);
        x!.zeroGrad();
        expect(x!.grad).toBeUndefined();
        sum(x!).backward();
        expect(numbers(x!.grad)).toEqual([1, 1]);
      },
      [2, -1],
    );
  });

  test('gives every leaf its own memory, also where one gradient serves two', () => {
    within(
      (a, b) => {
        const gradient = tensor([1, 2]);
        add(a!, b!).backward({ gradient });
        t.axpy(a!.grad!, tensor([10, 10]));
        expect([numbers(a!.grad), numbers(b!.grad), numbers(gradient)]).toEqual([
          [11, 12],
          [1, 2],
          [1, 2],
        ]);
      },
      [0, 0],
      [0, 0],
    );
  });

  test('with a view of a gradient around, adds to a copy', () => {
    within(
      (x) => {
        sum(x!).backward();
        const view = x!.grad!.reshape(2, 1);
        sum(x!).backward();
        expect([numbers(x!.grad), numbers(view)]).toEqual([
          [2, 2],
          [1, 1],
        ]);
      },
      [1, 1],
    );
  });
});

describe('the graph', () => {
  test('retainGraph keeps it for another backward, which adds up', () => {
    within(
      (x) => {
        const h = square(x!);
        const y = sum(mul(h, h));
        y.backward({ retainGraph: true });
        y.backward({ retainGraph: true });
        expect(numbers(x!.grad)).toEqual([2 * 32]);
        y.backward();
        expect(numbers(x!.grad)).toEqual([3 * 32]);
        expect(h.value.disposed).toBe(true);
      },
      [2],
    );
  });

  test('is gone after backward: a second one is refused, also through another value', () => {
    const message =
      'backward: expected a whole graph, got one that an earlier backward freed in part; give that one retainGraph';
    within(
      (x) => {
        const shared = square(x!);
        const [y, z] = [sum(shared), affine(sum(shared), 2)];
        y.backward();
        const before = numbers(x!.grad);
        for (const again of [y, z]) {
          expect(() => again.backward()).toThrow(expect.objectContaining({ code: 'backward', message }));
        }
        // nothing was added on the way to the error
        expect(numbers(x!.grad)).toEqual(before);
      },
      [1, 2],
    );
  });

  test('retain() keeps value and gradient of an intermediate result', () => {
    within(
      (x) => {
        const h = square(x!).retain();
        const y = sum(affine(h, 3));
        y.backward();
        expect(numbers(h.value)).toEqual([1, 4]);
        expect(numbers(h.grad)).toEqual([3, 3]);
        expect(numbers(x!.grad)).toEqual([6, 12]);
        h.zeroGrad();
      },
      [1, 2],
    );
  });

  test('detach() cuts it', () => {
    within(
      (x) => {
        const h = square(x!);
        const constant = h.detach();
        expect([constant.requiresGrad, constant.isLeaf]).toEqual([false, true]);
        mul(h, constant).backward();
        // x² · c with c = x² held fixed: 2x · c; the detached value outlives the graph
        expect(numbers(x!.grad)).toEqual([6 * 9]);
        expect([h.value.disposed, numbers(constant.value)]).toEqual([true, [9]]);
      },
      [3],
    );
  });

  test('isLeaf tells values of ops from those of the user', () => {
    within(
      (x) => {
        const y = square(x!);
        expect([x!.isLeaf, y.isLeaf, new Variable(tensor(1)).isLeaf]).toEqual([true, false, true]);
        sum(y).backward();
        expect([x!.isLeaf, y.isLeaf]).toEqual([true, false]);
      },
      [1],
    );
  });

  test('is not recorded under noGrad, which also ends with an error', () => {
    within(
      (x) => {
        const y = noGrad(() => {
          expect(gradEnabled()).toBe(false);
          return square(x!);
        });
        expect([y.requiresGrad, gradEnabled()]).toEqual([false, true]);
        expect(() =>
          noGrad(() => {
            throw new Error('inside');
          }),
        ).toThrow('inside');
        expect(gradEnabled()).toBe(true);
        expect(square(x!).requiresGrad).toBe(true);
      },
      [1],
    );
  });

  test('is not recorded while backward runs', () => {
    within(
      (x) => {
        let inside: boolean | undefined;
        const y = record('probe', t.affine(x!.value, 1), [x!], (dy, to) => {
          inside = gradEnabled();
          to.add(0, t.affine(dy, 1));
        });
        y.backward();
        expect(inside).toBe(false);
      },
      [1],
    );
  });
});

describe('memory', () => {
  test('backward frees what only the graph needed: values, gradients and what was saved', () => {
    within(
      (x, w) => {
        const before = live();
        const h = linear(x!, w!);
        const y = sum(crossEntropy(exp(h), [0, 1]));
        expect(live()).toBeGreaterThan(before + 3);
        y.backward();
        // two gradients, and the value of the root
        expect(live()).toBe(before + 3);
        expect([h.value.disposed, y.value.disposed]).toEqual([true, false]);
      },
      [
        [1, 2],
        [3, 4],
      ],
      [
        [1, 0],
        [0, 1],
      ],
    );
  });

  test('gradients on the way are freed as it goes: the peak does not grow with the depth', () => {
    const peak = (depth: number): number => {
      let more = 0;
      scope(() => {
        const start = new Variable(t.ones([64, 64]), { requiresGrad: true });
        const frozen = Array.from({ length: depth }, () => new Variable(full([64, 64], 1 / 64)));
        let y = reshape(start, 64, 64);
        for (const w of frozen) y = linear(y, w);
        const loss = mean(y);
        const before = backend.memory().liveBytes;
        backend.resetPeak();
        // with the graph kept, no value is freed that could make up for a gradient that is not
        loss.backward({ retainGraph: true });
        more = backend.memory().peakBytes - before;
        expect(start.grad!.dataSync().every((g) => Math.abs(g - 1 / 4096) < 1e-9)).toBe(true);
        start.zeroGrad();
      });
      return more;
    };
    expect(peak(40)).toBe(peak(5));
  });

  test('a training step leaves nothing but parameters and their gradients', () => {
    const w = new Variable(full([8, 8], 0.1), { requiresGrad: true });
    const step = (): void =>
      scope(() => {
        const x = new Variable(t.ones([4, 8]));
        const h = linear(linear(x, w), w);
        mean(square(sub(h, add(x, h)))).backward();
      });
    step();
    const { liveBytes, liveBuffers } = backend.memory();
    expect(liveBuffers).toBe(2);
    for (let i = 0; i < 10; i++) step();
    expect(backend.memory()).toMatchObject({ liveBytes, liveBuffers });
    w.zeroGrad();
    w.value.dispose();
  });

  test('gradients that meet a checkpoint are freed too', () => {
    within(
      (x) => {
        const before = live();
        const y = checkpoint((v) => square(v), x!);
        const z = sum(add(mul(y, x!), x!));
        z.backward();
        expect(numbers(x!.grad)).toEqual([3 * 4 + 1]);
        // the gradient and the root
        expect(live()).toBe(before + 2);
      },
      [2],
    );
  });

  test('a variable handed out of a scope takes its graph along', () => {
    within(
      (x) => {
        const y = scope(() => {
          zeros([100]);
          return sum(mul(square(x!), new Variable(tensor([2, 3]))));
        });
        y.backward();
        expect(numbers(x!.grad)).toEqual([4, 12]);
      },
      [1, 2],
    );
  });

  test('an error in a derivative leaves no gradients behind', () => {
    within(
      (x) => {
        const bad = record('bad', t.affine(x!.value, 1), [x!], () => {
          throw new Error('derivative');
        });
        const loss = sum(add(square(x!), mul(bad, x!)));
        expect(() => loss.backward({ retainGraph: true })).toThrow('derivative');
        x!.zeroGrad();
        sum(square(x!)).backward();
        expect(numbers(x!.grad)).toEqual([2, 4]);
      },
      [1, 2],
    );
  });
});

describe('errors', () => {
  test('a value of several elements needs a gradient', () => {
    within(
      (x) => {
        expect(() => square(x!).backward()).toThrow(
          new AutogradError('backward', 'backward: expected one element or a gradient, got shape [2]'),
        );
      },
      [1, 2],
    );
  });

  test('the gradient must fit the value', () => {
    within(
      (x) => {
        expect(() => square(x!).backward({ gradient: tensor([1, 2, 3]) })).toThrow(
          expect.objectContaining({
            code: 'shape',
            message: 'reshape: expected 3 elements as in [3], got shape [2]',
          }),
        );
        expect(x!.grad).toBeUndefined();
      },
      [1, 2],
    );
  });

  test('something must require a gradient', () => {
    scope(() => {
      const y = square(new Variable(tensor(2)));
      expect(() => y.backward()).toThrow(
        expect.objectContaining({
          code: 'backward',
          message: 'backward: expected a value that depends on a leaf with requiresGrad, got none',
        }),
      );
    });
  });

  test('only f32 can require one, from the start or later', () => {
    const message = (dtype: string): string => `variable: expected dtype f32 to differentiate, got ${dtype}`;
    scope(() => {
      expect(() => new Variable(intTensor([1]), { requiresGrad: true })).toThrow(
        expect.objectContaining({ code: 'dtype', message: message('i32') }),
      );
      const half = new Variable(t.cast(tensor([1]), 'bf16'));
      expect(() => (half.requiresGrad = true)).toThrow(
        expect.objectContaining({ code: 'dtype', message: message('bf16') }),
      );
      expect(half.requiresGrad).toBe(false);
      half.requiresGrad = false;
    });
  });

  test('targets of a loss are checked', () => {
    within(
      (x) => {
        expect(() => crossEntropy(x!, [0])).toThrow(
          expect.objectContaining({ code: 'targets', message: 'crossEntropy: expected 2 targets, got 1' }),
        );
        expect(() => crossEntropy(x!, [0, 3])).toThrow(
          expect.objectContaining({ code: 'targets', message: 'crossEntropy: expected targets below 3, got 3 at 1' }),
        );
      },
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
    );
  });

  test.each([-0.1, 1, NaN])('dropout refuses the probability %d', (p) => {
    within(
      (x) => {
        expect(() => dropout(x!, p, new Philox(1))).toThrow(
          expect.objectContaining({
            code: 'dropout',
            message: `dropout: expected a probability in [0, 1), got ${p}`,
          }),
        );
      },
      [1],
    );
  });
});

describe('dropout', () => {
  test('zeroes about a share p and scales the rest by 1 / (1 − p); the gradient has the same mask', () => {
    scope(() => {
      const n = 20_000;
      const x = new Variable(full([n], 3), { requiresGrad: true });
      const y = dropout(x, 0.25, new Philox(11)).retain();
      const values = y.value.dataSync();
      expect(new Set(values)).toEqual(new Set([0, 4]));
      const dropped = values.filter((v) => v === 0).length / n;
      // five standard deviations of a binomial
      expect(Math.abs(dropped - 0.25)).toBeLessThan(5 * Math.sqrt((0.25 * 0.75) / n));
      sum(y).backward();
      const factor = Math.fround(4 / 3);
      expect(x.grad!.dataSync().findIndex((g, i) => g !== (values[i] === 0 ? 0 : factor))).toBe(-1);
      x.zeroGrad();
      y.zeroGrad();
    });
  });

  test('draws from the generator that is passed in: the same state, the same mask', () => {
    scope(() => {
      const x = new Variable(full([100], 1));
      const [a, b, c] = [new Philox(1), new Philox(1), new Philox(2)].map((r) => numbers(dropout(x, 0.5, r).value));
      expect(a).toEqual(b);
      expect(a).not.toEqual(c);
    });
  });
});
