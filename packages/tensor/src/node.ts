/** `@milora/tensor/node`: what needs the file system. */
export { fileSource, writeFileAtomic } from './node/files.js';
export type { FileSource } from './node/files.js';
export { openSafetensorsFile, openSafetensorsFolder, writeSafetensors } from './node/safetensors.js';
export { openSubspaceCache } from './node/subspaceCache.js';
