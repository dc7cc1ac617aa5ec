import { createHash } from 'node:crypto';
import { expect, it } from 'vitest';
import { fingerprint } from '../src/hash.js';
import type { HostTensor } from '../src/host.js';

const sha256 = (...parts: (string | Uint8Array)[]): Buffer =>
  parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();

it('a fingerprint is SHA-256 of dtype and shape and of the SHA-256 of the bytes', async () => {
  const host: HostTensor = { dtype: 'f32', shape: [2, 1], data: Float32Array.of(1, -0) };
  const bytes = sha256(new Uint8Array(host.data.buffer));
  expect(await fingerprint(host)).toBe(`sha256:${sha256('f32[2,1]', bytes).toString('hex')}`);
  expect(await fingerprint({ dtype: 'f32', shape: [0], data: new Float32Array(0) })).toBe(
    `sha256:${sha256('f32[0]').toString('hex')}`,
  );
});

it('it covers all pieces of a large tensor', async () => {
  const data = new Float64Array(2 ** 23 + 3);
  data[2 ** 23 + 2] = 1;
  const bytes = new Uint8Array(data.buffer);
  const pieces = [sha256(bytes.subarray(0, 2 ** 26)), sha256(bytes.subarray(2 ** 26))];
  expect(await fingerprint({ dtype: 'f64', shape: [data.length], data })).toBe(
    `sha256:${sha256(`f64[${data.length}]`, ...pieces).toString('hex')}`,
  );
});

it('it tells values, dtypes and shapes apart, and sees only its part of the memory', async () => {
  const data = Uint16Array.of(9, 1, 2, 3, 4, 9);
  const part: HostTensor = { dtype: 'bf16', shape: [2, 2], data: data.subarray(1, 5) };
  const shared = new Uint16Array(new SharedArrayBuffer(8));
  shared.set(part.data);
  const same = await Promise.all(
    [part, { ...part, data: Uint16Array.of(1, 2, 3, 4) }, { ...part, data: shared }].map(fingerprint),
  );
  expect(new Set(same).size).toBe(1);
  const other = await Promise.all(
    [
      part,
      { ...part, dtype: 'f16' as const },
      { ...part, shape: [4] },
      { ...part, shape: [1, 4] },
      { ...part, data: Uint16Array.of(1, 2, 3, 5) },
    ].map(fingerprint),
  );
  expect(new Set(other).size).toBe(other.length);
});
