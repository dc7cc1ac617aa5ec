/**
 * tfjs on its wasm backend (https://github.com/tensorflow/tfjs), with two threads where its own loader refuses them in Node,
 * and written for its fast path: its wasm product is quick only for two-dimensional operands without transpose flags.
 * Batched or flagged ones, so all gradients of `matMul`, take a plain loop. Hence every product here is 2-D with explicit
 * transpositions, in derivatives too, and frozen weights are kept both ways round.
 */
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { allowRelaxedSimd } from '../suites/loops.js';
import { job, readCase, require, rotary, serve, sizesOf } from './peer.js';
import type { Peer, Step, TrainTask, Weight } from './peer.js';

interface Arr {
  add(x: Arr | number): Arr;
  sub(x: Arr | number): Arr;
  mul(x: Arr | number): Arr;
  div(x: Arr | number): Arr;
  neg(): Arr;
  exp(): Arr;
  log(): Arr;
  square(): Arr;
  rsqrt(): Arr;
  sigmoid(): Arr;
  max(axis: number, keepDims?: boolean): Arr;
  sum(axis: number, keepDims?: boolean): Arr;
  mean(axis?: number, keepDims?: boolean): Arr;
  squeeze(): Arr;
  reshape(shape: number[]): Arr;
  transpose(perm?: number[]): Arr;
  slice(begin: number[], size: number[]): Arr;
  data(): Promise<Float32Array>;
  dataSync(): Float32Array;
  dispose(): void;
}

type Save = (tensors: Arr[]) => void;
interface WithGradient {
  value: Arr;
  gradFunc(dy: Arr, saved: Arr[]): Arr | Arr[];
}

interface Tf {
  tensor(data: Float32Array | Int32Array, shape: number[]): Arr;
  tensor1d(data: Int32Array, dtype: string): Arr;
  variable(x: Arr): Arr;
  matMul(a: Arr, b: Arr): Arr;
  softmax(x: Arr): Arr;
  gather(x: Arr, ids: Arr): Arr;
  split(x: Arr, parts: number, axis: number): [Arr, Arr];
  concat(parts: Arr[], axis: number): Arr;
  stack(parts: Arr[]): Arr;
  unstack(x: Arr): Arr[];
  tidy(fn: () => Arr): Arr;
  dispose(tensors: unknown): void;
  customGrad<Of extends Arr[]>(fn: (...of: [...Of, Save]) => WithGradient): (...of: Of) => Arr;
  variableGrads(fn: () => Arr): { value: Arr; grads: Record<string, Arr> };
  train: { adam(...rates: number[]): { applyGradients(grads: Record<string, Arr>): void } };
  env(): { set(flag: string, value: unknown): void };
  setBackend(name: string): Promise<unknown>;
  ready(): Promise<unknown>;
}

interface TfWasm {
  setWasmPaths(folder: string): void;
  setThreadsCount(threads: number): void;
  getThreadsCount(): number;
}

/**
 * Its threaded build starts Workers from blob URLs, which Node's Worker does not take: a file takes the blob's
 * place. It also takes half the processors it sees.
 */
async function load(): Promise<Tf> {
  allowRelaxedSimd();
  const { threads, scratch } = job;
  const { warn } = console;
  console.warn = () => undefined; // it advertises another package
  const tf = require('@tensorflow/tfjs') as Tf;
  const wasm = require('@tensorflow/tfjs-backend-wasm') as TfWasm;
  const root = dirname(require.resolve('@tensorflow/tfjs-backend-wasm/package.json'));
  wasm.setWasmPaths(join(root, 'dist/'));
  const os = require('node:os') as { cpus: () => unknown[] };
  const [{ cpus }, { createObjectURL }] = [os, URL];
  if (threads > 1) {
    tf.env().set('WASM_HAS_MULTITHREAD_SUPPORT', true);
    wasm.setThreadsCount(threads);
    const main = join(root, 'wasm-out/tfjs-backend-wasm-threaded-simd.js');
    const { wasmWorkerContents } = require(main.replace(/js$/, 'worker.js')) as { wasmWorkerContents: string };
    const code = wasmWorkerContents
      .replaceAll('\n', '\\n')
      .replace('URL.createObjectURL(e.data.urlOrBlob)', JSON.stringify(main))
      .replace('URL.revokeObjectURL(objectUrl)', '');
    const file = join(scratch, 'worker.js');
    writeFileSync(file, code);
    URL.createObjectURL = () => file;
    os.cpus = () => Array.from({ length: 2 * threads });
  }
  await tf.setBackend('wasm');
  await tf.ready();
  Object.assign(os, { cpus });
  Object.assign(URL, { createObjectURL });
  Object.assign(console, { warn });
  if (wasm.getThreadsCount() !== threads) {
    throw new Error(`tfjs: expected ${threads} threads, got ${wasm.getThreadsCount()}`);
  }
  return tf;
}

const tf = await load();
const put = ({ data, shape }: Weight): Arr => tf.tensor(data, shape);

/** A product whose derivatives keep to the fast path. */
const product = tf.customGrad((a: Arr, b: Arr, save: Save) => {
  save([a, b]);
  return {
    value: tf.matMul(a, b),
    gradFunc: (dy: Arr, saved: Arr[]) => {
      const [a, b] = saved as [Arr, Arr];
      return [tf.matMul(dy, b.transpose()), tf.matMul(a.transpose(), dy)];
    },
  };
});

/** x Wᵀ for a W that is not trained. */
function frozen(weight: Weight): (x: Arr) => Arr {
  const w = put(weight);
  const turned = tf.tidy(() => w.transpose());
  return tf.customGrad((x: Arr, _save: Save) => ({
    value: tf.matMul(x, turned),
    gradFunc: (dy: Arr) => tf.matMul(dy, w),
  }));
}

