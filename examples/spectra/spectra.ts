/** The singular values of a model's weights, as a table of numbers and as a picture. */
import { loadModel } from '@milora/llama/node';
import { singularValues } from '@milora/tensor';
import { lineChart } from './chart.js';

/** Weights that MiLoRA adapts by default. */
const TYPES = ['q', 'k', 'v', 'up', 'down'] as const;

export interface Spectrum {
  type: (typeof TYPES)[number];
  layer: number;
  /** Descending. */
  s: Float64Array;
}

/** Spectra of the q, k, v, up and down weights of a model: a Hugging Face folder or a llama2.c file. */
export async function spectraOf(path: string): Promise<Spectrum[]> {
  const model = await loadModel(path);
  try {
    const spectra: Spectrum[] = [];
    for (const [name, weight] of model.stateDict()) {
      const found = /layers\.(\d+)\.\w+\.(q|k|v|up|down)_proj\.weight$/.exec(name);
      if (!found) continue;
      const { s } = await singularValues(weight, { name });
      spectra.push({ type: found[2] as Spectrum['type'], layer: Number(found[1]), s });
    }
    return spectra;
  } finally {
    model.dispose();
  }
}

/** One curve for each weight, a colour for each type, the `rank` smallest values thick. */
export function spectraPicture(title: string, spectra: readonly Spectrum[], rank: number): string {
  const ordered = TYPES.flatMap((type) => spectra.filter((spectrum) => spectrum.type === type));
  return lineChart(
    { title, x: 'index i / k', y: 'singular value / largest', xRange: [0, 1] },
    ordered.map(({ type, s }) => ({
      name: `${type}, k = ${s.length}`,
      points: Array.from(s, (value, i) => [(i + 0.5) / s.length, value / s[0]!] as const),
      thickFrom: Math.max(0, s.length - rank),
    })),
  );
}

/** Per type: the smallest value, the share of ‖W‖² in the `rank` smallest, and the nearest gap at the window's edge. */
export function spectraTable(spectra: readonly Spectrum[], rank: number): string {
  const lines = [
    `| weights | k | s_k / s_1 | ${rank} smallest, share of ‖W‖² | gap at the edge / s_1 |`,
    '| --- | --: | --: | --: | --: |',
  ];
  for (const type of TYPES) {
    const group = spectra.filter((spectrum) => spectrum.type === type);
    if (group.length === 0) continue;
    const range = (of: (s: Float64Array) => number, show: (x: number) => string): string => {
      const values = group.map(({ s }) => of(s)).sort((x, y) => x - y);
      const [least, most] = [show(values[0]!), show(values[values.length - 1]!)];
      return least === most ? least : `${least} … ${most}`;
    };
    const energy = (s: Float64Array): number => s.reduce((sum, x) => sum + x * x, 0);
    lines.push(
      [
        `| ${type}`,
        range((s) => s.length, String),
        range(
          (s) => s[s.length - 1]! / s[0]!,
          (x) => x.toPrecision(2),
        ),
        range(
          (s) => energy(s.subarray(-rank)) / energy(s),
          (x) => `${(100 * x).toFixed(2)} %`,
        ),
        `${range(
          (s) => (s[s.length - rank - 1]! - s[s.length - rank]!) / s[0]!,
          (x) => x.toExponential(0),
        )} |`,
      ].join(' | '),
    );
  }
  return lines.join('\n');
}
