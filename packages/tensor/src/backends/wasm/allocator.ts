/**
 * Where blocks of wasm memory come from.
 *
 * Training asks for the same sizes again and again, so a freed block waits in a list of its exact size and the next
 * request takes it at once. When no such block exists, the general pool is searched (best fit by size class, split);
 * when that fails, the waiting blocks are merged with their neighbours into the pool; only then the memory grows.
 */
import { TensorError } from '../../errors.js';

const ALIGN = 64; // a cache line: no two threads write to one
const CLASSES = 256;

/** Size class of a block: four per power of two. */
function classOf(bytes: number): number {
  const exponent = 31 - Math.clz32(bytes);
  return exponent * 4 + ((bytes >>> (exponent - 2)) & 3);
}

export class Allocator {
  /** Blocks handed out: address → bytes. */
  private readonly live = new Map<number, number>();
  private readonly waiting = new Map<number, number[]>();
  private waitingBytes = 0;
  // the general pool: every free block by its start and by its end, and in a set per size class
  private readonly starts = new Map<number, number>();
  private readonly ends = new Map<number, number>();
  private readonly classes: Set<number>[] = Array.from({ length: CLASSES }, () => new Set());
  private readonly start: number;

  /**
   * @param base first address that may be used
   * @param limit end of the memory at present
   * @param grow asks for memory up to at least the given end; returns the new end, or undefined when there is no more
   */
  constructor(
    base: number,
    private limit: number,
    private readonly grow: (end: number) => number | undefined,
  ) {
    this.start = Math.ceil(base / ALIGN) * ALIGN;
    this.addFree(this.start, limit - this.start);
  }

  /** Bytes a request really takes. */
  static rounded(bytes: number): number {
    return Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
  }

  alloc(bytes: number): number {
    const size = Allocator.rounded(bytes);
    const list = this.waiting.get(size);
    let at = list?.pop();
    if (at !== undefined) this.waitingBytes -= size;
    else at = this.take(size) ?? this.merge(size) ?? this.extend(size);
    this.live.set(at, size);
    return at;
  }

  free(at: number): void {
    const size = this.live.get(at);
    if (size === undefined) throw new TensorError('double-free', `free: expected a live block, got address ${at}`);
    this.live.delete(at);
    const list = this.waiting.get(size);
    if (list) list.push(at);
    else this.waiting.set(size, [at]);
    this.waitingBytes += size;
  }

  private addFree(start: number, size: number): void {
    if (size < ALIGN) return;
    this.starts.set(start, size);
    this.ends.set(start + size, start);
    this.classes[classOf(size)]!.add(start);
  }

  private removeFree(start: number, size: number): void {
    this.starts.delete(start);
    this.ends.delete(start + size);
    this.classes[classOf(size)]!.delete(start);
  }

  private take(size: number): number | undefined {
    if (size > this.limit - this.start) return undefined; // and size classes end at 32 bits
    for (let c = classOf(size); c < CLASSES; c++) {
      for (const start of this.classes[c]!) {
        const have = this.starts.get(start)!;
        if (have < size) continue;
        this.removeFree(start, have);
        this.addFree(start + size, have - size);
        return start;
      }
    }
    return undefined;
  }

  /** Moves every waiting block into the pool, joined with its free neighbours, then tries again. */
  private merge(size: number): number | undefined {
    if (this.waitingBytes === 0) return undefined;
    for (const [bytes, list] of this.waiting) for (const at of list) this.join(at, bytes);
    this.waiting.clear();
    this.waitingBytes = 0;
    return this.take(size);
  }

  private join(start: number, size: number): void {
    const before = this.ends.get(start);
    if (before !== undefined) {
      const bytes = start - before;
      this.removeFree(before, bytes);
      start = before;
      size += bytes;
    }
    const after = this.starts.get(start + size);
    if (after !== undefined) {
      this.removeFree(start + size, after);
      size += after;
    }
    this.addFree(start, size);
  }

  private extend(size: number): number {
    // a free block at the end of the memory counts
    const end = this.grow((this.ends.get(this.limit) ?? this.limit) + size);
    if (end === undefined) {
      let live = 0;
      for (const bytes of this.live.values()) live += bytes;
      throw new TensorError(
        'out-of-memory',
        `wasm memory: expected room for ${size} bytes, got none (${live} live of ${this.limit}). ` +
          'Use a smaller batch or sequence, activation checkpointing, bf16 weights, or dispose tensors that are no longer used.',
      );
    }
    const from = this.limit;
    this.limit = end;
    this.join(from, end - from);
    return this.take(size)!;
  }
}
