/**
 * jax-js on its wasm backend (https://github.com/ekzhang/jax-js). Three things make it run at its best in Node 20: a stand-in
 * for the browser's Worker, without which it has one thread; iterator helpers, which its einsum uses; relaxed SIMD.
 * An array is consumed by the operation it goes into, unless `.ref` is handed over.
 */
import { resolveObjectURL } from 'node:buffer';
import { Worker } from 'node:worker_threads';
import { allowRelaxedSimd } from '../suites/loops.js';
import { job, readCase, require, rotary, serve, sizesOf } from './peer.js';
import type { Peer, Step, TrainTask, Weight } from './peer.js';

interface Arr {
  readonly ref: Arr;
  readonly shape: number[];
  add(x: Arr | number): Arr;
  sub(x: Arr | number): Arr;
  mul(x: Arr | number): Arr;
  div(x: Arr | number): Arr;
  neg(): Arr;
  reshape(shape: number[]): Arr;
  flatten(): Arr;
  transpose(): Arr;
  slice(...index: (Arr | number[])[]): Arr;
  mean(axis?: number, options?: { keepdims: boolean }): Arr;
  sum(axis: number): Arr;
  data(): Promise<Float32Array>;
  blockUntilReady(): Promise<Arr>;
  dispose(): void;
}

type Table = Record<string, Arr>;

interface Jax {
  numpy: {
    array(data: Float32Array | Int32Array | number): Arr;
    zeros(shape: number[]): Arr;
    dot(a: Arr, b: Arr): Arr;
    matmul(a: Arr, b: Arr): Arr;
    sqrt(x: Arr): Arr;
    square(x: Arr): Arr;
    split(x: Arr, parts: number, axis: number): [Arr, Arr];
    concatenate(parts: Arr[], axis: number): Arr;
  };
  nn: {
    silu(x: Arr): Arr;
    logsumexp(x: Arr, axis: number): Arr;
    dotProductAttention(q: Arr, k: Arr, v: Arr, options: { isCausal: boolean }): Arr;
  };
  tree: {
    map(fn: (...leaves: Arr[]) => Arr, ...tables: Table[]): Table;
    ref<T>(tree: T): T;
    dispose(tree: unknown): void;
    leaves(tree: unknown): Arr[];
  };
  jit<F>(fn: F): F;
  valueAndGrad<F extends (...of: never[]) => Arr>(
    fn: F,
    options: { argnums: number[] },
  ): (...of: Parameters<F>) => [Arr, Table[]];
  init(backend: string): Promise<unknown>;
  defaultDevice(backend: string): unknown;
}

/** The browser's Worker, as far as jax-js needs it. */
class WebWorker {
  onmessage: (event: { data: unknown }) => void = () => undefined;
  onerror: (error: Error) => void = () => undefined;
  private readonly started: Promise<Worker>;

  constructor(url: string) {
    this.started = this.start(url);
  }

  private async start(url: string): Promise<Worker> {
    const source = await resolveObjectURL(url)!.text();
    const shim = `const { parentPort } = require('node:worker_threads');
      globalThis.self = globalThis;
      globalThis.postMessage = (data) => parentPort.postMessage(data);
      parentPort.on('message', (data) => globalThis.onmessage({ data }));`;
    const worker = new Worker(`${shim}\n${source}`, { eval: true });
    worker.on('message', (data) => this.onmessage({ data }));
    return worker.on('error', (error) => this.onerror(error));
  }

  postMessage(data: unknown): void {
    void this.started.then((worker) => worker.postMessage(data));
  }
}

/** `map` and `filter` on iterators, which Node 22 has. */
function addIteratorHelpers(): void {
  const iterator = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]())) as Record<string, unknown>;
  iterator['map'] ??= function* <T, U>(this: Iterable<T>, fn: (x: T) => U) {
    for (const x of this) yield fn(x);
  };
  iterator['filter'] ??= function* <T>(this: Iterable<T>, keep: (x: T) => boolean) {
    for (const x of this) if (keep(x)) yield x;
  };
}

async function load(): Promise<Jax> {
  allowRelaxedSimd();
  addIteratorHelpers();
  if (job.threads > 1) {
    const define = (name: string, value: unknown) => Object.defineProperty(globalThis, name, { value, writable: true });
    define('navigator', { hardwareConcurrency: job.threads });
    define('Worker', WebWorker);
  }
  const jax = require('@jax-js/jax') as Jax;
  await jax.init('wasm');
  jax.defaultDevice('wasm');
  return jax;
}

const jax = await load();
const { numpy: np, nn, tree } = jax;
const put = ({ data, shape }: Weight): Arr => np.array(data).reshape(shape);

/** x Wᵀ */
const linear = (x: Arr, w: Arr): Arr => np.dot(x, w.transpose());

