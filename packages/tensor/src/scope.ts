/**
 * Ownership of tensors: everything made inside a scope is freed at its end, except what is returned or kept.
 *
 *     const y = scope(() => add(mul(a, b), c));   // the product is freed, the sum lives on
 *
 *     using here = tensorScope();                 // the same for a block
 */
import { TensorError } from './errors.js';

/** What a scope holds: anything that can be freed. */
interface Owned {
  dispose(): void;
}

class Scope {
  readonly owned = new Set<Owned>();
}

const stack: Scope[] = [];
const ownerOf = new WeakMap<Owned, Scope>();

/** Gives a new object to the innermost scope, if there is one. */
export function adopt(object: Owned): void {
  const scope = stack.at(-1);
  if (!scope) return;
  scope.owned.add(object);
  ownerOf.set(object, scope);
}

/** Takes an object out of its scope. */
export function release(object: Owned): void {
  const scope = ownerOf.get(object);
  if (!scope) return;
  scope.owned.delete(object);
  ownerOf.delete(object);
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
