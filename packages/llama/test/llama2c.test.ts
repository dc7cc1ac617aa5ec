import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ByteSource } from '@milora/tensor';
import { describe, expect, it } from 'vitest';
import { openLlama2c } from '../src/llama2c.js';
import { sharedPath } from './shared.js';

/** A file in memory, which hands out unaligned views and notes what was read. */
function sourceOf(bytes: Uint8Array, name = 'model.bin'): ByteSource & { reads: [offset: number, length: number][] } {
  const shifted = new Uint8Array(bytes.length + 1);
  shifted.set(bytes, 1);
  const reads: [number, number][] = [];
  return {
    name,
    size: bytes.length,
    reads,
    read: (offset, length) => {
      reads.push([offset, length]);
      return Promise.resolve(shifted.subarray(1 + offset, 1 + offset + length));
    },
  };
}

interface Sizes {
  dim: number;
  hidden: number;
  layers: number;
  heads: number;
  kvHeads: number;
  vocab: number;
  seq: number;
}

/** 4 query heads of 4 rows, 2 key heads. */
const gqa: Sizes = { dim: 16, hidden: 24, layers: 3, heads: 4, kvHeads: 2, vocab: 10, seq: 7 };
const mha: Sizes = { dim: 8, hidden: 5, layers: 1, heads: 2, kvHeads: 2, vocab: 3, seq: 2 };

/** Weights in Meta's layout; every number of the file occurs once. */
function weightsOf({ dim, hidden, layers, heads, kvHeads, vocab }: Sizes): Record<string, Float32Array[]> {
  let next = 1;
  const fill = (size: number): Float32Array => Float32Array.from({ length: size }, () => next++);
  const each = (size: number): Float32Array[] => Array.from({ length: layers }, () => fill(size));
  const kvDim = (dim / heads) * kvHeads;
  return {
    embedding: [fill(vocab * dim)],
    attentionNorm: each(dim),
    wq: each(dim * dim),
    wk: each(kvDim * dim),
    wv: each(kvDim * dim),
    wo: each(dim * dim),
    mlpNorm: each(dim),
    w1: each(hidden * dim),
    w2: each(dim * hidden),
    w3: each(hidden * dim),
    norm: [fill(dim)],
    output: [fill(vocab * dim)],
  };
}

const LEGACY = ['embedding', 'attentionNorm', 'wq', 'wk', 'wv', 'wo', 'mlpNorm', 'w1', 'w2', 'w3', 'norm', 'tables'];
const V1 = ['attentionNorm', 'mlpNorm', 'norm', 'embedding', 'wq', 'wk', 'wv', 'wo', 'w1', 'w2', 'w3'];

function writeModel(sizes: Sizes, version: 0 | 1 | 2, tied: boolean): Uint8Array {
  const { dim, hidden, layers, heads, kvHeads, vocab, seq } = sizes;
  const weights = { ...weightsOf(sizes), tables: [new Float32Array((seq * dim) / heads).fill(-1)] };
  const order = [...(version === 0 ? LEGACY : V1), ...(tied ? [] : ['output'])];
  const fields = [dim, hidden, layers, heads, kvHeads, version === 0 && !tied ? -vocab : vocab, seq];
  const header = new DataView(new ArrayBuffer(version === 0 ? 28 : 256));
  // the letters ak42 as one little-endian number
  if (version > 0) [0x616b3432, version].forEach((field, i) => header.setInt32(4 * i, field, true));
  fields.forEach((field, i) => header.setInt32(4 * i + (version === 0 ? 0 : 8), field, true));
  if (version > 0) header.setUint8(36, Number(tied));
  const parts = order.flatMap((name) => weights[name as keyof typeof weights]!);
  return Buffer.concat([new Uint8Array(header.buffer), ...parts.map((part) => new Uint8Array(part.buffer))]);
}

