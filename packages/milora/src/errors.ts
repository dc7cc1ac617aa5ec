import { CodedError } from '@milora/tensor';

/** Any error thrown by `milora`: a `code` for programs, a sentence with the way out for people. */
export class MiloraError extends CodedError {}
