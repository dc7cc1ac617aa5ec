/** `--svd-cache`: where decompositions are kept, so that the next run on the same base model starts at once. */
import type { SubspaceCache } from '@milora/tensor';
import { openSubspaceCache } from '@milora/tensor/node';
import { isAbsolute, join } from 'node:path';
import { MiloraError } from '../errors.js';
import type { OptionTable } from './options.js';
import type { Io } from './verb.js';

export const svdCacheOption = {
  'svd-cache': {
    type: 'text',
    value: 'DIR',
    help: "keeps decompositions for other runs, or none (default: milora/svd in the user's cache folder)",
  },
} as const satisfies OptionTable;

/** Elements of a weight below which its decomposition takes less time than is worth a file. */
const WORTHWHILE = 256 * 256;

/** The cache that the option asks for; undefined for none. */
export function svdCacheOf(folder: string | undefined, io: Io): SubspaceCache | undefined {
  if (folder === '') throw new MiloraError('usage', '--svd-cache: expected a folder, or none, got ""');
  const place = folder ?? (io.cacheFolder && join(io.cacheFolder, 'svd'));
  if (place === undefined || place === 'none') return undefined;
  const { get, set } = openSubspaceCache(place);
  return {
    get,
    async set(key, value) {
      if (value.u.rows * value.vt.cols >= WORTHWHILE) await set(key, value);
    },
  };
}

/**
 * The user's folder for what may be deleted at any time: `milora` in $XDG_CACHE_HOME, or where the system has such things.
 * Undefined where the user has no home.
 */
export function userCacheFolder(
  environment: Readonly<Record<string, string | undefined>>,
  platform: NodeJS.Platform,
  home: () => string,
): string | undefined {
  const { XDG_CACHE_HOME: given, LOCALAPPDATA: local } = environment;
  // the XDG specification: a relative path is to be ignored
  if (given && isAbsolute(given)) return join(given, 'milora');
  if (platform === 'win32' && local) return join(local, 'milora');
  try {
    return join(home(), ...(platform === 'darwin' ? ['Library', 'Caches'] : ['.cache']), 'milora');
  } catch {
    return undefined;
  }
}
