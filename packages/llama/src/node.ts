/** `@milora/llama/node`: reading models and tokenizers from disk. */
export { loadConfig } from './node/loadConfig.js';
export { loadTokenizer } from './node/loadTokenizer.js';
export { loadModel, saveModel } from './node/loadModel.js';
