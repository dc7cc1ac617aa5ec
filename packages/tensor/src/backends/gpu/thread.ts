/**
 * What a kernel sees. GPU.js translates the source text of a kernel (to JavaScript, WebAssembly, GLSL or WGSL) and runs it
 * once per cell of the result; `this.thread` tells the cell, x being the innermost dimension.
 *
 * House rules for kernels, all of them about silent wrong answers in some mode:
 * - one top-level `function`, no helpers, nothing from outside but arguments and `this.constants` (whole numbers);
 * - indices are written inline, `a[this.thread.y][i]`: an index kept in a local becomes a 32-bit float, exact only below 2^24,
 *   so locals hold small coordinates (a batch, a head) at most;
 * - loops start at a literal and end at a constant;
 * - no infinities and NaN as literals (WGSL has none: GPU.js writes the largest number instead); they come as arguments;
 * - a quotient of coordinates is taken as `floor((i + 0.5) / n)`, safe where a device's division is not correctly rounded.
 */
export interface Thread<Constants extends string = never> {
  thread: { x: number; y: number; z: number };
  constants: Record<Constants, number>;
}

// `any` spares every index inside a kernel the `!` that noUncheckedIndexedAccess asks for.
/* eslint-disable @typescript-eslint/no-explicit-any */
/** A 1-D argument, read as `x[i]`. */
export type Vector = any;
/** A 2-D argument, read as `x[row][column]`. */
export type Matrix = any;
/** A 3-D argument, read as `x[z][y][x]`. */
export type Cube = any;
/* eslint-enable @typescript-eslint/no-explicit-any */
