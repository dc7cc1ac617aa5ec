import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { LlamaConfig } from '../src/config.js';
import { parseLlamaConfig, serializeLlamaConfig } from '../src/config.js';
import { LlamaError } from '../src/errors.js';
import { loadConfig } from '../src/node.js';
import { sharedJson, sharedPath } from './shared.js';

/** What every config.json has. */
const sizes = {
  model_type: 'llama',
  vocab_size: 100,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 8,
};

const parse = (fields: object): LlamaConfig => parseLlamaConfig({ ...sizes, ...fields }, 'config.json');

function messageOf(json: unknown): string {
  try {
    parseLlamaConfig(json, 'some/config.json');
  } catch (error) {
    expect(error).toBeInstanceOf(LlamaError);
    expect(error).toMatchObject({ code: 'config' });
    return (error as Error).message;
  }
  throw new Error('expected an error');
}
const problem = (fields: object): string => messageOf({ ...sizes, ...fields });

describe('parseLlamaConfig', () => {
  it('fills in the defaults of transformers', () => {
    expect(parse({})).toEqual({
      vocabSize: 100,
      hiddenSize: 64,
      intermediateSize: 96,
      numHiddenLayers: 2,
      numAttentionHeads: 8,
      numKeyValueHeads: 8,
      headDim: 8,
      maxPositionEmbeddings: 2048,
      rmsNormEps: 1e-6,
      ropeTheta: 10000,
      ropeScaling: null,
      tieWordEmbeddings: false,
      bosTokenId: 1,
      eosTokenId: [2],
      attentionBias: false,
      mlpBias: false,
    });
  });

  // As published with Llama 3.2 1B, written by transformers 4.
  const llama3 = {
    type: 'llama3',
    factor: 32,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 8192,
  };
  const llama3Fields = { factor: 32, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };

  it.each([
    ['rope_theta alone', { rope_theta: 500000 }, 500000, null],
    ['rope_scaling null', { rope_theta: 500000, rope_scaling: null }, 500000, null],
    ['rope_scaling empty', { rope_scaling: {} }, 10000, null],
    ['rope_scaling with type', { rope_scaling: { type: 'linear', factor: 4 } }, 10000, { type: 'linear', factor: 4 }],
    [
      'rope_scaling with rope_type',
      { rope_theta: 7, rope_scaling: { rope_type: 'llama3', ...llama3Fields } },
      7,
      llama3,
    ],
    [
      'rope_scaling with both',
      { rope_scaling: { rope_type: 'llama3', type: 'other', ...llama3Fields } },
      10000,
      llama3,
    ],
    ['rope_parameters', { rope_parameters: { rope_type: 'llama3', rope_theta: 9, ...llama3Fields } }, 9, llama3],
    ['rope_parameters default', { rope_parameters: { rope_type: 'default', rope_theta: 1e5 } }, 1e5, null],
    ['rope_parameters without type', { rope_parameters: { rope_theta: 1e5 } }, 1e5, null],
    ['rope_parameters, theta beside', { rope_theta: 3, rope_parameters: { rope_type: 'default' } }, 3, null],
    ['theta inside wins', { rope_theta: 3, rope_parameters: { rope_theta: 4 } }, 4, null],
  ])('reads rope: %s', (_, fields, ropeTheta, ropeScaling) => {
    const config = parse(fields);
    expect(config.ropeTheta).toBe(ropeTheta);
    expect(config.ropeScaling).toEqual(ropeScaling);
  });

  it('reads ids that are lists, null, or the -1 of the first conversions', () => {
    expect(parse({ eos_token_id: [7, 8, 9] }).eosTokenId).toEqual([7, 8, 9]);
    expect(parse({ eos_token_id: null }).eosTokenId).toEqual([]);
    expect(parse({ bos_token_id: null })).not.toHaveProperty('bosTokenId');
    expect(parse({ pad_token_id: 0 }).padTokenId).toBe(0);
    expect(parse({ pad_token_id: -1 })).not.toHaveProperty('padTokenId');
  });

  it('takes head_dim as it is', () => {
    expect(parse({ head_dim: 12, num_key_value_heads: 2 })).toMatchObject({ headDim: 12, numKeyValueHeads: 2 });
    expect(parse({ hidden_size: 65, head_dim: 6 }).headDim).toBe(6);
  });

  it.each(['mistral', 'qwen2', 'llama4', 'gpt2'])('refuses %s by name', (model_type) => {
    expect(problem({ model_type })).toMatch(`some/config.json: model_type: expected "llama"`);
    expect(problem({ model_type })).toMatch(`got "${model_type}"`);
  });

  it.each([
    [{ hidden_act: 'gelu' }, 'hidden_act: expected "silu", got "gelu"'],
    [{ num_key_value_heads: 3 }, 'num_key_value_heads: expected a divisor of num_attention_heads 8, got 3'],
    [{ hidden_size: 0 }, 'hidden_size: expected a positive whole number, got 0'],
    [
      { hidden_size: 65 },
      'hidden_size: expected an even multiple of num_attention_heads 8, since rotary embeddings turn pairs, or head_dim, got 65',
    ],
    [{ vocab_size: '100' }, 'vocab_size: expected a positive whole number, got "100"'],
    [{ num_hidden_layers: undefined }, 'num_hidden_layers: expected a positive whole number, got nothing'],
    [{ head_dim: 7 }, 'head_dim: expected an even number'],
    [{ hidden_size: 40 }, 'hidden_size: expected an even multiple of num_attention_heads 8'],
    [{ rms_norm_eps: 0 }, 'rms_norm_eps: expected a positive number, got 0'],
    [
      { rope_scaling: { rope_type: 'yarn' } },
      'rope_scaling.rope_type: expected "default", "linear" or "llama3", got "yarn"',
    ],
    [
      { rope_scaling: { type: 'dynamic' } },
      'rope_scaling.type: expected "default", "linear" or "llama3", got "dynamic"',
    ],
    [{ rope_scaling: { type: 'linear' } }, 'rope_scaling.factor: expected a positive number, got nothing'],
    [
      { rope_parameters: { rope_type: 'llama3', ...llama3Fields, high_freq_factor: 1 } },
      'rope_parameters.high_freq_factor: expected more than',
    ],
    [{ rope_scaling: 'linear' }, 'rope_scaling: expected an object or null, got "linear"'],
    [
      { rope_parameters: { partial_rotary_factor: 0.5 } },
      'rope_parameters.partial_rotary_factor: expected 1 or none, got 0.5',
    ],
    [{ tie_word_embeddings: 'yes' }, 'tie_word_embeddings: expected true or false, got "yes"'],
    [{ eos_token_id: ['x'] }, 'eos_token_id: expected a token id, a list of them or null, got ["x"]'],
    [{ quantization_config: { bits: 4 } }, 'quantization_config: expected none'],
  ])('refuses %o', (fields, expected) => {
    const message = problem(fields);
    expect(message).toContain(`some/config.json: ${expected.split(':')[0]}`);
    expect(message).toContain(expected);
  });

  it('names all problems at once', () => {
    const message = problem({
      model_type: 'gemma',
      hidden_act: 'gelu',
      rope_scaling: { type: 'longrope' },
      mlp_bias: 1,
    });
    expect(message).toMatch(/^some\/config\.json: 4 problems\n/);
    for (const field of ['model_type', 'hidden_act', 'rope_scaling.type', 'mlp_bias']) expect(message).toContain(field);
  });

  it.each([[null], [[]], ['llama'], [3]])('refuses %j instead of an object', (json) => {
    expect(messageOf(json)).toBe(`some/config.json: expected a JSON object, got ${JSON.stringify(json)}`);
  });
});

