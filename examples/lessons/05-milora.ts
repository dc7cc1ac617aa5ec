/** Lesson 5: MiLoRA. Finetune the smallest singular triplets of each weight, and see what stays as it was. */
import { noGrad } from '@milora/autograd';
import { parseLlamaConfig, randomLlama } from '@milora/llama';
import { Philox, matmul, tensor } from '@milora/tensor';
import * as milora from 'milora';

const distance = (x: ArrayLike<number>, y: ArrayLike<number>): number =>
  Array.from(x).reduce((most, v, i) => Math.max(most, Math.abs(v - y[i]!)), 0);

// W [out, in] has k = min(out, in) triplets. MiLoRA takes the last r of them: B = U √(S/s), A = √(S/s) Vᵀ.
console.log(milora.minor(6, 2)); // → [ 4, 5 ]
const weight = await tensor(new Philox(5).normalArray(8 * 6), [8, 6]).toHost();
const options = { rank: 2, alpha: 2, useRslora: false, random: new Philox(0), module: 'w' };
const { a, b } = await milora.miloraInit(weight, options);
const residual = milora.residualOf(weight, a, b, 1); // W − s·B·A, orthogonal to what is trained: Bᵀ W_res = 0
const product = await matmul(tensor(b, [8, 2]), tensor(residual, [8, 6]), { transposeA: true }).data();
console.log(distance(product, new Float32Array(12)) < 1e-5); // → true

// A small model stands in for a pretrained one; inject puts an AdapterLinear in the place of every targeted Linear.
const json = { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 64 };
const config = parseLlamaConfig({ model_type: 'llama', ...json, eos_token_id: null }, 'config.json');
const model = randomLlama(config, new Philox(6), { std: 0.2 });
const ids = Int32Array.of(1, 7, 3, 9, 2, 8, 4, 11, 5, 20);
const logits = () => noGrad(() => model.forward({ inputIds: ids, batch: 1, length: ids.length })).value.data();
const before = await logits();
const adapter = await milora.inject(model, milora.miloraInit, { rank: 4 }); // q, k, v, up and down, as in the paper
console.log(adapter.layers.size, adapter.trainableCount); // → 10 3072
console.log(distance(await logits(), before) < 1e-4); // → true

// The trainer is an async iterator of events. Rows carry their labels, −100 where there is nothing to learn.
const batches = (ids: Int32Array): milora.BatchIterator =>
  new milora.BatchIterator([{ ids, labels: ids, truncated: false }], { batchSize: 1, seed: 0 });
const losses: string[] = [];
for await (const event of new milora.Trainer(model, batches(ids), { steps: 60, lr: 0.01 }).run()) {
  if (event.type === 'step' && event.step % 30 === 0) losses.push(event.loss.toFixed(1));
}
console.log(losses.join(' ')); // → 0.5 0.3

// Drift: the share of B and A outside the minor subspace, 0 at the start. Forgetting: against the base's predictions.
const drift = [...(await milora.subspaceDrift(adapter)).values()];
console.log(drift.every(({ left, right }) => left > 0 && left < 1 && right > 0 && right < 1)); // → true
const { loss, kl } = await milora.forgetting(model, adapter, [batches(ids.slice().reverse()).nextBatch()]);
console.log(loss > kl && kl > 0); // → true

// Off gives the base model again; exported, it is a plain LoRA of rank 2r for the untouched base; merged, one matrix.
console.log(distance(await adapter.disabled(logits), before)); // → 0
console.log((await milora.exportPeft(adapter)).config.rank); // → 8
const tuned = await logits();
adapter.mergeAndUnload();
console.log(distance(await logits(), tuned) < 1e-4); // → true
