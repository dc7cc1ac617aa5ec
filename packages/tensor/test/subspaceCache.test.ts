/** The cache of subspaces: what comes back is what was put in, to the bit, or nothing. */
import fc from 'fast-check';
import { chmod, mkdir, mkdtemp, readFile, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Certificate, Subspace, SubspaceCache } from '../src/linalg/index.js';
import { openSafetensorsFile, openSubspaceCache, writeSafetensors } from '../src/node.js';
import { Philox } from '../src/random.js';

let folder: string;
let cache: SubspaceCache;
beforeEach(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'milora-cache-')), 'deep', 'svd');
  cache = openSubspaceCache(folder);
});
afterEach(() => rm(join(folder, '..', '..'), { recursive: true, force: true }));

/** Any shapes and any bits; `toEqual` would take −0 for 0 and one NaN for another. */
function subspace(m: number, r: number, n: number, seed: number, rest: Partial<Subspace> = {}): Subspace {
  const random = new Philox(seed);
  const bits = (length: number): Float64Array =>
    new Float64Array(Uint32Array.from({ length: 2 * length }, () => random.uint32()).buffer);
  return {
    from: random.int(1000),
    u: { rows: m, cols: r, data: bits(m * r) },
    s: bits(r),
    vt: { rows: r, cols: n, data: bits(r * n) },
    certificate: {
      method: 'shift-invert',
      residual: 1e-15,
      orthogonality: 2e-15,
      gap: Infinity,
      angle: 3e-15,
      verdict: 'determined',
    },
    ...rest,
  };
}

const words = (x: Float64Array): number[] => [...new Uint32Array(x.buffer, x.byteOffset, 2 * x.length)];

/** A subspace as text in which every bit shows. */
const bitsOf = (x: Subspace | undefined): unknown =>
  x && {
    ...x,
    u: { ...x.u, data: words(x.u.data) },
    s: words(x.s),
    vt: { ...x.vt, data: words(x.vt.data) },
    certificate: Object.entries(x.certificate)
      .map(([name, value]) => [name, typeof value === 'number' ? words(Float64Array.of(value)) : (value as string)])
      .sort(([a], [b]) => (a! < b! ? -1 : 1)),
  };

const onlyFile = async (): Promise<string> => {
  const files = await readdir(folder);
  expect(files).toHaveLength(1);
  return join(folder, files[0]!);
};

const size = fc.integer({ min: 1, max: 6 });
const certificates: fc.Arbitrary<Certificate> = fc.record({
  method: fc.constantFrom<Certificate['method']>('jacobi', 'tridiagonal', 'shift-invert', 'golub-kahan'),
  residual: fc.double(),
  orthogonality: fc.double(),
  gap: fc.oneof(fc.double(), fc.constant(Infinity)),
  angle: fc.double(),
  verdict: fc.constantFrom<Certificate['verdict']>('determined', 'sensitive', 'tied'),
});

describe('what was put in', () => {
  it('comes back to the bit, under any key', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: 'binary' }),
        fc.tuple(size, size, size, fc.nat()),
        certificates,
        async (key, [m, r, n, seed], certificate) => {
          const value = subspace(m, r, n, seed, { certificate });
          await cache.set(key, value);
          expect(bitsOf(await cache.get(key))).toEqual(bitsOf(value));
          expect(bitsOf(await openSubspaceCache(folder).get(key))).toEqual(bitsOf(value));
          expect(await cache.get(`${key} `)).toBeUndefined();
        },
      ),
      { numRuns: 200 },
    );
  });

  it('is the last of several, and each key has its own', async () => {
    const [first, second, other] = [subspace(4, 2, 3, 1), subspace(4, 2, 3, 2), subspace(5, 1, 5, 3)];
    await cache.set('a', first);
    await cache.set('b', other);
    await cache.set('a', second);
    expect(bitsOf(await cache.get('a'))).toEqual(bitsOf(second));
    expect(bitsOf(await cache.get('b'))).toEqual(bitsOf(other));
    expect(await readdir(folder)).toHaveLength(2);
  });

  it('may be a part of a larger array', async () => {
    const value = subspace(4, 2, 3, 1);
    const data = Float64Array.of(9, ...value.u.data, 9).subarray(1, 9);
    await cache.set('a', { ...value, u: { ...value.u, data } });
    expect(bitsOf(await cache.get('a'))).toEqual(bitsOf({ ...value, u: { ...value.u, data } }));
  });

  it('is one whole result however many write and read it at once', async () => {
    const values = Array.from({ length: 12 }, (_, i) => subspace(40, 3, 30, i));
    const all = values.map((value) => JSON.stringify(bitsOf(value)));
    await Promise.all(
      values.map(async (value) => {
        const own = openSubspaceCache(folder);
        for (let i = 0; i < 5; i++) {
          await own.set('shared', value);
          expect(all).toContain(JSON.stringify(bitsOf(await own.get('shared'))));
        }
      }),
    );
    await onlyFile();
  });
});

