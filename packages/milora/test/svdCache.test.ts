/** `--svd-cache`: what is kept where, what a second run saves, and what is said of it. */
import { identity } from '@milora/tensor';
import { loadModel, saveModel } from '@milora/llama/node';
import { openSubspaceCache } from '@milora/tensor/node';
import { existsSync } from 'node:fs';
import { readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { textReporter } from '../src/cli/report.js';
import { userCacheFolder } from '../src/cli/svdCache.js';
import { linearLayers } from '../src/adapter.js';
import { setValue } from '../src/trainer.js';
import { spawnSource } from './support/child.js';
import { makeFixture, milora, writeModel, writeTokenizer } from './support/tiny.js';
import type { Fixture, Outcome } from './support/tiny.js';

let fixture: Fixture;
let runs = 0;
beforeAll(async () => {
  fixture = await makeFixture();
  // one weight that is worth keeping, 256 × 256
  const wide = { hiddenSize: 256, intermediateSize: 8, numHiddenLayers: 1, numAttentionHeads: 4, headDim: 64 };
  await writeModel(fixture.at('wide'), { config: { ...wide, numKeyValueHeads: 1, maxPositionEmbeddings: 32 } });
});
afterAll(() => fixture.remove());

const lastRun = (): string => fixture.at(`run${runs}`);
function train(model: string, options: string[], io: Parameters<typeof milora>[1] = {}): Promise<Outcome> {
  runs++;
  return milora(
    [
      ...['train', '--model', fixture.at(model), '--data', fixture.at('sums.jsonl'), '--out', lastRun()],
      ...['--steps', '1', '--batch', '2', '--rank', '2', '--targets', 'q', '--no-drift', '--valid-fraction', '0'],
      ...options,
    ],
    io,
  );
}
const files = (folder: string): Promise<string[]> => readdir(folder).catch(() => []);
const stagesOf = (outcome: Outcome): unknown[] => outcome.events().filter((e) => e.type === 'init' && 'stage' in e);

describe('train --svd-cache', () => {
  it('keeps a decomposition for the next run, which computes none and starts the same', async () => {
    const cache = ['--svd-cache', fixture.at('cache'), '--json'];
    const first = await train('wide', cache);
    expect([first.code, first.err]).toEqual([0, '']);
    expect(await files(fixture.at('cache'))).toHaveLength(1);
    const second = await train('wide', [...cache, '--lr', '1e-3']);
    expect(stagesOf(second)).toEqual([]);
    const losses = [first, second].map((run) => run.events().find((event) => event.type === 'step')!['loss']);
    expect(losses[1]).toBe(losses[0]);
    expect(await files(fixture.at('cache'))).toHaveLength(1);
  });

  it("keeps it in the user's folder by default", async () => {
    const cacheFolder = fixture.at('user', 'milora');
    expect((await train('wide', [], { cacheFolder })).code).toBe(0);
    expect(await files(join(cacheFolder, 'svd'))).toHaveLength(1);
  });

  it('keeps nothing with none, without a user, of small weights, and of methods that decompose nothing', async () => {
    const cacheFolder = fixture.at('unused');
    for (const [model, options, io] of [
      ['wide', ['--svd-cache', 'none'], { cacheFolder }],
      ['wide', [], {}],
      ['model', ['--svd-cache', cacheFolder], {}],
      ['wide', ['--svd-cache', cacheFolder, '--method', 'lora'], {}],
    ] as const) {
      expect((await train(model, [...options], io)).code).toBe(0);
    }
    expect(existsSync(cacheFolder)).toBe(false);
    expect(existsSync('none')).toBe(false);
  });

  it('goes on without a folder that cannot be written, and says so once', async () => {
    await writeFile(fixture.at('file'), '');
    const { code, out, err } = await train('wide', ['--svd-cache', fixture.at('file')]);
    expect([code, err]).toEqual([0, '']);
    const warnings = out.split('\n').filter((line) => line.startsWith('warning: '));
    expect(warnings).toEqual([
      expect.stringMatching(/^warning: decompositions are not kept for other runs: .*file.*expected .*, got E\w+$/),
    ]);
  });

  it('wants a folder', async () => {
    const { code, err } = await train('model', ['--svd-cache', '']);
    expect([code, err]).toEqual([1, 'milora: --svd-cache: expected a folder, or none, got ""\n']);
  });

  it('may be given to a run that is resumed, which decomposes nothing', async () => {
    expect((await train('model', ['--svd-cache', 'none'])).code).toBe(0);
    const cache = fixture.at('resumed cache');
    const { code, out } = await milora(['train', '--resume', lastRun(), '--svd-cache', cache, '--json']);
    expect(code).toBe(0);
    expect(out).not.toContain('"stage"');
    expect(existsSync(cache)).toBe(false);
  });
});

describe('the report', () => {
  const said = (...events: Parameters<ReturnType<typeof textReporter>>[0][]): string => {
    let out = '';
    const report = textReporter(
      { stdout: { write: (text) => (out += text) }, stderr: process.stderr, isTTY: true },
      String,
    );
    events.forEach(report);
    return out.replaceAll('\r\x1b[K', '\n');
  };

  it('has the module, the stage and the share of it', () => {
    const init = { type: 'init', done: 0, total: 3, module: 'layers.0.q' } as const;
    expect(said({ ...init, stage: 'krylov', share: 0.458 })).toBe('\ndecomposing 1/3 layers.0.q  krylov 45 %');
    expect(said(init)).toBe('\ndecomposing 1/3 layers.0.q');
  });

  it('names modules whose window is not determined, in one line', () => {
    const line = said({ type: 'uncertain', tied: ['a'], sensitive: ['b', 'c', 'd', 'e'] });
    expect(line).toMatch(/^note: .* equal in a; nearly equal in b, c, d, … \(4 in all\): [^\n]*\n$/);
    expect(said({ type: 'uncertain', tied: [], sensitive: ['b'] })).toMatch(/^note: .* are nearly equal in b: /);
  });

  it('has that line for a weight whose singular values are all equal', async () => {
    const model = await loadModel(fixture.at('model'));
    const tied = 'model.layers.1.self_attn.q_proj';
    const data = Float32Array.from(identity(24).data);
    setValue(linearLayers(model).get(tied)!.weight.value, { dtype: 'f32', shape: [24, 24], data });
    await saveModel(fixture.at('tied'), model);
    await writeTokenizer(fixture.at('tied'));
    const { out } = await train('tied', []);
    expect(out.split('\n').filter((line) => line.startsWith('note: '))).toEqual([
      expect.stringContaining(`are equal in ${tied}: `),
    ]);
    const json = await train('tied', ['--json']);
    expect(json.events().find(({ type }) => type === 'uncertain')).toEqual({
      type: 'uncertain',
      sensitive: [],
      tied: [tied],
    });
  });
});

describe("the user's cache folder", () => {
  const home = (): string => join('/', 'me');
  const homeless = (): never => {
    throw new Error('no home');
  };
  it.each([
    ['linux', {}, home, join('/', 'me', '.cache', 'milora')],
    ['linux', { XDG_CACHE_HOME: join('/', 'fast') }, home, join('/', 'fast', 'milora')],
    ['linux', { XDG_CACHE_HOME: 'relative' }, home, join('/', 'me', '.cache', 'milora')],
    ['linux', { XDG_CACHE_HOME: '' }, homeless, undefined],
    ['darwin', {}, home, join('/', 'me', 'Library', 'Caches', 'milora')],
    ['win32', { LOCALAPPDATA: join('/', 'local') }, home, join('/', 'local', 'milora')],
    ['win32', {}, home, join('/', 'me', '.cache', 'milora')],
  ] as const)('%s with %o', (platform, environment, homedir, expected) => {
    expect(userCacheFolder(environment, platform, homedir)).toBe(expected);
  });
});

it('several processes write and read one key, and no one ever reads a mixture', async () => {
  const folder = fixture.at('shared');
  const outcomes = await Promise.all(
    [1, 2, 3].map((seed) => spawnSource('./cacheWorker.ts', [folder, String(seed), '20'])),
  );
  for (const { code, out, err } of outcomes) expect([code, out.trim(), err]).toEqual([0, '0', '']);
  expect(await files(folder)).toHaveLength(1);
  const last = await openSubspaceCache(folder).get('shared');
  expect([1, 2, 3]).toContain(last!.from);
  await rm(folder, { recursive: true });
});
