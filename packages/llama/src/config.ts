/**
 * The configuration of a LLaMA model: Hugging Face's config.json as a flat record.
 *
 * `parseLlamaConfig` reads what transformers has written over the years: `rope_theta` and `rope_scaling` side by side
 * (`type`, later `rope_type`), or one `rope_parameters` since version 5. It fills in the defaults of `LlamaConfig`,
 * except for the five sizes that every config.json states, and reports everything that is wrong at once.
 *
 * https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/configuration_llama.py
 * https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
 */
import type { DType } from '@milora/tensor';
import { LlamaError } from './errors.js';

/** How rotary frequencies are stretched for contexts longer than those of pretraining. */
export type RopeScaling =
  /** Every frequency divided by `factor` (position interpolation, https://arxiv.org/abs/2306.15595). */
  | { readonly type: 'linear'; readonly factor: number }
  /** Low frequencies divided by `factor`, high ones kept, a smooth passage between (LLaMA 3.1). */
  | {
      readonly type: 'llama3';
      readonly factor: number;
      /** Wavelengths above `originalMaxPositionEmbeddings / lowFreqFactor` are stretched in full. */
      readonly lowFreqFactor: number;
      /** Wavelengths below `originalMaxPositionEmbeddings / highFreqFactor` are kept. */
      readonly highFreqFactor: number;
      /** The context length of pretraining. */
      readonly originalMaxPositionEmbeddings: number;
    };

/** A LLaMA model's hyperparameters. */
export interface LlamaConfig {
  /** Rows of the embedding: token ids are 0 … vocabSize − 1. */
  readonly vocabSize: number;
  /** Width of the residual stream. */
  readonly hiddenSize: number;
  /** Width inside the MLP. */
  readonly intermediateSize: number;
  /** Number of decoder blocks. */
  readonly numHiddenLayers: number;
  /** Query heads per block. */
  readonly numAttentionHeads: number;
  /** Key and value heads per block; each serves numAttentionHeads / numKeyValueHeads query heads. */
  readonly numKeyValueHeads: number;
  /** Width of one head, even; usually hiddenSize / numAttentionHeads. */
  readonly headDim: number;
  /** The longest sequence the model is meant for. */
  readonly maxPositionEmbeddings: number;
  /** Added to the mean square before the root in every RMSNorm. */
  readonly rmsNormEps: number;
  /** Base of the rotary frequencies. */
  readonly ropeTheta: number;
  /** Stretching of the rotary frequencies, null for none. */
  readonly ropeScaling: RopeScaling | null;
  /** Whether lm_head is the embedding; then a checkpoint has no lm_head.weight. */
  readonly tieWordEmbeddings: boolean;
  /** The token a text begins with, if the model has one. */
  readonly bosTokenId?: number;
  /** Tokens that end a text; LLaMA 3 chat models have several. */
  readonly eosTokenId: readonly number[];
  /** The token that fills up a batch, if the model has one. */
  readonly padTokenId?: number;
  /** Whether q, k, v and o projections have biases. */
  readonly attentionBias: boolean;
  /** Whether gate, up and down projections have biases. */
  readonly mlpBias: boolean;
  /**
   * Precision in which the rotary frequencies are held; f32 unless set. Not a field of config.json: `from_pretrained` keeps
   * them in f32 whatever the weights, but a PyTorch model cast as a whole (`model.to(torch.bfloat16)`) rounds them too.
   */
  readonly ropeFrequencyDtype?: 'f32' | 'bf16';
}

type JsonRecord = Record<string, unknown>;

const isRecord = (value: unknown): value is JsonRecord =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const show = (value: unknown): string => (value === undefined ? 'nothing' : JSON.stringify(value));

interface NumberRule {
  readonly what: string;
  readonly holds: (value: number) => boolean;
}

const SIZE: NumberRule = { what: 'a positive whole number', holds: (x) => Number.isSafeInteger(x) && x > 0 };
const POSITIVE: NumberRule = { what: 'a positive number', holds: (x) => Number.isFinite(x) && x > 0 };
const isTokenId = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** Reads fields of one JSON object and notes what is wrong instead of throwing; a bad field yields NaN or a default. */
class FieldReader {
  constructor(
    private readonly json: JsonRecord,
    private readonly problems: string[],
    private readonly prefix = '',
  ) {}

  value(key: string): unknown {
    return this.json[key] ?? undefined;
  }

  problem(key: string, expected: string): void {
    this.problems.push(`${this.prefix}${key}: expected ${expected}, got ${show(this.value(key))}`);
  }

