import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Allocator } from '../src/backends/wasm/allocator.js';

const ALIGN = 64;
const PAGE = 65536;

/** An allocator over pretended memory that grows by whole pages up to `maximum`; `asked` lists the ends it asked for. */
function create({ base = 0, limit = PAGE, maximum = limit }: { base?: number; limit?: number; maximum?: number }) {
  const asked: number[] = [];
  const allocator = new Allocator(base, limit, (end) => {
    asked.push(end);
    return end > maximum ? undefined : Math.min(maximum, Math.ceil(end / PAGE) * PAGE);
  });
  return { allocator, asked };
}

/** Blocks handed out: [address, bytes that may be used]. */
type Live = [at: number, bytes: number][];

function expectDisjoint(live: Live, base: number, end: number): void {
  let last = base;
  for (const [at, bytes] of [...live].sort(([a], [b]) => a - b)) {
    if (at % ALIGN !== 0) throw new Error(`block at ${at}: expected a multiple of ${ALIGN}`);
    if (at < last) throw new Error(`block at ${at}: expected ${last} or more`);
    last = at + bytes;
  }
  expect(last).toBeLessThanOrEqual(end);
}

/** The most that fits anywhere between the live blocks. */
function largestGap(live: Live, base: number, end: number): number {
  let [last, gap] = [Math.ceil(base / ALIGN) * ALIGN, 0];
  for (const [at, bytes] of [...live].sort(([a], [b]) => a - b)) {
    gap = Math.max(gap, at - last);
    last = at + Allocator.rounded(bytes);
  }
  return Math.max(gap, end - last);
}

const bytes = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 0, max: 300 }) },
  { weight: 2, arbitrary: fc.constantFrom(0, 1, 63, 64, 65, 128, 4096) },
  { weight: 1, arbitrary: fc.integer({ min: 1000, max: 40_000 }) },
);
/** Allocate so many bytes, or free one of the live blocks. */
const step = fc.oneof(
  { weight: 3, arbitrary: bytes.map((size) => ({ size, pick: -1 })) },
  { weight: 2, arbitrary: fc.nat(10_000).map((pick) => ({ size: -1, pick })) },
);

test('random sequences: blocks are aligned and disjoint, growth happens only when it must, and all merges back', () => {
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 150 }),
      fc.integer({ min: 0, max: 200 }),
      fc.integer({ min: 4, max: 40 }),
      (steps, base, pages) => {
        const { allocator, asked } = create({ base, limit: 2 * PAGE, maximum: pages * PAGE });
        const live: Live = [];
        let end = 2 * PAGE;
        for (const { size, pick } of steps) {
          if (size >= 0) {
            let at: number;
            const fits = largestGap(live, base, end) >= Allocator.rounded(size);
            const growths = asked.length;
            try {
              at = allocator.alloc(size);
            } catch (error) {
              // refused for a reason: what lives and what is asked for do not fit
              expect(error).toMatchObject({ code: 'out-of-memory' });
              expect(asked.at(-1)).toBeGreaterThan(pages * PAGE);
              expect(fits).toBe(false);
              continue;
            }
            expect(asked.length > growths).toBe(!fits);
            if (!fits) end = Math.ceil(asked.at(-1)! / PAGE) * PAGE;
            live.push([at, Math.max(1, size)]);
          } else if (live.length > 0) {
            const [gone] = live.splice(pick % live.length, 1);
            allocator.free(gone![0]);
          }
          expectDisjoint(live, base, end);
        }
        for (const [at] of live) allocator.free(at);
        // one block again: the whole memory can be had at once, without growing
        const start = Math.ceil(base / ALIGN) * ALIGN;
        const before = asked.length;
        expect(allocator.alloc(end - start)).toBe(start);
        expect(asked.length).toBe(before);
      },
    ),
    { numRuns: 500 },
  );
});

describe('allocator', () => {
  test('sizes are whole cache lines, at least one', () => {
    expect([0, 1, 64, 65, 1000].map((n) => Allocator.rounded(n))).toEqual([64, 64, 64, 128, 1024]);
  });

  test('a freed block is the next one of its size', () => {
    const { allocator } = create({});
    const [a, b] = [allocator.alloc(1000), allocator.alloc(1000)];
    allocator.free(a);
    expect(allocator.alloc(500)).not.toBe(a);
    expect(allocator.alloc(1024)).toBe(a);
    expect(b).not.toBe(a);
  });

  test('neighbours that wait are joined for a larger request', () => {
    const { allocator, asked } = create({ limit: 3 * 1024 });
    const parts = [allocator.alloc(1024), allocator.alloc(1024), allocator.alloc(1024)];
    allocator.free(parts[1]!);
    allocator.free(parts[0]!);
    expect(allocator.alloc(2048)).toBe(parts[0]);
    expect(asked).toEqual([]);
  });

  test('grows when nothing fits, and only by what the free end of the memory lacks', () => {
    const { allocator, asked } = create({ limit: PAGE, maximum: 4 * PAGE });
    const first = allocator.alloc(PAGE / 2);
    expect(allocator.alloc(PAGE)).toBe(PAGE / 2);
    expect(asked).toEqual([PAGE / 2 + PAGE]);
    allocator.free(first);
    expect(allocator.alloc(PAGE / 2)).toBe(first);
  });

  test('memory that is free at the end counts when the maximum is near', () => {
    const { allocator } = create({ limit: 2 * PAGE, maximum: 3 * PAGE });
    allocator.alloc(64);
    // 2 pages less 64 bytes are free, 1 more can be had
    expect(allocator.alloc(3 * PAGE - 64)).toBe(64);
  });

  test('says how much was asked for and how much lives when there is no more', () => {
    const { allocator } = create({ limit: PAGE, maximum: 2 * PAGE });
    allocator.alloc(1000);
    expect(() => allocator.alloc(2 * PAGE)).toThrow(
      expect.objectContaining({
        code: 'out-of-memory',
        message: expect.stringMatching(
          /^wasm memory: expected room for 131072 bytes, got none \(1024 live of 65536\)\. Use a smaller batch/,
        ),
      }),
    );
    // a refusal changes nothing
    expect(allocator.alloc(PAGE - 1024)).toBe(1024);
  });

  test.each([2 ** 31, 2 ** 32, 2 ** 32 + 64, 2 ** 40])('a request for %d bytes is refused, not misread', (size) => {
    const { allocator } = create({});
    expect(() => allocator.alloc(size)).toThrow(expect.objectContaining({ code: 'out-of-memory' }));
  });

  test('blocks beyond 2 GiB work', () => {
    const { allocator } = create({ base: 64, limit: 2 ** 32, maximum: 2 ** 32 });
    const [a, b] = [allocator.alloc(3 * 2 ** 30), allocator.alloc(2 ** 29)];
    expect(b - a).toBe(3 * 2 ** 30);
    allocator.free(a);
    allocator.free(b);
    expect(allocator.alloc(2 ** 32 - 64)).toBe(a);
  });

  test('freeing twice is refused', () => {
    const { allocator } = create({});
    const a = allocator.alloc(10);
    allocator.free(a);
    expect(() => allocator.free(a)).toThrow(
      expect.objectContaining({ code: 'double-free', message: `free: expected a live block, got address ${a}` }),
    );
  });
});
