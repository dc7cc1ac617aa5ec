/**
 * Entry of the module: the table of jobs, the fork and join, and the loop of a worker.
 * The numbers here are those of JOBS in the host's backends/wasm/index.ts.
 */
import * as attentionJobs from './attention';
import {
  ARGS, ARRIVED, COUNT, EPOCH, JOB, LIST, MAY_WAIT, PENDING, READY, SLEEPERS, SPINS, TASKS, setArguments, setThread, thread,
} from './control';
import * as dense from './dense';
import * as elementwise from './elementwise';
import { gemm, productScratch } from './gemm';
import { gemv, gemvScratch } from './gemv';
import * as rows from './rows';
import { multiplySingle } from './single';

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
    case 31: return rows.gatherRows(begin, end);
    case 32: return rows.writeRows(begin, end);
    case 33: return rows.dequantizeRows(begin, end);
    case 34: return dense.multiply(begin, end);
    case 35: return dense.rowsTimes(begin, end);
    case 36: return dense.reflectRows(begin, end);
    case 37: return dense.jacobiRound(begin, end);
    case 38: return dense.transpose(begin, end);
    case 39: return dense.symmetricTimes(begin, end);
    case 40: return dense.sumPartial(begin, end);
    case 41: return multiplySingle(begin, end);
    case 42: return dense.checkFinite(begin, end);
    default: unreachable();
  }
}

/** The share of this thread: one contiguous range. */
function share(job: i32, tasks: i32, threads: i32): void {
  const begin = <i32>((<i64>tasks * thread) / threads);
  const end = <i32>((<i64>tasks * (thread + 1)) / threads);
  if (begin < end) work(job, begin, end);
}

/** Hands the job in the control block to the workers. */
function fork(threads: i32): void {
  atomic.store<i32>(PENDING, threads - 1);
  const word = (((atomic.load<i32>(EPOCH) >> 8) + 1) << 8) | threads;
  atomic.store<i32>(EPOCH, word);
  if (atomic.load<i32>(SLEEPERS) > 0) atomic.notify(EPOCH, -1);
}

/**
 * Rounds of waiting before a thread gives its core up for 0.1 ms at a time, as another may have lost its own: some 0.2 ms. To wake
 * takes 0.06 ms; were this shorter, two threads that once slept could go on finding each other asleep.
 */
const PATIENCE: i32 = 200000;

/** Waits until all workers are done. */
function join(): void {
  let spins = 0;
  while (atomic.load<i32>(PENDING) != 0) {
    if (++spins > PATIENCE && load<i32>(MAY_WAIT)) {
      const left = atomic.load<i32>(PENDING);
      if (left != 0) atomic.wait<i32>(PENDING, left, 100000);
    }
  }
}

/** Runs `job` over `tasks` tasks on up to `threads` threads, whose arguments are in ARGS. Returns when all is done. */
export function run(job: i32, tasks: i32, threads: i32): void {
  threads = min(threads, 1 + atomic.load<i32>(READY));
  if (threads <= 1 || tasks <= 1) return work(job, 0, tasks);
  store<i32>(JOB, job);
  store<i32>(TASKS, tasks);
  fork(threads);
  share(job, tasks, threads);
  join();
}

/**
 * A list of commands, recorded by the host: job, tasks, whether all threads share it, whether they meet after it, and 48
 * argument slots. Thread 0 alone runs what is not shared; the host sets meetings wherever one thread needs what another wrote.
 */
const COMMAND: usize = 208;
const HEAD: usize = 16;

/** Runs `count` commands at `list` on up to `threads` threads, with one fork for all. Returns when all is done. */
export function replay(list: usize, count: i32, threads: i32): void {
  threads = min(threads, 1 + atomic.load<i32>(READY));
  if (threads <= 1) return follow(list, count, 1);
  store<i32>(JOB, REPLAY);
  store<usize>(LIST, list);
  store<i32>(COUNT, count);
  atomic.store<i32>(ARRIVED, 0);
  fork(threads);
  follow(list, count, threads);
  join();
}

const REPLAY: i32 = -1;

/** Arrivals after which this thread may go on. A global for the reason that `thread` is one. */
let due: i32 = 0;

function follow(list: usize, count: i32, threads: i32): void {
  due = 0;
  for (const end = list + <usize>count * COMMAND; list < end; list += COMMAND) {
    setArguments(list + HEAD);
    if (load<i32>(list, 8)) share(load<i32>(list), load<i32>(list, 4), threads);
    else if (thread == 0) work(load<i32>(list), 0, load<i32>(list, 4));
    if (load<i32>(list, 12) && threads > 1) {
      due += threads;
      meet();
    }
  }
  setArguments(ARGS);
}

/** Waits until `due` threads have arrived, this one included. */
function meet(): void {
  atomic.add<i32>(ARRIVED, 1);
  let spins = 0;
  while (atomic.load<i32>(ARRIVED) < due) {
    // nobody wakes us but the clock
    if (++spins > PATIENCE && load<i32>(MAY_WAIT)) {
      const arrived = atomic.load<i32>(ARRIVED);
      if (arrived < due) atomic.wait<i32>(ARRIVED, arrived, 100000);
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
    if (load<i32>(JOB) == REPLAY) follow(load<usize>(LIST), load<i32>(COUNT), threads);
    else share(load<i32>(JOB), load<i32>(TASKS), threads);
    if (atomic.sub<i32>(PENDING, 1) == 1) atomic.notify(PENDING, 1);
  }
}

export { denseScratch } from './dense';

export { gemvScratch, productScratch };
export { setup } from './exponential';
export { attentionScratch, attentionGradScratch } from './attention';
