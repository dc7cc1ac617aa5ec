/**
 * Loading a LLaMA from named tensors (safetensors or llama2.c), and giving it back as named tensors.
 *
 * All problems of a checkpoint are collected and thrown at once: missing tensors, wrong shapes, values that are not finite.
 */
import { Tensor, convertHost, getBackend, sizeOf } from '@milora/tensor';
import type { Backend, DType, HostTensor, TensorSource } from '@milora/tensor';
import type { LlamaConfig } from './config.js';
import { LlamaError } from './errors.js';
import { buildLlama } from './model.js';
import type { LlamaForCausalLM } from './model.js';

export interface LoadOptions {
  /** `f32` converts everything; `storage` keeps matrices in the 16-bit format of the file (frozen weights only). Default f32. */
  dtype?: 'f32' | 'storage';
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
      const keep = dtype === 'storage' && shape.length === 2 && (host.dtype === 'bf16' || host.dtype === 'f16');
      const data = keep ? host : { ...host, dtype: 'f32' as const, data: convertHost(host.data, host.dtype, 'f32') };
      tensors.set(name, Tensor.fromHost(data, backend).keep());
    }
    refuse(source.name, problems);
  } catch (error) {
    for (const tensor of tensors.values()) tensor.dispose();
    throw error;
  }
  const { ropeFrequencyDtype = 'f32' } = options;
  return buildLlama({ ...config, ropeFrequencyDtype }, (name) => tensors.get(name)!);
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
