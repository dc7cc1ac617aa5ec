/** The default backend: wasm, made on first use; set once by `setBackend`. */
import type { Backend } from './backend.js';
import { createWasmBackend } from './backends/wasm/index.js';

let current: Backend | undefined;

/** The backend that new tensors are made on. */
export function getBackend(): Backend {
  return (current ??= createWasmBackend());
}

/** Sets the default backend for tensors made from now on. Returns the one it replaces, if any was in use. */
export function setBackend(backend: Backend): Backend | undefined {
  const before = current;
  current = backend;
  return before;
}
