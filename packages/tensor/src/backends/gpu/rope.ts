import type { Cube, Matrix, Thread, Vector } from './thread.js';

/**
 * Rotary embedding: entries j and j + half of a head are a point in the plane, turned by the angle of its position.
 * y[j] = x[j] · cos − x[j + half] · sin, y[j + half] = x[j + half] · cos + x[j] · sin; direction −1 turns back.
 * z = token, y = head, x = entry.
 */
export function rope(
  this: Thread<'half'>,
  x: Cube,
  positions: Vector,
  cos: Matrix,
  sin: Matrix,
  direction: number,
): number {
  if (this.thread.x < this.constants.half) {
    return (
      x[this.thread.z][this.thread.y][this.thread.x] * cos[positions[this.thread.z]][this.thread.x] -
      direction *
        x[this.thread.z][this.thread.y][this.thread.x + this.constants.half] *
        sin[positions[this.thread.z]][this.thread.x]
    );
  }
  return (
    x[this.thread.z][this.thread.y][this.thread.x] *
      cos[positions[this.thread.z]][this.thread.x - this.constants.half] +
    direction *
      x[this.thread.z][this.thread.y][this.thread.x - this.constants.half] *
      sin[positions[this.thread.z]][this.thread.x - this.constants.half]
  );
}
