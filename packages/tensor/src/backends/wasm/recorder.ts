/**
 * Recording of kernel calls into a list of commands that the threads can follow by themselves (`replay` in
 * assembly/index.ts), as CUDA graphs do for a GPU. It saves the calls, checks and allocations of a step that repeats, and most
 * of the meetings of threads: only where a command needs what another thread wrote must they wait for each other.
 */

/** One kernel call, and the addresses it uses. */
export interface Command {
  job: number;
  tasks: number;
  /** Whether all threads share the tasks; thread 0 has them all otherwise. */
  shared: boolean;
  /** Whether the threads meet after it. */
  meet: boolean;
  args: Int32Array;
  uses: Set<number>;
  writes: Set<number>;
}

export class Recorder {
  readonly commands: Command[] = [];
  /** Set when the memory is given back. */
  disposed = false;
  /** Memory made while recording; freed parts are used again, as they would be without recording. */
  private readonly owned = new Map<number, number>();
  private readonly spare = new Map<number, number[]>();
  private uses = new Set<number>();
  private writes = new Set<number>();
  /** Commands since the threads last met. */
  private open: Command[] = [];

  constructor(private readonly allocate: (bytes: number) => number) {}

  /** Addresses and sizes of all memory that was made. */
  get memory(): ReadonlyMap<number, number> {
    return this.owned;
  }

  alloc(bytes: number): number {
    const at = this.spare.get(bytes)?.pop() ?? this.allocate(bytes);
    this.owned.set(at, bytes);
    this.use(at);
    this.writes.add(at);
    return at;
  }

  free(at: number): void {
    const bytes = this.owned.get(at)!;
    const list = this.spare.get(bytes);
    if (list) list.push(at);
    else this.spare.set(bytes, [at]);
  }

  /** Notes an operand of the next command. */
  use(at: number): void {
    this.uses.add(at);
  }

  add(job: number, tasks: number, shared: boolean, args: Int32Array): void {
    // a command without a new result is an update of its operands
    const writes = this.writes.size > 0 ? this.writes : this.uses;
    const command = { job, tasks, shared, meet: false, args, uses: this.uses, writes };
    const apart = (other: Command): boolean => !(command.shared || other.shared) || independent(command, other);
    if (!this.open.every(apart)) {
      this.commands.at(-1)!.meet = true;
      this.open = [];
    }
    this.open.push(command);
    this.commands.push(command);
    this.uses = new Set();
    this.writes = new Set();
  }
}

/** Whether neither writes what the other uses. */
function independent(a: Command, b: Command): boolean {
  const misses = (written: Set<number>, used: Set<number>): boolean => ![...written].some((at) => used.has(at));
  return misses(a.writes, b.uses) && misses(b.writes, a.uses);
}
