import type { Backend } from '../../src/backend.js';
import { createGpuBackend } from '../../src/backends/gpu/index.js';
import { createWasmBackend } from '../../src/backends/wasm/index.js';

/** Every backend the kernels are tested on; `create` starts it. */
export function testBackends(): { name: string; create(): Backend | Promise<Backend> }[] {
  return [
    { name: 'wasm, 1 thread', create: () => createWasmBackend({ threads: 1 }) },
    { name: 'wasm, 2 threads', create: () => createWasmBackend({ threads: 2 }) },
    { name: 'wasm, 4 threads, strict', create: () => createWasmBackend({ threads: 4, build: 'strict' }) },
    { name: 'gpu/cpu', create: () => createGpuBackend('cpu') },
    { name: 'gpu/webasm', create: () => createGpuBackend('webasm') },
  ];
}
