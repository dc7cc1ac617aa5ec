/**
 * Rotations of rows that make them orthogonal, on the host: the definition of `Workspace.jacobiRound`.
 */
import { dot, type Matrix } from './matrix.js';

/** Rows of a block. */
export const JACOBI_BLOCK = 12;

/** Rows with a smaller squared norm count as zero: the cosine of such a pair cannot be computed any more. */
export const NEGLIGIBLE_SQUARE = 2 ** -960;

/** See `Workspace.jacobiRound`. */
export function rotateBlocks(x: Matrix, n: number, pairs: readonly number[], tolerance: number): number {
  let rotations = 0;
  for (let t = 0; t < pairs.length; t += 2) {
    const [first, second] = [pairs[t]!, pairs[t + 1]!];
    const end = (block: number): number => Math.min(x.rows, (block + 1) * JACOBI_BLOCK);
    const squares = new Map<number, number>();
    for (const block of [first, second]) {
      for (let i = block * JACOBI_BLOCK; i < end(block); i++) squares.set(i, dot(x.data, i * x.cols, i * x.cols, n));
    }
    for (let p = first * JACOBI_BLOCK; p < end(first); p++) {
      for (let q = first === second ? p + 1 : second * JACOBI_BLOCK; q < end(second); q++) {
        if (rotatePair(x, n, p, q, squares, tolerance)) rotations++;
      }
    }
  }
  return rotations;
}

/** Makes rows p and q orthogonal; false when they are. */
function rotatePair(
  x: Matrix,
  n: number,
  p: number,
  q: number,
  squares: Map<number, number>,
  tolerance: number,
): boolean {
  const [pp, qq] = [squares.get(p)!, squares.get(q)!];
  if (pp < NEGLIGIBLE_SQUARE || qq < NEGLIGIBLE_SQUARE) return false;
  const [from, other] = [p * x.cols, q * x.cols];
  const pq = dot(x.data, from, other, n);
  if (Math.abs(pq) <= tolerance * Math.sqrt(pp) * Math.sqrt(qq)) return false;
  const tangent = tangentOf((qq - pp) / (2 * pq));
  rotate(x.data, from, other, x.cols, tangent);
  squares.set(p, squareAfter(x.data, from, n, pp, -tangent * pq));
  squares.set(q, squareAfter(x.data, other, n, qq, tangent * pq));
  return true;
}

/** tan θ of the smaller of the two angles with cot 2θ = ζ that make a pair orthogonal. */
function tangentOf(zeta: number): number {
  const size = Math.abs(zeta);
  // for large ζ the square would overflow
  const tangent = size > 1e8 ? 0.5 / size : 1 / (size + Math.sqrt(1 + size * size));
  return zeta < 0 ? -tangent : tangent;
}

/**
 * Rows at p and q ← (cos · row p − sin · row q, sin · row p + cos · row q), written as a change of both (Rutishauser): the
 * rounding of cos and sin then hardly lengthens the rows, and J stays orthogonal over thousands of rotations.
 */
function rotate(x: Float64Array, p: number, q: number, width: number, tangent: number): void {
  const cosine = 1 / Math.sqrt(1 + tangent * tangent);
  const sine = cosine * tangent;
  const half = sine / (1 + cosine); // the tangent of half the angle
  for (let t = 0; t < width; t++) {
    const xp = x[p + t]!;
    const xq = x[q + t]!;
    x[p + t] = xp - sine * (xq + half * xp);
    x[q + t] = xq + sine * (xp - half * xq);
  }
}

/** The squared norm after a rotation changed it by `change`, from the entries where the subtraction loses digits. */
function squareAfter(x: Float64Array, at: number, n: number, before: number, change: number): number {
  const after = before + change;
  return after > 0.01 * before ? after : dot(x, at, at, n);
}
