/** The shapes that benchmarks use: configs.json. */
import { readFileSync } from 'node:fs';

export interface TrainConfig {
  batch: number;
  seq: number;
  rank: number;
  /** Hugging Face config.json fields. */
  model: Record<string, unknown>;
}

interface Configs extends Record<'260K' | '15M' | '135M', TrainConfig> {
  /** m, k, n of products. */
  gemm: [number, number, number][];
}

// beside the source, and one folder up from the build
const here = ['./configs.json', '../configs.json'].map((path) => new URL(path, import.meta.url));

function read(): Configs {
  for (const url of here) {
    try {
      return JSON.parse(readFileSync(url, 'utf8')) as Configs;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  throw new Error('bench: expected configs.json in the bench folder, got none');
}

export const configs = read();
