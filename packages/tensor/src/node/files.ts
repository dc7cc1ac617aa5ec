/**
 * Files: random access for reading, and writing that either replaces a file completely or leaves it as it was.
 */
import { randomUUID } from 'node:crypto';
import { open, rename, stat, unlink, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { TensorError } from '../errors.js';
import type { ByteSource } from '../host.js';

/** An open file. */
export interface FileSource extends ByteSource {
  close(): Promise<void>;
}

/** The most bytes asked of one system call; the systems' own limits are near 2^31. */
const MOST_PER_CALL = 2 ** 30;

/**
 * Opens a file for reading by range; `close` it when done. Throws `file-open` when there is no such file or it cannot be
 * read. Its `read` throws `file-truncated` when the range ends beyond the file and `file-closed` after `close`.
 */
export async function fileSource(path: string): Promise<FileSource> {
  let handle: FileHandle;
  let size: number;
  try {
    handle = await open(path, 'r');
  } catch (cause) {
    throw new TensorError('file-open', `${path}: expected a file that can be read, got ${reason(cause)}`, { cause });
  }
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new TensorError('file-open', `${path}: expected a file, got a folder or a device`);
    size = stats.size;
  } catch (error) {
    await handle.close();
    throw error;
  }

  let closed = false;
  return {
    name: path,
    size,
    async read(offset, length) {
      if (closed) throw new TensorError('file-closed', `${path}: expected an open file, got one that was closed`);
      const out = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        const wanted = Math.min(length - done, MOST_PER_CALL);
        const { bytesRead } = await handle.read(out, done, wanted, offset + done);
        if (bytesRead === 0) {
          const got = `${done} before the file's end`;
          throw new TensorError('file-truncated', `${path}: expected ${length} bytes from ${offset} on, got ${got}`);
        }
        done += bytesRead;
      }
      return out;
    },
    async close() {
      if (closed) return;
      closed = true;
      await handle.close();
    },
  };
}

/**
 * Writes a file so that it is, at every moment and after a crash, either the old one or the new one: a temporary file in
 * the same folder is written, flushed to the disk and renamed. Throws `file-write` and leaves the old file as it was.
 */
export async function writeFileAtomic(path: string, data: string | Uint8Array | readonly Uint8Array[]): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${randomUUID()}.tmp`);
  const chunks = typeof data === 'string' ? [Buffer.from(data)] : data instanceof Uint8Array ? [data] : data;
  let handle: FileHandle | undefined;
  try {
    handle = await open(temporary, 'wx');
    const mode = await modeOf(path);
    if (mode !== undefined) await handle.chmod(mode);
    for (const chunk of chunks) await writeAll(handle, chunk);
    await handle.sync();
    await handle.close();
    handle = undefined;
    await rename(temporary, path);
  } catch (cause) {
    // the first error is the one to report
    await handle?.close().catch(() => undefined);
    await unlink(temporary).catch(() => undefined);
    throw new TensorError('file-write', `${path}: expected to write the file, got ${reason(cause)}`, { cause });
  }
  await syncFolder(folder);
}

/** The permissions of an existing file, which its successor keeps. */
async function modeOf(path: string): Promise<number | undefined> {
  const stats = await stat(path).catch(() => undefined);
  return stats && stats.mode & 0o777;
}

async function writeAll(handle: FileHandle, chunk: Uint8Array): Promise<void> {
  let done = 0;
  while (done < chunk.length) {
    const { bytesWritten } = await handle.write(chunk, done, Math.min(chunk.length - done, MOST_PER_CALL));
    done += bytesWritten;
  }
}

/** Makes a rename survive a crash. Some systems cannot open a folder; the rename is atomic there all the same. */
async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, 'r');
    await handle.sync().finally(() => handle.close());
  } catch {
    // nothing to undo and nothing lost
  }
}

function reason(cause: unknown): string {
  return (cause as NodeJS.ErrnoException).code ?? (cause as Error).message;
}
