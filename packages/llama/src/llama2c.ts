/**
 * llama2.c checkpoints (`.bin`) as a configuration and named tensors, in float32.
 *
 * Two layouts, by Andrej Karpathy's export.py (https://github.com/karpathy/llama2.c/blob/master/export.py):
 *
 *   legacy     7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size means
 *              that the output matrix follows at the end. Then embedding, attention norms, wq, wk, wv, wo, MLP norms,
 *              w1, w2, w3, final norm, and tables of rotary cosines and sines, which are not needed.
 *   version 1  256 bytes: "ak42" as uint32, int32 version, the same 7 int32, 1 byte: output is the embedding. Then
 *              attention norms, MLP norms, final norm, embedding, wq, wk, wv, wo, w1, w2, w3 and the output matrix.
 *
 * Each weight is stored for all layers in a row. Names become those of Hugging Face. Rows of wq and wk change places
 * within each head: Meta rotates neighbouring rows (0, 1), (2, 3) …, Hugging Face rows (0, n/2), (1, n/2 + 1) ….
 */
import type { ByteSource, HostTensor, TensorSource } from '@milora/tensor';
import { sizeOf } from '@milora/tensor';
import type { LlamaConfig } from './config.js';
import { LlamaError } from './errors.js';

const MAGIC = 0x616b3432;
const LEGACY_HEADER_BYTES = 28;
const V1_HEADER_BYTES = 256;
/** run.c and model.py have it as a constant. */
const RMS_NORM_EPS = 1e-5;

/** A llama2.c checkpoint, opened. */
export interface Llama2cCheckpoint {
  readonly config: LlamaConfig;
  /** Tensors under Hugging Face's names, q and k in its rotary layout; without lm_head.weight when it is tied. */
  readonly tensors: TensorSource;
}

interface Header {
  readonly config: LlamaConfig;
  readonly layout: 'legacy' | 'v1';
  readonly bytes: number;
}

interface Entry {
  readonly shape: readonly number[];
  /** Of the first byte in the file. */
  readonly offset: number;
  /** Heads whose rows have to be reordered, for q and k. */
  readonly rotaryHeads?: number;
}

/**
 * Opens a llama2.c checkpoint; reads the header only. Tensors are read when asked for.
 *
 * @throws LlamaError `llama2c` when the file is not one, is quantized (version 2), or has another size than its header
 *   implies
 *
 * @example
 * const { config, tensors } = await openLlama2c(source);
 * const q = await tensors.read('model.layers.0.self_attn.q_proj.weight');
 */
export async function openLlama2c(source: ByteSource): Promise<Llama2cCheckpoint> {
  const header = await readHeader(source);
  const { entries, end } = placeTensors(header);
  if (end !== source.size) {
    throw new LlamaError(
      'llama2c',
      `${source.name}: expected ${end} bytes for its header (${describeHeader(header)}), got ${source.size}`,
    );
  }
  const find = (name: string): Entry => {
    const entry = entries.get(name);
    if (entry) return entry;
    throw new LlamaError('missing-tensor', `${source.name}: expected a tensor ${name}, got none of that name`);
  };
  const tensors: TensorSource = {
    name: source.name,
    names: () => [...entries.keys()],
    info: (name) => {
      const entry = entries.get(name);
      return entry && { dtype: 'f32', shape: entry.shape };
    },
    read: async (name): Promise<HostTensor> => {
      const { shape, offset, rotaryHeads } = find(name);
      const bytes = await source.read(offset, 4 * sizeOf(shape));
      // a copy, since the bytes may start anywhere in their buffer
      const data = new Float32Array(bytes.slice().buffer);
      return { dtype: 'f32', shape, data: rotaryHeads ? toHalfSplit(data, rotaryHeads, shape) : data };
    },
  };
  return { config: header.config, tensors };
}

