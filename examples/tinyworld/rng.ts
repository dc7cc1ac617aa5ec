/**
 * Randomness is passed in, never ambient: everything in this folder draws from an {@link Rng}. The `Philox` class of
 * `@milora/tensor` is one; so is any object with this method.
 */
export interface Rng {
  /** A whole number drawn evenly from 0 … n − 1. */
  int(n: number): number;
}

/** One item of a list, each equally likely. */
export function pick<T>(rng: Rng, items: readonly T[]): T {
  if (items.length === 0) throw new RangeError('pick: expected at least one item, got an empty list');
  return items[rng.int(items.length)]!;
}

/** `count` different items of a list, in random order (Fisher–Yates). */
export function sample<T>(rng: Rng, items: readonly T[], count = items.length): T[] {
  if (count > items.length) throw new RangeError(`sample: expected at most ${items.length} items, got ${count}`);
  const shuffled = [...items];
  for (let i = 0; i < count; i++) {
    const j = i + rng.int(shuffled.length - i);
    [shuffled[i], shuffled[j]] = [shuffled[j]!, shuffled[i]!];
  }
  return shuffled.slice(0, count);
}

/** A whole number from `low` to `high`, both included. */
export function between(rng: Rng, low: number, high: number): number {
  return low + rng.int(high - low + 1);
}
