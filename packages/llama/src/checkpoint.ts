/**
 * Loading a LLaMA from named tensors (safetensors or llama2.c), and giving it back as named tensors.
 *
 * All problems of a checkpoint are collected and thrown at once: missing tensors, wrong shapes, values that are not finite.
 */
import { Embedding, Linear, Variable } from '@milora/autograd';
import { Tensor, cast, convertHost, getBackend, sizeOf } from '@milora/tensor';
import type { Backend, DType, HostTensor, TensorSource } from '@milora/tensor';
import type { LlamaConfig } from './config.js';
import { LlamaError } from './errors.js';
import { buildLlama } from './model.js';
import type { LlamaForCausalLM } from './model.js';

/** Formats for the matrices of a model. */
export type WeightDType = 'f32' | 'bf16' | 'int8';

export interface LoadOptions {
  /**
   * What holds the matrices (norms and biases are always f32): `bf16` and `int8` convert, for inference and frozen weights only;
   * `storage` keeps the 16-bit format of the file. Default f32.
   */
  dtype?: WeightDType | 'storage';
  backend?: Backend;
  /** See `LlamaConfig.ropeFrequencyDtype`. Default f32. */
  ropeFrequencyDtype?: 'f32' | 'bf16';
}

/** Tensors that old checkpoints carry and no one needs. */
const IGNORED = /rotary_emb\.inv_freq$/;

/** Reads all parameters of `config` from `source` and builds the model. */
export async function loadLlama(
  config: LlamaConfig,
  source: TensorSource,
  options: LoadOptions = {},
): Promise<LlamaForCausalLM> {
  const { dtype = 'f32', backend = getBackend() } = options;
  const expected = new Map<string, readonly number[]>();
  collectNames(config, expected, backend);
  const problems: string[] = [];
  for (const [name, shape] of expected) {
    const info = source.info(name);
    if (!info) problems.push(`${name}: missing`);
    else if (String(info.shape) !== String(shape)) {
      problems.push(`${name}: expected shape [${shape.join(', ')}], got [${info.shape.join(', ')}]`);
    }
  }
  for (const name of source.names()) {
    const tied = name === 'lm_head.weight' && config.tieWordEmbeddings;
    if (!expected.has(name) && !tied && !IGNORED.test(name)) problems.push(`${name}: not part of this architecture`);
  }
  refuse(source.name, problems);

  const tensors = new Map<string, Tensor>();
  try {
    for (const [name, shape] of expected) {
      const host = await source.read(name);
      const bad = firstNonFinite(host);
      if (bad) problems.push(`${name}: ${bad}`);
      if (bad) continue;
      const is16 = host.dtype === 'bf16' || host.dtype === 'f16';
      const to = shape.length !== 2 ? 'f32' : dtype !== 'storage' ? dtype : is16 ? host.dtype : 'f32';
      const data = convertHost(host.data, host.dtype, to, shape);
      tensors.set(name, Tensor.fromHost({ dtype: to, shape, data }, backend).keep());
    }
    refuse(source.name, problems);
  } catch (error) {
    for (const tensor of tensors.values()) tensor.dispose();
    throw error;
  }
  const { ropeFrequencyDtype = 'f32' } = options;
  return buildLlama({ ...config, ropeFrequencyDtype }, (name) => tensors.get(name)!);
}

/**
 * Converts the matrices of all plain layers in place, for inference: from f32, or from a coarser format to compare. Norms and
 * biases stay f32, and so do layers of other kinds (adapters). Throws `dtype` when one is being trained.
 */
export function castWeights(model: LlamaForCausalLM, dtype: WeightDType): void {
  const layers = [...model.namedModules()].filter(([, m]) => m instanceof Linear || m instanceof Embedding);
  for (const [name, layer] of layers as [string, Linear | Embedding][]) {
    const { value, requiresGrad } = layer.weight;
    if (requiresGrad && dtype !== 'f32') {
      throw new LlamaError(
        'dtype',
        `castWeights: expected frozen weights, got ${name} in training; requiresGrad(false)`,
      );
    }
    if (value.dtype === dtype) continue;
    layer.weight = new Variable(cast(value, dtype).keep(), { requiresGrad });
    value.dispose();
  }
}

function refuse(name: string, problems: readonly string[]): void {
  if (problems.length === 0) return;
  throw new LlamaError(
    'checkpoint',
    `${name}: expected the tensors that config.json describes, got ${problems.length} problem(s):\n  ${problems.join('\n  ')}`,
  );
}

/** Names and shapes of all parameters, by building the model with empty stand-ins. */
function collectNames(config: LlamaConfig, into: Map<string, readonly number[]>, backend: Backend): void {
  const one = Tensor.fromHost({ dtype: 'f32', shape: [0], data: new Float32Array() }, backend);
  buildLlama(config, (name, shape) => {
    into.set(name, shape);
    return one;
  });
  one.dispose();
}

/** Describes the first value that is NaN or infinite. */
export function firstNonFinite({ data, dtype, shape }: HostTensor): string | undefined {
  const exponent = dtype === 'bf16' ? 0x7f80 : dtype === 'f16' ? 0x7c00 : undefined;
  for (let i = 0; i < data.length; i++) {
    const x = data[i]!;
    const bad = exponent === undefined ? !Number.isFinite(x) : (x & exponent) === exponent;
    if (bad) {
      const value = convertHost(data.slice(i, i + 1), dtype, 'f64')[0];
      return `expected finite values, got ${value} at entry ${i} of ${sizeOf(shape)}`;
    }
  }
  return undefined;
}

/** All parameters under their Hugging Face names, on the host, converted to `dtype`. */
export async function exportLlama(model: LlamaForCausalLM, dtype: DType = 'f32'): Promise<[string, HostTensor][]> {
  const out: [string, HostTensor][] = [];
  for (const [name, tensor] of model.stateDict()) {
    const host = await tensor.toHost();
    out.push([name, { shape: host.shape, dtype, data: convertHost(host.data, host.dtype, dtype, host.shape) }]);
  }
  return out;
}
