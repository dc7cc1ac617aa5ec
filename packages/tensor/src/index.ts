export * from './errors.js';
export * from './dtype.js';
export * from './host.js';
export type * from './backend.js';
