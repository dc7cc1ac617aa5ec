/**
 * Long computations that can be watched and stopped: an algorithm is written once, as a generator that yields between its
 * stages, and is run either at once or with the event loop let in between.
 */

/** How far a computation has come. */
export interface Progress {
  /** What is done at the moment: `gram`, `cholesky`, `krylov`, … */
  stage: string;
  /** Estimated share of the whole that is done, 0 to 1; never less than before. */
  done: number;
}

export type Steps<T> = Generator<Progress, T, void>;

export interface StepsOptions {
  onProgress?: ((progress: Progress) => void) | undefined;
  /** Stops the computation at its next step; the promise rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** Milliseconds of computing after which the event loop gets its turn. */
const TURN = 40;

/** Runs to the end without pause. */
export function runNow<T>(steps: Steps<T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** Runs to the end; between steps it reports, lets the event loop go round and obeys the signal. */
export async function runSteps<T>(steps: Steps<T>, { onProgress, signal }: StepsOptions = {}): Promise<T> {
  let turn = performance.now();
  // estimates of parts may lead back, and what is done stays done
  let done = 0;
  try {
    for (;;) {
      signal?.throwIfAborted();
      const step = steps.next();
      if (step.done) return step.value;
      done = Math.max(done, step.value.done);
      onProgress?.({ ...step.value, done });
      if (performance.now() - turn > TURN) {
        await new Promise((resume) => setTimeout(resume));
        turn = performance.now();
      }
    }
  } finally {
    // the generator's own `finally` blocks free its memory
    steps.return(undefined as T);
  }
}

/** Passes the steps of a part on, as the share `from` to `to` of the whole. */
export function* part<T>(steps: Steps<T>, from: number, to: number): Steps<T> {
  try {
    for (;;) {
      const step = steps.next();
      if (step.done) return step.value;
      yield { stage: step.value.stage, done: from + (to - from) * step.value.done };
    }
  } finally {
    steps.return(undefined as T);
  }
}
