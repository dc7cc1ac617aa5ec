/** Reading one ahead, telling a slow listener, and caches that fail. */
import type { HostTensor, Subspace, SubspaceCache } from '@milora/tensor';
import fc from 'fast-check';
import { setTimeout as wait } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { Messenger, forgivingCache, oneAhead } from '../src/moduleWork.js';

const host = (value: number): HostTensor => ({ dtype: 'f32', shape: [1], data: Float32Array.of(value) });

describe('oneAhead', () => {
  /** Tensors that take a while; `started` and `finished` count their reads. */
  function slowTensors(count: number, fails = -1) {
    const log = { started: 0, finished: 0 };
    const tensors = Array.from({ length: count }, (_, i) => ({
      async toHost() {
        log.started++;
        await wait(1);
        log.finished++;
        if (i === fails) throw new Error(`no ${i}`);
        return host(i);
      },
    }));
    return { tensors, log };
  }

  it('gives all in order, with one more on its way at most', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 6 }), async (count) => {
        const { tensors, log } = slowTensors(count);
        const seen: number[] = [];
        for await (const { data } of oneAhead(tensors)) {
          seen.push(data[0]!);
          expect(log.started).toBe(Math.min(count, seen.length + 1));
          if (data[0]! % 2 === 0) await wait(2);
        }
        expect(seen).toEqual(Array.from({ length: count }, (_, i) => i));
      }),
      { numRuns: 20 },
    );
  });

  it('waits for what is on its way when it is left early', async () => {
    const { tensors, log } = slowTensors(5);
    for await (const _ of oneAhead(tensors)) break;
    expect(log).toEqual({ started: 2, finished: 2 });
  });

  it('throws a failure where its tensor is taken, and nowhere if it is not', async () => {
    const { tensors } = slowTensors(3, 1);
    const seen: number[] = [];
    const all = async (): Promise<void> => {
      for await (const { data } of oneAhead(tensors)) {
        seen.push(data[0]!);
        await wait(5);
      }
    };
    await expect(all()).rejects.toThrow('no 1');
    expect(seen).toEqual([0]);
    // vitest fails on an unhandled rejection
    for await (const _ of oneAhead(tensors)) {
      await wait(5);
      break;
    }
  });
});

describe('Messenger', () => {
  it('leaves out what comes while the listener is busy', async () => {
    const heard: number[] = [];
    let free = (): void => undefined;
    const messenger = new Messenger<number>((message) => {
      heard.push(message);
      return new Promise((resolve) => (free = resolve));
    });
    messenger.tell(1);
    messenger.tell(2);
    free();
    await messenger.settled();
    messenger.tell(3);
    messenger.tell(4);
    free();
    await messenger.settled();
    expect(heard).toEqual([1, 3]);
  });

  it('leaves out nothing for a listener that answers at once', async () => {
    const heard: number[] = [];
    const messenger = new Messenger<number>((message) => void heard.push(message));
    for (let i = 0; i < 5; i++) messenger.tell(i);
    await messenger.settled();
    expect(heard).toEqual([0, 1, 2, 3, 4]);
  });

  it('passes a failure on to the next who tells or waits', async () => {
    const messenger = new Messenger<number>(() => Promise.reject(new Error('full disk')));
    messenger.tell(1);
    await wait(1);
    expect(() => messenger.tell(2)).toThrow('full disk');
    await expect(messenger.settled()).rejects.toThrow('full disk');
  });
});

describe('forgivingCache', () => {
  const broken: SubspaceCache = {
    get: () => Promise.reject(new Error('cannot read')),
    set: () => Promise.reject(new Error('cannot write')),
  };

  it('misses, keeps nothing, and tells of the first error', async () => {
    const errors: unknown[] = [];
    const cache = forgivingCache(broken, (error) => errors.push(error));
    expect(await cache.get('a')).toBeUndefined();
    await cache.set('a', {} as Subspace);
    expect(await cache.get('b')).toBeUndefined();
    expect(errors).toEqual([new Error('cannot read')]);
    await forgivingCache(broken).set('a', {} as Subspace);
  });

  it('goes on reading a cache that cannot be written', async () => {
    const value = {} as Subspace;
    const errors: unknown[] = [];
    const cache = forgivingCache({ ...broken, get: () => Promise.resolve(value) }, (error) => errors.push(error));
    await cache.set('a', value);
    expect(await cache.get('a')).toBe(value);
    expect(errors).toHaveLength(1);
  });
});
