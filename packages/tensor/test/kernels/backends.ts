import type { Backend } from '../../src/backend.js';
import { createGpuBackend } from '../../src/backends/gpu/index.js';

/** Every backend the kernels are tested on; `create` starts it. */
export function testBackends(): { name: string; create(): Backend | Promise<Backend> }[] {
  return [
    { name: 'gpu/cpu', create: () => createGpuBackend('cpu') },
    { name: 'gpu/webasm', create: () => createGpuBackend('webasm') },
  ];
}
