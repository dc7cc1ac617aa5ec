/** Lets the event loop turn: signals, timers and output wait while only computing code awaits computing code. */
import { setImmediate } from 'node:timers/promises';

export const pause = (): Promise<void> => setImmediate();

/** The same elements, with a pause before each. */
export async function* withPauses<T>(elements: Iterable<T>): AsyncGenerator<T, void> {
  for (const element of elements) {
    await pause();
    yield element;
  }
}
