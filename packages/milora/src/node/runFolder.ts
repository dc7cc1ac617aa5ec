/**
 * The folder of a training run:
 *
 *     config.json        the run's settings, fully resolved, and a fingerprint of its training data
 *     metrics.jsonl      one event per line: steps, validations, the summary at the end
 *     checkpoints/last   to resume from
 *     checkpoints/best   of the lowest validation loss
 *     adapter/ or model/ the result
 *
 * The folder appears with its first checkpoint in it, and every later change replaces a whole file or folder, so a run
 * that is killed at any moment can be resumed. Metrics are cut back to the checkpoint then: no step is in them twice.
 */
import { writeFileAtomic } from '@milora/tensor/node';
import { appendFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { MiloraError } from '../errors.js';
import { readCheckpoint, writeCheckpoint } from './checkpoint.js';
import type { Checkpoint } from './checkpoint.js';
import { exists, expectFree, recoverFolder, removeLeftovers, writeFolderAtomic } from './folders.js';

export const RUN_VERSION = 1;
const CONFIG = 'config.json';
const METRICS = 'metrics.jsonl';
const CHECKPOINTS = 'checkpoints';

export type RunKind = 'finetune' | 'pretrain';

/** What `config.json` of a run holds. */
export interface RunConfig<Options = Record<string, unknown>> {
  version: number;
  kind: RunKind;
  /** Name of the backend that the run began on. */
  backend: string;
  /** Every option of the run, with its value in effect. */
  options: Options;
  /** Fingerprint of the tokenised training data: the same file, tokenizer and settings give the same. */
  data: string;
}

/** One line of `metrics.jsonl`. */
export interface MetricsEvent {
  type: string;
  step: number;
  [field: string]: unknown;
}

export type CheckpointName = 'last' | 'best';

export class RunFolder {
  private constructor(
    readonly path: string,
    readonly config: RunConfig,
  ) {}

  /**
   * Makes the folder with its first checkpoint.
   * @throws MiloraError `output-exists` unless there is nothing at `path`, or an empty folder
   */
  static async create(path: string, config: Omit<RunConfig, 'version'>, first: Checkpoint): Promise<RunFolder> {
    await expectFree(path, `give another folder with --out, or go on with --resume ${path}`);
    const full: RunConfig = { version: RUN_VERSION, ...config };
    await writeFolderAtomic(path, async (temporary) => {
      await writeFileAtomic(join(temporary, CONFIG), `${JSON.stringify(full, null, 2)}\n`);
      await writeFileAtomic(join(temporary, METRICS), '');
      await writeCheckpoint(join(temporary, CHECKPOINTS, 'last'), first);
    });
    return new RunFolder(path, full);
  }

  /**
   * Opens a run.
   * @throws MiloraError `run-folder` when there is none
   */
  static async open(path: string): Promise<RunFolder> {
    await recoverFolder(path);
    const file = join(path, CONFIG);
    let config: Partial<RunConfig>;
    try {
      config = JSON.parse(await readFile(file, 'utf8')) as Partial<RunConfig>;
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      const got = code === 'ENOENT' || code === 'ENOTDIR' ? 'none' : message;
      throw new MiloraError('run-folder', `${path}: expected the folder of a run with ${CONFIG}, got ${got}`, {
        cause,
      });
    }
    if (config.kind !== 'finetune' && config.kind !== 'pretrain') {
      throw new MiloraError('run-folder', `${file}: expected the settings of a run, got another file`);
    }
    if (config.version !== RUN_VERSION) {
      throw new MiloraError('run-folder', `${file}: expected version ${RUN_VERSION}, got ${String(config.version)}`);
    }
    return new RunFolder(path, config as RunConfig);
  }

  /** Whether there is a run at `path`. */
  static async isRun(path: string): Promise<boolean> {
    return (await exists(join(path, CONFIG))) && exists(join(path, CHECKPOINTS));
  }

  /** Folder of the result: `adapter` or `model`. */
  get result(): string {
    return join(this.path, this.config.kind === 'finetune' ? 'adapter' : 'model');
  }

  async append(event: MetricsEvent): Promise<void> {
    await appendFile(join(this.path, METRICS), `${JSON.stringify(event)}\n`);
  }

  /** All events; a line that a kill cut short is left out. */
  async metrics(): Promise<MetricsEvent[]> {
    const text = await readFile(join(this.path, METRICS), 'utf8');
    const events: MetricsEvent[] = [];
    for (const line of text.split('\n')) {
      try {
        if (line !== '') events.push(JSON.parse(line) as MetricsEvent);
      } catch {
        break;
      }
    }
    return events;
  }

  /** Cuts the metrics back to what a checkpoint at `step` has seen. One at step 0 is older than the first validation. */
  async rewind(step: number): Promise<void> {
    const seen = (event: MetricsEvent): boolean =>
      step > 0 && event.step <= step && (event.type === 'step' || event.type === 'eval');
    const lines = (await this.metrics()).filter(seen).map((event) => `${JSON.stringify(event)}\n`);
    await writeFileAtomic(join(this.path, METRICS), lines.join(''));
    await removeLeftovers(this.path);
    await removeLeftovers(join(this.path, CHECKPOINTS));
  }

  async save(name: CheckpointName, checkpoint: Checkpoint): Promise<void> {
    await writeCheckpoint(join(this.path, CHECKPOINTS, name), checkpoint);
  }

  /** A checkpoint, undefined when it was never written. */
  async load(name: CheckpointName): Promise<Checkpoint | undefined> {
    return readCheckpoint(join(this.path, CHECKPOINTS, name));
  }

  /**
   * The checkpoint to resume from.
   * @throws MiloraError `run-folder` when it is gone
   */
  async last(): Promise<Checkpoint> {
    const checkpoint = await this.load('last');
    if (checkpoint) return checkpoint;
    throw new MiloraError(
      'run-folder',
      `${this.path}: expected ${CHECKPOINTS}/last to resume from, got none; start anew`,
    );
  }
}
