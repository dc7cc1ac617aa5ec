/** Subspace drift: how far training takes the factors of a window method out of the window that they started in. */
import { matrixFromHost, multiplyMatrices, transposeMatrix } from '@milora/tensor';
import type { Matrix, SubspaceOptions } from '@milora/tensor';
import type { Adapter } from './adapter.js';
import { decompose } from './inits.js';
import type { Window } from './window.js';

/** How far a trained layer has left the window it started in. */
export interface Drift {
  /** ‖U_pᵀ B‖ / ‖B‖ */
  left: number;
  /** ‖A V_p‖ / ‖A‖ */
  right: number;
}

/**
 * For each layer of a window method, the share of B and A that lies in the singular directions U_p, V_p of the base weight
 * outside the window: 0 at the start, at most 1. The paper shows the orthogonality at the start only; this follows it.
 * It takes the whole decomposition of every weight, one after the other.
 */
export async function subspaceDrift(adapter: Adapter, options: SubspaceOptions = {}): Promise<Map<string, Drift>> {
  const result = new Map<string, Drift>();
  for (const [path, layer] of adapter.layers) {
    if (!layer.window) continue;
    const { u, vt } = await decompose(await layer.base.weight.value.toHost(), path, options);
    const a = matrixFromHost(await layer.loraA.value.toHost());
    const b = matrixFromHost(await layer.loraB.value.toHost());
    const left = multiplyMatrices(transposeMatrix(u), b); // [k, r]
    const right = multiplyMatrices(vt, transposeMatrix(a)); // [k, r]
    result.set(path, { left: shareOutside(left, b, layer.window), right: shareOutside(right, a, layer.window) });
  }
  return result;
}

/** ‖rows of `coordinates` outside the window‖ / ‖whole‖. */
function shareOutside(coordinates: Matrix, whole: Matrix, window: Window): number {
  const inside = new Set(window);
  const square = (x: Float64Array): number => x.reduce((sum, v) => sum + v * v, 0);
  let outside = 0;
  for (let d = 0; d < coordinates.rows; d++) {
    if (!inside.has(d)) outside += square(coordinates.data.subarray(d * coordinates.cols, (d + 1) * coordinates.cols));
  }
  const all = square(whole.data);
  return all === 0 ? 0 : Math.sqrt(outside / all);
}
