/** Reading the small files that stand beside a model's weights, with messages that name them. */
import { readFile, stat } from 'node:fs/promises';
import { LlamaError } from '../errors.js';

export type PathKind = 'file' | 'directory' | 'absent';

export async function kindOf(path: string): Promise<PathKind> {
  const stats = await stat(path).catch(ifAbsent);
  return stats === undefined ? 'absent' : stats.isDirectory() ? 'directory' : 'file';
}

/** The text of a file, undefined when there is no such file. */
export async function readTextIfPresent(path: string): Promise<string | undefined> {
  return readFile(path, 'utf8').catch(ifAbsent);
}

/**
 * The parsed content of a JSON file, undefined when there is no such file.
 *
 * @throws LlamaError `json` when it is not JSON
 */
export async function readJsonIfPresent(path: string): Promise<unknown> {
  const text = await readTextIfPresent(path);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new LlamaError('json', `${path}: expected JSON, got ${text === '' ? 'an empty file' : reason}`, {
      cause: error,
    });
  }
}

function ifAbsent(error: NodeJS.ErrnoException): undefined {
  if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return undefined;
  throw error;
}
