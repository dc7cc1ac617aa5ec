import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Batch, BatchIterator, type BatchOptions } from '../src/batches.js';
import { IGNORE, type TokenizedExample } from '../src/tokenize.js';

/** Example i of length n: tokens 1000 i + 1 … 1000 i + n, so that a token names its example and place. */
const exampleOf = (i: number, n: number, masked: number): TokenizedExample => {
  const ids = Int32Array.from({ length: n }, (_, t) => 1000 * i + 1 + t);
  return { ids, labels: ids.map((id, t) => (t < masked ? IGNORE : id)), truncated: false };
};

const LONGEST = 12;

const data = fc
  .array(fc.tuple(fc.integer({ min: 1, max: LONGEST }), fc.nat(LONGEST)), { minLength: 1, maxLength: 25 })
  .map((sizes) => sizes.map(([n, masked], i) => exampleOf(i, n, Math.min(masked, n))));

const optionsOf = (mode: 'pad' | 'pack'): fc.Arbitrary<BatchOptions> =>
  fc.record({
    mode: fc.constant(mode),
    batchSize: fc.integer({ min: 1, max: 5 }),
    seed: fc.nat(),
    maxLength: fc.integer({ min: LONGEST, max: 3 * LONGEST }),
    padToMultiple: fc.constantFrom(1, 4, 8),
    padId: fc.constant(-7),
    shuffle: fc.boolean(),
  });
const anyOptions = fc.oneof(optionsOf('pad'), optionsOf('pack'));

const runs = { numRuns: 300 };

const take = (batches: BatchIterator, count: number): Batch[] =>
  Array.from({ length: count }, () => batches.nextBatch());

/** One entry for each token that is not padding: where it sits and what it holds. */
function* tokensOf(batch: Batch) {
  for (let at = 0; at < batch.batch * batch.length; at++) {
    const [start, end] = [batch.ranges[2 * at]!, batch.ranges[2 * at + 1]!];
    if (end > start) {
      const column = at % batch.length;
      yield {
        row: at - column,
        column,
        start,
        end,
        id: batch.inputIds[at]!,
        label: batch.labels[at]!,
        position: batch.positions[at]!,
      };
    }
  }
}

describe.each(['pad', 'pack'] as const)('BatchIterator, mode %s', (mode) => {
  it('visits every token of every example once an epoch', () => {
    fc.assert(
      fc.property(data, optionsOf(mode), (examples, options) => {
        const batches = new BatchIterator(examples, options);
        for (let epoch = 0; epoch < 2; epoch++) {
          const seen = take(batches, batches.batchCount());
          const ids = seen.flatMap((batch) => [...tokensOf(batch)].map((token) => token.id));
          const all = examples.flatMap((example) => [...example.ids]);
          expect(ids.sort((a, b) => a - b)).toEqual(all.sort((a, b) => a - b));
          const visited = seen.flatMap((batch) => batch.examples);
          expect(visited.sort((a, b) => a - b)).toEqual(examples.map((_, i) => i));
          expect(batches.position()).toEqual({ epoch: epoch + 1, index: 0 });
        }
      }),
      runs,
    );
  });

  it('lets a token see its own example up to itself and nothing else', () => {
    fc.assert(
      fc.property(data, optionsOf(mode), (examples, options) => {
        const batches = new BatchIterator(examples, options);
        for (const batch of batches) {
          for (const { row, column, start, end, id, position } of tokensOf(batch)) {
            expect(end).toBe(column + 1);
            expect(position).toBe(column - start);
            // The keys in the window are exactly the tokens of this example up to this one.
            const first = id - ((id - 1) % 1000);
            const keys = [...batch.inputIds.subarray(row + start, row + end)];
            expect(keys).toEqual(Array.from({ length: id - first + 1 }, (_, t) => first + t));
          }
        }
      }),
      runs,
    );
  });

  it('keeps the labels, except at the first token of an example; padding is inert', () => {
    fc.assert(
      fc.property(data, optionsOf(mode), (examples, options) => {
        for (const batch of new BatchIterator(examples, options)) {
          let tokens = 0;
          let targets = 0;
          for (const { id, label, position } of tokensOf(batch)) {
            tokens++;
            if (label !== IGNORE) targets++;
            const example = examples[Math.floor((id - 1) / 1000)]!;
            expect(label).toBe(position === 0 ? IGNORE : example.labels[position]);
          }
          expect([batch.tokens, batch.targets]).toEqual([tokens, targets]);
          batch.inputIds.forEach((id, at) => {
            if (id === -7) {
              const inert = [batch.labels[at], batch.positions[at], batch.ranges[2 * at], batch.ranges[2 * at + 1]];
              expect(inert).toEqual([IGNORE, 0, 0, 0]);
            }
          });
          expect(batch.inputIds.filter((id) => id === -7)).toHaveLength(batch.batch * batch.length - tokens);
        }
      }),
      runs,
    );
  });
});