async function readHeader(source: ByteSource): Promise<Header> {
  const readView = async (length: number): Promise<DataView> => {
    if (source.size < length) {
      throw new LlamaError(
        'llama2c',
        `${source.name}: expected a llama2.c checkpoint, got a file of ${source.size} bytes`,
      );
    }
    const bytes = await source.read(0, length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  };

  const view = await readView(LEGACY_HEADER_BYTES);
  if (view.getUint32(0, true) !== MAGIC) {
    const vocabSize = view.getInt32(20, true);
    const config = readConfig(source, view, 0, vocabSize > 0);
    return { config, layout: 'legacy', bytes: LEGACY_HEADER_BYTES };
  }
  const version = view.getInt32(4, true);
  if (version !== 1) {
    const what = version === 2 ? 'version 2, whose weights are int8' : `version ${version}`;
    throw new LlamaError(
      'llama2c',
      `${source.name}: expected a legacy or version 1 checkpoint, got ${what}; export it with --version 1`,
    );
  }
  const longView = await readView(V1_HEADER_BYTES);
  const config = readConfig(source, longView, 8, longView.getUint8(36) !== 0);
  return { config, layout: 'v1', bytes: V1_HEADER_BYTES };
}

function readConfig(source: ByteSource, view: DataView, offset: number, tied: boolean): LlamaConfig {
  const field = (i: number): number => view.getInt32(offset + 4 * i, true);
  const [dim, hiddenDim, layers, heads, kvHeads, seqLen] = [field(0), field(1), field(2), field(3), field(4), field(6)];
  const vocabSize = Math.abs(field(5));
  const headDim = dim / heads;
  const isSound =
    [dim, hiddenDim, layers, heads, kvHeads, vocabSize, seqLen].every((size) => size > 0) &&
    headDim % 2 === 0 &&
    heads % kvHeads === 0;
  if (!isSound) {
    const fields = `dim ${dim}, hidden_dim ${hiddenDim}, n_layers ${layers}, n_heads ${heads}, n_kv_heads ${kvHeads}`;
    throw new LlamaError(
      'llama2c',
      `${source.name}: expected the header of a llama2.c checkpoint, got ${fields}, vocab_size ${field(5)}, seq_len ${seqLen}`,
    );
  }
  return {
    vocabSize,
    hiddenSize: dim,
    intermediateSize: hiddenDim,
    numHiddenLayers: layers,
    numAttentionHeads: heads,
    numKeyValueHeads: kvHeads,
    headDim,
    maxPositionEmbeddings: seqLen,
    rmsNormEps: RMS_NORM_EPS,
    ropeTheta: 10000,
    ropeScaling: null,
    tieWordEmbeddings: tied,
    bosTokenId: 1,
    eosTokenId: [2],
    attentionBias: false,
    mlpBias: false,
  };
}

/** Where each tensor lies, and where the file has to end. */
function placeTensors({ config, layout, bytes }: Header): { entries: ReadonlyMap<string, Entry>; end: number } {
  const { hiddenSize, intermediateSize, numAttentionHeads, numKeyValueHeads, headDim, vocabSize } = config;
  const kvSize = numKeyValueHeads * headDim;
  const entries = new Map<string, Entry>();
  let end = bytes;
  const place = (name: string, shape: readonly number[], rotaryHeads?: number): void => {
    entries.set(name, { shape, offset: end, ...(rotaryHeads !== undefined && { rotaryHeads }) });
    end += 4 * sizeOf(shape);
  };
  const perLayer = (name: string, shape: readonly number[], rotaryHeads?: number) => (): void => {
    for (let layer = 0; layer < config.numHiddenLayers; layer++)
      place(`model.layers.${layer}.${name}`, shape, rotaryHeads);
  };

  const embedding = () => place('model.embed_tokens.weight', [vocabSize, hiddenSize]);
  const attentionNorms = perLayer('input_layernorm.weight', [hiddenSize]);
  const q = perLayer('self_attn.q_proj.weight', [hiddenSize, hiddenSize], numAttentionHeads);
  const k = perLayer('self_attn.k_proj.weight', [kvSize, hiddenSize], numKeyValueHeads);
  const v = perLayer('self_attn.v_proj.weight', [kvSize, hiddenSize]);
  const o = perLayer('self_attn.o_proj.weight', [hiddenSize, hiddenSize]);
  const mlpNorms = perLayer('post_attention_layernorm.weight', [hiddenSize]);
  const w1 = perLayer('mlp.gate_proj.weight', [intermediateSize, hiddenSize]);
  const w2 = perLayer('mlp.down_proj.weight', [hiddenSize, intermediateSize]);
  const w3 = perLayer('mlp.up_proj.weight', [intermediateSize, hiddenSize]);
  const norm = () => place('model.norm.weight', [hiddenSize]);
  const rotaryTables = (): void => {
    end += 4 * config.maxPositionEmbeddings * headDim;
  };
  const output = (): void => {
    if (!config.tieWordEmbeddings) place('lm_head.weight', [vocabSize, hiddenSize]);
  };

  const order =
    layout === 'legacy'
      ? [embedding, attentionNorms, q, k, v, o, mlpNorms, w1, w2, w3, norm, rotaryTables, output]
      : [attentionNorms, mlpNorms, norm, embedding, q, k, v, o, w1, w2, w3, output];
  for (const step of order) step();
  return { entries, end };
}

/** Row 2i + j of a head, j = 0 or 1, becomes its row j · n/2 + i. */
function toHalfSplit(data: Float32Array, heads: number, shape: readonly number[]): Float32Array {
  const [rows = 0, columns = 0] = shape;
  const headRows = rows / heads;
  const out = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    const inHead = row % headRows;
    const target = row - inHead + (inHead % 2) * (headRows / 2) + (inHead >> 1);
    out.set(data.subarray(row * columns, (row + 1) * columns), target * columns);
  }
  return out;
}

function describeHeader({ config, layout }: Header): string {
  const { hiddenSize, numHiddenLayers, vocabSize, tieWordEmbeddings } = config;
  return `${layout}, dim ${hiddenSize}, ${numHiddenLayers} layers, vocabulary ${vocabSize}, ${tieWordEmbeddings ? 'tied' : 'untied'}`;
}
