/** Lesson 3: modules and optimisers. A small network learns "exclusive or". */
import { AdamW, Linear, Module, Variable, cosineSchedule, mean, square, sub, tanh } from '@milora/autograd';
import { Philox, scope, tensor, zeros } from '@milora/tensor';

const random = new Philox(3);

// Properties that hold Variables are parameters, those that hold Modules are children. In a state dict their names are in
// snake case, as in Hugging Face's files.
class Network extends Module {
  upProj = new Linear(tensor(random.normalArray(8 * 2), [8, 2]), zeros([8]));
  downProj = new Linear(tensor(random.normalArray(8, 0, 0.3), [1, 8]), zeros([1]));

  forward(x: Variable): Variable {
    return this.downProj.forward(tanh(this.upProj.forward(x)));
  }
}

const network = new Network();
console.log([...network.stateDict().keys()].join(' ')); // → up_proj.weight up_proj.bias down_proj.weight down_proj.bias

// Parameters are frozen until they are asked for: finetuning trains few of them.
console.log(network.trainable().length, network.requiresGrad(true).trainable().length); // → 0 4

const inputs = new Variable(tensor([0, 0, 0, 1, 1, 0, 1, 1], [4, 2]));
const targets = new Variable(tensor([0, 1, 1, 0], [4, 1]));
const optimizer = new AdamW(network.namedParameters(), { weightDecay: 0 });
const schedule = cosineSchedule({ warmupSteps: 10, totalSteps: 300 }); // a factor for every step

for (let step = 0; step < 300; step++) {
  // the scope frees the values of the step; the optimiser keeps its moments
  scope(() => {
    mean(square(sub(network.forward(inputs), targets))).backward();
    optimizer.lr = 0.05 * schedule(step);
    optimizer.step();
    optimizer.zeroGrad();
  });
}
const answers = await network.forward(inputs).value.data();
console.log(Array.from(answers, (v) => v.toFixed(1)).join(' ')); // → 0.0 1.0 1.0 0.0

// Any part can be replaced by another with the same forward: this is how an adapter takes the place of a Linear.
network.replaceModule('down_proj', new Linear(zeros([1, 8])));
console.log((await network.forward(inputs).value.data()).every((v) => v === 0)); // → true
