/** `@milora/tensor`: tensors, kernels on two backends, SVD, safetensors and seeded random numbers. */
export { CodedError, TensorError } from './errors.js';
export * from './dtype.js';
export * from './host.js';
export type * from './backend.js';
export { getBackend, setBackend } from './context.js';
export { createWasmBackend } from './backends/wasm/index.js';
export type { WasmBackend, WasmOptions } from './backends/wasm/index.js';
export { scope, tensorScope } from './scope.js';
export { Tensor, full, intTensor, ones, tensor, zeros } from './tensor.js';
export type { NestedNumbers, TensorData, TensorOptions } from './tensor.js';
export * from './ops/elementwise.js';
export * from './ops/layout.js';
export * from './ops/matmul.js';
export * from './ops/rows.js';
export * from './ops/attention.js';
export * from './ops/update.js';
