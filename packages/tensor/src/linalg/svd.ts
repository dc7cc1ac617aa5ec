import { TensorError } from '../errors.js';
import { jacobi } from './jacobi.js';
import { multiplyMatrices, transposeMatrix, zeroMatrix, type Matrix } from './matrix.js';
import { qrPivoted } from './qr.js';

export interface Svd { u: Matrix; s: Float64Array; vt: Matrix }
export const stats = { sweeps: 0, second: false, sort: false };
export function svdMatrix(a: Matrix): Svd {
  const m=a.rows,n=a.cols;
  let t=Date.now();
  const lap=(w:string)=>{ const x=Date.now(); if (process.env.LAP) console.log(w,x-t); t=x;};
  let order = Int32Array.from({length:m},(_,i)=>i);
  if (stats.sort) { const mx=(i:number)=>a.data.subarray(i*n,i*n+n).reduce((p,c)=>Math.max(p,Math.abs(c)),0); const v=Array.from(order,mx); order.sort((i,j)=>v[j]!-v[i]!); }
  const sorted=zeroMatrix(m,n); order.forEach((from,i)=>sorted.data.set(a.data.subarray(from*n,from*n+n),i*n));
  const { q, r, permutation } = qrPivoted(sorted);
  lap('qr');
  let left: Matrix, s: Float64Array, rightT: Matrix;
  if (stats.second) {
    const { q: q2, r: r2 } = qrPivoted(transposeMatrix(r)).permutation && qrNo(transposeMatrix(r));
    lap('qr2');
    const jr = jacobi(r2); stats.sweeps = jr.sweeps; lap('jacobi');
    left = transposeMatrix(jr.w); s = jr.s; rightT = multiplyMatrices(jr.j, transposeMatrix(q2));
  } else {
    const jr = jacobi(r); stats.sweeps = jr.sweeps; lap('jacobi');
    left = transposeMatrix(jr.j); s = jr.s; rightT = jr.w;
  }
  const u0 = multiplyMatrices(q, left); lap('mul');
  const u=zeroMatrix(m,n); order.forEach((to,i)=>u.data.set(u0.data.subarray(i*n,i*n+n),to*n));
  const vt=zeroMatrix(n,n); for(let i=0;i<n;i++)for(let j=0;j<n;j++)vt.data[i*n+permutation[j]!]=rightT.data[i*n+j]!;
  const idx=Array.from({length:n},(_,i)=>i).sort((x,y)=>s[y]!-s[x]!);
  return { u: {...u, data: Float64Array.from(u.data.map((_,e)=>u.data[Math.floor(e/n)*n+idx[e%n]!]!))}, s: s.slice().sort().reverse(), vt: {...vt, data: vt.data.map((_,e)=>vt.data[idx[Math.floor(e/n)]!*n+e%n]!)} };
}
import { qr as qrNo } from './qr.js';
