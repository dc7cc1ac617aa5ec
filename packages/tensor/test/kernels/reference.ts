/**
 * Every kernel of the contract as the plainest possible float64 loops, written from the formulas in `src/backend.ts` and sharing no code with
 * any backend. Names and argument order follow the contract.
 */
import type {
  AdamWSpec,
  AttentionSpec,
  BinaryOp,
  MatmulSpec,
  ReduceOp,
  SgdSpec,
  Shape4,
  UnaryOp,
} from '../../src/backend.js';

export type Numbers = ArrayLike<number>;

const zeros = (n: number): number[] => new Array<number>(n).fill(0);
const each = (n: number, f: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => f(i));
const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));

// ---- elementwise ----

export function fill(n: number, value: number): number[] {
  return each(n, () => value);
}

const UNARY: Record<UnaryOp, (x: number) => number> = {
  neg: (x) => -x,
  abs: Math.abs,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x),
  square: (x) => x * x,
  sigmoid,
  tanh: Math.tanh,
  silu: (x) => x * sigmoid(x),
  relu: (x) => (x > 0 ? x : 0),
};

export function unary(op: UnaryOp, x: Numbers): number[] {
  return each(x.length, (i) => UNARY[op](x[i]!));
}

export function affine(x: Numbers, scale: number, shift: number): number[] {
  return each(x.length, (i) => scale * x[i]! + shift);
}

const BINARY: Record<BinaryOp, (a: number, b: number) => number> = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  max: Math.max,
  min: Math.min,
};

export function binary(
  op: BinaryOp,
  a: Numbers,
  b: Numbers,
  shape: Shape4,
  aStrides: Shape4,
  bStrides: Shape4,
): number[] {
  const y: number[] = [];
  forEachIndex(shape, (index) => y.push(BINARY[op](a[offset(index, aStrides)]!, b[offset(index, bStrides)]!)));
  return y;
}

function forEachIndex(shape: Shape4, f: (index: number[]) => void): void {
  for (let i = 0; i < shape[0]; i++)
    for (let j = 0; j < shape[1]; j++)
      for (let k = 0; k < shape[2]; k++) for (let l = 0; l < shape[3]; l++) f([i, j, k, l]);
}

function offset(index: number[], strides: Shape4): number {
  return index.reduce((sum, i, d) => sum + i * strides[d]!, 0);
}

export function swiglu(gate: Numbers, up: Numbers): number[] {
  return each(gate.length, (i) => gate[i]! * sigmoid(gate[i]!) * up[i]!);
}

export function swigluGrad(dy: Numbers, gate: Numbers, up: Numbers): { gate: number[]; up: number[] } {
  return {
    gate: each(gate.length, (i) => {
      const s = sigmoid(gate[i]!);
      return dy[i]! * up[i]! * s * (1 + gate[i]! * (1 - s));
    }),
    up: each(gate.length, (i) => dy[i]! * gate[i]! * sigmoid(gate[i]!)),
  };
}

/** A 16-bit pattern's value, read field by field. */
export function decode16(bits: number, dtype: 'bf16' | 'f16'): number {
  const [exponentBits, fractionBits] = dtype === 'bf16' ? [8, 7] : [5, 10];
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> fractionBits) & (2 ** exponentBits - 1);
  const fraction = (bits & (2 ** fractionBits - 1)) / 2 ** fractionBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return fraction ? NaN : sign * Infinity;
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias) : sign * (1 + fraction) * 2 ** (exponent - bias);
}

/** The nearest pattern by bisection over all of them (positive patterns are ordered as their values), ties to even. */
export function encode16(x: number, dtype: 'bf16' | 'f16'): number {
  const infinity = dtype === 'bf16' ? 0x7f80 : 0x7c00;
  if (Number.isNaN(x)) return infinity + (dtype === 'bf16' ? 0x40 : 0x200);
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  // in rounding, infinity counts as the power of two after the largest number
  const value = (bits: number): number =>
    bits === infinity ? 2 ** (dtype === 'bf16' ? 128 : 16) : decode16(bits, dtype);
  let [low, high] = [0, infinity];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (value(middle) <= Math.abs(x)) low = middle;
    else high = middle;
  }
  const [below, above] = [Math.abs(x) - value(low), value(high) - Math.abs(x)];
  return sign | (below < above || (below === above && low % 2 === 0) ? low : high);
}

