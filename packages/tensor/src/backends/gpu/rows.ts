/**
 * Reductions, and what a transformer does to the rows of a matrix. Kernels with one result per row run one cell per row,
 * x = row; the others one cell per element, y = row and x = column.
 */
import type { Cube, Matrix, Thread, Vector } from './thread.js';

/**
 * One step of a reduction over the middle of x `[outer, n, inner]`: cell (z, y, x) adds up `size` entries from y · size on.
 * Long sums take two steps of √n entries each, since a running f32 sum of a million entries would lose 1 %.
 */
export function sumStep(this: Thread<'n' | 'size'>, x: Cube): number {
  let sum = 0;
  for (let i = 0; i < this.constants.size; i++) {
    if (this.thread.y * this.constants.size + i < this.constants.n) {
      sum += x[this.thread.z][this.thread.y * this.constants.size + i][this.thread.x];
    }
  }
  return sum;
}

/** As `sumStep`, for the largest entry. */
export function maxStep(this: Thread<'n' | 'size'>, x: Cube): number {
  let largest = x[this.thread.z][this.thread.y * this.constants.size][this.thread.x];
  for (let i = 0; i < this.constants.size; i++) {
    if (this.thread.y * this.constants.size + i < this.constants.n) {
      largest = Math.max(largest, x[this.thread.z][this.thread.y * this.constants.size + i][this.thread.x]);
    }
  }
  return largest;
}

/** Index of the first largest entry. */
export function argmax(this: Thread<'columns'>, x: Matrix): number {
  let largest = x[this.thread.x][0];
  let index = 0;
  for (let c = 0; c < this.constants.columns; c++) {
    if (x[this.thread.x][c] > largest) {
      largest = x[this.thread.x][c];
      index = c;
    }
  }
  return index;
}

/** max[r] = the largest entry of row r */
export function rowMax(this: Thread<'columns'>, x: Matrix): number {
  let largest = x[this.thread.x][0];
  for (let c = 0; c < this.constants.columns; c++) {
    largest = Math.max(largest, x[this.thread.x][c]);
  }
  return largest;
}

/** sum[r] = Σ exp(x − max[r]): no term exceeds 1, so nothing overflows. */
export function rowSumExp(this: Thread<'columns'>, x: Matrix, max: Vector): number {
  let sum = 0;
  for (let c = 0; c < this.constants.columns; c++) {
    sum += Math.exp(x[this.thread.x][c] - max[this.thread.x]);
  }
  return sum;
}

/** log Σ exp(x) = max + log(sum); −Infinity when every entry is. */
export function logSumExp(this: Thread, max: Vector, sum: Vector, minusInfinity: number): number {
  if (max[this.thread.x] === minusInfinity) {
    return minusInfinity;
  }
  return max[this.thread.x] + Math.log(sum[this.thread.x]);
}

/** softmax(x) = exp(x − max) / sum */
export function softmax(this: Thread, x: Matrix, max: Vector, sum: Vector): number {
  return Math.exp(x[this.thread.y][this.thread.x] - max[this.thread.y]) / sum[this.thread.y];
}

/** dot[r] = Σ a · b over row r */
export function rowDot(this: Thread<'columns'>, a: Matrix, b: Matrix): number {
  let sum = 0;
  for (let c = 0; c < this.constants.columns; c++) {
    sum += a[this.thread.x][c] * b[this.thread.x][c];
  }
  return sum;
}

/** dx = y · (dy − dot), dot = Σ dy · y */
export function softmaxGrad(this: Thread, dy: Matrix, y: Matrix, dot: Vector): number {
  return y[this.thread.y][this.thread.x] * (dy[this.thread.y][this.thread.x] - dot[this.thread.y]);
}

/** log softmax(x) = (x − max) − log(sum) */
export function logSoftmax(this: Thread, x: Matrix, max: Vector, sum: Vector): number {
  return x[this.thread.y][this.thread.x] - max[this.thread.y] - Math.log(sum[this.thread.y]);
}

/** sum[r] = Σ x over row r */
export function rowSum(this: Thread<'columns'>, x: Matrix): number {
  let sum = 0;
  for (let c = 0; c < this.constants.columns; c++) {
    sum += x[this.thread.x][c];
  }
  return sum;
}

