/**
 * Errors of this library carry a `code` for programs and a sentence for people, in the form
 * `name: expected …, got …`, with the way out where there is one.
 */
export class CodedError extends Error {
  constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** Any error thrown by `@milora/tensor`. */
export class TensorError extends CodedError {}
