/**
 * Singular subspaces kept in a folder: one safetensors file for each key, named after the key's hash.
 *
 *     u [m, r], s [r], vt [r, n], certificate [4]    f64, so that every bit returns, infinities and NaN too
 *     __metadata__                                   format, version, key, from, method, verdict, digest
 *
 * A file counts only if the key in it is the one asked for and its digest is that of its contents. Anything else, such as a
 * file that was cut short, changed or written by another version, is as good as absent: the result is computed again and the
 * file replaced. Files are replaced whole, so that any number of processes may read and write the same key.
 */
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { TensorError } from '../errors.js';
import type { HostTensor } from '../host.js';
import type { Matrix } from '../linalg/matrix.js';
import type { Certificate, Subspace, SubspaceCache } from '../linalg/subspace.js';
import { encodeSafetensors } from '../safetensors.js';
import { writeFileAtomic } from './files.js';
import { openSafetensorsFile } from './safetensors.js';

const FORMAT = 'milora-subspace';
/** Raise it when what a file means changes. */
const VERSION = '1';

/** Everything in a file but its digest. */
interface Entry {
  tensors: Record<'u' | 's' | 'vt' | 'certificate', HostTensor>;
  metadata: Record<'format' | 'version' | 'key' | 'from' | 'method' | 'verdict', string>;
}

/**
 * A cache in a folder, which the first write makes. It only grows; files, and the folder, may be deleted at any time.
 *
 * `get` never throws: what cannot be read is absent. `set` throws `file-write`, naming the file, when the disk is full or the
 * folder may not be written; the caller has the result all the same and may go on without the cache, as `inject` does.
 *
 * @example
 * const cache = openSubspaceCache('svd');
 * const { s } = await minorSubspace(weight, 8, { cache }); // the second time from the disk
 */
export function openSubspaceCache(folder: string): SubspaceCache {
  const pathOf = (key: string): string => join(folder, `${createHash('sha256').update(key).digest('hex')}.safetensors`);
  return {
    async get(key) {
      const entry = await readEntry(pathOf(key), key).catch(() => undefined);
      return entry && subspaceOf(entry);
    },
    async set(key, value) {
      const path = pathOf(key);
      const entry = entryOf(key, value);
      const chunks = encodeSafetensors(Object.entries(entry.tensors), { ...entry.metadata, digest: digestOf(entry) });
      try {
        await mkdir(folder, { recursive: true });
      } catch (cause) {
        const reason = (cause as NodeJS.ErrnoException).code;
        throw new TensorError('file-write', `${path}: expected to make its folder, got ${reason}`, { cause });
      }
      await writeFileAtomic(path, chunks);
    },
  };
}

function entryOf(key: string, { from, u, s, vt, certificate }: Subspace): Entry {
  const { method, residual, orthogonality, gap, angle, verdict } = certificate;
  const tensor = (shape: readonly number[], data: Float64Array): HostTensor => ({ dtype: 'f64', shape, data });
  return {
    tensors: {
      u: tensor([u.rows, u.cols], u.data),
      s: tensor([s.length], s),
      vt: tensor([vt.rows, vt.cols], vt.data),
      certificate: tensor([4], Float64Array.of(residual, orthogonality, gap, angle)),
    },
    metadata: { format: FORMAT, version: VERSION, key, from: String(from), method, verdict },
  };
}

/** Reads a file; undefined, or any error, unless it is whole and holds `key`. */
async function readEntry(path: string, key: string): Promise<Entry | undefined> {
  const file = await openSafetensorsFile(path);
  try {
    const { digest, ...rest } = file.metadata;
    const metadata = rest as Entry['metadata'];
    // before anything large is read
    if (metadata.format !== FORMAT || metadata.version !== VERSION || metadata.key !== key) return undefined;
    const tensors = {
      u: await file.read('u'),
      s: await file.read('s'),
      vt: await file.read('vt'),
      certificate: await file.read('certificate'),
    };
    const entry = { tensors, metadata };
    return digest === digestOf(entry) && fits(entry) ? entry : undefined;
  } finally {
    await file.close();
  }
}

/** SHA-256 over every field. */
function digestOf({ tensors, metadata }: Entry): string {
  const hash = createHash('sha256');
  const { format, version, key, from, method, verdict } = metadata;
  const { u, s, vt, certificate } = tensors;
  const all = [u, s, vt, certificate];
  hash.update(JSON.stringify([format, version, key, from, method, verdict, all.map(({ shape }) => shape)]));
  for (const { data } of all) hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return hash.digest('hex');
}

function fits({ tensors, metadata }: Entry): boolean {
  const { u, s, vt, certificate } = tensors;
  const [r] = s.shape;
  return (
    Object.values(tensors).every(({ dtype }) => dtype === 'f64') &&
    s.shape.length === 1 &&
    u.shape.length === 2 &&
    u.shape[1] === r &&
    vt.shape.length === 2 &&
    vt.shape[0] === r &&
    certificate.data.length === 4 &&
    /^\d+$/.test(metadata.from)
  );
}

function subspaceOf({ tensors, metadata }: Entry): Subspace {
  const matrix = ({ shape: [rows, cols], data }: HostTensor): Matrix => ({
    rows: rows!,
    cols: cols!,
    data: data as Float64Array,
  });
  const [residual, orthogonality, gap, angle] = tensors.certificate.data as Float64Array;
  return {
    from: Number(metadata.from),
    u: matrix(tensors.u),
    s: tensors.s.data as Float64Array,
    vt: matrix(tensors.vt),
    certificate: {
      method: metadata.method as Certificate['method'],
      residual: residual!,
      orthogonality: orthogonality!,
      gap: gap!,
      angle: angle!,
      verdict: metadata.verdict as Certificate['verdict'],
    },
  };
}
