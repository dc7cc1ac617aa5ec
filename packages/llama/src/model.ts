/**
 * The LLaMA decoder (Touvron et al. 2023a, 2023b; Grattafiori et al. 2024), in reading order.
 *
 * Property names equal the checkpoint's names in camel case, so that `stateDict()` has Hugging Face's keys. Every projection
 * is a `Layer` that may be replaced by another with the same `forward`; this file never mentions adapters.
 *
 * Shape letters: B batch, T tokens, S keys, C hidden size, F intermediate size, H and G query and key/value heads, D head size, V vocabulary.
 */
import {
  Embedding,
  Linear,
  Module,
  RMSNorm,
  Variable,
  add,
  attention,
  checkpoint,
  gradEnabled,
  linear,
  linearCrossEntropy,
  reshape,
  rope,
  swiglu,
} from '@milora/autograd';
import { Tensor, causalRanges, getBackend, intTensor, ones, scope } from '@milora/tensor';
import type { Backend, Philox } from '@milora/tensor';
import type { LlamaConfig } from './config.js';
import { LlamaError } from './errors.js';
import type { KVCache, LayerCache } from './kvCache.js';
import { ropeTables } from './rope.js';

/** Anything that maps `[…, in]` to `[…, out]`. */
export interface Layer extends Module {
  forward(x: Variable): Variable;
}

/** Token ids and what they may see. */
export interface LlamaInput {
  /** Ids, B·T of them, row by row. */
  inputIds: ArrayLike<number>;
  /** B. */
  batch: number;
  /** T. */
  length: number;
  /** 1 for tokens, 0 for padding: B entries per key, one run of ones in each row. Default: all ones. */
  attentionMask?: ArrayLike<number>;
  /** Position of each token. Default 0 … T − 1 in every row, after what the cache holds. */
  positions?: ArrayLike<number>;
  /** Key window of each token, B·T·2, instead of a mask: for packed rows. */
  ranges?: ArrayLike<number>;
}

/** What all layers of one forward pass share. */
export interface Pass {
  positions: Tensor; // [B·T] i32
  ranges: Tensor; // [B, T, 2] i32
  /** Where a cache puts the tokens. */
  slots?: Tensor; // [B, T] i32
  cos: Tensor; // [positions, D/2]
  sin: Tensor;
}

export class LlamaAttention extends Module {
  constructor(
    private readonly config: LlamaConfig,
    public qProj: Layer,
    public kProj: Layer,
    public vProj: Layer,
    public oProj: Layer,
  ) {
    super();
  }

  forward(x: Variable, pass: Pass, cache?: LayerCache): Variable {
    const [B, T] = x.shape as [number, number, number];
    const { numAttentionHeads: H, numKeyValueHeads: G, headDim: D } = this.config;
    const q = rope(reshape(this.qProj.forward(x), B, T, H, D), pass.positions, pass.cos, pass.sin);
    let k = rope(reshape(this.kProj.forward(x), B, T, G, D), pass.positions, pass.cos, pass.sin);
    let v = reshape(this.vProj.forward(x), B, T, G, D);
    if (cache) [k, v] = cache.append(k.value, v.value, pass.slots!).map((t) => new Variable(t)) as [Variable, Variable]; // [B, S, G, D]
    const out = attention(q, k, v, pass.ranges); // [B, T, H, D]
    return this.oProj.forward(reshape(out, B, T, H * D)); // [B, T, C]
  }
}

export class LlamaMLP extends Module {
  constructor(
    public gateProj: Layer,
    public upProj: Layer,
    public downProj: Layer,
  ) {
    super();
  }

  forward(x: Variable): Variable {
    return this.downProj.forward(swiglu(this.gateProj.forward(x), this.upProj.forward(x))); // [B, T, F] → [B, T, C]
  }
}

export class LlamaDecoderLayer extends Module {
  constructor(
    public selfAttn: LlamaAttention,
    public mlp: LlamaMLP,
    public inputLayernorm: RMSNorm,
    public postAttentionLayernorm: RMSNorm,
  ) {
    super();
  }

  forward(x: Variable, pass: Pass, cache?: LayerCache): Variable {
    const h = add(x, this.selfAttn.forward(this.inputLayernorm.forward(x), pass, cache));
    return add(h, this.mlp.forward(this.postAttentionLayernorm.forward(h)));
  }
}

export class LlamaModel extends Module {
  constructor(
    public embedTokens: Embedding,
    public layers: LlamaDecoderLayer[],
    public norm: RMSNorm,
  ) {
    super();
  }
}

export interface ForwardOptions {
  /** Keys and values of earlier tokens; this pass adds its own. Inference only. */
  cache?: KVCache;
}