/** The bytes of int8: q, zeros up to a multiple of 4, scales in f32. */
export function quantizeRows(x: Numbers, rows: number, columns: number): number[] {
  const scales = Float32Array.from({ length: rows }, (_, r) =>
    Math.max(0, ...each(columns, (c) => Math.abs(x[r * columns + c]!) / 127)),
  );
  const q = each(rows * columns, (i) => Math.round(x[i]! / scales[Math.floor(i / columns)]!) || 0);
  return [...q, ...zeros((4 - (q.length % 4)) % 4), ...new Int8Array(scales.buffer)];
}

export function dequantizeRows(q: Numbers, scales: Numbers, columns: number): number[] {
  return each(q.length, (i) => scales[Math.floor(i / columns)]! * q[i]!);
}

// ---- layout ----

export function permute(x: Numbers, shape: Shape4, perm: Shape4): number[] {
  const strides = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1];
  const y: number[] = [];
  forEachIndex([shape[perm[0]]!, shape[perm[1]]!, shape[perm[2]]!, shape[perm[3]]!], (index) =>
    y.push(x[index.reduce((sum, i, d) => sum + i * strides[perm[d]!]!, 0)]!),
  );
  return y;
}

export function slice(x: Numbers, outer: number, n: number, inner: number, start: number, count: number): number[] {
  const y: number[] = [];
  for (let o = 0; o < outer; o++)
    for (let i = start; i < start + count; i++) for (let c = 0; c < inner; c++) y.push(x[(o * n + i) * inner + c]!);
  return y;
}

export function pad(x: Numbers, outer: number, n: number, inner: number, before: number, total: number): number[] {
  const y = zeros(outer * total * inner);
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < n; i++)
      for (let c = 0; c < inner; c++) y[(o * total + before + i) * inner + c] = x[(o * n + i) * inner + c]!;
  return y;
}

export function concat(a: Numbers, b: Numbers, outer: number, na: number, nb: number, inner: number): number[] {
  const y: number[] = [];
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < na * inner; i++) y.push(a[o * na * inner + i]!);
    for (let i = 0; i < nb * inner; i++) y.push(b[o * nb * inner + i]!);
  }
  return y;
}

export function gatherRows(table: Numbers, ids: Numbers, width: number): number[] {
  return each(ids.length * width, (i) => table[ids[Math.floor(i / width)]! * width + (i % width)]!);
}

export function scatterAddRows(dy: Numbers, ids: Numbers, rows: number, width: number): number[] {
  const y = zeros(rows * width);
  for (let i = 0; i < ids.length; i++) for (let c = 0; c < width; c++) y[ids[i]! * width + c]! += dy[i * width + c]!;
  return y;
}

// ---- reductions and rows ----

export function reduce(op: ReduceOp, x: Numbers, outer: number, n: number, inner: number): number[] {
  const y: number[] = [];
  for (let o = 0; o < outer; o++)
    for (let c = 0; c < inner; c++) {
      let result = op === 'sum' ? 0 : -Infinity;
      for (let i = 0; i < n; i++) {
        const value = x[(o * n + i) * inner + c]!;
        result = op === 'sum' ? result + value : Math.max(result, value);
      }
      y.push(result);
    }
  return y;
}

/** Row r of a matrix. */
function row(x: Numbers, r: number, columns: number): number[] {
  return each(columns, (c) => x[r * columns + c]!);
}

const sum = (x: number[]): number => x.reduce((a, b) => a + b, 0);
const logSumExp = (x: number[]): number => {
  const max = x.reduce((a, b) => Math.max(a, b), -Infinity);
  return max === -Infinity ? -Infinity : max + Math.log(sum(x.map((v) => Math.exp(v - max))));
};

/** Applies `f` to each row and lays the results end to end. */
function rowwise(rows: number, f: (r: number) => number[]): number[] {
  return each(rows, (r) => r).flatMap(f);
}

export function argmax(x: Numbers, rows: number, columns: number): number[] {
  return each(rows, (r) => row(x, r, columns).reduce((best, v, c, all) => (v > all[best]! ? c : best), 0));
}

export function softmax(x: Numbers, rows: number, columns: number): number[] {
  return logSoftmax(x, rows, columns).map(Math.exp);
}

export function softmaxGrad(dy: Numbers, y: Numbers, rows: number, columns: number): number[] {
  return rowwise(rows, (r) => {
    const [d, v] = [row(dy, r, columns), row(y, r, columns)];
    const dot = sum(d.map((x, c) => x * v[c]!));
    return d.map((x, c) => v[c]! * (x - dot));
  });
}

export function logSoftmax(x: Numbers, rows: number, columns: number): number[] {
  return rowwise(rows, (r) => {
    const v = row(x, r, columns);
    const lse = logSumExp(v);
    return v.map((value) => value - lse);
  });
}

