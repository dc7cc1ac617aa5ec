/**
 * Entry of the module: the table of jobs, the fork and join, and the loop of a worker.
 * The numbers here are those of JOBS in the host's backends/wasm/index.ts.
 */
import * as attentionJobs from './attention';
import { EPOCH, JOB, MAY_WAIT, PENDING, READY, SLEEPERS, SPINS, TASKS, setThread, thread } from './control';
import * as elementwise from './elementwise';
import { gemm, gemv, productScratch } from './gemm';
import * as rows from './rows';

function work(job: i32, begin: i32, end: i32): void {
  switch (job) {
    case 0: return gemm(begin, end);
    case 1: return gemv(begin, end);
    case 2: return attentionJobs.attention(begin, end);
    case 3: return attentionJobs.attentionGrad(begin, end);
    case 4: return elementwise.unary(begin, end);
    case 5: return elementwise.affine(begin, end);
    case 6: return elementwise.binary(begin, end);
    case 7: return elementwise.swiglu(begin, end);
    case 8: return elementwise.swigluGrad(begin, end);
    case 9: return elementwise.axpy(begin, end);
    case 10: return elementwise.scaleBy(begin, end);
    case 11: return elementwise.adamw(begin, end);
    case 12: return elementwise.sgd(begin, end);
    case 13: return elementwise.fromBf16(begin, end);
    case 14: return rows.softmax(begin, end);
    case 15: return rows.softmaxGrad(begin, end);
    case 16: return rows.logSoftmax(begin, end);
    case 17: return rows.logSoftmaxGrad(begin, end);
    case 18: return rows.argmax(begin, end);
    case 19: return rows.rmsNorm(begin, end);
    case 20: return rows.rmsNormGradInput(begin, end);
    case 21: return rows.rmsNormGradWeight(begin, end);
    case 22: return rows.crossEntropy(begin, end);
    case 23: return rows.crossEntropyGrad(begin, end);
    case 24: return rows.sumRows(begin, end);
    case 25: return rows.sumColumns(begin, end);
    case 26: return rows.rope(begin, end);
    case 27: return rows.scatterAddRows(begin, end);
    case 28: return attentionJobs.attentionFew(begin, end);
    case 29: return rows.crossEntropyUpdate(begin, end);
    case 30: return elementwise.squaredNorm(begin, end);
    default: unreachable();
  }
}

/** The share of this thread: one contiguous range. */
function share(threads: i32): void {
  const tasks = <i64>load<i32>(TASKS);
  const begin = <i32>((tasks * thread) / threads);
  const end = <i32>((tasks * (thread + 1)) / threads);
  if (begin < end) work(load<i32>(JOB), begin, end);
}

/** Runs `job` over `tasks` tasks on up to `threads` threads, whose arguments are in ARGS. Returns when all is done. */
export function run(job: i32, tasks: i32, threads: i32): void {
  threads = min(threads, 1 + atomic.load<i32>(READY));
  if (threads <= 1 || tasks <= 1) return work(job, 0, tasks);
  store<i32>(JOB, job);
  store<i32>(TASKS, tasks);
  atomic.store<i32>(PENDING, threads - 1);
  const word = (((atomic.load<i32>(EPOCH) >> 8) + 1) << 8) | threads;
  atomic.store<i32>(EPOCH, word);
  if (atomic.load<i32>(SLEEPERS) > 0) atomic.notify(EPOCH, -1);
  share(threads);
  let spins = 0;
  while (atomic.load<i32>(PENDING) != 0) {
    // a worker that lost its core: give ours up for 0.1 ms at a time
    if (++spins > 20000 && load<i32>(MAY_WAIT)) {
      const left = atomic.load<i32>(PENDING);
      if (left != 0) atomic.wait<i32>(PENDING, left, 100000);
    }
  }
}

/** The life of a worker: spin for a job, then sleep until one comes. Never returns. */
export function worker(): void {
  let seen = atomic.load<i32>(EPOCH);
  setThread(atomic.add<i32>(READY, 1) + 1);
  for (;;) {
    let word = atomic.load<i32>(EPOCH);
    for (let spins = load<i32>(SPINS); word == seen && spins > 0; spins--) word = atomic.load<i32>(EPOCH);
    if (word == seen) {
      atomic.add<i32>(SLEEPERS, 1);
      atomic.wait<i32>(EPOCH, seen, -1);
      atomic.sub<i32>(SLEEPERS, 1);
      continue;
    }
    seen = word;
    const threads = word & 0xff;
    if (thread >= threads) continue;
    share(threads);
    if (atomic.sub<i32>(PENDING, 1) == 1) atomic.notify(PENDING, 1);
  }
}

export { productScratch };
export { setup } from './exponential';
export { attentionScratch, attentionGradScratch } from './attention';
