/** Matrix products. */
import { TensorError } from '../errors.js';
import { Tensor } from '../tensor.js';
import { backendOf, expectDType, expectShape, show } from './check.js';

/** Throws. Called when a check has failed, so that no message is made in vain: this op runs hundreds of times a step. */
function refuse(expected: string, got: string, code = 'shape'): never {
  throw new TensorError(code, `matmul: expected ${expected}, got ${got}`);
}

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
 * plain matrix shared by all. b may be stored in bf16, f16 or, transposed, in int8. Throws on wrong shapes, dtypes or mixed backends.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, alpha = 1, into, plus = [] } = options;
  const backend = into ? backendOf('matmul', a, b, into) : backendOf('matmul', a, b);
  expectDType('matmul', 'a', a, 'f32');
  expectDType('matmul', 'b', b, 'f32', 'bf16', 'f16', 'int8');
  if (b.dtype === 'int8' && !(transposeB && b.rank === 2)) {
    refuse("transposeB and one matrix with b of dtype int8, or cast(b, 'f32')", show(b.shape), 'dtype');
  }
  if (a.rank < 2 || b.rank < 2) refuse('operands of rank 2 or more', `${show(a.shape)} and ${show(b.shape)}`);
  let m = a.shape[a.rank - (transposeA ? 1 : 2)]!;
  const k = a.shape[a.rank - (transposeA ? 2 : 1)]!;
  const kb = b.shape[b.rank - (transposeB ? 1 : 2)]!;
  const n = b.shape[b.rank - (transposeB ? 2 : 1)]!;
  if (k !== kb) {
    refuse('equal inner sizes', `${show(a.shape)}${transposeA ? 'ᵀ' : ''} · ${show(b.shape)}${transposeB ? 'ᵀ' : ''}`);
  }
  const lead = (a.rank > 2 ? a : b).shape.slice(0, -2);
  if (a.rank > 2 && b.rank > 2 && (a.rank !== b.rank || lead.some((d, i) => d !== b.shape[i]))) {
    refuse('equal leading dimensions, or a plain matrix', `${show(a.shape)} and ${show(b.shape)}`);
  }
  const shape = [...lead, m, n];
  if (into) {
    expectDType('matmul', 'into', into, 'f32');
    expectShape('matmul', 'into', into, shape);
  }
  let batch = lead.reduce((x, y) => x * y, 1);
  // a stack of matrices times one shared matrix is one tall product
  if (b.rank === 2 && !transposeA) [m, batch] = [m * batch, 1];
  const strideA = a.rank > 2 ? m * k : 0;
  const strideB = b.rank > 2 ? k * n : 0;
  const spec = { batch, m, n, k, transposeA, transposeB, strideA, strideB, dtypeB: b.dtype, alpha };
  if (plus.length > 2 || (plus.length > 0 && batch !== 1)) {
    refuse('at most 2 further products, and no batch', `${plus.length} and a batch of ${batch}`);
  }
  const terms = plus.map((term) => {
    const { transposeB: flip = false, alpha: factor = 1 } = term;
    const inner = term.a.shape.at(-1)!;
    backendOf('matmul', a, term.a, term.b);
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
