/**
 * Ownership of tensors: everything made inside a scope is freed at its end, except what is returned or kept.
 *
 *     const y = scope(() => add(mul(a, b), c));   // the product is freed, the sum lives on
 *
 *     using here = tensorScope();                 // the same for a block
 */
import { TensorError } from './errors.js';

/** What a scope holds: anything that can be freed. */
export interface Owned {
  dispose(): void;
  /** The contents of the scope that holds it. */
  owner: Set<Owned> | undefined;
  /** Called when no scope holds it any more. */
  abandoned(): void;
}

class Scope {
  readonly owned = new Set<Owned>();
}

const stack: Scope[] = [];

/** Gives an object to the innermost scope, if there is one. */
export function adopt(object: Owned): void {
  const scope = stack.at(-1);
  if (!scope) return object.abandoned();
  scope.owned.add(object);
  object.owner = scope.owned;
}

/** Takes an object out of its scope. */
export function release(object: Owned): void {
  object.owner?.delete(object);
  object.owner = undefined;
}

function close(scope: Scope): void {
  const at = stack.lastIndexOf(scope);
  if (at < 0) throw new TensorError('scope', 'scope: expected an open scope, got one that was closed before');
  stack.splice(at, 1);
  const { owned } = scope;
  for (const object of [...owned]) object.dispose();
}

/** Hands what a scope returns to the scope around it. Looks into arrays, plain objects and objects with `owned()`. */
function handOver(value: unknown, scope: Scope): void {
  if (typeof value !== 'object' || value === null) return;
  if (scope.owned.has(value as Owned)) {
    release(value as Owned);
    adopt(value as Owned);
  } else if (typeof (value as { owned?: unknown }).owned === 'function') {
    for (const part of (value as { owned(): Iterable<unknown> }).owned()) handOver(part, scope);
  } else if (Array.isArray(value)) {
    for (const part of value) handOver(part, scope);
  } else if (Object.getPrototypeOf(value) === Object.prototype) {
    for (const part of Object.values(value)) handOver(part, scope);
  }
}

/**
 * Runs `fn` and frees the tensors made inside, except those it returns (alone, or in arrays and plain objects). With an
 * async `fn` the scope stays open until the promise settles.
 */
export function scope<T>(fn: () => T): T {
  const inner = new Scope();
  stack.push(inner);
  const finish = (value: unknown): void => {
    const outer = stack.splice(stack.lastIndexOf(inner));
    handOver(value, inner);
    stack.push(...outer);
    close(inner);
  };
  let result: T;
  try {
    result = fn();
  } catch (error) {
    close(inner);
    throw error;
  }
  if (result instanceof Promise) {
    return result.then(
      (value: unknown) => {
        finish(value);
        return value;
      },
      (error: unknown) => {
        close(inner);
        throw error;
      },
    ) as T;
  }
  finish(result);
  return result;
}

/** A scope for a block: `using here = tensorScope()`. Keep what must outlive it with `keep()`. */
export function tensorScope(): Disposable {
  const inner = new Scope();
  stack.push(inner);
  return { [Symbol.dispose]: () => close(inner) };
}
