/**
 * Attention in separate steps, each over the full matrix of T queries × S keys of every head (B·H layers):
 *
 *   scores = scale · q kᵀ, −Infinity outside the window      lse = log Σ exp(scores)      (rows.ts)
 *   weights = exp(scores − lse)                              out = weights · v
 *
 * and backwards, with delta = Σ_d dout · out per query:
 *
 *   dscores = weights · (dout vᵀ − delta) · scale            dq = dscores · k    dk = dscoresᵀ · q    dv = weightsᵀ · dout
 *
 * Shape letters as in backend.ts. q-like arguments are `[B·T, H, D]`, k-like ones `[B·S, G, D]`, matrices `[B·H, T, S]`, and numbers per
 * query `[B·H, T]`. `group` = H / G query heads share a key/value head.
 */
import type { Cube, Matrix, Thread } from './thread.js';

/** scores[b, h, t, s]: z = (b, h), y = t, x = s */
export function attentionScores(
  this: Thread<'heads' | 'group' | 'queries' | 'keys' | 'headDim'>,
  q: Cube,
  k: Cube,
  ranges: Cube,
  scale: number,
  minusInfinity: number,
): number {
  const b = Math.floor((this.thread.z + 0.5) / this.constants.heads);
  const h = this.thread.z - b * this.constants.heads;
  const g = Math.floor((h + 0.5) / this.constants.group);
  if (this.thread.x < ranges[b][this.thread.y][0] || this.thread.x >= ranges[b][this.thread.y][1]) {
    return minusInfinity;
  }
  let dot = 0;
  for (let d = 0; d < this.constants.headDim; d++) {
    dot += q[b * this.constants.queries + this.thread.y][h][d] * k[b * this.constants.keys + this.thread.x][g][d];
  }
  return scale * dot;
}

/** weights = exp(scores − lse), 0 outside the window */
export function attentionWeights(this: Thread, scores: Cube, lse: Matrix, minusInfinity: number): number {
  if (scores[this.thread.z][this.thread.y][this.thread.x] === minusInfinity) {
    return 0;
  }
  return Math.exp(scores[this.thread.z][this.thread.y][this.thread.x] - lse[this.thread.z][this.thread.y]);
}

/** out[b, t, h, d] = Σ_s weights[b, h, t, s] · v[b, s, g, d]: z = (b, t), y = h, x = d. Also dq, from dscores and k. */
export function attentionMix(this: Thread<'heads' | 'group' | 'queries' | 'keys'>, weights: Cube, v: Cube): number {
  const b = Math.floor((this.thread.z + 0.5) / this.constants.queries);
  const t = this.thread.z - b * this.constants.queries;
  const g = Math.floor((this.thread.y + 0.5) / this.constants.group);
  let sum = 0;
  for (let s = 0; s < this.constants.keys; s++) {
    sum += weights[b * this.constants.heads + this.thread.y][t][s] * v[b * this.constants.keys + s][g][this.thread.x];
  }
  return sum;
}

/** delta[b, h, t] = Σ_d dout · out: z = b, y = h, x = t */
export function attentionDelta(this: Thread<'queries' | 'headDim'>, dout: Cube, out: Cube): number {
  let sum = 0;
  for (let d = 0; d < this.constants.headDim; d++) {
    sum +=
      dout[this.thread.z * this.constants.queries + this.thread.x][this.thread.y][d] *
      out[this.thread.z * this.constants.queries + this.thread.x][this.thread.y][d];
  }
  return sum;
}

/** dscores = weights · (Σ_d dout · v − delta) · scale: z = (b, h), y = t, x = s */
export function attentionGradScores(
  this: Thread<'heads' | 'group' | 'queries' | 'keys' | 'headDim'>,
  weights: Cube,
  dout: Cube,
  v: Cube,
  delta: Matrix,
  scale: number,
): number {
  const b = Math.floor((this.thread.z + 0.5) / this.constants.heads);
  const h = this.thread.z - b * this.constants.heads;
  const g = Math.floor((h + 0.5) / this.constants.group);
  let dot = 0;
  for (let d = 0; d < this.constants.headDim; d++) {
    dot += dout[b * this.constants.queries + this.thread.y][h][d] * v[b * this.constants.keys + this.thread.x][g][d];
  }
  return weights[this.thread.z][this.thread.y][this.thread.x] * (dot - delta[this.thread.z][this.thread.y]) * scale;
}

/**
 * dv[b, s, g, d] = Σ over the heads h of group g and all t of weights[b, h, t, s] · dout[b, t, h, d]: z = (b, s), y = g, x = d.
 * Also dk, from dscores and q.
 */
export function attentionMixBack(
  this: Thread<'heads' | 'group' | 'queries' | 'keys'>,
  weights: Cube,
  dout: Cube,
): number {
  const b = Math.floor((this.thread.z + 0.5) / this.constants.keys);
  const s = this.thread.z - b * this.constants.keys;
  let sum = 0;
  for (let j = 0; j < this.constants.group; j++) {
    for (let t = 0; t < this.constants.queries; t++) {
      sum +=
        weights[b * this.constants.heads + this.thread.y * this.constants.group + j][t][s] *
        dout[b * this.constants.queries + t][this.thread.y * this.constants.group + j][this.thread.x];
    }
  }
  return sum;
}
