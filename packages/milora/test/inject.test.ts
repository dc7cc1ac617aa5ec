/** What `inject` reports, how it stops, and that an `inject` that was stopped goes on where it was. */
import { minorSubspace } from '@milora/tensor';
import type { HostTensor, Subspace, SubspaceCache } from '@milora/tensor';
import { openSubspaceCache } from '@milora/tensor/node';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { inject, linearLayers } from '../src/adapter.js';
import type { InjectOptions, InjectProgress } from '../src/adapter.js';
import { loraInit, micaInit, middleInit, miloraInit, pissaInit, randomInit } from '../src/inits.js';
import type { Init } from '../src/inits.js';
import { provenanceOf } from '../src/provenance.js';
import { liveBytes, tinyModel } from './tiny.js';

/** A cache in memory that counts. */
class Memory implements SubspaceCache {
  readonly entries = new Map<string, Subspace>();
  hits = 0;
  get(key: string): Promise<Subspace | undefined> {
    const found = this.entries.get(key);
    if (found) this.hits++;
    return Promise.resolve(found);
  }
  set(key: string, value: Subspace): Promise<void> {
    this.entries.set(key, value);
    return Promise.resolve();
  }
}

const identity: HostTensor = { dtype: 'f32', shape: [2, 2], data: Float32Array.of(1, 0, 0, 2) };
/** Injects into a fresh model; the model must come out of a failure as it was, and nothing may be left in memory. */
async function attempt(init: Init, options: InjectOptions): Promise<unknown> {
  const bytes = liveBytes();
  const model = tinyModel();
  const [layers, size] = [linearLayers(model), liveBytes()];
  const failure = await inject(model, init, { rank: 2 }, options).then(
    (adapter) => adapter.unload(),
    (error: unknown) => error,
  );
  expect([...linearLayers(model).values()]).toEqual([...layers.values()]);
  expect(liveBytes()).toBe(size);
  model.dispose();
  expect(liveBytes()).toBe(bytes);
  return failure;
}

/** LoRA that reports so many stages, letting the event loop go round between them. */
const staged =
  (stages: number): Init =>
  async (weight, options) => {
    const { onProgress, signal } = options.decomposition!;
    for (let i = 0; i < stages; i++) {
      signal?.throwIfAborted();
      onProgress?.({ stage: `part ${i}`, done: i / stages });
      await wait(0);
    }
    return loraInit(weight, options);
  };

describe('progress', () => {
  it('comes before each module, with its stages, and at the end', async () => {
    const seen: InjectProgress[] = [];
    await attempt(staged(3), { onProgress: (progress) => void seen.push(progress) });
    expect(seen).toHaveLength(10 * 4 + 1);
    seen.slice(0, -1).forEach(({ done, total, module, ...rest }, i) => {
      expect([done, total]).toEqual([Math.floor(i / 4), 10]);
      expect(module).toBe(seen[4 * done]!.module);
      const part = (i % 4) - 1;
      expect(rest).toEqual(part < 0 ? {} : { stage: `part ${part}`, share: part / 3 });
    });
    expect(seen.at(-1)).toEqual({ done: 10, total: 10, module: '' });
  });

  it.each([miloraInit, pissaInit, middleInit, micaInit, randomInit])(
    'has stages of the decompositions',
    async (init) => {
      const seen: InjectProgress[] = [];
      await attempt(init, { onProgress: (progress) => void seen.push(progress) });
      for (let done = 0; done < 10; done++) {
        const shares = seen.filter((p) => p.done === done && p.stage !== undefined).map(({ share }) => share!);
        expect(shares.length).toBeGreaterThan(0);
        for (const share of shares) expect(share >= 0 && share <= 1).toBe(true);
      }
    },
  );

  it('waits for a slow listener before the next module, and leaves stages out meanwhile', async () => {
    const log: string[] = [];
    await attempt(staged(20), {
      async onProgress({ done, stage }) {
        log.push(`${done} begins`);
        await wait(stage === undefined ? 0 : 15);
        log.push(`${done} ends`);
      },
    });
    // never two at once
    log.forEach((line, i) => expect(line.endsWith(i % 2 === 0 ? 'begins' : 'ends')).toBe(true));
    expect(log.length).toBeLessThan(2 * 10 * 20);
    expect(log.at(-1)).toBe('10 ends');
  });

  it.each([
    ['before a module', undefined],
    ['within one', 'part 1'],
  ])('ends all when the listener fails, %s, at once or later', async (_, failing) => {
    const error = new Error('full disk');
    const fails = ({ done, stage }: InjectProgress): boolean => done === 4 && stage === failing;
    const seen: number[] = [];
    const now = await attempt(staged(3), {
      onProgress(progress) {
        seen.push(progress.done);
        if (fails(progress)) throw error;
      },
    });
    const later = await attempt(staged(3), {
      async onProgress(progress) {
        await wait(0);
        if (fails(progress)) throw error;
      },
    });
    expect([now, later]).toEqual([error, error]);
    expect(seen.at(-1)).toBe(4);
  });
});

describe('a signal', () => {
  it.each([miloraInit, pissaInit, micaInit, randomInit])(
    'stops within a decomposition, with its reason',
    async (init) => {
      const stop = new AbortController();
      const seen: InjectProgress[] = [];
      const onProgress = (progress: InjectProgress): void => {
        seen.push(progress);
        if (progress.done === 3 && progress.stage !== undefined) stop.abort('enough');
      };
      expect(await attempt(init, { onProgress, signal: stop.signal })).toBe('enough');
      expect(seen.at(-1)).toMatchObject({ done: 3, stage: expect.any(String) as string });
    },
  );

  it('that was given before stops before anything', async () => {
    const seen: InjectProgress[] = [];
    const onProgress = (progress: InjectProgress): void => void seen.push(progress);
    const failure = await attempt(miloraInit, { onProgress, signal: AbortSignal.abort() });
    expect(failure).toMatchObject({ name: 'AbortError' });
    expect(seen).toHaveLength(1);
  });
});

