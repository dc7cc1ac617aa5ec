/** Lesson 1: tensors. A shape, a dtype, memory on a backend; ops that check what they are given; scopes that free. */
import { Philox, Tensor, add, cast, getBackend, matmul, scope, svd, tensor } from '@milora/tensor';
import { createGpuBackend } from '@milora/tensor/gpu';

const show = (x: ArrayLike<number>, digits = 2): string => Array.from(x, (v) => v.toFixed(digits)).join(' ');

// Dense, row-major, f32 unless said otherwise. Reading is asynchronous, because on a GPU it has to be.
const a = tensor([1, 2, 3, 4, 5, 6], [2, 3]);
console.log(a.shape, a.dtype, show(await a.data(), 0)); // → [ 2, 3 ] f32 1 2 3 4 5 6

// Ops are functions. They broadcast as in NumPy; transposition is a flag of the product, not a copy.
console.log(show(await add(a, tensor([10, 20, 30])).data(), 0)); // → 11 22 33 14 25 36
console.log(show(await matmul(a, a, { transposeB: true }).data(), 0)); // → 14 32 32 77

// A wrong call says what it expected.
try {
  matmul(a, a);
} catch (error) {
  console.log((error as Error).message); // → matmul: expected equal inner sizes, got [2, 3] · [2, 3]
}

// A scope frees what was made inside it, except what it returns.
const before = getBackend().memory().liveBuffers;
const kept = scope(() => add(matmul(a, a, { transposeB: true }), tensor([1, 1])));
console.log(getBackend().memory().liveBuffers - before); // → 1
kept.dispose();

// Randomness is passed in: the same seed gives the same numbers on every backend and for every number of threads.
const weight = tensor(new Philox(42).normalArray(6 * 4), [6, 4]);

// 16-bit formats are for storage: cast rounds to nearest even, and products read them directly.
const rounded = cast(cast(weight, 'bf16'), 'f32');
const [exact, near] = [await weight.data(), await rounded.data()];
console.log(near.every((v, i) => Math.abs(v - exact[i]!) <= Math.abs(exact[i]!) / 256)); // → true

// The thin SVD, descending, in float64 on the host: u [6, 4], s [4], vt [4, 4].
const { u, s, vt } = await svd(weight);
console.log([u.rows, u.cols], s.length, [vt.rows, vt.cols]); // → [ 6, 4 ] 4 [ 4, 4 ]

// The same code runs on the GPU.js backend, whose kernels are the readable definition of each op.
const onGpu = Tensor.fromHost(await weight.toHost(), createGpuBackend('cpu'));
const [w, g] = [matmul(weight, weight, { transposeA: true }), matmul(onGpu, onGpu, { transposeA: true })];
console.log(w.backend.name, g.backend.name, show(await w.data(), 3) === show(await g.data(), 3)); // → wasm gpu/cpu true
