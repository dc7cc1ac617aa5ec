/** The shapes that benchmarks use: configs.json. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

export interface TrainConfig {
  batch: number;
  seq: number;
  rank: number;
  /** Hugging Face config.json fields. */
  model: Record<string, unknown> & { max_position_embeddings: number };
}

export const SIZES = ['260K', '15M', '135M'] as const;
export type Size = (typeof SIZES)[number];

/** Models for whose weights the start of an adapter is computed. */
export const INIT_SIZES = [...SIZES, '1.1B'] as const;
export type InitSize = (typeof INIT_SIZES)[number];

/** Rows and columns of a matrix. */
export type MatrixSize = readonly [rows: number, cols: number];

/** m, k, n of a product. */
export type Product = [m: number, k: number, n: number];

interface Configs extends Record<Size, TrainConfig> {
  '1.1B': Omit<TrainConfig, 'batch' | 'seq'>;
  gemm: Product[];
}

/** The bench folder: beside the source, and one folder up from the build. */
export const benchFolder = findFolder();

function findFolder(): string {
  const folders = ['./', '../'].map((path) => fileURLToPath(new URL(path, import.meta.url)));
  const found = folders.find((folder) => existsSync(`${folder}configs.json`));
  if (found === undefined) throw new Error('bench: expected configs.json in the bench folder, got none');
  return found;
}

export const configs = JSON.parse(readFileSync(`${benchFolder}configs.json`, 'utf8')) as Configs;