/** dx = dy − exp(y) · sum, sum = Σ dy */
export function logSoftmaxGrad(this: Thread, dy: Matrix, y: Matrix, sum: Vector): number {
  return dy[this.thread.y][this.thread.x] - Math.exp(y[this.thread.y][this.thread.x]) * sum[this.thread.y];
}

/** inv[r] = 1 / √(mean(x²) + eps) */
export function rmsInverse(this: Thread<'columns'>, x: Matrix, eps: number): number {
  let sum = 0;
  for (let c = 0; c < this.constants.columns; c++) {
    sum += x[this.thread.x][c] * x[this.thread.x][c];
  }
  return 1 / Math.sqrt(sum / this.constants.columns + eps);
}

/** y = x · inv · weight */
export function rmsNorm(this: Thread, x: Matrix, inv: Vector, weight: Vector): number {
  return x[this.thread.y][this.thread.x] * inv[this.thread.y] * weight[this.thread.x];
}

/** mean[r] = mean of dy · weight · x over row r */
export function rmsNormGradMean(this: Thread<'columns'>, dy: Matrix, x: Matrix, weight: Vector): number {
  let sum = 0;
  for (let c = 0; c < this.constants.columns; c++) {
    sum += dy[this.thread.x][c] * weight[c] * x[this.thread.x][c];
  }
  return sum / this.constants.columns;
}

/** dx = inv · (dy · weight − x · inv² · mean), mean = mean(dy · weight · x) */
export function rmsNormGradInput(
  this: Thread,
  dy: Matrix,
  x: Matrix,
  weight: Vector,
  inv: Vector,
  mean: Vector,
): number {
  return (
    inv[this.thread.y] *
    (dy[this.thread.y][this.thread.x] * weight[this.thread.x] -
      x[this.thread.y][this.thread.x] * inv[this.thread.y] * inv[this.thread.y] * mean[this.thread.y])
  );
}

/** dw[c] = Σ_r dy[r, c] · x[r, c] · inv[r] */
export function rmsNormGradWeight(this: Thread<'rows'>, dy: Matrix, x: Matrix, inv: Vector): number {
  let sum = 0;
  for (let r = 0; r < this.constants.rows; r++) {
    sum += dy[r][this.thread.x] * x[r][this.thread.x] * inv[r];
  }
  return sum;
}

/** loss[r] = log Σ exp(logits) − logits[label] = (max − logits[label]) + log(sum), 0 when the label is negative */
export function crossEntropy(this: Thread, logits: Matrix, labels: Vector, max: Vector, sum: Vector): number {
  if (labels[this.thread.x] < 0) {
    return 0;
  }
  return max[this.thread.x] - logits[this.thread.x][labels[this.thread.x]] + Math.log(sum[this.thread.x]);
}

/** dlogits = dloss · (exp(logits − lse) − [column = label]), 0 when the label is negative */
export function crossEntropyGrad(this: Thread, dloss: Vector, logits: Matrix, labels: Vector, lse: Vector): number {
  if (labels[this.thread.y] < 0) {
    return 0;
  }
  let target = 0;
  if (labels[this.thread.y] === this.thread.x) {
    target = 1;
  }
  return dloss[this.thread.y] * (Math.exp(logits[this.thread.y][this.thread.x] - lse[this.thread.y]) - target);
}

/** scale[r] = max |x[r, i]| / 127 */
export function int8Scale(this: Thread<'columns'>, x: Matrix): number {
  let largest = 0;
  for (let i = 0; i < this.constants.columns; i++) {
    largest = Math.max(largest, Math.abs(x[this.thread.x][i]));
  }
  return largest / 127;
}

/** q[r, c] = the whole number nearest to x[r, c] / scale[r] */
export function int8Round(this: Thread, x: Matrix, scale: Vector): number {
  if (scale[this.thread.y] > 0) {
    return Math.floor(x[this.thread.y][this.thread.x] / scale[this.thread.y] + 0.5);
  }
  return 0;
}

/** y[r, c] = scale[r] · q[r, c] */
export function scaleRows(this: Thread, q: Matrix, scale: Vector): number {
  return scale[this.thread.y] * q[this.thread.y][this.thread.x];
}