describe('BatchIterator', () => {
  it('continues from a position as if it had never stopped', () => {
    fc.assert(
      fc.property(data, anyOptions, fc.nat(20), (examples, options, before) => {
        const straight = new BatchIterator(examples, options);
        take(straight, before);
        const position = JSON.parse(JSON.stringify(straight.position()));
        const resumed = new BatchIterator(examples, options);
        resumed.seek(position);
        expect(take(resumed, 6)).toEqual(take(straight, 6));
        expect(resumed.position()).toEqual(straight.position());
      }),
      runs,
    );
  });

  it('has rows of the shape it says, no longer than they must be', () => {
    fc.assert(
      fc.property(data, anyOptions, (examples, options) => {
        const { batchSize, padToMultiple = 1, maxLength = 0, mode } = options;
        const seen = [...new BatchIterator(examples, options)];
        seen.forEach((batch, i) => {
          const { batch: rows, length } = batch;
          expect(i < seen.length - 1 ? rows === batchSize : rows >= 1 && rows <= batchSize).toBe(true);
          const sizes = [batch.inputIds, batch.labels, batch.positions, batch.ranges].map((array) => array.length);
          expect(sizes).toEqual([rows * length, rows * length, rows * length, 2 * rows * length]);
          expect(length % padToMultiple).toBe(0);
          const longest = Math.max(...[...tokensOf(batch)].map((token) => token.end));
          expect(length - longest).toBeLessThan(padToMultiple);
          if (mode === 'pack') expect(longest).toBeLessThanOrEqual(maxLength);
        });
      }),
      runs,
    );
  });

  it('drops only an incomplete last batch', () => {
    fc.assert(
      fc.property(data, anyOptions, (examples, options) => {
        const all = [...new BatchIterator(examples, options)];
        const full = all.filter((batch) => batch.batch === options.batchSize);
        const make = () => new BatchIterator(examples, { ...options, dropLast: true });
        if (full.length === 0) expect(make).toThrow(expect.objectContaining({ code: 'no-batches' }));
        else expect([...make()]).toEqual(full);
      }),
      runs,
    );
  });

  it('packs tightly: at most one row is no more than half full', () => {
    fc.assert(
      fc.property(data, optionsOf('pack'), (examples, options) => {
        const rows = [...new BatchIterator(examples, { ...options, batchSize: 1 })];
        const sparse = rows.filter((row) => 2 * row.tokens <= options.maxLength!);
        expect(sparse.length).toBeLessThanOrEqual(1);
      }),
      runs,
    );
  });

  it('shuffles by seed and epoch, and keeps the order on request', () => {
    const examples = Array.from({ length: 40 }, (_, i) => exampleOf(i, 3, 1));
    const order = (seed: number, shuffle = true): number[][] => {
      const batches = new BatchIterator(examples, { batchSize: 8, seed, shuffle });
      return [0, 1].map(() => take(batches, 5).flatMap((batch) => batch.examples));
    };
    const [first, second] = order(1);
    const inOrder = examples.map((_, i) => i);
    expect(order(1)).toEqual([first, second]);
    expect(first).not.toEqual(second);
    expect(order(2)[0]).not.toEqual(first);
    expect(first).not.toEqual(inOrder);
    expect(order(1, false)).toEqual([inOrder, inOrder]);
  });

  it('lays out a packed row as drawn in its description', () => {
    const examples = [exampleOf(0, 3, 2), exampleOf(1, 4, 0)];
    const batch = new BatchIterator(examples, {
      batchSize: 1,
      seed: 0,
      mode: 'pack',
      maxLength: 9,
      padToMultiple: 9,
    }).nextBatch();
    expect(batch).toEqual({
      inputIds: Int32Array.of(1001, 1002, 1003, 1004, 1, 2, 3, 0, 0),
      labels: Int32Array.of(-100, 1002, 1003, 1004, -100, -100, 3, -100, -100),
      ranges: Int32Array.of(0, 1, 0, 2, 0, 3, 0, 4, 4, 5, 4, 6, 4, 7, 0, 0, 0, 0),
      positions: Int32Array.of(0, 1, 2, 3, 0, 1, 2, 0, 0),
      batch: 1,
      length: 9,
      tokens: 7,
      targets: 4,
      examples: [1, 0],
    });
  });

  it.each<[string, Partial<BatchOptions>, number[], string]>([
    ['batchSize 0', { batchSize: 0 }, [3], 'batch-options'],
    ['padToMultiple 0', { padToMultiple: 0 }, [3], 'batch-options'],
    ['an unknown mode', { mode: 'packed' as 'pack' }, [3], 'batch-options'],
    ['packing without a length', { mode: 'pack' }, [3], 'batch-options'],
    ['no examples', {}, [], 'no-examples'],
    ['an empty example', {}, [3, 0], 'no-examples'],
    ['an example longer than a row', { mode: 'pack', maxLength: 4 }, [3, 5], 'too-long'],
    ['an example longer than maxLength', { maxLength: 4 }, [3, 5], 'too-long'],
  ])('refuses %s', (_, options, lengths, code) => {
    const examples = lengths.map((n, i) => exampleOf(i, n, 0));
    expect(() => new BatchIterator(examples, { batchSize: 1, seed: 0, ...options })).toThrow(
      expect.objectContaining({ code }),
    );
  });

  it.each([
    [-1, 0],
    [0, 2],
    [0.5, 0],
    [0, -1],
  ])('refuses to seek to epoch %s, index %s of 2', (epoch, index) => {
    const batches = new BatchIterator([exampleOf(0, 3, 0), exampleOf(1, 3, 0)], { batchSize: 1, seed: 0 });
    expect(() => batches.seek({ epoch, index })).toThrow(expect.objectContaining({ code: 'batch-position' }));
  });
});
