/** Safetensors on the disk: single files, checkpoint folders with or without shards, and atomic writing. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { TensorError } from '../errors.js';
import type { HostTensor } from '../host.js';
import {
  encodeSafetensors,
  openSafetensors,
  openShardedSafetensors,
  type ClosableTensorSource,
  type SafetensorsFile,
} from '../safetensors.js';
import { fileSource, writeFileAtomic } from './files.js';

/** Opens a safetensors file; `close` it when done. Throws as `fileSource` and `openSafetensors` do. */
export async function openSafetensorsFile(path: string): Promise<SafetensorsFile> {
  const source = await fileSource(path);
  try {
    return await openSafetensors(source);
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** Writes a safetensors file atomically. Throws as `encodeSafetensors` and `writeFileAtomic` do. */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<readonly [string, HostTensor]>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  await writeFileAtomic(path, encodeSafetensors(tensors, metadata));
}

/**
 * Opens the checkpoint of a folder: `<stem>.safetensors`, or the shards of `<stem>.safetensors.index.json`; `close` it when
 * done. Throws `checkpoint-missing` when the folder has neither, and as `openSafetensors` and `openShardedSafetensors` do.
 */
export async function openSafetensorsFolder(folder: string, stem = 'model'): Promise<ClosableTensorSource> {
  const single = join(folder, `${stem}.safetensors`);
  const index = `${single}.index.json`;
  if (await exists(single)) return openSafetensorsFile(single);
  if (!(await exists(index))) {
    throw new TensorError(
      'checkpoint-missing',
      `${folder}: expected ${stem}.safetensors or ${stem}.safetensors.index.json, got neither`,
    );
  }
  return openShardedSafetensors(await readJson(index), index, (file) => fileSource(join(folder, file)));
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}

async function readJson(path: string): Promise<unknown> {
  const text = await readFile(path, 'utf8');
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new TensorError('safetensors-index', `${path}: expected JSON, got ${(cause as Error).message}`, { cause });
  }
}
