/**
 * Models and data that are too large, or not ours, to stand in this repository: a folder `shared` beside it, where it
 * exists. Tests that need it are skipped, and named as skipped, where it does not.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../../../shared', import.meta.url));

/** A path below the shared folder, undefined when nothing is there. */
export function sharedPath(...parts: string[]): string | undefined {
  const path = join(ROOT, ...parts);
  return existsSync(path) ? path : undefined;
}

/** A JSON file below the shared folder; inside tests that `sharedPath` allows. */
export function sharedJson<T>(...parts: string[]): T {
  return JSON.parse(readFileSync(join(ROOT, ...parts), 'utf8')) as T;
}
