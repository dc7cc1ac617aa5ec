import { CodedError } from '@milora/tensor';

/** Any error thrown by `@milora/autograd`. */
export class AutogradError extends CodedError {}
