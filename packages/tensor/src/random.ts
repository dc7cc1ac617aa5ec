/**
 * Counter-based random numbers: Philox4x32-10. A block of four 32-bit words is a fixed, well-mixed function of a 128-bit
 * counter and a 64-bit key, so a stream has no state but its position: any stretch of it can be made anywhere, on any
 * thread or backend, and a saved position resumes exactly.
 *
 * Counter words: [position low, position high, stream, use], use = 0 for numbers and 1 for the keys of split streams. The
 * key is the seed.
 *
 * Source: Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
 */
import { TensorError } from './errors.js';

const ROUNDS = 10;
// multipliers M0 = 0xD2511F53 and M1 = 0xCD9E8D57 in halves of 16 bits
const M0 = 0xd2511f53 | 0;
const M0_HIGH = 0xd251;
const M0_LOW = 0x1f53;
const M1 = 0xcd9e8d57 | 0;
const M1_HIGH = 0xcd9e;
const M1_LOW = 0x8d57;
// Weyl increments of the key: the golden ratio and √3 − 1
const KEY_STEP_0 = 0x9e3779b9 | 0;
const KEY_STEP_1 = 0xbb67ae85 | 0;

const TWO_32 = 2 ** 32;

/** Where a generator stands; plain JSON. */
export interface PhiloxState {
  /** The 64-bit key: low and high word. */
  key: [number, number];
  stream: number;
  /** 32-bit words handed out so far. */
  position: number;
}