/** Row r of each head in Hugging Face's order is this row in Meta's. */
function rotaryRows(data: Float32Array, headDim: number, columns: number): number[] {
  const rows = data.length / columns;
  return Array.from({ length: rows }, (_, row) => {
    const r = row % headDim;
    const half = headDim / 2;
    const from = row - r + (r < half ? 2 * r : 2 * (r - half) + 1);
    return [...data.subarray(from * columns, (from + 1) * columns)];
  }).flat();
}

describe('openLlama2c', () => {
  describe.each([
    ['legacy', 0],
    ['version 1', 1],
  ] as const)('%s', (_, version) => {
    it.each([
      ['grouped heads, untied', gqa, false],
      ['grouped heads, tied', gqa, true],
      ['plain heads, untied', mha, false],
      ['plain heads, tied', mha, true],
    ])('%s', async (_name, sizes, tied) => {
      const { dim, hidden, layers, heads, kvHeads, vocab, seq } = sizes;
      const { config, tensors } = await openLlama2c(sourceOf(writeModel(sizes, version, tied)));
      expect(config).toEqual({
        vocabSize: vocab,
        hiddenSize: dim,
        intermediateSize: hidden,
        numHiddenLayers: layers,
        numAttentionHeads: heads,
        numKeyValueHeads: kvHeads,
        headDim: dim / heads,
        maxPositionEmbeddings: seq,
        rmsNormEps: 1e-5,
        ropeTheta: 10000,
        ropeScaling: null,
        tieWordEmbeddings: tied,
        bosTokenId: 1,
        eosTokenId: [2],
        attentionBias: false,
        mlpBias: false,
      });

      const weights = weightsOf(sizes);
      const kvDim = (dim / heads) * kvHeads;
      const rotary = (data: Float32Array): number[] => rotaryRows(data, dim / heads, dim);
      const same = (data: Float32Array): number[] => [...data];
      const expected = new Map<string, [shape: number[], data: number[]]>();
      expected.set('model.embed_tokens.weight', [[vocab, dim], same(weights['embedding']![0]!)]);
      expected.set('model.norm.weight', [[dim], same(weights['norm']![0]!)]);
      if (!tied) expected.set('lm_head.weight', [[vocab, dim], same(weights['output']![0]!)]);
      for (let i = 0; i < layers; i++) {
        const add = (name: string, shape: number[], from: string, order = same): unknown =>
          expected.set(`model.layers.${i}.${name}.weight`, [shape, order(weights[from]![i]!)]);
        add('input_layernorm', [dim], 'attentionNorm');
        add('self_attn.q_proj', [dim, dim], 'wq', rotary);
        add('self_attn.k_proj', [kvDim, dim], 'wk', rotary);
        add('self_attn.v_proj', [kvDim, dim], 'wv');
        add('self_attn.o_proj', [dim, dim], 'wo');
        add('post_attention_layernorm', [dim], 'mlpNorm');
        add('mlp.gate_proj', [hidden, dim], 'w1');
        add('mlp.up_proj', [hidden, dim], 'w3');
        add('mlp.down_proj', [dim, hidden], 'w2');
      }
      expect(tensors.names().sort()).toEqual([...expected.keys()].sort());
      for (const [name, [shape, data]] of expected) {
        expect(tensors.info(name), name).toEqual({ dtype: 'f32', shape });
        expect(await tensors.read(name), name).toEqual({ dtype: 'f32', shape, data: Float32Array.from(data) });
      }
    });
  });

  it('puts rows 0 1 2 3 of a head in the order 0 2 1 3', async () => {
    const { tensors } = await openLlama2c(sourceOf(writeModel(mha, 1, true)));
    const meta = weightsOf(mha)['wq']![0]!;
    const { data } = await tensors.read('model.layers.0.self_attn.q_proj.weight');
    expect([0, 1, 2, 3, 4, 5, 6, 7].map((row) => meta.indexOf(data[8 * row]!) / 8)).toEqual([0, 2, 1, 3, 4, 6, 5, 7]);
  });

  it('reads no more than it has to', async () => {
    const source = sourceOf(writeModel(gqa, 1, false));
    const { tensors } = await openLlama2c(source);
    expect(source.reads.reduce((sum, [, length]) => sum + length, 0)).toBeLessThan(300);
    source.reads.length = 0;
    await tensors.read('model.norm.weight');
    // after two norms of 16 for each of 3 layers
    expect(source.reads).toEqual([[256 + 4 * 16 * 6, 64]]);
  });

  it('refuses tensors that are not there', async () => {
    const { tensors } = await openLlama2c(sourceOf(writeModel(gqa, 0, true)));
    expect(tensors.info('lm_head.weight')).toBeUndefined();
    await expect(tensors.read('lm_head.weight')).rejects.toMatchObject({
      code: 'missing-tensor',
      message: 'model.bin: expected a tensor lm_head.weight, got none of that name',
    });
  });

  const good = writeModel(gqa, 0, true);
  it.each([
    ['int8', writeModel(gqa, 2, true), 'got version 2, whose weights are int8; export it with --version 1'],
    ['one byte less', good.subarray(0, -1), `expected ${good.length} bytes for its header (legacy, dim 16, 3 layers, `],
    ['one byte more', Buffer.concat([good, Buffer.alloc(1)]), `got ${good.length + 1}`],
    ['an empty file', new Uint8Array(), 'expected a llama2.c checkpoint, got a file of 0 bytes'],
    ['a cut header', writeModel(gqa, 1, true).subarray(0, 100), 'got a file of 100 bytes'],
    [
      'text',
      new TextEncoder().encode('{"model_type": "llama", "hidden_size": 64}'),
      'expected the header of a llama2.c',
    ],
    ['odd heads', writeModel({ ...gqa, heads: 16, kvHeads: 2 }, 0, true), 'n_heads 16'],
    ['ungroupable heads', writeModel({ ...gqa, kvHeads: 3 }, 0, true), 'n_kv_heads 3'],
  ])('refuses %s', async (_, bytes, message) => {
    await expect(openLlama2c(sourceOf(bytes, 'some/model.bin'))).rejects.toMatchObject({
      name: 'LlamaError',
      code: 'llama2c',
      message: expect.stringMatching(/^some\/model\.bin: /) as string,
    });
    await expect(openLlama2c(sourceOf(bytes))).rejects.toThrow(message);
  });
});

