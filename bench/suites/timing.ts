/** The one way that everything here is timed, peers included. */
import { Bench } from 'tinybench';

/** Median seconds of one call, after warming up; `about` is a first guess at it. */
export async function medianSeconds(task: () => unknown, seconds: number, about: number): Promise<number> {
  const isLong = about > seconds / 3;
  const bench = new Bench({
    time: seconds * 1000,
    warmupTime: isLong ? 1 : Math.min(1000, seconds * 300),
    warmupIterations: 1,
    iterations: isLong ? 3 : 5,
  });
  bench.add('task', async () => {
    await task();
  });
  const [done] = await bench.run();
  const result = done!.result;
  if (!('latency' in result)) throw new Error(`benchmark: expected a result, got ${JSON.stringify(result)}`);
  return result.latency.p50 / 1000;
}
