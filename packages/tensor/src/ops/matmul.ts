/** Matrix products. */
import { Tensor } from '../tensor.js';
import { backendOf, expectDType, expectShape, expectThat, show } from './check.js';

export interface MatmulOptions {
  /** Use aᵀ: a is stored `[…, k, m]`. */
  transposeA?: boolean;
  /** Use bᵀ: b is stored `[…, n, k]`. */
  transposeB?: boolean;
  /** Factor of the product. Default 1. */
  alpha?: number;
  /** Adds the product to this tensor, in place, and returns it. */
  into?: Tensor;
}

/**
 * alpha · op(a) · op(b). Shapes `[…, m, k]` · `[…, k, n]` → `[…, m, n]`; the leading dimensions agree, or one operand is a
 * plain matrix shared by all. b may be stored in bf16, f16 or, transposed, in int8. Throws on wrong shapes, dtypes or mixed backends.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, alpha = 1, into } = options;
  const backend = backendOf('matmul', a, b, ...(into ? [into] : []));
  expectDType('matmul', 'a', a, 'f32');
  expectDType('matmul', 'b', b, 'f32', 'bf16', 'f16', 'int8');
  const byRow = b.dtype !== 'int8' || (transposeB && b.rank === 2);
  expectThat(
    byRow,
    'matmul',
    "transposeB and one matrix with b of dtype int8, or cast(b, 'f32')",
    show(b.shape),
    'dtype',
  );
  expectThat(
    a.rank >= 2 && b.rank >= 2,
    'matmul',
    'operands of rank 2 or more',
    `${show(a.shape)} and ${show(b.shape)}`,
  );
  let [m, k] = a.shape.slice(-2) as [number, number];
  if (transposeA) [m, k] = [k, m];
  let [kb, n] = b.shape.slice(-2) as [number, number];
  if (transposeB) [kb, n] = [n, kb];
  const name = (x: Tensor, t: boolean) => show(x.shape) + (t ? 'ᵀ' : '');
  expectThat(k === kb, 'matmul', 'equal inner sizes', `${name(a, transposeA)} · ${name(b, transposeB)}`);
  const lead = a.rank > 2 ? a.shape.slice(0, -2) : b.shape.slice(0, -2);
  const agree = b.rank === 2 || a.rank === 2 || (a.rank === b.rank && lead.every((d, i) => d === b.shape[i]));
  expectThat(agree, 'matmul', 'equal leading dimensions, or a plain matrix', `${show(a.shape)} and ${show(b.shape)}`);
  const shape = [...lead, m, n];
  if (into) {
    expectDType('matmul', 'into', into, 'f32');
    expectShape('matmul', 'into', into, shape);
  }
  let batch = lead.reduce((x, y) => x * y, 1);
  // a stack of matrices times one shared matrix is one tall product
  if (b.rank === 2 && !transposeA) [m, batch] = [m * batch, 1];
  const spec = {
    batch,
    m,
    n,
    k,
    transposeA,
    transposeB,
    strideA: a.rank > 2 ? m * k : 0,
    strideB: b.rank > 2 ? k * n : 0,
    dtypeB: b.dtype,
    alpha,
  };
  const storage = backend.matmul(a.storage, b.storage, spec, into?.storage);
  if (!into) return Tensor.wrap(shape, 'f32', storage, backend);
  into.replaceStorage(storage);
  return into;
}