  number(key: string, rule: NumberRule, fallback?: number): number {
    const value = this.value(key) ?? fallback;
    if (typeof value === 'number' && rule.holds(value)) return value;
    this.problem(key, rule.what);
    return NaN;
  }

  flag(key: string): boolean {
    const value = this.value(key) ?? false;
    if (typeof value !== 'boolean') this.problem(key, 'true or false');
    return value === true;
  }

  /** A token id; null in the file means that the model has none. */
  tokenId(key: string, fallback?: number): number | undefined {
    if (this.json[key] === null) return undefined;
    const value = this.value(key) ?? fallback;
    if (value === undefined || isTokenId(value)) return value;
    this.problem(key, 'a token id or null');
    return undefined;
  }

  tokenIds(key: string, fallback: number): readonly number[] {
    const value = this.json[key];
    if (value === null) return [];
    const ids: unknown[] = Array.isArray(value) ? value : [value ?? fallback];
    if (ids.every(isTokenId)) return ids;
    this.problem(key, 'a token id, a list of them or null');
    return [];
  }

  /** A nested object, undefined when absent, null or empty. */
  nested(key: string): FieldReader | undefined {
    const value = this.value(key);
    if (value === undefined) return undefined;
    if (!isRecord(value)) {
      this.problem(key, 'an object or null');
      return undefined;
    }
    return Object.keys(value).length === 0 ? undefined : new FieldReader(value, this.problems, `${this.prefix}${key}.`);
  }
}

/**
 * Reads a parsed config.json.
 *
 * @param json the parsed file
 * @param name where it came from, for messages
 * @throws LlamaError `config`, naming every problem of the file: another architecture than LLaMA, missing or impossible
 *   sizes, an activation or a rope type that this library lacks
 *
 * @example
 * const config = parseLlamaConfig(JSON.parse(text), 'config.json');
 * config.numKeyValueHeads; // as many as numAttentionHeads unless the file says otherwise
 */
export function parseLlamaConfig(json: unknown, name: string): LlamaConfig {
  if (!isRecord(json)) throw new LlamaError('config', `${name}: expected a JSON object, got ${show(json)}`);
  const problems: string[] = [];
  const fields = new FieldReader(json, problems);

  if (json['model_type'] !== 'llama') {
    fields.problem('model_type', '"llama" (LLaMA 1, 2, 3 and models of the same build such as TinyLlama and SmolLM2)');
  }
  const activation = fields.value('hidden_act') ?? 'silu';
  if (activation !== 'silu') fields.problem('hidden_act', '"silu"');
  if (fields.value('quantization_config') !== undefined) {
    problems.push('quantization_config: expected none, got quantized weights; use the F32, F16 or BF16 checkpoint');
  }

  const hiddenSize = fields.number('hidden_size', SIZE);
  const numAttentionHeads = fields.number('num_attention_heads', SIZE);
  const numKeyValueHeads =
    fields.value('num_key_value_heads') === undefined ? numAttentionHeads : fields.number('num_key_value_heads', SIZE);
  if (numAttentionHeads % numKeyValueHeads > 0) {
    fields.problem('num_key_value_heads', `a divisor of num_attention_heads ${numAttentionHeads}`);
  }
  const headDim = readHeadDim(fields, hiddenSize, numAttentionHeads);

  const bosTokenId = fields.tokenId('bos_token_id', 1);
  // The first LLaMA conversions wrote -1 for "no padding token".
  const padTokenId = json['pad_token_id'] === -1 ? undefined : fields.tokenId('pad_token_id');

  const config: LlamaConfig = {
    vocabSize: fields.number('vocab_size', SIZE),
    hiddenSize,
    intermediateSize: fields.number('intermediate_size', SIZE),
    numHiddenLayers: fields.number('num_hidden_layers', SIZE),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings: fields.number('max_position_embeddings', SIZE, 2048),
    rmsNormEps: fields.number('rms_norm_eps', POSITIVE, 1e-6),
    ...readRope(fields),
    tieWordEmbeddings: fields.flag('tie_word_embeddings'),
    ...(bosTokenId !== undefined && { bosTokenId }),
    eosTokenId: fields.tokenIds('eos_token_id', 2),
    ...(padTokenId !== undefined && { padTokenId }),
    attentionBias: fields.flag('attention_bias'),
    mlpBias: fields.flag('mlp_bias'),
  };
  if (problems.length === 1) throw new LlamaError('config', `${name}: ${problems[0]}`);
  if (problems.length > 1) {
    throw new LlamaError('config', `${name}: ${problems.length} problems\n  ${problems.join('\n  ')}`);
  }
  return config;
}

