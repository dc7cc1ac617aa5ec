/** Lesson 2: derivatives. A Variable is a tensor that remembers how it was made; `backward` walks that memory in reverse. */
import { Variable, add, checkpoint, gradcheck, mean, mul, noGrad, record, square, sum } from '@milora/autograd';
import * as t from '@milora/tensor';

const show = (x: ArrayLike<number>): string => Array.from(x, (v) => v.toFixed(2)).join(' ');

// Leaves that require a gradient receive one. d/dx Σ (x² + 3x) = 2x + 3.
const x = new Variable(t.tensor([1, 2, 3]), { requiresGrad: true });
sum(add(square(x), mul(x, new Variable(t.tensor(3))))).backward();
console.log(show(await x.grad!.data())); // → 5.00 7.00 9.00

// Gradients add up until they are cleared, so several batches can make one step.
sum(square(x)).backward();
console.log(show(await x.grad!.data())); // → 7.00 11.00 15.00
x.zeroGrad();

// Under noGrad nothing is recorded: evaluation keeps no graph.
console.log(noGrad(() => square(x)).requiresGrad); // → false

// An op of one's own: the value, then what it adds to the gradients of its parents. d softplus(x) = dy · sigmoid(x).
const softplus = (v: Variable): Variable => {
  const y = t.scope(() => t.log(t.affine(t.exp(v.value), 1, 1)));
  return record('softplus', y, [v], (dy, to) => to.add(0, t.mul(dy, t.sigmoid(v.value))));
};

// gradcheck compares it with finite differences, and throws where they disagree.
const random = new t.Philox(1);
const worst = await gradcheck(softplus, [t.tensor(random.normalArray(6), [2, 3])], random);
console.log(worst < 2e-3); // → true

// A wrong derivative does not pass.
const wrong = (v: Variable): Variable =>
  record('wrong', t.square(v.value), [v], (dy, to) => to.add(0, t.affine(dy, 2)));
console.log(await gradcheck(wrong, [t.tensor([1, 2])], random).catch((error: { code: string }) => error.code)); // → gradcheck

// checkpoint keeps only the result of a function, and computes the rest again on the way back: time for memory.
checkpoint((v) => mean(softplus(square(v))), x).backward();
console.log(show(await x.grad!.data())); // → 0.49 1.31 2.00
