/** svd-js (https://github.com/danilosalvati/svd-js): the algorithm of Golub & Reinsch in float64, on one thread. */
import { require, serveSvd } from './peer.js';

interface SvdJs {
  /** `a` has at least as many rows as columns; columns of u and v belong to q, in no particular order. */
  SVD(a: number[][]): { u: number[][]; v: number[][]; q: number[] };
}

const { SVD } = require('svd-js') as SvdJs;
const transpose = (rows: number[][]): number[][] => rows[0]!.map((_, j) => rows.map((row) => row[j]!));

await serveSvd((rows) => {
  const tall = rows.length >= rows[0]!.length;
  const a = tall ? rows : transpose(rows);
  return () => {
    const { u, v, q } = SVD(a);
    const [left, right] = [transpose(u), transpose(v)];
    return tall ? { u: left, s: q, v: right } : { u: right, s: q, v: left };
  };
});
