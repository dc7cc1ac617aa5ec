/** `@milora/autograd`: reverse-mode differentiation, modules and optimisers on `@milora/tensor`. */
export { AutogradError } from './errors.js';
export { Variable, checkpoint, drawOnce, gradEnabled, noGrad, record } from './variable.js';
export type { Gradients } from './variable.js';
export * from './ops.js';
export { Module } from './module.js';
export { Embedding, Linear, RMSNorm } from './layers.js';
export { AdamW, SGD, clipFactor, clipGradNorm, gradNorm } from './optim.js';
export type { AdamWOptions, NamedParameters, OptimizerState, SGDOptions } from './optim.js';
export * from './schedule.js';
export { gradcheck } from './gradcheck.js';
export type { GradcheckOptions } from './gradcheck.js';