export class LlamaForCausalLM extends Module {
  /** Recomputes each layer in the backward pass instead of keeping its activations. */
  gradientCheckpointing = false;
  /** Absent when the output matrix is the embedding itself (tied). */
  lmHead?: Layer;
  /** Rotary tables, the longest last. Shorter ones stay, as recorded graphs may still need them. */
  private readonly tables: { cos: Tensor; sin: Tensor; length: number }[] = [];

  constructor(
    readonly config: LlamaConfig,
    public model: LlamaModel,
    lmHead?: Layer,
  ) {
    super();
    if (lmHead) this.lmHead = lmHead;
  }

  get backend(): Backend {
    return this.model.embedTokens.weight.value.backend;
  }

  /** Logits of every token, `[B, T, V]`. Throws on ids outside the vocabulary and on sequences that are too long. */
  forward(input: LlamaInput, options: ForwardOptions = {}): Variable {
    return this.head(this.hidden(input, options));
  }

  /** Logits `[…, V]` of hidden states `[…, C]`. */
  head(h: Variable): Variable {
    return this.lmHead ? this.lmHead.forward(h) : linear(h, this.model.embedTokens.weight);
  }

  /**
   * Mean cross-entropy of predicting each next label: labels (B·T, not shifted, −100 where there is no loss) as in Hugging
   * Face. The logits of the batch never exist as a whole.
   */
  loss(input: LlamaInput, labels: ArrayLike<number>, options: { normalizer?: number } = {}): Variable {
    const { batch, length } = input;
    if (labels.length !== batch * length) {
      throw new LlamaError('labels', `loss: expected ${batch * length} labels, got ${labels.length}`);
    }
    const targets = nextTargets(labels, batch, length);
    const head = this.lmHead ?? this.model.embedTokens;
    const h = this.hidden(input);
    if (head instanceof Linear || head instanceof Embedding)
      return linearCrossEntropy(h, head.weight, targets, options);
    throw new LlamaError('head', 'loss: expected a plain output matrix, got an adapter on lm_head; merge it first');
  }

  /** Output of the last norm, `[B, T, C]`. */
  hidden(input: LlamaInput, options: ForwardOptions = {}): Variable {
    const { batch: B, length: T } = input;
    const { cache } = options;
    if (cache && gradEnabled()) throw new LlamaError('cache', 'forward: expected noGrad with a cache, got recording');
    this.checkIds(input);
    cache?.expectRoom(T);
    const ids = intTensor(input.inputIds, [B, T], { backend: this.backend });
    const h = this.hiddenOf(ids, this.prepare(input, cache), cache);
    cache?.advance(T);
    return h;
  }

  /** The same on tensors, unchecked: ids `[B, T]` i32 in, and a cache is not advanced. For steps that are recorded. */
  hiddenOf(ids: Tensor, pass: Pass, cache?: KVCache): Variable {
    let h = this.model.embedTokens.forward(ids); // [B, T, C]
    for (const [i, layer] of this.model.layers.entries()) {
      const run = (x: Variable): Variable => layer.forward(x, pass, cache?.layers[i]);
      if (!gradEnabled()) h = scope(() => run(h));
      else h = this.gradientCheckpointing ? checkpoint(run, h) : run(h);
    }
    return this.model.norm.forward(h);
  }

  /** Throws `input` on ids outside the vocabulary, or unless there are batch × length. */
  checkIds({ inputIds, batch, length }: Pick<LlamaInput, 'inputIds' | 'batch' | 'length'>): void {
    if (inputIds.length !== batch * length || length === 0) {
      throw new LlamaError(
        'input',
        `forward: expected ${batch}·${length} token ids (at least one), got ${inputIds.length}`,
      );
    }
    for (let i = 0; i < inputIds.length; i++) {
      const id = inputIds[i]!;
      if (!(id >= 0 && id < this.config.vocabSize)) {
        throw new LlamaError('input', `forward: expected token ids below ${this.config.vocabSize}, got ${id} at ${i}`);
      }
    }
  }

  private prepare(input: LlamaInput, cache: KVCache | undefined): Pass {
    const { batch: B, length: T } = input;
    const { backend } = this;
    const past = cache?.length ?? 0;
    const positions = input.positions ?? Int32Array.from({ length: B * T }, (_, i) => past + (i % T));
    const longest = Array.prototype.reduce.call(positions, (a, b) => Math.max(a as number, b as number), 0) as number;
    const tables = this.ropeTables(longest + 1);
    const ranges = input.ranges
      ? intTensor(input.ranges, [B, T, 2], { backend })
      : causalRanges(B, T, past + T, input.attentionMask, backend);
    const pass = { positions: intTensor(positions, [B * T], { backend }), ranges, ...tables };
    if (!cache) return pass;
    const slots = Int32Array.from({ length: B * T }, (_, i) => past + (i % T));
    return { ...pass, slots: intTensor(slots, [B, T], { backend }) };
  }