describe('serializeLlamaConfig', () => {
  it.each([
    {},
    { head_dim: 12, num_key_value_heads: 2, tie_word_embeddings: true, attention_bias: true, mlp_bias: true },
    { eos_token_id: [1, 2], pad_token_id: 3, bos_token_id: null, rms_norm_eps: 1e-5 },
    { eos_token_id: null, rope_theta: 5e5, rope_scaling: { type: 'linear', factor: 2 } },
    {
      rope_parameters: {
        rope_type: 'llama3',
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 32,
      },
    },
  ])('is read back as it was: %o', (fields) => {
    const config = parse(fields);
    const json: unknown = JSON.parse(JSON.stringify(serializeLlamaConfig(config, 'bf16')));
    expect(parseLlamaConfig(json, 'again')).toEqual(config);
    expect(json).toMatchObject({ architectures: ['LlamaForCausalLM'], hidden_act: 'silu', torch_dtype: 'bfloat16' });
    expect(json).not.toHaveProperty('rope_parameters');
  });

  it('writes what transformers 4.31 accepts for linear scaling: two keys', () => {
    const config = parse({ rope_scaling: { rope_type: 'linear', factor: 4 } });
    expect(serializeLlamaConfig(config, 'f32')).toMatchObject({ rope_scaling: { type: 'linear', factor: 4 } });
    expect(Object.keys(serializeLlamaConfig(config, 'f32')['rope_scaling'] as object)).toHaveLength(2);
  });
});

describe('loadConfig', () => {
  const directory = mkdtempSync(join(tmpdir(), 'milora-config-'));

  it('says what is missing or broken, with its path', async () => {
    await expect(loadConfig(directory)).rejects.toMatchObject({
      code: 'missing-file',
      message: expect.stringContaining(join(directory, 'config.json')) as string,
    });
    writeFileSync(join(directory, 'config.json'), '{"model_type": ');
    await expect(loadConfig(directory)).rejects.toMatchObject({ code: 'json' });
    writeFileSync(join(directory, 'config.json'), JSON.stringify(sizes));
    await expect(loadConfig(directory)).resolves.toMatchObject({ hiddenSize: 64 });
  });
});

const fixtures = sharedPath('fixtures');
describe.skipIf(!fixtures)('config.json of transformers 5 (shared/fixtures)', () => {
  it.each(['llama2-style', 'llama3-style', 'smollm2-style'])('%s', async (name) => {
    const file = sharedJson<Record<string, unknown>>('fixtures', name, 'config.json');
    const rope = file['rope_parameters'] as Record<string, unknown>;
    const config = await loadConfig(join(fixtures!, name));
    expect(config).toMatchObject({
      hiddenSize: file['hidden_size'],
      headDim: file['head_dim'],
      numKeyValueHeads: file['num_key_value_heads'],
      ropeTheta: rope['rope_theta'],
      tieWordEmbeddings: file['tie_word_embeddings'],
      padTokenId: 0,
    });
    expect(config.ropeScaling?.type ?? 'default').toBe(rope['rope_type']);
  });
});
