/** What all benchmark suites share: how a result is written and how a task is timed. */
import { Bench } from 'tinybench';

export interface Result {
  suite: string;
  case: string;
  metric: string;
  value: number;
  unit: string;
  threads: number;
  backend: string;
}

export type Emit = (result: Result) => void;

export interface SuiteOptions {
  threads: number;
  /** Seconds to measure each case for. */
  seconds: number;
  emit: Emit;
}

/** Median seconds of one call, after warming up. */
export async function medianSeconds(task: () => unknown, seconds: number): Promise<number> {
  const bench = new Bench({ time: seconds * 1000, warmupTime: Math.min(1000, seconds * 300), iterations: 5 });
  bench.add('task', async () => {
    await task();
  });
  const [done] = await bench.run();
  const result = done!.result;
  if (!('latency' in result)) throw new Error(`benchmark: expected a result, got ${JSON.stringify(result)}`);
  return result.latency.p50 / 1000;
}
