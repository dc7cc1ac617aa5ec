/** Data files from disk (Node): reads a file as UTF-8 and hands its text to `parseDataset`. */
import { readdir, readFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { type Dataset, parseDataset, type ParseOptions } from '../dataset.js';
import { MiloraError } from '../errors.js';
import { didYouMean } from '../suggest.js';

/**
 * Reads a data file: JSON Lines, a JSON array, or plain text (`.txt`, `.md`).
 *
 * @throws MiloraError `data-file` if it cannot be read or is not UTF-8, and what `parseDataset` throws
 *
 * @example
 * const { examples, format } = await readDataset('data/train.jsonl');
 */
export async function readDataset(path: string, options: Omit<ParseOptions, 'name'> = {}): Promise<Dataset> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const siblings = await readdir(dirname(path)).catch(() => []);
    const got =
      code === 'ENOENT'
        ? `no such file${didYouMean(basename(path), siblings)}`
        : code === 'EISDIR'
          ? 'a folder; name a file in it'
          : message;
    throw new MiloraError('data-file', `${path}: expected a data file, got ${got}`, { cause });
  }
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new MiloraError('data-file', `${path}: expected text in UTF-8, got other bytes; convert it to UTF-8`, {
      cause,
    });
  }
  return parseDataset(text, { ...options, name: path });
}