/** One Philox4x32-10 block: four words from four counter words and two key words. */
export function philox4x32(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): Uint32Array {
  const out = new Uint32Array(4);
  writeBlock(out, 0, counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return out;
}

/** Writes the block of a counter and a key to `out[at … at + 3]`. */
function writeBlock(
  out: Uint32Array,
  at: number,
  c0: number,
  c1: number,
  c2: number,
  c3: number,
  k0: number,
  k1: number,
): void {
  for (let round = 0; round < ROUNDS; round++) {
    // the upper words of M0 · c0 and M1 · c2 by schoolbook multiplication of 16-bit halves: this is the hot loop, so it
    // stays in 32-bit integers and makes no call
    const low0 = c0 & 0xffff;
    const high0 = c0 >>> 16;
    const mid0 = (Math.imul(high0, M0_LOW) + (Math.imul(low0, M0_LOW) >>> 16)) | 0;
    const cross0 = (Math.imul(low0, M0_HIGH) + (mid0 & 0xffff)) | 0;
    const upper0 = (Math.imul(high0, M0_HIGH) + (mid0 >>> 16) + (cross0 >>> 16)) | 0;
    const low1 = c2 & 0xffff;
    const high1 = c2 >>> 16;
    const mid1 = (Math.imul(high1, M1_LOW) + (Math.imul(low1, M1_LOW) >>> 16)) | 0;
    const cross1 = (Math.imul(low1, M1_HIGH) + (mid1 & 0xffff)) | 0;
    const upper1 = (Math.imul(high1, M1_HIGH) + (mid1 >>> 16) + (cross1 >>> 16)) | 0;

    const lower0 = Math.imul(c0, M0);
    c0 = upper1 ^ c1 ^ k0;
    c1 = Math.imul(c2, M1);
    c2 = upper0 ^ c3 ^ k1;
    c3 = lower0;
    k0 = (k0 + KEY_STEP_0) | 0;
    k1 = (k1 + KEY_STEP_1) | 0;
  }
  out[at] = c0;
  out[at + 1] = c1;
  out[at + 2] = c2;
  out[at + 3] = c3;
}

/**
 * A seeded stream of random numbers. Code that needs randomness takes one as an argument.
 *
 * @example
 * const random = new Philox(42);
 * const weights = random.normalArray(12, 0, 0.02);
 */
export class Philox {
  private key: [number, number];
  private position = 0;
  /** The block that holds the word at `position`, when `position` is inside one. */
  private readonly block = new Uint32Array(4);

  /** `seed` is a whole number from 0 to 2^53 − 1, `stream` one from 0 to 2^32 − 1. Throws `range` otherwise. */
  constructor(
    seed: number,
    readonly stream = 0,
  ) {
    expectWhole('seed', seed, Number.MAX_SAFE_INTEGER);
    expectWhole('stream', stream, TWO_32 - 1);
    this.key = [seed % TWO_32, Math.floor(seed / TWO_32)];
  }

  /** A uniform whole number from 0 to 2^32 − 1. */
  uint32(): number {
    const inBlock = this.position % 4;
    if (inBlock === 0) this.writeBlocks(this.block, 1);
    this.position++;
    return this.block[inBlock]!;
  }

  /** A uniform number in [0, 1), a multiple of 2^−53; takes two words. */
  uniform(): number {
    const high = this.uint32() >>> 5;
    const low = this.uint32() >>> 6;
    return (high * 2 ** 26 + low) * 2 ** -53;
  }

  /** A uniform whole number from 0 to n − 1, unbiased. Throws `range` unless n is a whole number from 1 to 2^32. */
  int(n: number): number {
    expectWhole('n', n, TWO_32, 1);
    const limit = TWO_32 - (TWO_32 % n);
    let word = this.uint32();
    while (word >= limit) word = this.uint32();
    return word % n;
  }

  /**
   * n uniform float32 numbers in [low, high), which rounding to float32 may close; one word each, 24 bits of it used, so
   * that two calls give what one call for both would.
   */
  uniformArray(n: number, low = 0, high = 1): Float32Array {
    const out = new Float32Array(n);
    const scale = (high - low) * 2 ** -24;
    this.eachWord(n, (words, count, at) => {
      for (let i = 0; i < count; i++) out[at + i] = low + scale * (words[i]! >>> 8);
    });
    return out;
  }

  /**
   * n normal float32 numbers by Box & Muller (1958): two words make two numbers, so an odd n leaves one number unused.
   * No number is further than 6.67 `std` from `mean`.
   */
  normalArray(n: number, mean = 0, std = 1): Float32Array {
    const out = new Float32Array(n);
    // the stretches eachWord passes end on even places, since the total is even and all but the last are CHUNK long
    this.eachWord(n + (n % 2), (words, count, at) => {
      for (let i = 0; i < count; i += 2) {
        const radius = std * Math.sqrt(-2 * Math.log((words[i]! + 1) / TWO_32));
        const angle = (words[i + 1]! / TWO_32) * 2 * Math.PI;
        out[at + i] = mean + radius * Math.cos(angle);
        // beyond the end of an odd n this writes nothing
        out[at + i + 1] = mean + radius * Math.sin(angle);
      }
    });
    return out;
  }

  /** The numbers 0 … n − 1 in random order. */
  permutation(n: number): Int32Array {
    return this.shuffle(Int32Array.from({ length: n }, (_, i) => i));
  }

  /** Shuffles `array` in place, all orders equally likely (Fisher–Yates), and returns it. */
  shuffle<A extends unknown[] | Int32Array | Uint32Array | Float32Array | Float64Array>(array: A): A {
    const items = array as unknown[];
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.int(i + 1);
      const keep = items[i];
      items[i] = items[j];
      items[j] = keep;
    }
    return array;
  }

  /**
   * An independent generator named by a whole number from 0 to 2^32 − 1: a function of this one's seed and stream, not of
   * its position. Splits of splits are independent too.
   */
  split(stream: number): Philox {
    expectWhole('stream', stream, TWO_32 - 1);
    const words = philox4x32([stream, 0, this.stream, 1], this.key);
    return Philox.fromState({ key: [words[0]!, words[1]!], stream: 0, position: 0 });
  }

  /** Where the generator stands, for `fromState`. */
  state(): PhiloxState {
    return { key: [...this.key], stream: this.stream, position: this.position };
  }

  /** The generator that continues exactly where `state()` was taken. Throws `range` for a state that is none. */
  static fromState(state: PhiloxState): Philox {
    const random = new Philox(0, state.stream);
    for (const word of state.key) expectWhole('key', word, TWO_32 - 1);
    expectWhole('position', state.position, Number.MAX_SAFE_INTEGER);
    random.key = [...state.key];
    const inBlock = state.position % 4;
    random.position = state.position - inBlock;
    for (let i = 0; i < inBlock; i++) random.uint32();
    return random;
  }

  /** Hands out the next n words in stretches: `use(words, count, at)` with the first word's place `at`. */
  private eachWord(n: number, use: (words: Uint32Array, count: number, at: number) => void): void {
    const words = new Uint32Array(Math.min(CHUNK, 4 * Math.ceil(n / 4)));
    for (let at = 0; at < n; at += CHUNK) {
      const count = Math.min(CHUNK, n - at);
      this.fill(words, count);
      use(words, count, at);
    }
  }

  /** The next `count` words to the front of `out`: the rest of the current block, whole blocks, a block's beginning. */
  private fill(out: Uint32Array, count: number): void {
    let i = 0;
    while (i < count && this.position % 4 > 0) out[i++] = this.uint32();
    const blocks = Math.floor((count - i) / 4);
    this.writeBlocks(out.subarray(i), blocks);
    this.position += 4 * blocks;
    i += 4 * blocks;
    while (i < count) out[i++] = this.uint32();
  }

  /** Writes `blocks` blocks from the one at `position`, a multiple of 4, on. */
  private writeBlocks(out: Uint32Array, blocks: number): void {
    const [k0, k1] = this.key;
    const first = this.position / 4;
    for (let b = 0; b < blocks; b++) {
      const counter = first + b;
      writeBlock(out, 4 * b, counter | 0, (counter / TWO_32) | 0, this.stream | 0, 0, k0 | 0, k1 | 0);
    }
  }
}

const CHUNK = 1024;

function expectWhole(name: string, value: number, most: number, least = 0): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new TensorError(
      'range',
      `Philox: expected ${name} to be a whole number from ${least} to ${most}, got ${value}`,
    );
  }
}
