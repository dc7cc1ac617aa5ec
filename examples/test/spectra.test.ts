/** The pictures and tables of docs/svd.md are those that the script makes; what they show is compared with other ways to get it. */
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { loadModel } from '@milora/llama/node';
import { describe, expect, it } from 'vitest';
import { lineChart } from '../spectra/chart.js';
import { gramSpectra } from '../spectra/gram.js';
import { spectraOf, spectraPicture, spectraTable } from '../spectra/spectra.js';

const pathOf = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const page = readFileSync(pathOf('docs/svd.md'), 'utf8').replace(/ +/g, ' ');

const models = [
  { title: 'Spectra of the model of npm start', path: pathOf('examples/tinyworld/model'), file: 'spectra-tinyworld' },
  { title: 'Spectra of stories260K', path: pathOf('../shared/models/stories260K-hf'), file: 'spectra-stories260K' },
];

describe.each(models.filter(({ path }) => existsSync(path)))('$title', ({ title, path, file }) => {
  it('are those of docs/svd.md', async () => {
    const spectra = await spectraOf(path);
    expect(spectraPicture(title, spectra, 8)).toBe(readFileSync(pathOf(`docs/images/${file}.svg`), 'utf8'));
    for (const line of spectraTable(spectra, 8).split('\n').slice(2)) expect(page).toContain(line);
  });

  it('have the squares of the weights as their sum', async () => {
    const spectra = await spectraOf(path);
    const model = await loadModel(path);
    const weights = model.stateDict();
    for (const { type, layer, s } of spectra) {
      const block = type === 'up' || type === 'down' ? 'mlp' : 'self_attn';
      const data = await weights.get(`model.layers.${layer}.${block}.${type}_proj.weight`)!.data();
      const square = Array.from(data).reduce((sum, x) => sum + x * x, 0);
      expect(s.reduce((sum, x) => sum + x * x, 0) / square).toBeCloseTo(1, 12);
    }
    model.dispose();
  });
});

it('a Gram matrix in float32 loses singular values below 1e-4, one in float64 those below 1e-8', async () => {
  const { exact, float64, float32 } = await gramSpectra();
  const ratios = (values: Float64Array, from: number): number[] =>
    [...exact].flatMap((s, i) => (s > from ? [values[i]! / s] : []));
  for (const ratio of [...ratios(float64, 1e-7), ...ratios(float32, 1e-3)])
    expect(Math.abs(ratio - 1)).toBeLessThan(0.01);
  expect(float32[95]! / exact[95]!).toBeGreaterThan(100);
  const worst = Math.max(...ratios(float64, 0).map((ratio) => Math.abs(ratio - 1)));
  expect(worst).toBeGreaterThan(0.1);
});

it('a chart escapes its text, marks powers of ten and cuts values at the lower end', () => {
  const svg = lineChart({ title: 'a < b & c', x: 'x', y: 'y', xRange: [0, 2], yRange: [0.01, 1] }, [
    { name: 'one', points: [[0, 1], [1, 0.1], [2, 0]] }, // prettier-ignore
  ]);
  expect(svg).toContain('<title>a &lt; b &amp; c</title>');
  expect([...svg.matchAll(/text-anchor="end"[^>]*>([^<]*)</g)].map(([, label]) => label)).toEqual([
    '0.01',
    '0.03',
    '0.1',
    '0.3',
    '1',
  ]);
  const [, points] = /points="([^"]*)"/.exec(svg)!;
  expect(points).toBe('64,34 277,155 490,276');
});
