import { CodedError } from '@milora/tensor';

/** Any error thrown by `@milora/llama`. */
export class LlamaError extends CodedError {}
