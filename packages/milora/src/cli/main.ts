#!/usr/bin/env node
/** The `milora` command: connects `command.ts` to the process. Ctrl-C once ends the work in order, twice at once. */
import { createInterface } from 'node:readline';
import { homedir } from 'node:os';
import { main } from './command.js';
import { userCacheFolder } from './svdCache.js';
import { INTERRUPTED } from './verb.js';

const interrupt = new AbortController();
const cacheFolder = userCacheFolder(process.env, process.platform, homedir);
process.on('SIGINT', () => {
  if (interrupt.signal.aborted) process.exit(INTERRUPTED);
  interrupt.abort();
});
// the reader of a pipe may leave before the end
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

process.exitCode = await main(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  isTTY: process.stdout.isTTY,
  columns: process.stdout.columns,
  lines: () => {
    const input = createInterface({ input: process.stdin });
    interrupt.signal.addEventListener('abort', () => input.close());
    return input;
  },
  signal: interrupt.signal,
  ...(cacheFolder !== undefined && { cacheFolder }),
});
