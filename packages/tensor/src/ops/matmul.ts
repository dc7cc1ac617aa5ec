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
  /** More products that are added: alpha · a · op(b) each, of matrices. The cheapest way to add an adapter's. */
  plus?: readonly { a: Tensor; b: Tensor; transposeB?: boolean; alpha?: number }[];
}

/**
 * alpha · op(a) · op(b). Shapes `[…, m, k]` · `[…, k, n]` → `[…, m, n]`; the leading dimensions agree, or one operand is a
 * plain matrix shared by all. b may be stored in bf16 or f16. Throws on wrong shapes, dtypes or mixed backends.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, alpha = 1, into, plus = [] } = options;
  const others = plus.flatMap((term) => [term.a, term.b]);
  const backend = backendOf('matmul', a, b, ...(into ? [into] : []), ...others);
  expectDType('matmul', 'a', a, 'f32');
  expectDType('matmul', 'b', b, 'f32', 'bf16', 'f16');
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
  expectThat(
    plus.length <= 2 && (plus.length === 0 || batch === 1),
    'matmul',
    'at most 2 further products, and no batch',
    `${plus.length} and a batch of ${batch}`,
  );
  const terms = plus.map((term) => {
    const { transposeB: flip = false, alpha: factor = 1 } = term;
    const inner = term.a.shape.at(-1)!;
    expectDType('matmul', 'a of a further product', term.a, 'f32');
    expectDType('matmul', 'b of a further product', term.b, 'f32', 'bf16', 'f16');
    expectShape('matmul', 'a of a further product', term.a, [m, inner]);
    expectShape('matmul', 'b of a further product', term.b, flip ? [n, inner] : [inner, n]);
    return { a: term.a.storage, b: term.b.storage, k: inner, transposeB: flip, dtypeB: term.b.dtype, alpha: factor };
  });
  const storage = backend.matmul(a.storage, b.storage, spec, into?.storage, terms);
  if (!into) return Tensor.wrap(shape, 'f32', storage, backend);
  into.replaceStorage(storage);
  return into;
}
