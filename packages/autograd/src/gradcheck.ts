/**
 * Compares the derivative of a function with finite differences. The function runs in single precision, so the difference
 * quotient has four points (error of order h⁴) and a wide step, and the comparison is relative to the largest entry.
 */
import { Tensor, scope } from '@milora/tensor';
import type { Philox } from '@milora/tensor';
import { AutogradError } from './errors.js';
import { Variable, noGrad } from './variable.js';

export interface GradcheckOptions {
  /** Step of the differences. Default 0.02. */
  step?: number;
  /** Largest difference allowed, relative to the largest entry of the input's gradient (or 1e-2, if that is more). Default 2e-3. */
  tolerance?: number;
  /** Entries checked per input; all when there are fewer. Default 16. */
  samples?: number;
}

/**
 * Checks `fn` at `inputs` (f32). The result may have any shape: it is weighted by random numbers from `random` into one.
 * Returns the largest relative difference; throws an AutogradError that names input and entry when it is above the tolerance.
 */
export async function gradcheck(
  fn: (...inputs: Variable[]) => Variable,
  inputs: readonly Tensor[],
  random: Philox,
  options: GradcheckOptions = {},
): Promise<number> {
  const { step = 0.02, tolerance = 2e-3, samples = 16 } = options;
  const hosts = await Promise.all(inputs.map(async (x) => Float64Array.from(await x.data())));
  const { backend } = inputs[0]!;
  const make = (values: ArrayLike<number>, i: number): Tensor =>
    Tensor.fromHost({ dtype: 'f32', shape: inputs[i]!.shape, data: Float32Array.from(values) }, backend);

  const leaves = inputs.map((x, i) => new Variable(make(hosts[i]!, i).keep(), { requiresGrad: x.dtype === 'f32' }));
  let weights: Float32Array = new Float32Array();
  try {
    const analytic = await scope(async () => {
      const y = fn(...leaves);
      weights = random.normalArray(y.value.size);
      y.backward({ gradient: Tensor.fromHost({ dtype: 'f32', shape: y.shape, data: weights }, backend) });
      return Promise.all(
        leaves.map(async (leaf) => (leaf.grad ? Float64Array.from(await leaf.grad.data()) : undefined)),
      );
    });

    /** Σ weights · fn(inputs with entry `at` of input `i` moved by `by`), summed in f64. */
    const probe = (i: number, at: number, by: number): Promise<number> =>
      scope(async () => {
        const moved = hosts.map((host, j) => {
          if (i !== j) return leaves[j]!;
          const copy = Float64Array.from(host);
          copy[at]! += by;
          return new Variable(make(copy, j));
        });
        const y = await noGrad(() => fn(...moved)).value.data();
        return weights.reduce((sum, w, k) => sum + w * y[k]!, 0);
      });

    let worst = 0;
    for (const [i, gradient] of analytic.entries()) {
      const size = inputs[i]!.size;
      const chosen =
        size <= samples ? [...Array(size).keys()] : Array.from({ length: samples }, () => random.int(size));
      const numeric: [number, number][] = [];
      for (const at of chosen) {
        const [a, b, c, d] = [
          await probe(i, at, -2 * step),
          await probe(i, at, -step),
          await probe(i, at, step),
          await probe(i, at, 2 * step),
        ];
        numeric.push([at, (a - 8 * b + 8 * c - d) / (12 * step)]);
      }
      const largest = Math.max(1e-2, ...numeric.map(([, g]) => Math.abs(g)));
      for (const [at, g] of numeric) {
        const mine = gradient?.[at] ?? 0;
        const error = Math.abs(mine - g) / largest;
        worst = Math.max(worst, error);
        if (!(error <= tolerance)) {
          throw new AutogradError(
            'gradcheck',
            `gradcheck: expected derivative ${g} of input ${i} at entry ${at} (relative tolerance ${tolerance}), got ${mine}`,
          );
        }
      }
    }
    return worst;
  } finally {
    for (const leaf of leaves) {
      leaf.zeroGrad();
      leaf.value.dispose();
    }
  }
}
