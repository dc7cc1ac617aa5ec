import { Philox, Tensor, scope } from '@milora/tensor';
import { describe, expect, it } from 'vitest';
import { Variable, add, checkpoint, drawOnce, dropout, mul, sum } from '../src/index.js';

/** x is 1 … 12, so that a gradient names the elements that were kept. */
const leaf = (): Variable =>
  new Variable(
    Tensor.fromHost({ dtype: 'f32', shape: [12], data: Float32Array.from({ length: 12 }, (_, i) => i + 1) }),
    {
      requiresGrad: true,
    },
  );

describe('dropout in a checkpointed function', () => {
  const twice = (random: Philox) => (x: Variable) => add(dropout(x, 0.5, random), dropout(mul(x, x), 0.25, random));
  const ways: [string, (fn: (x: Variable) => Variable, x: Variable) => Variable][] = [
    ['once', (fn, x) => checkpoint(fn, x)],
    ['nested', (fn, x) => checkpoint((y) => checkpoint(fn, y), x)],
    ['nested beside another draw', (fn, x) => checkpoint((y) => sum(checkpoint(fn, y)), x)],
  ];

  it.each(ways)('%s: value, gradient and generator are those of the plain function', (_, way) => {
    scope(() => {
      const run = (apply: (fn: (x: Variable) => Variable, x: Variable) => Variable): unknown[] => {
        const [random, x] = [new Philox(3), leaf()];
        const values: unknown[] = [];
        // a second function draws after the first, before either is differentiated
        const y = add(sum(apply(twice(random), x)), sum(apply(twice(random), x)));
        values.push([...y.value.dataSync()]);
        y.backward();
        values.push([...x.grad!.dataSync()], random.state());
        x.zeroGrad();
        return values;
      };
      expect(run(way)).toEqual(run((fn, x) => fn(x)));
    });
  });

  it('draws again when the graph is kept and differentiated twice', () => {
    scope(() => {
      const x = leaf();
      const y = sum(checkpoint(twice(new Philox(3)), x));
      y.backward({ retainGraph: true });
      const once = [...x.grad!.dataSync()];
      y.backward();
      expect([...x.grad!.dataSync()]).toEqual(once.map((g) => 2 * g));
      x.zeroGrad();
    });
  });

  it('drawOnce draws every time elsewhere', () => {
    let n = 0;
    expect([drawOnce(() => n++), drawOnce(() => n++)]).toEqual([0, 1]);
  });
});
