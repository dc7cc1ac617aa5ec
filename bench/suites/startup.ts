/**
 * Start in fresh processes, in seconds: what importing each package costs, and the way to the first finished training
 * step of the 260K model, from the start of the process. Medians of as many processes as the time allows.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { benchFolder, configs } from '../configs.js';
import type { SuiteOptions } from './suite.js';

const PACKAGES = ['@milora/tensor', '@milora/tensor/gpu', '@milora/autograd', '@milora/llama', 'milora'];

const importing = (name: string): string => `
  const start = performance.now();
  await import(${JSON.stringify(name)});
  console.log(JSON.stringify({ import: performance.now() - start }));`;

/** Prints milliseconds since the process began, after each stage. */
const firstStep = (threads: number): string => `
  const { AdamW } = await import('@milora/autograd');
  const { parseLlamaConfig, randomLlama } = await import('@milora/llama');
  const { Philox, createWasmBackend, scope } = await import('@milora/tensor');
  const { inject, loraInit } = await import('milora');
  const marks = { imports: performance.now() };
  const { batch, seq, rank, model: json } = ${JSON.stringify(configs['260K'])};
  const backend = createWasmBackend({ threads: ${threads} });
  marks.backend = performance.now();
  const config = parseLlamaConfig({ model_type: 'llama', ...json }, 'configs.json');
  const model = randomLlama(config, new Philox(0), { backend });
  await inject(model, loraInit, { rank });
  const optimizer = new AdamW(model.trainable());
  marks.model = performance.now();
  const ids = new Int32Array(batch * seq);
  await scope(async () => {
    const loss = model.loss({ inputIds: ids, batch, length: seq }, ids);
    loss.backward();
    optimizer.step();
    await loss.item();
  });
  marks['first step'] = performance.now();
  console.log(JSON.stringify(marks));`;

const run = promisify(execFile);

/** What a fresh process with this code prints, the median of each number, in seconds. */
async function fresh(code: string, seconds: number): Promise<Map<string, number>> {
  const all = new Map<string, number[]>();
  const start = performance.now();
  do {
    const options = { cwd: benchFolder };
    const { stdout } = await run(process.execPath, ['--eval', `(async () => {${code}})()`], options);
    for (const [mark, ms] of Object.entries(JSON.parse(stdout) as Record<string, number>)) {
      all.set(mark, [...(all.get(mark) ?? []), ms / 1000]);
    }
  } while (performance.now() - start < seconds * 1000);
  return new Map([...all].map(([mark, times]) => [mark, times.sort((a, b) => a - b)[times.length >> 1]!]));
}

export async function startup({ threads, seconds, emit }: SuiteOptions): Promise<void> {
  const common = { suite: 'startup', unit: 's' };
  for (const name of PACKAGES) {
    for (const [metric, value] of await fresh(importing(name), seconds)) {
      emit({ ...common, case: name, metric, value, threads: 1, backend: 'host' });
    }
  }
  for (const [metric, value] of await fresh(firstStep(threads), seconds)) {
    emit({ ...common, case: 'lora 260K', metric, value, threads, backend: 'wasm' });
  }
}
