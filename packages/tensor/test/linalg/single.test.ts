/** Triplets that float32 has a part in: exact in the end, or as exact as was asked for; and never where float32 will not do. */
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { createWasmBackend } from '../../src/backends/wasm/index.js';
import { leadingTriplets } from '../../src/linalg/leading.js';
import { transposeMatrix, type Matrix } from '../../src/linalg/matrix.js';
import { minorTriplets, type Minor } from '../../src/linalg/minor.js';
import type { Triplets } from '../../src/linalg/rayleighRitz.js';
import { runNow } from '../../src/linalg/steps.js';
import { HostWorkspace, transposed, type View, type Workspace } from '../../src/linalg/workspace.js';
import { columns, fromHost, gaussian, inWorkspace, numbers, orthogonalityError, reference, residualOf, sineBetween, toHost, withSpectrum } from './matrices.js'; // prettier-ignore

const wasm = createWasmBackend({ threads: 1 });
afterAll(() => wasm.close());

/** Runs on the host or in wasm memory, none of which may be left. */
const within = <T>(where: 'host' | 'wasm', run: (workspace: Workspace) => T): T =>
  where === 'host' ? run(new HostWorkspace()) : inWorkspace(wasm, run);

/** Scales every entry. */
const times = (a: Matrix, factor: number): Matrix => ({ ...a, data: a.data.map((x) => x * factor) });

interface Found {
  minor: Minor | undefined;
  /** What was done, in order. */
  stages: string[];
}

/** The r minor triplets of b, or of its transpose, with float32 tried from the smallest matrices on. */
function minorOf(b: View, r: number, workspace: Workspace): Found {
  const stages: string[] = [];
  const steps = minorTriplets(b, r, workspace, { singleFrom: 0 });
  for (;;) {
    const step = steps.next();
    if (step.done) return { minor: step.value, stages };
    if (step.value.stage !== stages.at(-1)) stages.push(step.value.stage);
  }
}

describe('minorTriplets by a Gram matrix in float32', () => {
  /** What the triplets of a promise, against those of Jacobi's method. */
  function expectExact(a: Matrix, { triplets, guards }: Minor, r: number): void {
    const exact = reference(a);
    const k = a.rows;
    const s = triplets.s.subarray(guards);
    for (let i = 0; i < r; i++) expect(Math.abs(s[i]! - exact.s[k - r + i]!)).toBeLessThanOrEqual(1e-13 * exact.s[0]!);
    const found = {
      u: columns(triplets.u, guards, guards + r),
      s: s.slice(),
      vt: { rows: r, cols: a.cols, data: triplets.vt.data.slice(guards * a.cols) },
    };
    expect(orthogonalityError(found.u)).toBeLessThan(1e-13);
    expect(orthogonalityError(transposeMatrix(found.vt))).toBeLessThan(1e-13);
    const residual = residualOf(a, found);
    expect(residual).toBeLessThanOrEqual(1e-9 * exact.s[0]!);
    const claimed = triplets.residuals.subarray(guards).reduce((x, y) => Math.max(x, y), 0);
    expect(Math.abs(claimed - residual)).toBeLessThanOrEqual(1e-13 * exact.s[0]!);
    const gap = exact.s[k - r - 1]! - exact.s[k - r]!;
    if (gap > 1e-4 * exact.s[0]!) {
      expect(sineBetween(found.u, columns(exact.u, k - r, k))).toBeLessThanOrEqual((4 * r * 1e-9 * exact.s[0]!) / gap);
    }
  }

  it('are exact after corrections, for wide and tall matrices of independent entries, of all types', () => {
    let corrections = 0;
    fc.assert(
      fc.property(
        fc.integer({ min: 90, max: 130 }),
        fc.double({ min: 1.6, max: 3, noNaN: true }),
        fc.integer({ min: 1, max: 12 }),
        fc.constantFrom('f64', 'f32', 'bf16', 'f16'),
        fc.boolean(),
        fc.constantFrom(1, 1e-6, 1e6),
        fc.integer({ min: 0, max: 2 ** 40 }),
        (k, aspect, r, dtype, tall, scale, seed) => {
          const of = gaussian(k, Math.ceil(aspect * k), seed);
          const host = toHost(dtype === 'f16' ? of : times(of, scale), dtype);
          const a = fromHost(host);
          const given = tall ? toHost(transposeMatrix(a), dtype) : host;
          within('wasm', (workspace) => {
            const view = workspace.load(given);
            const { minor, stages } = minorOf(tall ? transposed(view) : view, r, workspace);
            expectExact(a, minor!, r);
            // once a sample, once the matrix, and no other in float64
            expect(stages.filter((stage) => stage === 'gram')).toHaveLength(stages.includes('refinement') ? 1 : 2);
            if (stages.includes('refinement')) corrections++;
          });
        },
      ),
      { numRuns: 40 },
    );
    expect(corrections).toBeGreaterThan(20);
  });

  it.each([
    // a few large values above a bulk, ends that are tied, a smallest value far below the guessed shift
    ['with outliers', (i: number, k: number) => (i === 0 ? 4 : 2 - i / k), 'refinement'],
    ['tied at the end', (i: number, k: number) => (i >= k - 12 ? 1 : 2 - i / k), 'refinement'],
    ['of one value', () => 1, undefined],
    ['that ends below the guess', (i: number, k: number) => (i === k - 1 ? 0.02 : 2 - i / k), undefined],
    ['over four digits', (i: number, k: number) => 10 ** ((-4 * i) / k), undefined],
    ['of rank k − 5', (i: number, k: number) => (i < k - 5 ? 1 : 0), undefined],
  ] as const)('of a spectrum %s, or else by float64', (_, of, stage) => {
    const k = 110;
    for (const where of ['wasm', 'host'] as const) {
      const a = withSpectrum(
        k,
        180,
        numbers(k, (i) => of(i, k)),
        3,
      );
      within(where, (workspace) => {
        const { minor, stages } = minorOf(workspace.load(toHost(a, 'f64')), 4, workspace);
        const { residuals, s } = minor!.triplets;
        expect(stages.at(-1)).toBe('certificate');
        if (stage) {
          expect(stages).toContain(stage);
          expectExact(a, minor!, 4);
        }
        const exact = reference(a).s;
        for (let i = 0; i < 4; i++) {
          const error = Math.abs(s[minor!.guards + i]! - exact[k - 4 + i]!);
          expect(error).toBeLessThanOrEqual(residuals[minor!.guards + i]! + 1e-13);
        }
      });
    }
  });

  it.each([1e25, 1e-25])('does not lose its way in squares that float32 cannot hold: entries times %d', (scale) => {
    const host = toHost(times(gaussian(100, 170, 5), scale), 'f32');
    within('wasm', (workspace) => {
      const { minor, stages } = minorOf(workspace.load(host), 5, workspace);
      expect(stages).not.toContain('refinement');
      expectExact(fromHost(host), minor!, 5);
    });
    // one huge row, which a sample of the rows need not contain
    const spiked = gaussian(100, 170, 5);
    for (let i = 0; i < 170; i++) spiked.data[41 * 170 + i] = spiked.data[41 * 170 + i]! * scale;
    const other = toHost(spiked, 'f32');
    within('wasm', (workspace) => {
      const { minor } = minorOf(workspace.load(other), 5, workspace);
      if (!minor) return; // too close to singular for any Gram matrix
      const [largest] = reference(fromHost(other)).s;
      const { triplets } = minor;
      const all = { u: triplets.u, s: triplets.s, vt: triplets.vt };
      const claimed = triplets.residuals.reduce((x, y) => Math.max(x, y), 0);
      expect(Math.abs(residualOf(fromHost(other), all) - claimed)).toBeLessThanOrEqual(1e-12 * largest!);
    });
  });
});

