/**
 * The control block: a fixed page at the bottom of the shared memory through which the host and all threads talk.
 *
 * The host writes a kernel's arguments into ARGS and calls `run(job, tasks)`; the tasks 0 … tasks − 1 are split into
 * one contiguous range per thread. Tasks are independent of each other, so the result has the same bits for any number
 * of threads. This module keeps no data segment and no heap: everything lives at addresses that the host hands over.
 */
export const EPOCH: usize = 64; // (counter << 8) | participants: one atomic word tells a worker all it may know
export const PENDING: usize = 128; // participants that have not finished
export const SLEEPERS: usize = 192; // workers waiting on EPOCH
export const READY: usize = 256; // workers that have entered their loop
export const JOB: usize = 320;
export const TASKS: usize = 324;
export const SCRATCH: usize = 328; // address of thread 0's scratch
export const SCRATCH_BYTES: usize = 332; // scratch bytes per thread
export const MAY_WAIT: usize = 336; // 0 on a browser's main thread, where blocking is forbidden
export const SPINS: usize = 340; // loop rounds before a worker goes to sleep
export const LIST: usize = 344; // commands that are replayed, and how many
export const COUNT: usize = 348;
export const ARGS: usize = 384; // up to 48 slots of 4 bytes
export const ARRIVED: usize = 704; // arrivals at the barriers of a replay, all together

/**
 * Index of this thread: 0 is the caller, workers count from 1. One instance per thread, so a global is thread-local. (As a
 * local of the worker's loop it is miscompiled by the baseline compiler of Node 20.)
 */
export let thread: i32 = 0;

export function setThread(index: i32): void {
  thread = index;
}

/** Address of this thread's arguments: ARGS, or inside the command that it replays. */
let args: usize = ARGS;

export function setArguments(at: usize): void {
  args = at;
}

/** Scratch memory of this thread. */
export function scratch(): usize {
  return load<usize>(SCRATCH) + <usize>thread * load<usize>(SCRATCH_BYTES);
}

// @ts-ignore: decorator
@inline
export function ptr(slot: usize): usize {
  return load<usize>(args + (slot << 2));
}

// @ts-ignore: decorator
@inline
export function int(slot: usize): i32 {
  return load<i32>(args + (slot << 2));
}

// @ts-ignore: decorator
@inline
export function float(slot: usize): f32 {
  return load<f32>(args + (slot << 2));
}

/** A double in two slots, the first of which is even. */
// @ts-ignore: decorator
@inline
export function double(slot: usize): f64 {
  return load<f64>(args + (slot << 2));
}