/** All tensors of a safetensors file in F32, as bytes. */
function readSafetensors(bytes: Buffer): Map<string, { shape: number[]; data: Buffer }> {
  const headerBytes = Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerBytes)) as Record<
    string,
    { shape: number[]; data_offsets: [number, number] }
  >;
  const entries = Object.entries(header).filter(([name]) => name !== '__metadata__');
  return new Map(
    entries.map(([name, { shape, data_offsets }]) => {
      const [begin, end] = data_offsets.map((offset) => 8 + headerBytes + offset);
      return [name, { shape, data: bytes.subarray(begin, end) }];
    }),
  );
}

const models = sharedPath('models');
describe.skipIf(!models)('stories260K (shared/models)', () => {
  it.each(['stories260K.bin', 'stories260K.v1.bin'])('%s equals its Hugging Face form bit for bit', async (name) => {
    const { config, tensors } = await openLlama2c(sourceOf(readFileSync(join(models!, 'stories260K', name)), name));
    const expected = readSafetensors(readFileSync(join(models!, 'stories260K-hf', 'model.safetensors')));
    expect(config).toMatchObject({ hiddenSize: 64, numKeyValueHeads: 4, vocabSize: 512, tieWordEmbeddings: true });
    expect(tensors.names().sort()).toEqual([...expected.keys()].sort());
    for (const [tensorName, { shape, data }] of expected) {
      const tensor = await tensors.read(tensorName);
      expect(tensor.shape).toEqual(shape);
      expect(Buffer.from((tensor.data as Float32Array).buffer).equals(data), tensorName).toBe(true);
    }
  });
});
