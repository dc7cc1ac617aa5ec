/** Rotary embedding and attention, the two ops particular to a LLaMA. */
import type { AttentionSpec, Backend } from '../backend.js';
import { Tensor, intTensor } from '../tensor.js';
import { backendOf, expectDType, expectShape, expectThat, show } from './check.js';

/**
 * Rotates pairs (j, j + D/2) of each head by the angle of its position (Su et al. 2021, in Hugging Face's half-split
 * layout). x `[…, heads, D]`, positions i32 with one entry per token, cos and sin `[maxPositions, D/2]`.
 */
export function rope(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, inverse = false): Tensor {
  const backend = backendOf('rope', x, positions, cos, sin);
  expectDType('rope', 'x', x, 'f32');
  expectDType('rope', 'positions', positions, 'i32');
  const [heads, headDim] = x.shape.slice(-2) as [number, number];
  const tokens = x.size / (heads * headDim);
  expectThat(
    positions.size === tokens && headDim % 2 === 0 && cos.shape.at(-1) === headDim / 2,
    'rope',
    `positions for ${tokens} tokens and tables of width D/2 of an even D`,
    `${positions.size} positions, tables ${show(cos.shape)}, x ${show(x.shape)}`,
  );
  expectDType('rope', 'cos', cos, 'f32');
  expectDType('rope', 'sin', sin, 'f32');
  expectShape('rope', 'sin', sin, cos.shape);
  const y = backend.rope(x.storage, positions.storage, cos.storage, sin.storage, tokens, heads, headDim, inverse);
  return Tensor.wrap(x.shape, 'f32', y, backend);
}

/**
 * The key windows of causal attention: i32 `[B, T, 2]`. Query t of T sees keys 0 … keys − T + t, cut to the run of ones of
 * its row of `mask` (B·keys entries of 0 and 1, padding left or right), as in Hugging Face. Throws when the ones of a row
 * are not one run.
 */
export function causalRanges(
  batch: number,
  queries: number,
  keys: number,
  mask?: ArrayLike<number>,
  backend?: Backend,
): Tensor {
  const ranges = new Int32Array(batch * queries * 2);
  if (mask) {
    const fits = mask.length === batch * keys;
    expectThat(fits, 'attention mask', `${batch}·${keys} entries`, `${mask.length}`, 'mask');
  }
  for (let b = 0; b < batch; b++) {
    let [first, last] = [0, keys];
    if (mask) {
      const row = Array.from({ length: keys }, (_, j) => mask[b * keys + j]!);
      first = Math.max(0, row.indexOf(1));
      last = row.lastIndexOf(1) + 1;
      const hole = row.slice(first, last).indexOf(0);
      expectThat(
        hole < 0,
        'attention mask',
        `one run of ones in row ${b}`,
        `a zero at ${first + hole} inside it`,
        'mask',
      );
    }
    for (let t = 0; t < queries; t++) {
      const at = (b * queries + t) * 2;
      ranges[at] = first;
      ranges[at + 1] = Math.max(first, Math.min(last, keys - queries + t + 1));
    }
  }
  return intTensor(ranges, [batch, queries, 2], backend ? { backend } : {});
}

function specOf(q: Tensor, k: Tensor, v: Tensor, ranges: Tensor, scale: number | undefined): AttentionSpec {
  expectThat(
    q.rank === 4 && k.rank === 4,
    'attention',
    'q [B, T, H, D] and k [B, S, G, D]',
    `${show(q.shape)}, ${show(k.shape)}`,
  );
  const [batch, queries, heads, headDim] = q.shape as [number, number, number, number];
  const [, keys, kvHeads] = k.shape as [number, number, number, number];
  expectShape('attention', 'k', k, [batch, keys, kvHeads, headDim]);
  expectShape('attention', 'v', v, k.shape);
  expectThat(heads % kvHeads === 0, 'attention', `query heads a multiple of ${kvHeads} key/value heads`, `${heads}`);
  expectShape('attention', 'ranges', ranges, [batch, queries, 2]);
  return { batch, queries, keys, heads, kvHeads, headDim, scale: scale ?? 1 / Math.sqrt(headDim) };
}

/**
 * Scaled dot-product attention with grouped heads: q `[B, T, H, D]`, k and v `[B, S, G, D]`, key windows `[B, T, 2]`
 * (see `causalRanges`). Returns out `[B, T, H, D]` and the log-sum-exp `[B, H, T]` that the derivative needs.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  ranges: Tensor,
  scale?: number,
): { out: Tensor; lse: Tensor } {
  const backend = backendOf('attention', q, k, v, ranges);
  for (const [name, t] of Object.entries({ q, k, v })) expectDType('attention', name, t, 'f32');
  expectDType('attention', 'ranges', ranges, 'i32');
  const spec = specOf(q, k, v, ranges, scale);
  const { out, lse } = backend.attention(q.storage, k.storage, v.storage, ranges.storage, spec);
  return {
    out: Tensor.wrap(q.shape, 'f32', out, backend),
    lse: Tensor.wrap([spec.batch, spec.heads, spec.queries], 'f32', lse, backend),
  };
}

/** Derivatives of `attention` with respect to q, k and v. */
export function attentionGrad(
  dout: Tensor,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  ranges: Tensor,
  out: Tensor,
  lse: Tensor,
  scale?: number,
): { q: Tensor; k: Tensor; v: Tensor } {
  const backend = backendOf('attentionGrad', dout, q, k, v, ranges, out, lse);
  const spec = specOf(q, k, v, ranges, scale);
  expectShape('attentionGrad', 'dout', dout, q.shape);
  const [a, b, c, r] = [q.storage, k.storage, v.storage, ranges.storage];
  const d = backend.attentionGrad(dout.storage, a, b, c, r, out.storage, lse.storage, spec);
  return {
    q: Tensor.wrap(q.shape, 'f32', d.q, backend),
    k: Tensor.wrap(k.shape, 'f32', d.k, backend),
    v: Tensor.wrap(v.shape, 'f32', d.v, backend),
  };
}
