/**
 * A PEFT adapter at a lower rank: the export to the untouched base has twice the rank that was trained, and often needs
 * less. ΔW = s·B·A is projected on its largest singular triplets without ever being formed:
 *
 *     B = Q_B R_B,  Aᵀ = Q_A R_A,  s·R_B R_Aᵀ = U S Vᵀ (small)   →   B' = Q_B U √S,  A' = √S Vᵀ Q_Aᵀ,  scaling 1
 *
 * The error ‖ΔW' − ΔW‖_F / ‖ΔW‖_F is the best that the rank allows (Eckart & Young 1936).
 */
import { matrixFromHost, multiplyMatrices, qr, svdMatrix, transposeMatrix } from '@milora/tensor';
import type { HostTensor } from '@milora/tensor';
import { MiloraError } from './errors.js';
import type { PeftAdapter } from './peft.js';
import { scaling } from './peftConfig.js';
import { patternValue } from './targets.js';

export interface CompressedPeft {
  adapter: PeftAdapter;
  /** Relative error of all modules' ΔW together. */
  error: number;
}

/**
 * The adapter with every module at `rank`.
 * @throws MiloraError `rank-too-small`; `rank-too-large` where a module has a lower rank already
 */
export function compressPeft({ config, tensors }: PeftAdapter, rank: number): CompressedPeft {
  if (!Number.isInteger(rank) || rank < 1) {
    throw new MiloraError('rank-too-small', `rank: expected a whole number ≥ 1, got ${rank}`);
  }
  const compressed = new Map<string, HostTensor>();
  let [lost, all] = [0, 0];
  for (const [keyA, a] of tensors) {
    if (!keyA.endsWith('.lora_A.weight')) continue;
    const keyB = keyA.replace(/lora_A\.weight$/, 'lora_B.weight');
    const path = keyA.replace(/^base_model\.model\./, '').replace(/\.lora_A\.weight$/, '');
    const b = tensors.get(keyB)!;
    const before = a.shape[0]!;
    if (rank > before) {
      throw new MiloraError('rank-too-large', `${path}: expected a rank ≤ ${before}, which it has, got ${rank}`);
    }
    const s = scaling(before, patternValue(config.alphaPattern, path, config.alpha), config.useRslora);
    const { q: qb, r: rb } = qr(matrixFromHost(b)); // [out, r], [r, r]
    const { q: qa, r: ra } = qr(transposeMatrix(matrixFromHost(a))); // [in, r], [r, r]
    const core = multiplyMatrices(rb, transposeMatrix(ra));
    const svd = svdMatrix(core);
    const kept = Math.min(rank, svd.s.length);
    for (const [i, value] of svd.s.entries()) {
      all += (s * value) ** 2;
      if (i >= kept) lost += (s * value) ** 2;
    }
    const root = (j: number): number => (j < kept ? Math.sqrt(Math.abs(s) * svd.s[j]!) : 0);
    const left = multiplyMatrices(qb, svd.u); // [out, k]
    const right = multiplyMatrices(qa, transposeMatrix(svd.vt)); // [in, k]
    const [out, inner] = [left.rows, right.rows];
    const nextA = new Float32Array(rank * inner);
    const nextB = new Float32Array(out * rank);
    for (let j = 0; j < kept; j++) {
      for (let i = 0; i < out; i++) nextB[i * rank + j] = Math.sign(s) * root(j) * left.data[i * left.cols + j]!;
      for (let i = 0; i < inner; i++) nextA[j * inner + i] = root(j) * right.data[i * right.cols + j]!;
    }
    compressed.set(keyA, { dtype: 'f32', shape: [rank, inner], data: nextA });
    compressed.set(keyB, { dtype: 'f32', shape: [out, rank], data: nextB });
  }
  const next = { ...config, rank, alpha: rank, rankPattern: {}, alphaPattern: {}, useRslora: false };
  return { adapter: { config: next, tensors: compressed }, error: all === 0 ? 0 : Math.sqrt(lost / all) };
}
