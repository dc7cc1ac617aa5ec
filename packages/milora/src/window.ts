/**
 * Which part of a weight's spectrum an adapter takes: an index window.
 *
 * A thin SVD of W `[m, n]` has k = min(m, n) triplets (uᵢ, sᵢ, vᵢ) with s₀ ≥ … ≥ s₍k−1₎. One algebra serves a whole
 * family of methods, W = W_res + s·B·A with B·A built from r chosen triplets; the methods differ only in the choice.
 * A window is that choice: r indices into the *descending* singular values, ascending.
 *
 *     index      0 1 2 …                          … k−1
 *     principal  [0, r)                                    PiSSA    (arXiv 2404.02948)
 *     minor                                   [k−r, k)     MiLoRA   (arXiv 2406.09044)
 *     middle               [(k−r)/2, (k−r)/2 + r)          an ablation
 *     random     r indices anywhere                        the paper's ablation
 *
 * It is a set of indices, not a pair of bounds, because the random ablation draws scattered triplets.
 * The minor window holds the smallest of the k triplets, never the null space of the longer side.
 */
import { MiloraError } from './errors.js';

/** Ascending indices into the descending singular values of a thin SVD, one for each unit of rank. */
export type Window = readonly number[];

/** Where a window is taken, for messages: the module's path and its weight's shape `[out, in]`. */
export interface WindowSite {
  module?: string;
  shape?: readonly number[];
}

/** A source of random integers, such as Philox of `@milora/tensor`. */
export interface IntegerSource {
  /** An integer in `[0, n)`. */
  int(n: number): number;
}

/**
 * The `rank` largest of `k` triplets.
 * @throws MiloraError `rank-too-small`, `rank-too-large`
 */
export function principal(k: number, rank: number, site: WindowSite = {}): Window {
  checkRank(k, rank, site);
  return consecutive(0, rank);
}

/**
 * The `rank` smallest of `k` triplets.
 * @throws MiloraError `rank-too-small`, `rank-too-large`
 *
 * @example
 * minor(6, 2); // [4, 5]
 */
export function minor(k: number, rank: number, site: WindowSite = {}): Window {
  checkRank(k, rank, site);
  return consecutive(k - rank, k);
}

/**
 * The `rank` triplets in the middle of `k`; half a place towards the larger ones if they cannot be centred.
 * @throws MiloraError `rank-too-small`, `rank-too-large`
 */
export function middle(k: number, rank: number, site: WindowSite = {}): Window {
  checkRank(k, rank, site);
  const from = Math.floor((k - rank) / 2);
  return consecutive(from, from + rank);
}

/**
 * `rank` of `k` triplets, every set equally likely (Floyd's sampling: `rank` draws).
 * @throws MiloraError `rank-too-small`, `rank-too-large`
 */
export function randomWindow(k: number, rank: number, rng: IntegerSource, site: WindowSite = {}): Window {
  checkRank(k, rank, site);
  const chosen = new Set<number>();
  for (let last = k - rank; last < k; last++) {
    const draw = rng.int(last + 1);
    chosen.add(chosen.has(draw) ? last : draw);
  }
  return [...chosen].sort((a, b) => a - b);
}

/**
 * The triplets `from … to − 1`.
 * @throws MiloraError `window-range` unless 0 ≤ from < to ≤ k, in whole numbers
 */
export function range(k: number, from: number, to: number, site: WindowSite = {}): Window {
  if (!Number.isInteger(from) || !Number.isInteger(to) || from < 0 || to <= from || to > k) {
    throw new MiloraError(
      'window-range',
      `${nameOf(site)}: expected a window with 0 ≤ from < to ≤ ${k}${ofShape(site)}, got from ${from}, to ${to}`,
    );
  }
  return consecutive(from, to);
}

/** The bounds `from … to − 1` of a window without gaps, which a partial SVD can serve; undefined for one with gaps. */
export function boundsOf(window: Window): { from: number; to: number } | undefined {
  const from = window[0];
  const last = window[window.length - 1];
  if (from === undefined || last === undefined || last - from + 1 !== window.length) return undefined;
  return { from, to: last + 1 };
}

/**
 * Refuses a rank that a weight with `k` singular values cannot have.
 * @throws MiloraError `rank-too-small`, `rank-too-large`
 */
export function checkRank(k: number, rank: number, site: WindowSite = {}): void {
  if (!Number.isInteger(rank) || rank < 1) {
    throw new MiloraError('rank-too-small', `${nameOf(site)}: expected a rank that is a whole number ≥ 1, got ${rank}`);
  }
  if (rank > k) {
    throw new MiloraError(
      'rank-too-large',
      `${nameOf(site)}: expected a rank ≤ ${k}, the largest possible${ofShape(site)}, got ${rank}; lower the rank, ` +
        'or give this module its own in rank_pattern',
    );
  }
}

function consecutive(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

function nameOf(site: WindowSite): string {
  return site.module ?? 'rank';
}

function ofShape(site: WindowSite): string {
  return site.shape === undefined ? '' : ` for a weight of shape [${site.shape.join(', ')}]`;
}
