/** `@milora/llama`: LLaMA 1/2/3 models, checkpoints, tokenizers and generation. */
export { LlamaError } from './errors.js';
export * from './config.js';
export * from './rope.js';
export {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
  buildLlama,
  nextTargets,
  randomLlama,
} from './model.js';
export type { ForwardOptions, Layer, LlamaInput, ParameterSource } from './model.js';
export { KVCache } from './kvCache.js';
export { castWeights, exportLlama, firstNonFinite, loadLlama } from './checkpoint.js';
export type { LoadOptions, WeightDType } from './checkpoint.js';
export * from './llama2c.js';
export * from './tokenizer.js';
export * from './llama2cTokenizer.js';
export * from './chatTemplate.js';
export * from './sampler.js';
export { generate, generateBatch } from './generate.js';
export type { GenerateOptions } from './generate.js';
