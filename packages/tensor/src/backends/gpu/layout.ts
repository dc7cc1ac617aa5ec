/** Kernels that move elements. Blocks `[outer, n, inner]` are read as matrices `[outer, n · inner]`. */
import type { Matrix, Thread, Vector } from './thread.js';

/**
 * y[i₀, i₁, i₂, i₃] = x[i₀·s₀ + i₁·s₁ + i₂·s₂ + i₃·s₃]: permutations and broadcasts (stride 0).
 * The cell is z = i₀·d₁ + i₁, y = i₂, x = i₃, so i₀·s₀ + i₁·s₁ = z·s₁ + i₀·(s₀ − d₁·s₁). `| 0` keeps the index an integer.
 */
export function strided(this: Thread<'d1' | 's1' | 's2' | 's3' | 'step0'>, x: Vector): number {
  return x[
    (((this.thread.z + 0.5) / this.constants.d1) | 0) * this.constants.step0 +
      this.thread.z * this.constants.s1 +
      this.thread.y * this.constants.s2 +
      this.thread.x * this.constants.s3
  ];
}

/** y[r, c] = x[r, start + c] */
export function slice(this: Thread<'start'>, x: Matrix): number {
  return x[this.thread.y][this.thread.x + this.constants.start];
}

/** y[r, c] = x[r, c − before] where x has such a column, else 0 */
export function pad(this: Thread<'before' | 'end'>, x: Matrix): number {
  if (this.thread.x >= this.constants.before && this.thread.x < this.constants.end) {
    return x[this.thread.y][this.thread.x - this.constants.before];
  }
  return 0;
}

/** y[r, c] ← x[r, c − start] in columns start … end − 1; the others stay */
export function write(this: Thread<'start' | 'end'>, y: Matrix, x: Matrix): number {
  if (this.thread.x >= this.constants.start && this.thread.x < this.constants.end) {
    return x[this.thread.y][this.thread.x - this.constants.start];
  }
  return y[this.thread.y][this.thread.x];
}

/** y[b, s, c] ← x[b, t, c] where positions[b, t] = s; rows without such a t stay. The cell is y = b·S + s, x = c. */
export function writeRows(this: Thread<'T' | 'S'>, y: Matrix, x: Matrix, positions: Matrix): number {
  const b = Math.floor((this.thread.y + 0.5) / this.constants.S);
  let value = y[this.thread.y][this.thread.x];
  for (let t = 0; t < this.constants.T; t++) {
    if (positions[b][t] === this.thread.y - b * this.constants.S) {
      value = x[b * this.constants.T + t][this.thread.x];
    }
  }
  return value;
}

/** y[r, c] = a[r, c] in the first columns, then b[r, c − width of a] */
export function concat(this: Thread<'widthA'>, a: Matrix, b: Matrix): number {
  if (this.thread.x < this.constants.widthA) {
    return a[this.thread.y][this.thread.x];
  }
  return b[this.thread.y][this.thread.x - this.constants.widthA];
}

/** y[i, c] = table[ids[i], c] */
export function gatherRows(this: Thread, table: Matrix, ids: Vector): number {
  return table[ids[this.thread.y]][this.thread.x];
}

/** y[r, c] = Σ of dy[i, c] over the i with ids[i] = r. Kernels cannot scatter, so each row looks for its tokens. */
export function scatterAddRows(this: Thread<'count'>, dy: Matrix, ids: Vector): number {
  let sum = 0;
  for (let i = 0; i < this.constants.count; i++) {
    if (ids[i] === this.thread.y) {
      sum += dy[i][this.thread.x];
    }
  }
  return sum;
}