/** The mean loss of the next tokens, as a function of the adapters, `pins`, the frozen weights and the ids `[B, T]`. */
function lossOf({ batch: B, length: T, ...of }: TrainTask) {
  const { C, H, G, D, L, eps } = sizesOf({ batch: B, length: T, ...of });

  return (lora: Table, pins: Table, frozen: Table, ids: Arr): Arr => {
    const weight = (name: string): Arr => frozen[`${name}.weight`]!.ref;
    const project = (x: Arr, path: string): Arr => {
      const a = lora[`${path}.lora_A.default.weight`];
      if (!a) return linear(x, weight(path));
      const low = linear(linear(x.ref, a.ref), lora[`${path}.lora_B.default.weight`]!.ref);
      return linear(x, weight(`${path}.base_layer`)).add(low);
    };
    const norm = (x: Arr, path: string): Arr => {
      const deviation = np.sqrt(np.square(x.ref).mean(-1, { keepdims: true }).add(eps));
      return x.div(deviation).mul(weight(path));
    };
    const rotate = (x: Arr): Arr => {
      const [left, right] = np.split(x.ref, 2, -1);
      const turned = np.concatenate([right.neg(), left], -1);
      return x.mul(frozen['cos']!.ref).add(turned.mul(frozen['sin']!.ref));
    };
    const pin = (x: Arr, name: string): Arr => x.add(pins[name]!.ref);

    const embedding = weight('model.embed_tokens');
    let x = embedding.ref.slice(ids.ref.flatten()); // [B·T, C]
    for (let l = 0; l < L; l++) {
      const at = `model.layers.${l}`;
      const h = norm(x.ref, `${at}.input_layernorm`);
      const q = rotate(project(h.ref, `${at}.self_attn.q_proj`).reshape([B, T, H, D]));
      const k = rotate(project(h.ref, `${at}.self_attn.k_proj`).reshape([B, T, G, D]));
      const v = project(h, `${at}.self_attn.v_proj`).reshape([B, T, G, D]);
      const heads = nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([B * T, H * D]);
      x = x.add(project(pin(heads, `heads ${l}`), `${at}.self_attn.o_proj`));
      x = pin(x, `middle ${l}`);
      const m = norm(x.ref, `${at}.post_attention_layernorm`);
      const gate = pin(project(m.ref, `${at}.mlp.gate_proj`), `gate ${l}`);
      x = x.add(project(nn.silu(gate).mul(project(m, `${at}.mlp.up_proj`)), `${at}.mlp.down_proj`));
    }
    // the last token of a row has no target
    x = norm(x, 'model.norm')
      .reshape([B, T, C])
      .slice([], [0, T - 1], [])
      .reshape([-1, C]);
    const targets = embedding.ref.slice(ids.slice([], [1, T]).flatten());
    const logits = pin(linear(x.ref, embedding), 'logits');
    const loss = nn.logsumexp(logits, -1).sub(x.mul(targets).sum(-1)).mean();
    tree.dispose([lora, pins, frozen]);
    return loss;
  };
}

/**
 * Zero vectors that are added where a value and its gradient must be kept: without them its jit merges the gradients of
 * softmax and silu into the products after them and computes them again for every output.
 */
function pinsOf(of: TrainTask): Table {
  const { C, F, V, L } = sizesOf(of);
  const pins: Table = { logits: np.zeros([V]) };
  for (let l = 0; l < L; l++) {
    pins[`heads ${l}`] = np.zeros([C]);
    pins[`middle ${l}`] = np.zeros([C]);
    pins[`gate ${l}`] = np.zeros([F]);
  }
  return pins;
}

/** PyTorch's AdamW without weight decay; c1 and c2 correct the bias. */
function adam(learningRate: number) {
  return (p: Table, m: Table, v: Table, g: Table, c1: Arr, c2: Arr): [Table, Table, Table] => {
    const m1 = tree.map((m, g) => m.mul(0.9).add(g.mul(0.1)), m, tree.ref(g));
    const v1 = tree.map((v, g) => v.mul(0.999).add(np.square(g).mul(0.001)), v, g);
    const p1 = tree.map(
      (p, m, v) =>
        p.sub(
          m
            .mul(c1.ref)
            .mul(learningRate)
            .div(np.sqrt(v.mul(c2.ref)).add(1e-8)),
        ),
      ...[p, tree.ref(m1), tree.ref(v1)],
    );
    tree.dispose([c1, c2]);
    return [p1, m1, v1];
  };
}

function finetuning(of: TrainTask): Step {
  const { weights, ids } = readCase(of);
  const { D, theta } = sizesOf(of);
  const isFactor = (name: string): boolean => name.includes('.lora_');
  const table = (names: string[]): Table => Object.fromEntries(names.map((name) => [name, put(weights.get(name)!)]));
  const names = [...weights.keys()];
  const frozen = table(names.filter((name) => !isFactor(name)));
  const { cos, sin } = rotary(of.length, D, theta);
  frozen['cos'] = np.array(cos).reshape([of.length, 1, D]);
  frozen['sin'] = np.array(sin).reshape([of.length, 1, D]);
  const pins = pinsOf(of);
  const inputs = np.array(ids).reshape([of.batch, of.length]);

  const gradients = jax.jit(jax.valueAndGrad(lossOf(of), { argnums: [0, 1] }));
  // a second jit and not the same one: each holds all of its intermediates until it ends
  const update = jax.jit(adam(of.learningRate));
  let lora = table(names.filter(isFactor));
  const zeros = (): Table => tree.map((p) => np.zeros(p.shape), lora);
  let [m, v] = [zeros(), zeros()];
  let steps = 0;
  return async () => {
    steps++;
    const [loss, [g, unused]] = gradients(tree.ref(lora), tree.ref(pins), tree.ref(frozen), inputs.ref);
    const [value] = await loss.data();
    tree.dispose(unused);
    const correction = (beta: number): Arr => np.array(1 / (1 - beta ** steps));
    [lora, m, v] = update(lora, m, v, g!, correction(0.9), correction(0.999));
    await tree.leaves(lora)[0]!.blockUntilReady();
    return value!;
  };
}

const peer: Peer = {
  finetuning,
  product(a, b) {
    const [A, B] = [put(a), put(b)];
    return {
      run: async () => {
        const c = np.matmul(A.ref, B.ref);
        await c.blockUntilReady();
        c.dispose();
      },
      result: () => np.matmul(A.ref, B.ref).data(),
    };
  },
};
await serve(peer);
