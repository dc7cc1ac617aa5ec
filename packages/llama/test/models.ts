/** Small random models, and the decoder once more in plain float64 loops to compare them with. */
import { noGrad } from '@milora/autograd';
import { Philox, Tensor, convertHost, getBackend, scope } from '@milora/tensor';
import type { Backend } from '@milora/tensor';
import fc from 'fast-check';
import type { LlamaConfig } from '../src/config.js';
import type { ForwardOptions, LlamaForCausalLM, LlamaInput } from '../src/model.js';
import { buildLlama } from '../src/model.js';

/** Sizes that are no multiples of 4, grouped heads, a head size that is not hidden / heads. */
export function configOf(changes: Partial<LlamaConfig> = {}): LlamaConfig {
  return {
    vocabSize: 19,
    hiddenSize: 14,
    intermediateSize: 22,
    numHiddenLayers: 2,
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    headDim: 6,
    maxPositionEmbeddings: 512,
    rmsNormEps: 1e-5,
    ropeTheta: 10000,
    ropeScaling: null,
    tieWordEmbeddings: false,
    eosTokenId: [],
    attentionBias: false,
    mlpBias: false,
    ...changes,
  };
}

export const anyConfig: fc.Arbitrary<LlamaConfig> = fc
  .record({
    vocabSize: fc.integer({ min: 2, max: 37 }),
    hiddenSize: fc.integer({ min: 1, max: 21 }),
    intermediateSize: fc.integer({ min: 1, max: 21 }),
    numHiddenLayers: fc.integer({ min: 1, max: 2 }),
    numKeyValueHeads: fc.integer({ min: 1, max: 3 }),
    group: fc.integer({ min: 1, max: 3 }),
    halfHead: fc.integer({ min: 1, max: 5 }),
    ropeTheta: fc.constantFrom(100, 10000, 500000),
    tieWordEmbeddings: fc.boolean(),
    attentionBias: fc.boolean(),
    mlpBias: fc.boolean(),
  })
  .map(({ group, halfHead, ...rest }) =>
    configOf({ ...rest, numAttentionHeads: rest.numKeyValueHeads * group, headDim: 2 * halfHead }),
  );

/** A model in which every parameter matters: norms differ from 1, biases from 0, and activations stay near 1. */
export function randomModel(config: LlamaConfig, seed: number, backend: Backend = getBackend()): LlamaForCausalLM {
  const random = new Philox(seed);
  return buildLlama(config, (name, shape) => {
    const size = shape.reduce((a, b) => a * b, 1);
    const [mean, std] = name.includes('norm')
      ? [1, 0.2]
      : name.endsWith('.bias')
        ? [0, 0.3]
        : [0, name.includes('embed') ? 1 : 1 / Math.sqrt(shape[1]!)];
    return Tensor.fromHost({ dtype: 'f32', shape, data: random.normalArray(size, mean, std) }, backend).keep();
  });
}

export function logitsOf(
  model: LlamaForCausalLM,
  input: LlamaInput,
  options: ForwardOptions = {},
): Promise<Float64Array> {
  return scope(async () => Float64Array.from(await noGrad(() => model.forward(input, options)).value.data()));
}

/** Largest |a − b| relative to the largest |b|, or to 1 if that is less. */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Infinity;
  let [difference, scale] = [0, 1];
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (!(d <= difference)) difference = d;
    scale = Math.max(scale, Math.abs(b[i]!));
  }
  return difference / scale;
}

export type Parameters = Map<string, Float64Array>;

export async function parametersOf(model: LlamaForCausalLM): Promise<Parameters> {
  const out: Parameters = new Map();
  for (const [name, tensor] of model.stateDict()) {
    const { data, dtype } = await tensor.toHost();
    out.set(name, convertHost(data, dtype, 'f64').slice());
  }
  return out;
}