export function logSoftmaxGrad(dy: Numbers, y: Numbers, rows: number, columns: number): number[] {
  return rowwise(rows, (r) => {
    const d = row(dy, r, columns);
    const total = sum(d);
    return d.map((x, c) => x - Math.exp(y[r * columns + c]!) * total);
  });
}

export function rmsNorm(
  x: Numbers,
  weight: Numbers,
  rows: number,
  columns: number,
  eps: number,
): { y: number[]; inv: number[] } {
  const inv = each(rows, (r) => 1 / Math.sqrt(sum(row(x, r, columns).map((v) => v * v)) / columns + eps));
  return { y: rowwise(rows, (r) => row(x, r, columns).map((v, c) => v * inv[r]! * weight[c]!)), inv };
}

export function rmsNormGradInput(
  dy: Numbers,
  x: Numbers,
  weight: Numbers,
  inv: Numbers,
  rows: number,
  columns: number,
): number[] {
  return rowwise(rows, (r) => {
    const v = row(x, r, columns);
    const dyw = row(dy, r, columns).map((d, c) => d * weight[c]!);
    const mean = sum(dyw.map((d, c) => d * v[c]!)) / columns;
    return dyw.map((d, c) => inv[r]! * (d - v[c]! * inv[r]! ** 2 * mean));
  });
}

export function rmsNormGradWeight(dy: Numbers, x: Numbers, inv: Numbers, rows: number, columns: number): number[] {
  return each(columns, (c) => sum(each(rows, (r) => dy[r * columns + c]! * x[r * columns + c]! * inv[r]!)));
}

export function crossEntropy(
  logits: Numbers,
  labels: Numbers,
  rows: number,
  columns: number,
): { loss: number[]; lse: number[] } {
  const lse = each(rows, (r) => logSumExp(row(logits, r, columns)));
  const loss = each(rows, (r) => (labels[r]! < 0 ? 0 : lse[r]! - logits[r * columns + labels[r]!]!));
  return { loss, lse };
}

export function crossEntropyGrad(
  dloss: Numbers,
  logits: Numbers,
  labels: Numbers,
  rows: number,
  columns: number,
): number[] {
  return rowwise(rows, (r) => {
    if (labels[r]! < 0) return zeros(columns);
    const v = row(logits, r, columns);
    const lse = logSumExp(v);
    return v.map((x, c) => dloss[r]! * (Math.exp(x - lse) - (c === labels[r] ? 1 : 0)));
  });
}

// ---- matrix products and LLaMA ----

export function matmul(a: Numbers, b: Numbers, spec: Omit<MatmulSpec, 'dtypeB'>, into?: Numbers): number[] {
  const { batch, m, n, k, transposeA, transposeB, strideA, strideB, alpha } = spec;
  const c: number[] = [];
  for (let z = 0; z < batch; z++)
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let dot = 0;
        for (let l = 0; l < k; l++) {
          const left = a[z * strideA + (transposeA ? l * m + i : i * k + l)]!;
          const right = b[z * strideB + (transposeB ? j * k + l : l * n + j)]!;
          dot += left * right;
        }
        c.push(alpha * dot + (into?.[c.length] ?? 0));
      }
  return c;
}

export function rope(
  x: Numbers,
  positions: Numbers,
  cos: Numbers,
  sin: Numbers,
  tokens: number,
  heads: number,
  headDim: number,
  inverse: boolean,
): number[] {
  const y = zeros(tokens * heads * headDim);
  const half = headDim / 2;
  for (let t = 0; t < tokens; t++)
    for (let h = 0; h < heads; h++)
      for (let j = 0; j < half; j++) {
        const [i, angle] = [(t * heads + h) * headDim + j, positions[t]! * half + j];
        const [c, s] = [cos[angle]!, inverse ? -sin[angle]! : sin[angle]!];
        y[i] = x[i]! * c - x[i + half]! * s;
        y[i + half] = x[i + half]! * c + x[i]! * s;
      }
  return y;
}

/** Visits every query with the keys it sees, their scores and the offsets of its vectors. */
function forEachQuery(
  q: Numbers,
  k: Numbers,
  ranges: Numbers,
  { batch, queries, keys, heads, kvHeads, headDim, scale }: AttentionSpec,
  visit: (query: { index: number; offset: number; keyOffsets: number[]; scores: number[] }) => void,
): void {
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let t = 0; t < queries; t++) {
        const offset = ((b * queries + t) * heads + h) * headDim;
        const group = Math.floor(h / (heads / kvHeads));
        const keyOffsets: number[] = [];
        for (let s = ranges[(b * queries + t) * 2]!; s < ranges[(b * queries + t) * 2 + 1]!; s++)
          keyOffsets.push(((b * keys + s) * kvHeads + group) * headDim);
        const scores = keyOffsets.map((key) => scale * sum(each(headDim, (d) => q[offset + d]! * k[key + d]!)));
        visit({ index: (b * heads + h) * queries + t, offset, keyOffsets, scores });
      }
}

