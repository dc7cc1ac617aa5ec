/** `milora`: MiLoRA, PiSSA, LoRA and relatives as one algebra on a LLaMA; data, training, evaluation and PEFT interchange. */
export { MiloraError } from './errors.js';
export { didYouMean, nearest } from './suggest.js';
export * from './targets.js';
export * from './window.js';
export * from './inits.js';
export { AdapterLinear, adapterLinear } from './adapterLinear.js';
export type { AdapterForm, AdapterParts, Factors } from './adapterLinear.js';
export * from './adapter.js';
export * from './peftConfig.js';
export * from './peft.js';
export * from './compress.js';
export * from './provenance.js';
export * from './presets.js';
export * from './dataset.js';
export * from './chunks.js';
export * from './batches.js';
export * from './trainer.js';
export * from './evaluate.js';