/** Logits `[T, V]` of one sequence in float64: every token sees itself and those before it, positions count from 0. */
export function referenceLogits(config: LlamaConfig, parameters: Parameters, ids: readonly number[]): Float64Array {
  const { hiddenSize: C, intermediateSize: F, headDim: D, numAttentionHeads: H, numKeyValueHeads: G } = config;
  const T = ids.length;
  const weights = (name: string): Float64Array => parameters.get(name)!;

  /** x `[T, inner]` → x Wᵀ + b `[T, out]`. */
  const project = (x: Float64Array, name: string, inner: number, out: number): Float64Array => {
    const [w, b] = [weights(`${name}.weight`), parameters.get(`${name}.bias`)];
    const y = new Float64Array(T * out);
    for (let t = 0; t < T; t++)
      for (let o = 0; o < out; o++) {
        let sum = b?.[o] ?? 0;
        for (let i = 0; i < inner; i++) sum += x[t * inner + i]! * w[o * inner + i]!;
        y[t * out + o] = sum;
      }
    return y;
  };
  const norm = (x: Float64Array, name: string): Float64Array => {
    const w = weights(`${name}.weight`);
    return x.map((value, at) => {
      const row = x.subarray(at - (at % C), at - (at % C) + C);
      return (value / Math.sqrt(row.reduce((s, v) => s + v * v, 0) / C + config.rmsNormEps)) * w[at % C]!;
    });
  };
  const rotate = (x: Float64Array, heads: number): Float64Array =>
    x.map((value, at) => {
      const [t, d] = [Math.floor(at / (heads * D)), at % D];
      const angle = t * config.ropeTheta ** ((-2 * (d % (D / 2))) / D);
      const partner = d < D / 2 ? -x[at + D / 2]! : x[at - D / 2]!;
      return value * Math.cos(angle) + partner * Math.sin(angle);
    });

  let h = Float64Array.from({ length: T * C }, (_, at) =>
    weights('model.embed_tokens.weight').at(ids[Math.floor(at / C)]! * C + (at % C))!,
  );
  for (let l = 0; l < config.numHiddenLayers; l++) {
    const layer = `model.layers.${l}`;
    const x = norm(h, `${layer}.input_layernorm`);
    const q = rotate(project(x, `${layer}.self_attn.q_proj`, C, H * D), H);
    const k = rotate(project(x, `${layer}.self_attn.k_proj`, C, G * D), G);
    const v = project(x, `${layer}.self_attn.v_proj`, C, G * D);
    const mixed = new Float64Array(T * H * D);
    for (let head = 0; head < H; head++)
      for (let t = 0; t < T; t++) {
        const group = Math.floor(head / (H / G));
        const scores = Array.from({ length: t + 1 }, (_, s) => {
          let dot = 0;
          for (let d = 0; d < D; d++) dot += q[(t * H + head) * D + d]! * k[(s * G + group) * D + d]!;
          return Math.exp(dot / Math.sqrt(D));
        });
        const total = scores.reduce((a, b) => a + b, 0);
        for (let s = 0; s <= t; s++)
          for (let d = 0; d < D; d++)
            mixed[(t * H + head) * D + d]! += (scores[s]! / total) * v[(s * G + group) * D + d]!;
      }
    const attended = project(mixed, `${layer}.self_attn.o_proj`, H * D, C);
    h = h.map((value, i) => value + attended[i]!);
    const y = norm(h, `${layer}.post_attention_layernorm`);
    const gate = project(y, `${layer}.mlp.gate_proj`, C, F);
    const up = project(y, `${layer}.mlp.up_proj`, C, F);
    const inner = gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]!);
    const down = project(inner, `${layer}.mlp.down_proj`, F, C);
    h = h.map((value, i) => value + down[i]!);
  }
  const head = config.tieWordEmbeddings ? 'model.embed_tokens' : 'lm_head';
  return project(norm(h, 'model.norm'), head, C, config.vocabSize);
}

/** Mean of −log softmax(logits)[label t + 1] over the tokens of every row that have one, in float64. */
export function referenceLoss(
  logits: ArrayLike<number>,
  labels: ArrayLike<number>,
  length: number,
  vocabSize: number,
  normalizer?: number,
): number {
  let [total, count] = [0, 0];
  for (let at = 0; at < labels.length; at++) {
    const label = labels[at + 1];
    if (at % length === length - 1 || label === undefined || label < 0) continue;
    const row = Array.from({ length: vocabSize }, (_, v) => logits[at * vocabSize + v]!);
    const max = Math.max(...row);
    total += max + Math.log(row.reduce((s, x) => s + Math.exp(x - max), 0)) - row[label]!;
    count++;
  }
  return total / (normalizer ?? Math.max(1, count));
}