export function attention(
  q: Numbers,
  k: Numbers,
  v: Numbers,
  ranges: Numbers,
  spec: AttentionSpec,
): { out: number[]; lse: number[] } {
  const out = zeros(q.length);
  const lse = zeros(spec.batch * spec.heads * spec.queries);
  forEachQuery(q, k, ranges, spec, ({ index, offset, keyOffsets, scores }) => {
    const total = logSumExp(scores);
    lse[index] = total;
    keyOffsets.forEach((key, i) => {
      for (let d = 0; d < spec.headDim; d++) out[offset + d]! += Math.exp(scores[i]! - total) * v[key + d]!;
    });
  });
  return { out, lse };
}

export function attentionGrad(
  dout: Numbers,
  q: Numbers,
  k: Numbers,
  v: Numbers,
  ranges: Numbers,
  spec: AttentionSpec,
): { q: number[]; k: number[]; v: number[] } {
  const [dq, dk, dv] = [zeros(q.length), zeros(k.length), zeros(v.length)];
  forEachQuery(q, k, ranges, spec, ({ offset, keyOffsets, scores }) => {
    const total = logSumExp(scores);
    const weights = scores.map((score) => Math.exp(score - total));
    const dWeights = keyOffsets.map((key) => sum(each(spec.headDim, (d) => dout[offset + d]! * v[key + d]!)));
    const mean = sum(weights.map((w, i) => w * dWeights[i]!));
    keyOffsets.forEach((key, i) => {
      const dScore = weights[i]! * (dWeights[i]! - mean) * spec.scale;
      for (let d = 0; d < spec.headDim; d++) {
        dq[offset + d]! += dScore * k[key + d]!;
        dk[key + d]! += dScore * q[offset + d]!;
        dv[key + d]! += weights[i]! * dout[offset + d]!;
      }
    });
  });
  return { q: dq, k: dk, v: dv };
}

// ---- updates ----

export function axpy(y: Numbers, x: Numbers, alpha: number): number[] {
  return each(y.length, (i) => y[i]! + alpha * x[i]!);
}

export function write(
  y: Numbers,
  x: Numbers,
  outer: number,
  n: number,
  inner: number,
  start: number,
  count: number,
): number[] {
  const result = Array.from(y);
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < count; i++)
      for (let c = 0; c < inner; c++) result[(o * n + start + i) * inner + c] = x[(o * count + i) * inner + c]!;
  return result;
}

export function writeRows(
  y: Numbers,
  x: Numbers,
  positions: Numbers,
  batch: number,
  T: number,
  S: number,
  width: number,
): number[] {
  const out = Array.from(y);
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < T; t++)
      for (let c = 0; c < width; c++) {
        out[(b * S + positions[b * T + t]!) * width + c] = x[(b * T + t) * width + c]!;
      }
  return out;
}

export function scaleBy(y: Numbers, factor: Numbers): number[] {
  return each(y.length, (i) => y[i]! * factor[0]!);
}

export function adamw(
  p: Numbers,
  g: Numbers,
  m: Numbers,
  v: Numbers,
  spec: AdamWSpec,
): { p: number[]; m: number[]; v: number[] } {
  const { lr, beta1, beta2, eps, weightDecay, biasCorrection1, biasCorrection2 } = spec;
  const newM = each(p.length, (i) => beta1 * m[i]! + (1 - beta1) * g[i]!);
  const newV = each(p.length, (i) => beta2 * v[i]! + (1 - beta2) * g[i]! ** 2);
  const newP = each(p.length, (i) => {
    const direction = newM[i]! / biasCorrection1 / (Math.sqrt(newV[i]! / biasCorrection2) + eps);
    return p[i]! * (1 - lr * weightDecay) - lr * direction;
  });
  return { p: newP, m: newM, v: newV };
}

export function sgd(p: Numbers, g: Numbers, buf: Numbers, spec: SgdSpec): { p: number[]; buf: number[] } {
  const { lr, momentum, dampening, weightDecay, nesterov } = spec;
  const gradient = each(p.length, (i) => g[i]! + weightDecay * p[i]!);
  const newBuf = each(p.length, (i) => momentum * buf[i]! + (1 - dampening) * gradient[i]!);
  const step = nesterov ? each(p.length, (i) => gradient[i]! + momentum * newBuf[i]!) : newBuf;
  return { p: each(p.length, (i) => p[i]! - lr * step[i]!), buf: newBuf };
}