describe('what is not there', () => {
  it('is a miss, and looking makes no folder', async () => {
    expect(await cache.get('a')).toBeUndefined();
    await expect(readdir(folder)).rejects.toThrow('ENOENT');
    await mkdir(folder, { recursive: true });
    expect(await cache.get('a')).toBeUndefined();
  });

  it('is computed again after the folder was deleted', async () => {
    await cache.set('a', subspace(2, 1, 2, 1));
    await rm(folder, { recursive: true });
    expect(await cache.get('a')).toBeUndefined();
    await cache.set('a', subspace(2, 1, 2, 1));
    expect(await cache.get('a')).toBeDefined();
  });
});

describe('a file that is not what was written', () => {
  const value = subspace(4, 2, 3, 1);

  /** Nothing comes of it, and it is replaced. */
  async function expectMiss(): Promise<void> {
    expect(await cache.get('a')).toBeUndefined();
    await cache.set('a', value);
    expect(bitsOf(await cache.get('a'))).toEqual(bitsOf(value));
  }

  beforeEach(() => cache.set('a', value));

  it('cut short at any byte', async () => {
    const path = await onlyFile();
    const whole = await readFile(path);
    for (let length = 0; length < whole.length; length++) {
      await truncate(path, length);
      expect(await cache.get('a')).toBeUndefined();
      await writeFile(path, whole);
    }
    await truncate(path, whole.length - 1);
    await expectMiss();
  });

  it('with one bit changed, anywhere', async () => {
    const path = await onlyFile();
    const whole = await readFile(path);
    const headerEnd = 8 + Number(whole.readBigUInt64LE());
    for (let at = 0; at < whole.length; at++) {
      const damaged = Uint8Array.from(whole);
      damaged[at]! ^= 1 << (at % 8);
      await writeFile(path, damaged);
      const found = await cache.get('a');
      // a blank of the header's end may become another kind of blank
      if (at < headerEnd && found) expect(bitsOf(found)).toEqual(bitsOf(value));
      else expect(found).toBeUndefined();
    }
    await expectMiss();
  });

  it('with more behind it, with other content, or empty', async () => {
    const path = await onlyFile();
    const whole = await readFile(path);
    for (const content of [Buffer.concat([whole, Buffer.from('x')]), '', '{}', Buffer.alloc(500)]) {
      await writeFile(path, content);
      await expectMiss();
    }
  });

  it('of another key', async () => {
    const path = await onlyFile();
    await cache.set('b', subspace(4, 2, 3, 2));
    const other = (await readdir(folder)).map((name) => join(folder, name)).find((name) => name !== path)!;
    await writeFile(path, await readFile(other));
    await expectMiss();
  });

  it.each([
    ['of another version', { version: '2' }, {}],
    ['of another format', { format: 'pt' }, {}],
    ['with another window', { from: '1' }, {}],
    ['with another method', { method: 'jacobi' }, {}],
    ['with a field more or less', { key: 'b' }, {}],
    ['with u in float32', {}, { u: { dtype: 'f32' as const, shape: [4, 2], data: new Float32Array(8) } }],
    ['with u in another shape', {}, { u: { dtype: 'f64' as const, shape: [2, 4], data: value.u.data } }],
    ['with other singular values', {}, { s: { dtype: 'f64' as const, shape: [2], data: Float64Array.of(2, 1) } }],
    [
      'with a certificate that is too short',
      {},
      { certificate: { dtype: 'f64' as const, shape: [0], data: new Float64Array() } },
    ],
  ])('%s', async (_, metadata, tensors) => {
    const path = await onlyFile();
    const file = await openSafetensorsFile(path);
    const all = new Map(await Promise.all(file.names().map(async (name) => [name, await file.read(name)] as const)));
    await file.close();
    for (const [name, tensor] of Object.entries(tensors)) all.set(name, tensor);
    await writeSafetensors(path, all, { ...file.metadata, ...metadata });
    await expectMiss();
    all.delete('vt');
    await writeSafetensors(path, all, file.metadata);
    await expectMiss();
  });

  it('that is a folder, or may not be read', async () => {
    const path = await onlyFile();
    await rm(path);
    await mkdir(path);
    expect(await cache.get('a')).toBeUndefined();
    await rm(path, { recursive: true });
    await cache.set('a', value);
    await chmod(path, 0);
    // root reads everything
    if (process.getuid?.() !== 0) expect(await cache.get('a')).toBeUndefined();
  });
});

describe('a write that fails', () => {
  it('names the file and leaves nothing behind', async () => {
    await cache.set('a', subspace(2, 1, 2, 1));
    const path = await onlyFile();
    await rm(path);
    await mkdir(path);
    await expect(cache.set('a', subspace(2, 1, 2, 1))).rejects.toMatchObject({
      code: 'file-write',
      message: expect.stringContaining(path) as string,
    });
    expect(await readdir(folder)).toHaveLength(1);
  });

  it('names the file where there can be no folder', async () => {
    await mkdir(join(folder, '..'), { recursive: true });
    await writeFile(folder, 'a file');
    const attempt = cache.set('a', subspace(2, 1, 2, 1));
    await expect(attempt).rejects.toMatchObject({ code: 'file-write' });
    await expect(attempt).rejects.toThrow(/[0-9a-f]{64}\.safetensors: expected to make its folder, got E/);
    expect(await cache.get('a')).toBeUndefined();
  });
});