describe('certificates', () => {
  it('are kept by module path, for windows of consecutive triplets', async () => {
    const model = tinyModel();
    for (const init of [miloraInit, pissaInit, middleInit, micaInit]) {
      const adapter = await inject(model, init, { rank: 2 });
      expect([...adapter.certificates.keys()]).toEqual([...adapter.layers.keys()]);
      for (const { residual, orthogonality, angle, verdict } of adapter.certificates.values()) {
        expect(residual).toBeLessThan(1e-12);
        expect(orthogonality).toBeLessThan(1e-12);
        // random weights have no ties
        expect([angle < 1e-5, verdict]).toEqual([true, 'determined']);
      }
      const { svd } = provenanceOf(adapter, 'any', { name: 'tiny', fingerprints: {} });
      expect(svd).toContain([...adapter.certificates.values()][0]!.method);
      adapter.unload();
    }
    for (const init of [loraInit, randomInit]) {
      const adapter = await inject(model, init, { rank: 3 });
      const scattered = [...adapter.layers.values()].filter(({ window }) => !window || window[2]! - window[0]! > 2);
      expect(adapter.certificates.size).toBe(10 - scattered.length);
      adapter.unload();
    }
    model.dispose();
  });
});

describe('a cache', () => {
  /** Decomposes nothing: a subspace is found in the cache or put there, under the module's name. */
  const remembering: Init = async (weight, options) => {
    const { cache, onProgress } = options.decomposition!;
    if (!(await cache!.get(options.module))) {
      onProgress?.({ stage: 'computing', done: 0 });
      await cache!.set(options.module, await minorSubspace(identity, 1));
    }
    return loraInit(weight, options);
  };

  /** Modules that were computed. */
  const computed = (seen: readonly InjectProgress[]): number[] => [
    ...new Set(seen.filter(({ stage }) => stage !== undefined).map(({ done }) => done)),
  ];

  const inits: [string, Init][] = [
    ['an init with its own', remembering],
    ['milora', miloraInit],
    ['pissa', pissaInit],
    ['mica', micaInit],
    ['middle', middleInit],
  ];

  it.each(inits)('lets %s go on where it was stopped', async (_, init) => {
    const cache = new Memory();
    const stop = new AbortController();
    const first: InjectProgress[] = [];
    const failure = await attempt(init, {
      cache,
      signal: stop.signal,
      onProgress(progress) {
        first.push(progress);
        if (progress.done === 4) stop.abort('enough');
      },
    });
    expect(failure).toBe('enough');
    expect([computed(first), cache.entries.size]).toEqual([[0, 1, 2, 3], 4]);

    const second: InjectProgress[] = [];
    await attempt(init, { cache, onProgress: (progress) => void second.push(progress) });
    expect([computed(second), cache.entries.size, cache.hits]).toEqual([[4, 5, 6, 7, 8, 9], 10, 4]);

    const third: InjectProgress[] = [];
    await attempt(init, { cache, onProgress: (progress) => void third.push(progress) });
    expect([computed(third), cache.hits]).toEqual([[], 14]);
  });

  it('that fails stops nothing, and is told of once', async () => {
    const errors: unknown[] = [];
    const cache: SubspaceCache = {
      get: () => Promise.resolve(undefined),
      set: (key) => Promise.reject(new Error(`no room for ${key}`)),
    };
    for (const init of [remembering, miloraInit]) {
      expect(await attempt(init, { cache, onCacheError: (error) => errors.push(error) })).toBeUndefined();
      expect(await attempt(init, { cache })).toBeUndefined();
    }
    expect(errors).toHaveLength(2);
    expect((errors[0] as Error).message).toMatch(/no room for model\.layers\.0/);
  });

  describe('in a folder', () => {
    let folder: string;
    beforeEach(async () => {
      folder = await mkdtemp(join(tmpdir(), 'milora-cache-'));
    });
    afterEach(() => rm(folder, { recursive: true, force: true }));

    it('gives the same adapter to the bit, to other methods and ranks their own', async () => {
      const adapters: unknown[] = [];
      const cache = openSubspaceCache(folder);
      for (const [init, rank] of [
        [miloraInit, 2],
        [miloraInit, 2],
        [pissaInit, 2],
        [miloraInit, 3],
        [miloraInit, 2],
      ] as const) {
        const model = tinyModel();
        const adapter = await inject(model, init, { rank, targetModules: ['q'] }, { cache });
        const layers = [...adapter.layers.values()].map(async (layer) => [
          await layer.loraA.value.toHost(),
          await layer.loraB.value.toHost(),
          await layer.weight.value.toHost(),
        ]);
        adapters.push([await Promise.all(layers), [...adapter.certificates]]);
        adapter.unload();
        model.dispose();
      }
      expect(adapters[1]).toEqual(adapters[0]);
      expect(adapters[4]).toEqual(adapters[0]);
      expect(adapters[2]).not.toEqual(adapters[0]);
      expect(adapters[3]).not.toEqual(adapters[0]);
      expect(await readdir(folder)).toHaveLength(6);
    });

    it('does not keep the whole decompositions of scattered windows', async () => {
      const model = tinyModel();
      const adapter = await inject(model, randomInit, { rank: 3 }, { cache: openSubspaceCache(folder) });
      const together = [...adapter.layers.values()].filter(({ window }) => window![2]! - window![0]! === 2);
      expect(await readdir(folder)).toHaveLength(together.length);
      adapter.unload();
      model.dispose();
    });
  });
});
