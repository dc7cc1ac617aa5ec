/**
 * What a Gram matrix does to small singular values: those of a matrix with condition 1e9, by way of B Bᵀ in float64, and by way of
 * the same B Bᵀ rounded to float32.
 */
import { Philox, multiplyMatrices, qr, singularValues, transposeMatrix } from '@milora/tensor';
import type { HostTensor, Matrix } from '@milora/tensor';
import { lineChart } from './chart.js';

const K = 96;

const hostOf = ({ rows, cols, data }: Matrix): HostTensor => ({ dtype: 'f64', shape: [rows, cols], data });

function orthogonal(n: number, random: Philox): Matrix {
  return qr({ rows: n, cols: n, data: Float64Array.from(random.normalArray(n * n)) }).q;
}

/** U diag(s) Vᵀ with s falling evenly, on a logarithmic scale, from 1 to 1e-9. */
function falling(): { b: Matrix; s: Float64Array } {
  const random = new Philox(1);
  const s = Float64Array.from({ length: K }, (_, i) => 10 ** ((-9 * i) / (K - 1)));
  const u = orthogonal(K, random);
  const scaled = { ...u, data: u.data.map((x, i) => x * s[i % K]!) };
  return { b: multiplyMatrices(scaled, orthogonal(K, random)), s };
}

export interface GramSpectra {
  exact: Float64Array;
  float64: Float64Array;
  float32: Float64Array;
}

export async function gramSpectra(): Promise<GramSpectra> {
  const { b, s } = falling();
  const gram = multiplyMatrices(b, transposeMatrix(b));
  const roots = async (data: Float64Array): Promise<Float64Array> =>
    (await singularValues(hostOf({ ...gram, data }), { method: 'jacobi' })).s.map(Math.sqrt);
  return { exact: s, float64: await roots(gram.data), float32: await roots(gram.data.map(Math.fround)) };
}

export function gramPicture({ exact, float64, float32 }: GramSpectra): string {
  const curve = (name: string, values: Float64Array) => ({
    name,
    points: Array.from(values, (value, i) => [i + 1, value] as const),
  });
  return lineChart(
    {
      title: 'Singular values by way of a Gram matrix',
      ...{ x: 'index i', y: 'singular value', xRange: [0, K], yRange: [1e-9, 1] },
    },
    [curve('float64 Gram', float64), curve('float32 Gram', float32), { ...curve('true values', exact), dashed: true }],
  );
}
