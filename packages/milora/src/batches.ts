/**
 * Batches of token ids, in a seeded order, resumable from two numbers.
 *
 * Two layouts of the same content (B rows of T tokens, row-major):
 *
 * - `pad`: one example in a row, padded at the right to the longest of the batch.
 * - `pack`: as many examples in a row as fit, one after another. They cannot see each other: every token carries
 *   the window of positions that it may attend to, and positions restart in every example. Same losses and gradients
 *   as `pad`, fewer padded tokens.
 *
 *     row        a a a a b b b · ·
 *     positions  0 1 2 3 0 1 2 0 0
 *     ranges     query t of an example at [s, e): keys s … t, as [s, t + 1); padding: [0, 0)
 *     labels     the first token of every example is −100: nothing may be predicted across the seam
 *
 * Order: epoch e visits the rows in the permutation drawn by Philox(seed, e), so any batch of any epoch can be made
 * without the ones before it. Packing is done once (best fit, longest first) and only the rows are shuffled; therefore
 * every epoch has the same number of batches, which schedules need.
 */
import { Philox } from '@milora/tensor';
import { IGNORE, type TokenizedExample } from './tokenize.js';
import { MiloraError } from './errors.js';

/** One batch: B rows of T tokens. */
export interface Batch {
  /** `[B * T]`; padding holds `padId`. */
  readonly inputIds: Int32Array;
  /** `[B * T]`, not shifted; −100 where there is no loss. */
  readonly labels: Int32Array;
  /** `[B * T * 2]`: the keys that each token attends to, as (start, end) within its row, the end not included. */
  readonly ranges: Int32Array;
  /** `[B * T]`: positions for the rotary embedding, from 0 in every example. */
  readonly positions: Int32Array;
  /** B. */
  readonly batch: number;
  /** T. */
  readonly length: number;
  /** Tokens that are not padding. */
  readonly tokens: number;
  /** Tokens with a loss. */
  readonly targets: number;
  /** Indices of the examples in it, row by row. */
  readonly examples: readonly number[];
}

/** The next batch to come: batch `index` of `epoch`, both from 0. Plain data, for a checkpoint. */
export interface BatchPosition {
  epoch: number;
  index: number;
}

export interface BatchOptions {
  /** Rows in a batch (B); the last batch of an epoch may have fewer, unless `dropLast`. */
  readonly batchSize: number;
  readonly seed: number;
  /** Default `'pad'`. */
  readonly mode?: 'pad' | 'pack';
  /** Longest row. Needed for `'pack'`; with `'pad'` only a check. */
  readonly maxLength?: number;
  /** Round the rows' length up to a multiple of this. Default 1. */
  readonly padToMultiple?: number;
  /** The id in padding, which no token attends to and no loss counts. Default 0. */
  readonly padId?: number;
  /** Leave out the last batch of an epoch if it has fewer than `batchSize` rows. Default false. */
  readonly dropLast?: boolean;
  /** Default true; false keeps the examples' order (in `'pack'`, the order of the packed rows). */
  readonly shuffle?: boolean;
}

/**
 * Endless batches, epoch after epoch.
 *
 * @example
 * const batches = new BatchIterator(tokenized.examples, { batchSize: 16, seed: 1 });
 * for (let step = 0; step < 3 * batches.batchCount(); step++) {
 *   const batch = batches.nextBatch(); // three epochs
 * }
 */
export class BatchIterator {
  /** Indices of the examples in each row. */
  readonly #rows: readonly (readonly number[])[];
  readonly #examples: readonly TokenizedExample[];
  readonly #options: Required<Omit<BatchOptions, 'maxLength' | 'mode'>>;
  #position: BatchPosition = { epoch: 0, index: 0 };
  /** Order of the rows in the epoch of the current position, once needed. */
  #order: { epoch: number; rows: ArrayLike<number> } | undefined;

  /**
   * @throws MiloraError `batch-options` for a bad option, `no-examples` without examples (or an empty one), `too-long` if
   *   one exceeds maxLength, `no-batches` if `dropLast` leaves nothing
   */
  constructor(examples: readonly TokenizedExample[], options: BatchOptions) {
    const { mode = 'pad', maxLength, padToMultiple = 1, padId = 0, dropLast = false, shuffle = true } = options;
    const { batchSize, seed } = options;
    checkWhole('batchSize', batchSize, 1);
    checkWhole('padToMultiple', padToMultiple, 1);
    if (maxLength !== undefined) checkWhole('maxLength', maxLength, 1);
    if (mode !== 'pad' && mode !== 'pack') {
      throw new MiloraError('batch-options', `mode: expected "pad" or "pack", got ${JSON.stringify(mode)}`);
    }
    if (mode === 'pack' && maxLength === undefined) {
      throw new MiloraError('batch-options', 'maxLength: expected the length of a packed row, got none');
    }
    if (examples.length === 0) throw new MiloraError('no-examples', 'batches: expected at least one example, got none');
    examples.forEach(({ ids }, i) => {
      if (ids.length === 0) throw new MiloraError('no-examples', `example ${i}: expected at least one token, got none`);
      if (maxLength !== undefined && ids.length > maxLength) {
        throw new MiloraError(
          'too-long',
          `example ${i}: expected at most ${maxLength} tokens, got ${ids.length}; tokenise with the same maxLength`,
        );
      }
    });
    this.#examples = examples;
    this.#options = { batchSize, seed, padToMultiple, padId, dropLast, shuffle };
    this.#rows =
      mode === 'pack'
        ? packRows(
            examples.map(({ ids }) => ids.length),
            maxLength!,
          )
        : examples.map((_, i) => [i]);
    if (this.batchCount() === 0) {
      throw new MiloraError(
        'no-batches',
        `dropLast: expected at least ${batchSize} rows for one full batch, got ${this.#rows.length}; lower batchSize`,
      );
    }
  }

