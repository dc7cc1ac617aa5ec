/**
 * C[z] = alpha · op(A[z]) · op(B[z]): one cell per entry, z = batch, y = row, x = column, and the textbook loop over the contracted
 * size k. An operand that all batches share has a single layer: `stepA` (`stepB`) is then 0, otherwise 1.
 */
import type { Cube, Thread } from './thread.js';

type Sizes = 'k' | 'stepA' | 'stepB';

/** Σ_i A[y, i] · B[i, x] */
function matmulNN(this: Thread<Sizes>, a: Cube, b: Cube, alpha: number): number {
  let sum = 0;
  for (let i = 0; i < this.constants.k; i++) {
    sum +=
      a[this.thread.z * this.constants.stepA][this.thread.y][i] *
      b[this.thread.z * this.constants.stepB][i][this.thread.x];
  }
  return alpha * sum;
}

/** Σ_i A[y, i] · B[x, i] */
function matmulNT(this: Thread<Sizes>, a: Cube, b: Cube, alpha: number): number {
  let sum = 0;
  for (let i = 0; i < this.constants.k; i++) {
    sum +=
      a[this.thread.z * this.constants.stepA][this.thread.y][i] *
      b[this.thread.z * this.constants.stepB][this.thread.x][i];
  }
  return alpha * sum;
}

/** Σ_i A[i, y] · B[i, x] */
function matmulTN(this: Thread<Sizes>, a: Cube, b: Cube, alpha: number): number {
  let sum = 0;
  for (let i = 0; i < this.constants.k; i++) {
    sum +=
      a[this.thread.z * this.constants.stepA][i][this.thread.y] *
      b[this.thread.z * this.constants.stepB][i][this.thread.x];
  }
  return alpha * sum;
}

/** Σ_i A[i, y] · B[x, i] */
function matmulTT(this: Thread<Sizes>, a: Cube, b: Cube, alpha: number): number {
  let sum = 0;
  for (let i = 0; i < this.constants.k; i++) {
    sum +=
      a[this.thread.z * this.constants.stepA][i][this.thread.y] *
      b[this.thread.z * this.constants.stepB][this.thread.x][i];
  }
  return alpha * sum;
}

/** By the flags of A and B: N = as stored, T = transposed. */
export const matmulKernels = { NN: matmulNN, NT: matmulNT, TN: matmulTN, TT: matmulTT };
