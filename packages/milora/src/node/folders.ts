/**
 * Folders that are whole or absent: a new one is made under a temporary name beside its place and then moved there, so
 * that a process killed at any moment leaves the old folder or the new one.
 *
 * Replacing an existing folder takes two renames. Between them the folder is absent, but its predecessor stands beside
 * it as `.<name>.old`; `recoverFolder` puts it back.
 */
import { randomUUID } from 'node:crypto';
import { mkdir, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { MiloraError } from '../errors.js';

const predecessor = (path: string): string => join(dirname(path), `.${basename(path)}.old`);

/** Makes the folder `path` with what `fill` writes into the temporary folder that it is given. Replaces one that is there. */
export async function writeFolderAtomic(path: string, fill: (temporary: string) => Promise<void>): Promise<void> {
  const parent = dirname(path);
  await mkdir(parent, { recursive: true });
  const temporary = join(parent, `.${basename(path)}.${randomUUID()}.tmp`);
  try {
    await mkdir(temporary);
    await fill(temporary);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  await recoverFolder(path);
  const old = predecessor(path);
  if (await exists(path)) await rename(path, old);
  await rename(temporary, path);
  await rm(old, { recursive: true, force: true });
}

/** Puts back the predecessor of a folder that was about to be replaced, and clears away what a kill left unfinished. */
export async function recoverFolder(path: string): Promise<void> {
  const old = predecessor(path);
  if (await exists(old)) {
    if (await exists(path)) await rm(old, { recursive: true, force: true });
    else await rename(old, path);
  }
}

/** Removes temporary folders and files of interrupted writes from a folder that no one else writes to. */
export async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    if (/^\..*\.tmp$/.test(name)) await rm(join(folder, name), { recursive: true, force: true });
  }
}

/**
 * Refuses a place for output that already holds something.
 * @throws MiloraError `output-exists`
 */
export async function expectFree(path: string, wayOut: string): Promise<void> {
  const stats = await stat(path).catch(() => undefined);
  if (stats === undefined) return;
  if (!stats.isDirectory()) {
    throw new MiloraError('output-exists', `${path}: expected a new folder, got a file; ${wayOut}`);
  }
  if ((await readdir(path)).length > 0) {
    throw new MiloraError('output-exists', `${path}: expected a new or empty folder, got one with files; ${wayOut}`);
  }
}

export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
