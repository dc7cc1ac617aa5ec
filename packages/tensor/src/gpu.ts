/** `@milora/tensor/gpu`: the GPU.js backend. A separate entry, so that the main one does not load GPU.js. */
export { createGpuBackend } from './backends/gpu/index.js';
