/**
 * Rotary position embeddings (Su et al. 2021, https://arxiv.org/abs/2104.09864): the angles.
 *
 * Dimension pair i of a head turns by position · frequency[i] with frequency[i] = theta^(−2i / headDim), stretched by
 * the config's rope scaling. PyTorch computes frequencies and angles in float32, and at position 100,000 a float32
 * angle is off by up to 0.004; so each step is rounded here as it is there, else tables would differ from those a model
 * was trained with. The order of operations is that of transformers:
 * https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
 */
import { bf16ToNumber, numberToBf16 } from '@milora/tensor';
import type { LlamaConfig, RopeScaling } from './config.js';

/** The part of a configuration that rotary embeddings depend on. */
export type RopeConfig = Pick<LlamaConfig, 'headDim' | 'ropeTheta' | 'ropeScaling' | 'ropeFrequencyDtype'>;

const f32 = Math.fround;

/**
 * The angle per position of each dimension pair, after scaling.
 *
 * @returns `[headDim / 2]`, float32 values in a Float64Array
 */
export function ropeFrequencies({ headDim, ropeTheta, ropeScaling, ropeFrequencyDtype }: RopeConfig): Float64Array {
  return Float64Array.from({ length: headDim / 2 }, (_, i) => {
    const power = f32(f32(ropeTheta) ** f32((2 * i) / headDim));
    const frequency = scaleFrequency(f32(1 / power), ropeScaling);
    return ropeFrequencyDtype === 'bf16' ? bf16ToNumber(numberToBf16(frequency)) : frequency;
  });
}

function scaleFrequency(frequency: number, scaling: RopeScaling | null): number {
  if (scaling === null) return frequency;
  if (scaling.type === 'linear') return f32(frequency / f32(scaling.factor));

  const { lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings: context } = scaling;
  const factor = f32(scaling.factor);
  // PyTorch divides a number by a tensor as reciprocal times number.
  const wavelength = f32(f32(1 / frequency) * f32(2 * Math.PI));
  if (wavelength > f32(context / lowFreqFactor)) return f32(frequency / factor);
  if (wavelength < f32(context / highFreqFactor)) return frequency;
  const turns = f32(f32(1 / wavelength) * context);
  const smooth = f32(f32(turns - f32(lowFreqFactor)) / f32(highFreqFactor - lowFreqFactor));
  return f32(f32(f32(f32(1 - smooth) * frequency) / factor) + f32(smooth * frequency));
}

/**
 * Cosines and sines of the angles at positions 0 … maxPositions − 1.
 *
 * @returns both `[maxPositions, headDim / 2]`, row-major
 */
export function ropeTables(config: RopeConfig, maxPositions: number): { cos: Float32Array; sin: Float32Array } {
  const frequencies = ropeFrequencies(config);
  const half = frequencies.length;
  const cos = new Float32Array(maxPositions * half);
  const sin = new Float32Array(maxPositions * half);
  for (let position = 0, at = 0; position < maxPositions; position++) {
    for (let i = 0; i < half; i++, at++) {
      const angle = f32(position * frequencies[i]!);
      cos[at] = Math.cos(angle);
      sin[at] = Math.sin(angle);
    }
  }
  return { cos, sin };
}