function finetuning(of: TrainTask): Step {
  const { batch: B, length: T } = of;
  const { C, H, G, D, L, eps, theta } = sizesOf(of);
  const { weights, ids } = readCase(of);
  const group = H / G;

  const weight = (name: string): Weight => weights.get(`${name}.weight`)!;
  const projection = (path: string): ((x: Arr) => Arr) => {
    if (!weights.has(`${path}.lora_A.default.weight`)) return frozen(weight(path));
    const base = frozen(weight(`${path}.base_layer`));
    const [a, b] = [
      tf.variable(put(weight(`${path}.lora_A.default`))),
      tf.variable(put(weight(`${path}.lora_B.default`))),
    ];
    return (x) => base(x).add(product(product(x, a.transpose()), b.transpose()));
  };
  const norm = (path: string): ((x: Arr) => Arr) => {
    const w = put(weight(path));
    return (x) => x.mul(x.square().mean(-1, true).add(eps).rsqrt()).mul(w);
  };

  const tables = rotary(T, D, theta);
  const [cos, sin] = [tf.tensor(tables.cos, [T, 1, D]), tf.tensor(tables.sin, [T, 1, D])];
  const rotate = (x: Arr): Arr => {
    const [left, right] = tf.split(x, 2, -1);
    return x.mul(cos).add(tf.concat([right.neg(), left], -1).mul(sin));
  };
  /** The heads that share a key one below another: [B·T, n·D] → B·G of [·, D]. */
  const byKey = (x: Arr, heads: number): Arr[] =>
    tf.unstack(
      x
        .reshape([B, T, heads, D])
        .transpose([0, 2, 1, 3])
        .reshape([B * G, -1, D]),
    );
  const hidden = Float32Array.from({ length: group * T * T }, (_, i) => (i % T > Math.floor(i / T) % T ? -1e9 : 0));
  const mask = tf.tensor(hidden, [group * T, T]);
  const attention = (q: Arr, k: Arr, v: Arr): Arr => {
    const [keys, values] = [byKey(k, G), byKey(v, G)];
    const out = byKey(q.mul(D ** -0.5), H).map((query, i) =>
      product(tf.softmax(product(query, keys[i]!.transpose()).add(mask)), values[i]!),
    );
    return tf
      .stack(out)
      .reshape([B, H, T, D])
      .transpose([0, 2, 1, 3])
      .reshape([B * T, H * D]);
  };

  const layer = (at: string): ((x: Arr) => Arr) => {
    const [before, after] = [norm(`${at}.input_layernorm`), norm(`${at}.post_attention_layernorm`)];
    const [q, k, v, o] = ['q', 'k', 'v', 'o'].map((name) => projection(`${at}.self_attn.${name}_proj`)) as Layers4;
    const [gate, up, down] = ['gate', 'up', 'down'].map((name) => projection(`${at}.mlp.${name}_proj`)) as Layers3;
    return (x) => {
      const h = before(x);
      const turned = (y: Arr, heads: number): Arr => rotate(y.reshape([B, T, heads, D]));
      const middle = x.add(o(attention(turned(q(h), H), turned(k(h), G), v(h))));
      const m = after(middle);
      const g = gate(m);
      return middle.add(down(g.mul(g.sigmoid()).mul(up(m))));
    };
  };
  const layers = Array.from({ length: L }, (_, l) => layer(`model.layers.${l}`));
  const lastNorm = norm('model.norm');

  const embedding = put(weight('model.embed_tokens'));
  const embeddingT = tf.tidy(() => embedding.transpose());
  const inputs = tf.tensor1d(ids, 'int32');
  const targets = tf.gather(
    embedding,
    tf.tensor1d(
      ids.filter((_, i) => i % T > 0),
      'int32',
    ),
  );
  const rows = B * (T - 1);
  /** log-sum-exp of the logits less the target's, its derivative written out. */
  const headLoss = tf.customGrad((x: Arr, save: Save) => {
    const logits = tf.matMul(x, embeddingT);
    const top = logits.max(-1, true);
    const powers = logits.sub(top).exp();
    const sums = powers.sum(-1, true);
    save([powers.div(sums)]);
    return {
      value: sums.log().add(top).squeeze().sub(x.mul(targets).sum(-1)).mean(),
      gradFunc: (dy, [p]) => tf.matMul(p!, embedding).sub(targets).mul(dy.div(rows)),
    };
  });

  const loss = (): Arr => {
    const x = lastNorm(layers.reduce((x, run) => run(x), tf.gather(embedding, inputs)));
    return headLoss(
      x
        .reshape([B, T, C])
        .slice([0, 0, 0], [B, T - 1, C])
        .reshape([rows, C]),
    );
  };
  const optimizer = tf.train.adam(of.learningRate, 0.9, 0.999, 1e-8); // AdamW without decay is Adam
  return () => {
    const { value, grads } = tf.variableGrads(loss);
    optimizer.applyGradients(grads);
    const [before] = value.dataSync();
    tf.dispose([value, grads]);
    return before!;
  };
}

type Layer = (x: Arr) => Arr;
type Layers3 = [Layer, Layer, Layer];
type Layers4 = [Layer, Layer, Layer, Layer];

const peer: Peer = {
  finetuning,
  product(a, b) {
    const [A, B] = [put(a), put(b)];
    return { run: () => tf.matMul(A, B).dispose(), result: () => tf.matMul(A, B).data() };
  },
};
await serve(peer);