function readHeadDim(fields: FieldReader, hiddenSize: number, numAttentionHeads: number): number {
  const pairs = 'since rotary embeddings turn pairs';
  if (fields.value('head_dim') !== undefined) {
    const headDim = fields.number('head_dim', SIZE);
    if (headDim % 2 === 1) fields.problem('head_dim', `an even number, ${pairs}`);
    return headDim;
  }
  const headDim = hiddenSize / numAttentionHeads;
  if (headDim % 2 > 0) {
    fields.problem(
      'hidden_size',
      `an even multiple of num_attention_heads ${numAttentionHeads}, ${pairs}, or head_dim`,
    );
  }
  return headDim;
}

function readRope(fields: FieldReader): Pick<LlamaConfig, 'ropeTheta' | 'ropeScaling'> {
  // As in transformers 5: rope_scaling wins over rope_parameters, and a rope_theta inside over one beside them.
  const parameters = fields.nested('rope_scaling') ?? fields.nested('rope_parameters');
  for (const place of [fields, parameters]) {
    if (place && (place.value('partial_rotary_factor') ?? 1) !== 1) place.problem('partial_rotary_factor', '1 or none');
  }
  const theta = parameters?.value('rope_theta') === undefined ? fields : parameters;
  const ropeTheta = theta.number('rope_theta', POSITIVE, 10000);
  return { ropeTheta, ropeScaling: parameters ? readRopeScaling(parameters) : null };
}

function readRopeScaling(parameters: FieldReader): RopeScaling | null {
  const key =
    parameters.value('rope_type') === undefined && parameters.value('type') !== undefined ? 'type' : 'rope_type';
  const type = parameters.value(key) ?? 'default';
  switch (type) {
    case 'default':
      return null;
    case 'linear':
      return { type: 'linear', factor: parameters.number('factor', POSITIVE) };
    case 'llama3': {
      const lowFreqFactor = parameters.number('low_freq_factor', POSITIVE);
      const highFreqFactor = parameters.number('high_freq_factor', POSITIVE);
      if (highFreqFactor <= lowFreqFactor) {
        parameters.problem('high_freq_factor', `more than low_freq_factor ${lowFreqFactor}`);
      }
      return {
        type: 'llama3',
        factor: parameters.number('factor', POSITIVE),
        lowFreqFactor,
        highFreqFactor,
        originalMaxPositionEmbeddings: parameters.number('original_max_position_embeddings', SIZE),
      };
    }
    default:
      parameters.problem(key, '"default", "linear" or "llama3"');
      return null;
  }
}

const TORCH_DTYPE = { f32: 'float32', f64: 'float64', bf16: 'bfloat16', f16: 'float16' } as const;

/**
 * The content of a config.json that every version of transformers reads: the older spelling with `rope_theta`,
 * `rope_scaling` and `torch_dtype`.
 *
 * @param config the model's configuration
 * @param dtype the element type of the weights beside it
 *
 * @example
 * JSON.stringify(serializeLlamaConfig(config, 'bf16'), null, 2);
 */
export function serializeLlamaConfig(
  config: LlamaConfig,
  dtype: Exclude<DType, 'i32' | 'int8'>,
): Record<string, unknown> {
  const { eosTokenId, ropeScaling } = config;
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.numHiddenLayers,
    num_attention_heads: config.numAttentionHeads,
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.headDim,
    hidden_act: 'silu',
    max_position_embeddings: config.maxPositionEmbeddings,
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    rope_scaling: ropeScaling && serializeRopeScaling(ropeScaling),
    tie_word_embeddings: config.tieWordEmbeddings,
    bos_token_id: config.bosTokenId ?? null,
    eos_token_id: eosTokenId.length > 1 ? [...eosTokenId] : (eosTokenId[0] ?? null),
    pad_token_id: config.padTokenId ?? null,
    attention_bias: config.attentionBias,
    mlp_bias: config.mlpBias,
    torch_dtype: TORCH_DTYPE[dtype],
  };
}

function serializeRopeScaling(scaling: RopeScaling): Record<string, unknown> {
  // transformers before 4.43 takes exactly the two keys `type` and `factor`, and later versions still read them.
  if (scaling.type === 'linear') return { type: 'linear', factor: scaling.factor };
  return {
    rope_type: 'llama3',
    factor: scaling.factor,
    low_freq_factor: scaling.lowFreqFactor,
    high_freq_factor: scaling.highFreqFactor,
    original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
  };
}
