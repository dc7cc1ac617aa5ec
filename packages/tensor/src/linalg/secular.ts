/**
 * Eigenvalues and vectors of a diagonal matrix plus one of rank one, D + ρ z zᵀ: the inner problem of divide and conquer.
 *
 * The eigenvalues are the zeros of g(λ) = 1/ρ + Σ zᵢ²/(dᵢ − λ), which rises from −∞ to ∞ between two neighbouring poles
 * and once more beyond the last. The vector of λ has the entries zᵢ/(dᵢ − λ), so what has to be accurate is every
 * difference dᵢ − λ, also where λ is as good as equal to a pole. Hence the unknown is τ, the distance from the nearer pole.
 *
 * Even so, vectors of close eigenvalues would not be orthogonal. The way out: the computed λ are the exact eigenvalues of
 * D + ρ ẑ ẑᵀ for a ẑ that Löwner's formula gives to full relative accuracy, and that is as near to z as rounding allows.
 * The vectors are computed from ẑ.
 *
 * Sources: Li, Solving secular equations stably and efficiently (LAPACK working note 89, 1993); Gu & Eisenstat, A
 * divide-and-conquer algorithm for the symmetric tridiagonal eigenproblem (1995); Golub & Van Loan, §8.4.
 */
import { TensorError } from '../errors.js';

/** Steps for one zero; usual are three to five. */
const MOST_STEPS = 100;
/** Steps after which every third one cuts the bracket instead of trusting the model. */
const PATIENCE = 6;
const UNIT = Number.EPSILON / 2;

/**
 * g for k poles d, ascending and all different, and weights z, none zero. It holds on to the arrays; more than k entries
 * are ignored.
 */
export class SecularEquation {
  /** Steps taken so far, over all zeros. */
  steps = 0;

  // the zero being looked for: τ is its distance from d[origin]; it lies between d[split] and the next pole, or beyond both
  private origin = 0;
  private split = 0;
  private beyond = false;

  // g at the last point: the sums over poles up to `split` and after it, their derivatives, the sum of all partial sums
  private left = 0;
  private leftSlope = 0;
  private right = 0;
  private rightSlope = 0;
  private partial = 0;

  constructor(
    private readonly d: Float64Array,
    private readonly z: Float64Array,
    private readonly k: number,
    private readonly rho: number,
  ) {}

  /**
   * The zero between d[j] and d[j + 1], or beyond the last; `out[at + i]` becomes d[i] minus it, to high relative accuracy.
   * Throws `no-convergence` after 100 steps.
   */
  zero(j: number, out: Float64Array, at: number): number {
    const { d, k } = this;
    this.beyond = j === k - 1;
    const room = this.beyond ? this.rho * squareSum(this.z, k) : d[j + 1]! - d[j]!;
    if (k === 1) {
      out[at] = -room;
      return d[0]! + room;
    }
    const tau = this.iterate(...this.locate(j, room));
    const pole = d[this.origin]!;
    for (let i = 0; i < k; i++) out[at + i] = d[i]! - pole - tau;
    return pole + tau;
  }

  /**
   * Chooses the origin by the sign of g in the middle; returns bounds of τ and a guess. The guess is the zero that g would
   * have if all but the two poles beside it had their effect in the middle everywhere.
   */
  private locate(j: number, room: number): [low: number, high: number, guess: number] {
    const { d, z, k, beyond } = this;
    const middle = room / 2;
    this.origin = j;
    this.split = beyond ? k - 2 : j;
    const [a1, a2] = [z[this.split]! ** 2, z[this.split + 1]! ** 2];
    let [p1, p2] = [d[this.split]! - d[j]!, d[this.split + 1]! - d[j]!];
    const g = this.evaluate(middle);
    const rest = g - a1 / (p1 - middle) - a2 / (p2 - middle);
    let [low, high] = g >= 0 ? [0, middle] : [middle, room];
    if (!beyond && g < 0) {
      this.origin = j + 1;
      [p1, p2] = [-room, 0];
      [low, high] = [-middle, 0];
    }
    // the last zero may be at the bound itself, up to rounding
    if (beyond) high *= 1 + 8 * Number.EPSILON;
    return [low, high, modelZero(rest * (p1 + p2) + a1 + a2, a1 * p2 + a2 * p1 + rest * p1 * p2, rest, beyond)];
  }

  /** Improves τ until g vanishes within its rounding error, or the bracket is down to neighbouring numbers. */
  private iterate(low: number, high: number, guess: number): number {
    let tau = guess > low && guess < high ? guess : between(low, high);
    let before = Infinity;
    let fixed = true;
    for (let step = 0; step < MOST_STEPS; step++) {
      this.steps++;
      const g = this.evaluate(tau);
      if (g === 0) return tau;
      if (g < 0) low = tau;
      else high = tau;
      // two models of g; the other one when this one does not get on
      if (Math.abs(g) > 0.1 * before) fixed = !fixed;
      before = Math.abs(g);
      let next = tau + this.modelStep(tau, g, fixed);
      // the bound is generous with many poles, and the last step costs nothing
      if (Math.abs(g) <= UNIT * this.rounding(tau)) return next > low && next < high ? next : tau;
      const impatient = step > PATIENCE && step % 3 === 0;
      if (impatient || !(next > low && next < high)) next = between(low, high);
      if (!(next > low && next < high)) return tau;
      tau = next;
    }
    throw new TensorError(
      'no-convergence',
      `secular equation: expected a zero within ${MOST_STEPS} steps, got no convergence for ${this.k} poles`,
    );
  }

