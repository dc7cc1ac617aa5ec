/**
 * A process that writes and reads one key of a cache: `cacheWorker.ts FOLDER SEED ROUNDS`. Every result it reads has to be
 * one that some process wrote whole: all its numbers are the writer's seed.
 */
import { openSubspaceCache } from '@milora/tensor/node';

const [folder, seed, rounds] = process.argv.slice(2);
const cache = openSubspaceCache(folder!);
const filled = (n: number): Float64Array => new Float64Array(n).fill(Number(seed));

let misses = 0;
for (let i = 0; i < Number(rounds); i++) {
  await cache.set('shared', {
    from: Number(seed),
    u: { rows: 500, cols: 8, data: filled(4000) },
    s: filled(8),
    vt: { rows: 8, cols: 300, data: filled(2400) },
    certificate: {
      method: 'jacobi',
      residual: Number(seed),
      orthogonality: 0,
      gap: Infinity,
      angle: 0,
      verdict: 'determined',
    },
  });
  const found = await cache.get('shared');
  if (!found) misses++;
  else if (![found.u.data, found.s, found.vt.data].every((data) => data.every((x) => x === found.from))) {
    throw new Error(`expected one writer's numbers, got those of several: ${found.from}`);
  }
}
console.log(misses);