  /** Frees parameters and rotary tables. */
  override dispose(): void {
    super.dispose();
    for (const { cos, sin } of this.tables.splice(0)) {
      cos.dispose();
      sin.dispose();
    }
  }

  /** Rotary tables of at least `length` positions, grown by doubling. They live as long as the model. */
  ropeTables(length: number): { cos: Tensor; sin: Tensor } {
    const limit = this.config.maxPositionEmbeddings;
    if (length > limit) {
      throw new LlamaError(
        'input',
        `forward: expected at most ${limit} positions (max_position_embeddings), got ${length}`,
      );
    }
    const longest = this.tables.at(-1);
    if (longest && longest.length >= length) return longest;
    const rows = Math.min(limit, Math.max(length, 256, 2 * (longest?.length ?? 0)));
    const { cos, sin } = ropeTables(this.config, rows);
    const upload = (data: Float32Array): Tensor =>
      Tensor.fromHost({ dtype: 'f32', shape: [rows, this.config.headDim / 2], data }, this.backend).keep();
    const tables = { cos: upload(cos), sin: upload(sin), length: rows };
    this.tables.push(tables);
    return tables;
  }
}

/** Labels moved one to the left within each row: the target of token t is label t + 1, and the last token has none. */
export function nextTargets(labels: ArrayLike<number>, batch: number, length: number): Int32Array {
  const targets = new Int32Array(batch * length).fill(-100);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t + 1 < length; t++) targets[b * length + t] = labels[b * length + t + 1]!;
  }
  return targets;
}

/** Gives the initial value of a parameter by its Hugging Face name and shape. */
export type ParameterSource = (name: string, shape: readonly number[]) => Tensor;

/** Builds the model with parameters from `source`, asked for in reading order. */
export function buildLlama(config: LlamaConfig, source: ParameterSource): LlamaForCausalLM {
  const { hiddenSize: C, intermediateSize: F, headDim: D, vocabSize: V, rmsNormEps } = config;
  const [HD, GD] = [config.numAttentionHeads * D, config.numKeyValueHeads * D];
  const projection = (name: string, out: number, inner: number, bias: boolean): Linear =>
    new Linear(source(`${name}.weight`, [out, inner]), bias ? source(`${name}.bias`, [out]) : undefined);
  const norm = (name: string): RMSNorm => new RMSNorm(source(`${name}.weight`, [C]), rmsNormEps);

  const embedTokens = new Embedding(source('model.embed_tokens.weight', [V, C]));
  const layers = Array.from({ length: config.numHiddenLayers }, (_, i) => {
    const at = `model.layers.${i}`;
    const selfAttn = new LlamaAttention(
      config,
      projection(`${at}.self_attn.q_proj`, HD, C, config.attentionBias),
      projection(`${at}.self_attn.k_proj`, GD, C, config.attentionBias),
      projection(`${at}.self_attn.v_proj`, GD, C, config.attentionBias),
      projection(`${at}.self_attn.o_proj`, C, HD, config.attentionBias),
    );
    const mlp = new LlamaMLP(
      projection(`${at}.mlp.gate_proj`, F, C, config.mlpBias),
      projection(`${at}.mlp.up_proj`, F, C, config.mlpBias),
      projection(`${at}.mlp.down_proj`, C, F, config.mlpBias),
    );
    return new LlamaDecoderLayer(selfAttn, mlp, norm(`${at}.input_layernorm`), norm(`${at}.post_attention_layernorm`));
  });
  const model = new LlamaModel(embedTokens, layers, norm('model.norm'));
  return new LlamaForCausalLM(config, model, config.tieWordEmbeddings ? undefined : projection('lm_head', V, C, false));
}

/** A model with random weights: normal with the given deviation, norms at 1, biases at 0. */
export function randomLlama(
  config: LlamaConfig,
  random: Philox,
  options: { std?: number; backend?: Backend } = {},
): LlamaForCausalLM {
  const { std = 0.02, backend = getBackend() } = options;
  return buildLlama(config, (name, shape) => {
    if (name.includes('norm')) return ones(shape, { backend }).keep();
    const n = shape.reduce((a, b) => a * b, 1);
    const data = name.endsWith('.bias') ? new Float32Array(n) : random.normalArray(n, 0, std);
    return Tensor.fromHost({ dtype: 'f32', shape, data }, backend).keep();
  });
}