describe('leadingTriplets to a loose tolerance', () => {
  it('have a residual that small, and claim no smaller one', () => {
    let loose = 0;
    fc.assert(
      fc.property(
        fc.integer({ min: 190, max: 260 }),
        fc.integer({ min: 0, max: 80 }),
        fc.integer({ min: 1, max: 12 }),
        fc.double({ min: -4, max: -0.5, noNaN: true }),
        fc.constantFrom<(i: number, k: number) => number>(
          (i, k) => 1 - (0.9 * i) / k,
          (i) => 1 / (1 + i),
          (i) => 0.5 ** i,
          () => 1,
          (i) => (i < 3 ? 1 : 0),
        ),
        fc.constantFrom('f64', 'f32', 'bf16'),
        fc.boolean(),
        fc.constantFrom<'host' | 'wasm'>('wasm', 'wasm', 'wasm', 'host'),
        fc.integer({ min: 0, max: 2 ** 40 }),
        (k, longer, r, exponent, of, dtype, tall, where, seed) => {
          const tolerance = 10 ** exponent;
          const n = k + longer;
          const spectrum = numbers(k, (i) => of(i, k));
          const host = toHost(withSpectrum(k, n, spectrum, seed), dtype);
          const a = fromHost(host);
          within(where, (workspace) => {
            const view = workspace.load(tall ? toHost(transposeMatrix(a), dtype) : host);
            const triplets = runNow(leadingTriplets(tall ? transposed(view) : view, r, tolerance, workspace));
            const { u, s, vt, residuals, orthogonality } = triplets;
            expect(Math.max(orthogonalityError(u), orthogonalityError(transposeMatrix(vt)))).toBeLessThan(1e-11);
            expect(orthogonality).toBeLessThan(1e-11);
            const size = spectrum[0]!;
            for (let i = 0; i < s.length; i++) {
              const measured = residualOf(a, one(triplets, i));
              if (i < r) expect(measured).toBeLessThanOrEqual((tolerance + 2e-6) * size);
              expect(measured).toBeLessThanOrEqual(residuals[i]! + 1e-13 * size);
              if (measured > 1e-8) loose++;
            }
          });
        },
      ),
      { numRuns: 60 },
    );
    expect(loose).toBeGreaterThan(100);
  });

  const one = ({ u, s, vt }: Triplets, i: number): Triplets => ({
    u: columns(u, i, i + 1),
    s: s.slice(i, i + 1),
    vt: { rows: 1, cols: vt.cols, data: vt.data.slice(i * vt.cols, (i + 1) * vt.cols) },
    residuals: new Float64Array(1),
    orthogonality: 0,
  });
});
