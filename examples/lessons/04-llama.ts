/** Lesson 4: a LLaMA. A tiny one learns three sentences, letter by letter, and says them again. */
import { AdamW, noGrad } from '@milora/autograd';
import { generate, loadLlama, parseLlamaConfig, randomLlama, exportLlama } from '@milora/llama';
import { Philox, bytesSource, encodeSafetensors, openSafetensors, scope } from '@milora/tensor';

// The configuration is Hugging Face's config.json.
const sizes = { hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 28 };
const config = parseLlamaConfig({ model_type: 'llama', ...sizes, eos_token_id: 27 }, 'config.json');
const model = randomLlama(config, new Philox(4), { std: 0.1 }).requiresGrad(true);

// One id a letter, 26 for the space and 27 for the end. A real model has a tokenizer: `loadTokenizer` of @milora/llama/node.
const letters = 'abcdefghijklmnopqrstuvwxyz .';
const encode = (text: string): number[] => [...text].map((c) => letters.indexOf(c));
const decode = (ids: number[]): string => ids.map((id) => letters[id]).join('');
const sentences = ['the cat sat on the mat.', 'a dog ran in the park.', 'my hen is in the yard.'].map(encode);

// A batch is rows of one length with a mask; labels are the ids again, −100 where there is nothing to learn.
const length = Math.max(...sentences.map((s) => s.length));
const pad = (value: number): number[] => sentences.flatMap((s) => [...s, ...Array(length - s.length).fill(value)]);
const attentionMask = sentences.flatMap((s) => Array.from({ length }, (_, i) => (i < s.length ? 1 : 0)));
const input = { inputIds: pad(27), attentionMask, batch: sentences.length, length };

const optimizer = new AdamW(model.trainable(), { lr: 5e-3 });
for (let step = 0; step < 120; step++) {
  scope(() => {
    model.loss(input, pad(-100)).backward(); // cross-entropy of each next letter, averaged over the labels
    optimizer.step();
    optimizer.zeroGrad();
  });
}
const loss = await noGrad(() => model.loss(input, pad(-100))).item();
console.log(loss < 0.3); // → true

// Generation is an async iterator of ids. It keeps keys and values of what it has read, and stops at the end token.
async function complete(text: string, useCache = true): Promise<string> {
  const ids: number[] = [];
  for await (const id of generate(model, encode(text), { maxNewTokens: 40, useCache })) ids.push(id);
  return text + decode(ids);
}
console.log(await complete('the cat')); // → the cat sat on the mat
console.log(await complete('my', false)); // → my hen is in the yard

// Weights travel as safetensors under Hugging Face's names; here in memory, on disk with `saveModel` and `loadModel`.
const file = new Blob(encodeSafetensors(await exportLlama(model)) as Uint8Array<ArrayBuffer>[]);
const source = bytesSource('copy', new Uint8Array(await file.arrayBuffer()));
const copy = await loadLlama(config, await openSafetensors(source));
console.log((await noGrad(() => copy.loss(input, pad(-100))).item()) === loss); // → true