  /** Batches in an epoch, the same for every epoch. */
  batchCount(): number {
    const { batchSize, dropLast } = this.#options;
    return dropLast ? Math.floor(this.#rows.length / batchSize) : Math.ceil(this.#rows.length / batchSize);
  }

  /** What `nextBatch` returns next. */
  position(): BatchPosition {
    return { ...this.#position };
  }

  /**
   * Continues from a position, exactly as if the batches before it had been taken. The examples and options must be
   * the same as those the position comes from.
   *
   * @throws MiloraError `batch-position` if there is no such batch
   */
  seek({ epoch, index }: BatchPosition): void {
    const count = this.batchCount();
    if (!Number.isInteger(epoch) || epoch < 0 || !Number.isInteger(index) || index < 0 || index >= count) {
      throw new MiloraError(
        'batch-position',
        `seek: expected an epoch ≥ 0 and an index in [0, ${count}), got epoch ${epoch}, index ${index}; is it the same data?`,
      );
    }
    this.#position = { epoch, index };
  }

  /** The batch at the current position; moves on to the next one. */
  nextBatch(): Batch {
    const { epoch, index } = this.#position;
    const { batchSize } = this.#options;
    const order = this.#orderOf(epoch);
    const rows: (readonly number[])[] = [];
    for (let i = index * batchSize; i < Math.min((index + 1) * batchSize, order.length); i++) {
      rows.push(this.#rows[order[i]!]!);
    }
    this.#position = index + 1 < this.batchCount() ? { epoch, index: index + 1 } : { epoch: epoch + 1, index: 0 };
    return this.#layOut(rows);
  }

  /** The batches from the current position to the end of its epoch. */
  *[Symbol.iterator](): Generator<Batch, void, void> {
    const { epoch } = this.#position;
    while (this.#position.epoch === epoch) yield this.nextBatch();
  }

  #orderOf(epoch: number): ArrayLike<number> {
    if (this.#order?.epoch !== epoch) {
      const count = this.#rows.length;
      const rows = this.#options.shuffle
        ? new Philox(this.#options.seed, epoch).permutation(count)
        : Array.from({ length: count }, (_, i) => i);
      this.#order = { epoch, rows };
    }
    return this.#order!.rows;
  }

  #layOut(rows: readonly (readonly number[])[]): Batch {
    const { padId, padToMultiple } = this.#options;
    const lengthOf = (row: readonly number[]): number => row.reduce((sum, i) => sum + this.#examples[i]!.ids.length, 0);
    const longest = Math.max(...rows.map(lengthOf));
    const length = Math.ceil(longest / padToMultiple) * padToMultiple;
    const size = rows.length * length;

    const inputIds = new Int32Array(size).fill(padId);
    const labels = new Int32Array(size).fill(IGNORE);
    const ranges = new Int32Array(size * 2);
    const positions = new Int32Array(size);
    let tokens = 0;
    let targets = 0;
    rows.forEach((row, r) => {
      let start = 0;
      for (const i of row) {
        const example = this.#examples[i]!;
        const n = example.ids.length;
        const at = r * length + start;
        inputIds.set(example.ids, at);
        labels.set(example.labels, at);
        labels[at] = IGNORE;
        for (let t = 0; t < n; t++) {
          positions[at + t] = t;
          ranges[2 * (at + t)] = start;
          ranges[2 * (at + t) + 1] = start + t + 1;
          if (labels[at + t] !== IGNORE) targets++;
        }
        start += n;
        tokens += n;
      }
    });
    const examples = rows.flat();
    return { inputIds, labels, ranges, positions, batch: rows.length, length, tokens, targets, examples };
  }
}

/**
 * Distributes examples over rows of `capacity` tokens: longest first, each into the fullest row that has room (best fit
 * decreasing, at most 11/9 of the fewest rows possible). Equal lengths keep their order, so the result is fixed.
 */
function packRows(lengths: readonly number[], capacity: number): number[][] {
  const longestFirst = lengths.map((_, i) => i).sort((a, b) => lengths[b]! - lengths[a]! || a - b);
  const rows: number[][] = [];
  /** Rows by the room they have left. */
  const byRoom: number[][][] = Array.from({ length: capacity + 1 }, () => []);
  for (const i of longestFirst) {
    const length = lengths[i]!;
    let room = length;
    while (room < capacity && byRoom[room]!.length === 0) room++;
    let row = byRoom[room]!.pop();
    if (row === undefined) rows.push((row = []));
    row.push(i);
    byRoom[room - length]!.push(row);
  }
  return rows;
}

function checkWhole(name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least) {
    throw new MiloraError('batch-options', `${name}: expected a whole number ≥ ${least}, got ${value}`);
  }
}
