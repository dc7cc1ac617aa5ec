/**
 * What `inject` needs around the work on each module: weights read one ahead, a listener that may be slow, and a cache that
 * may fail.
 */
import type { HostTensor, SubspaceCache, Tensor } from '@milora/tensor';

/**
 * Reads tensors in their order. While one is in use the next is on its way already, and no more than that, so that two are
 * in memory at most. `return()` waits for the one on its way.
 */
export async function* oneAhead(tensors: readonly Pick<Tensor, 'toHost'>[]): AsyncGenerator<HostTensor, void> {
  const read = (at: number): Promise<HostTensor> | undefined => {
    const reading = tensors[at]?.toHost();
    // an error is for whoever takes the tensor; until then, and if nobody does, it is no unhandled one
    reading?.catch(() => undefined);
    return reading;
  };
  let next = read(0);
  try {
    for (let at = 1; next; at++) {
      const host = await next;
      next = read(at);
      yield host;
    }
  } finally {
    await next?.catch(() => undefined);
  }
}

/** Tells a listener of what nobody can wait for at once. While it is busy with one message, others are left out. */
export class Messenger<T> {
  private busy: Promise<void> | undefined;
  private failure: { error: unknown } | undefined;

  constructor(private readonly listener: (message: T) => void | Promise<void>) {}

  /** Throws what the listener throws, or what it has failed with meanwhile. */
  tell(message: T): void {
    if (this.failure) throw this.failure.error;
    if (this.busy) return;
    this.busy = this.listener(message)?.then(
      () => (this.busy = undefined),
      (error: unknown) => {
        this.failure = { error };
      },
    );
  }

  /** Waits until the listener is free. Throws what it has failed with. */
  async settled(): Promise<void> {
    await this.busy;
    if (this.failure) throw this.failure.error;
  }
}

/**
 * A cache that never fails: what it cannot read is absent, what it cannot write is not kept. The first error is told, since
 * others will have the same cause.
 */
export function forgivingCache(
  cache: SubspaceCache,
  onError: (error: unknown) => void = () => undefined,
): SubspaceCache {
  let told = false;
  const attempt = async <T>(work: Promise<T>): Promise<T | undefined> =>
    work.catch((error: unknown) => {
      if (!told) onError(error);
      told = true;
      return undefined;
    });
  return {
    get: (key) => attempt(cache.get(key)),
    set: (key, value) => attempt(cache.set(key, value)),
  };
}