  /** g at d[origin] + τ. The far poles come first: partial sums then grow late, and so does their rounding. */
  private evaluate(tau: number): number {
    const { d, z, k, split } = this;
    const pole = d[this.origin]!;
    let [left, right, leftSlope, rightSlope, partial] = [0, 0, 0, 0, 0];
    for (let i = 0; i <= split; i++) {
      const ratio = z[i]! / (d[i]! - pole - tau);
      left += z[i]! * ratio;
      leftSlope += ratio * ratio;
      partial -= left;
    }
    for (let i = k - 1; i > split; i--) {
      const ratio = z[i]! / (d[i]! - pole - tau);
      right += z[i]! * ratio;
      rightSlope += ratio * ratio;
      partial += Math.abs(right);
    }
    this.left = left;
    this.leftSlope = leftSlope;
    this.right = right;
    this.rightSlope = rightSlope;
    this.partial = partial;
    return 1 / this.rho + left + right;
  }

  /** A bound on the rounding error of g in units of rounding: of its terms, its partial sums and τ itself. */
  private rounding(tau: number): number {
    const terms = Math.abs(this.left) + Math.abs(this.right);
    return 8 * terms + this.partial + 2 / this.rho + Math.abs(tau) * (this.leftSlope + this.rightSlope);
  }

  /**
   * The step to the zero of c + s₁/(d₁ − λ) + s₂/(d₂ − λ), where d₁ and d₂ are the poles beside the zero, and the model has
   * g's value and slope at the present point. Either it also has the slopes of both sums, left and right (Li's middle
   * way), or the pole at the origin has its true weight (fixed weight).
   */
  private modelStep(tau: number, g: number, fixed: boolean): number {
    const { d, z, origin, split, leftSlope, rightSlope, beyond } = this;
    const slope = leftSlope + rightSlope;
    const p1 = d[split]! - d[origin]! - tau;
    const p2 = d[split + 1]! - d[origin]! - tau;
    const near = origin === split ? p1 : p2;
    const other = origin === split ? p2 : p1;
    const weight = z[origin]! / near;
    const c = fixed ? g - other * slope - (near - other) * weight * weight : g - p1 * leftSlope - p2 * rightSlope;
    return modelZero((p1 + p2) * g - p1 * p2 * slope, p1 * p2 * g, c, beyond);
  }
}

/** The root of c x² − a x + b that is the model's zero between the poles, or beyond the last. */
function modelZero(a: number, b: number, c: number, beyond: boolean): number {
  const root = Math.sqrt(Math.max(0, a * a - 4 * b * c));
  if (beyond) return a >= 0 ? (a + root) / (2 * c) : (2 * b) / (a - root);
  return a <= 0 ? (a - root) / (2 * c) : (2 * b) / (a + root);
}

/** A point of the bracket: halfway, or halfway between the magnitudes when they are far apart. One end may be zero. */
function between(low: number, high: number): number {
  if (low === 0) return high / 16;
  if (high === 0) return low / 16;
  const ratio = high / low;
  if (ratio > 4 || (ratio > 0 && ratio < 0.25)) return Math.sign(low) * Math.sqrt(low * high);
  return low + (high - low) / 2;
}

function squareSum(z: Float64Array, k: number): number {
  let sum = 0;
  for (let i = 0; i < k; i++) sum += z[i]! * z[i]!;
  return sum;
}

/**
 * Löwner's formula: ẑᵢ² = ∏ⱼ (λⱼ − dᵢ) / ∏ⱼ≠ᵢ (dⱼ − dᵢ), up to the factor ρ, with the signs of z. Row j of `differences`
 * (`stride` apart) holds all dᵢ − λⱼ.
 */
export function loewnerWeights(
  d: Float64Array,
  z: Float64Array,
  k: number,
  differences: Float64Array,
  stride: number,
): Float64Array {
  const out = new Float64Array(k).fill(1);
  for (let j = 0; j < k; j++) {
    const row = j * stride;
    const pole = d[j]!;
    for (let i = 0; i < j; i++) out[i] = out[i]! * (differences[row + i]! / (d[i]! - pole));
    out[j] = out[j]! * -differences[row + j]!;
    for (let i = j + 1; i < k; i++) out[i] = out[i]! * (differences[row + i]! / (d[i]! - pole));
  }
  for (let i = 0; i < k; i++) out[i] = Math.sign(z[i]!) * Math.sqrt(out[i]!);
  return out;
}

/** Row j of `differences` becomes the unit eigenvector of λⱼ, entry i in column `place[i]`. */
export function secularVectors(
  weights: Float64Array,
  place: Int32Array,
  k: number,
  differences: Float64Array,
  stride: number,
): void {
  const vector = new Float64Array(k);
  for (let j = 0; j < k; j++) {
    const row = j * stride;
    let sum = 0;
    for (let i = 0; i < k; i++) {
      const entry = weights[i]! / differences[row + i]!;
      vector[i] = entry;
      sum += entry * entry;
    }
    const factor = 1 / Math.sqrt(sum);
    for (let i = 0; i < k; i++) differences[row + place[i]!] = vector[i]! * factor;
  }
}
