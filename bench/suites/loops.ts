/**
 * Three loops in WebAssembly that do one thing only, to find the limits of a machine: fused multiply-adds in registers, a
 * copy, and a read. Assembled by hand, since they must owe nothing to the kernels they are compared with.
 * Opcodes: https://webassembly.github.io/spec/core/binary/instructions.html
 */
import { setFlagsFromString } from 'node:v8';

export interface Loops {
  memory: WebAssembly.Memory;
  /** FMA_FLOPS operations a round, on twelve independent sums. */
  fma(rounds: number): void;
  /** Blocks of 64 bytes. */
  copy(to: number, from: number, blocks: number): void;
  read(from: number, blocks: number): void;
}

const SUMS = 12; // as many as the registers of the product's tile; four cycles of latency on two ports need eight
const UNROLL = 4;

/** Operations of a round of `fma`: a multiplication and an addition in four lanes. */
export const FMA_FLOPS = SUMS * UNROLL * 4 * 2;
export const BLOCK = 64;

type Code = readonly number[];

const leb = (n: number): Code => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >>> 7)]);
const repeat = (n: number, make: (i: number) => Code): Code => Array.from({ length: n }, (_, i) => make(i)).flat();
const vector = (items: readonly Code[]): Code => [...leb(items.length), ...items.flat()];
const section = (id: number, body: Code): Code => [id, ...leb(body.length), ...body];
const name = (text: string): Code => [...leb(text.length), ...Buffer.from(text)];

const [I32, V128, END] = [0x7f, 0x7b, 0x0b];
const get = (local: number): Code => [0x20, ...leb(local)];
const set = (local: number): Code => [0x21, ...leb(local)];
const i32 = (small: number): Code => [0x41, small];
const simd = (opcode: number, ...rest: Code): Code => [0xfd, ...leb(opcode), ...rest];
const load = (offset: number): Code => simd(0x00, 4, ...leb(offset));
const store = (offset: number): Code => simd(0x0b, 4, ...leb(offset));
const [ADD, MUL, RELAXED_MADD] = [simd(0xe4), simd(0xe6), simd(0x105)];
const advance = (local: number): Code => [...get(local), 0x41, 0xc0, 0x00, 0x6a, ...set(local)]; // += 64

/** A loop that counts a local down to 0. */
const countdown = (local: number, body: Code): Code => [
  ...[0x03, 0x40, ...body, ...get(local), ...i32(1), 0x6b],
  ...[0x22, ...leb(local), 0x0d, 0x00, END],
];

const func = (vectors: number, body: Code): Code => {
  const code = [...vector(vectors > 0 ? [[...leb(vectors), V128]] : []), ...body, END];
  return [...leb(code.length), ...code];
};

/** sum = x · y + sum, the operands being locals. */
const multiplyAdd = (fused: boolean, x: number, y: number, sum: number): Code =>
  fused
    ? [...get(x), ...get(y), ...get(sum), ...RELAXED_MADD, ...set(sum)]
    : [...get(x), ...get(y), ...MUL, ...get(sum), ...ADD, ...set(sum)];

function assemble(fused: boolean): Uint8Array<ArrayBuffer> {
  const [x, y] = [SUMS + 1, SUMS + 2];
  const fma = func(SUMS + 2, [
    ...[...i32(0), ...load(256), ...set(x), ...i32(0), ...load(272), ...set(y)],
    ...countdown(
      0,
      repeat(UNROLL, () => repeat(SUMS, (i) => multiplyAdd(fused, x, y, i + 1))),
    ),
    // what is never stored would never be computed
    ...repeat(SUMS, (i) => [...i32(0), ...get(i + 1), ...store(16 * i)]),
  ]);
  const copy = func(0, [
    ...countdown(2, [...repeat(4, (i) => [...get(0), ...get(1), ...load(16 * i), ...store(16 * i)]), ...advance(0), ...advance(1)]), // prettier-ignore
  ]);
  const read = func(4, [
    ...countdown(1, [
      ...repeat(4, (i) => [...get(0), ...load(16 * i), ...get(2 + i), ...ADD, ...set(2 + i)]),
      ...advance(0),
    ]),
    ...repeat(4, (i) => [...i32(0), ...get(2 + i), ...store(16 * i)]),
  ]);
  const type = (parameters: number): Code => [0x60, ...vector(Array.from({ length: parameters }, () => [I32])), 0];
  const exported = (text: string, kind: number, index: number): Code => [...name(text), kind, index];
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, vector([type(1), type(3), type(2)])),
    ...section(3, vector([[0], [1], [2]])),
    ...section(5, vector([[0, 1]])),
    ...section(7, vector([exported('memory', 2, 0), exported('fma', 0, 0), exported('copy', 0, 1), exported('read', 0, 2)])), // prettier-ignore
    ...section(10, vector([fma, copy, read])),
  ]);
}

/** Lets Node 20 have relaxed SIMD, which it keeps behind a flag. Has to be called before a module that uses it. */
export function allowRelaxedSimd(): void {
  if (!WebAssembly.validate(assemble(true))) setFlagsFromString('--experimental-wasm-relaxed-simd');
}

/** The loops as a module; fused multiply-add where the engine has it. */
export function compileLoops(): { module: WebAssembly.Module; fused: boolean } {
  allowRelaxedSimd();
  const fused = WebAssembly.validate(assemble(true));
  return { module: new WebAssembly.Module(assemble(fused)), fused };
}
