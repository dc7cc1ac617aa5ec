/**
 * Variable: a tensor that remembers how it was made, and `backward`, which walks that memory in reverse.
 *
 * An op computes its value and records its parents and its derivative (see ops.ts). `backward` sorts the graph
 * topologically without recursion, hands every node the gradient of its value, and lets it add to its parents' gradients.
 * What only the graph needed (saved tensors, intermediate values and gradients) is freed on the way.
 */
import type { Tensor } from '@milora/tensor';
import { add, affine, axpy, full, scope } from '@milora/tensor';
import { AutogradError } from './errors.js';

/** Where the derivative of an op puts the gradients of its parents, which count from 0. */
export interface Gradients {
  /** Whether parent `i` wants a gradient. */
  needs(i: number): boolean;
  /** Adds `g`, a fresh tensor that now belongs to the graph, to the gradient of parent `i`. */
  add(i: number, g: Tensor): void;
  /** The gradient so far, if it may be updated in place: for kernels that accumulate into their result. */
  existing(i: number): Tensor | undefined;
}

interface GraphNode {
  name: string;
  parents: readonly Variable[];
  backward: (dy: Tensor, to: Gradients) => void;
  saved: readonly Tensor[];
}

let enabled = true;

/** Whether ops record their derivatives at the moment. */
export function gradEnabled(): boolean {
  return enabled;
}

function withGrad<T>(on: boolean, fn: () => T): T {
  const before = enabled;
  enabled = on;
  try {
    return fn();
  } finally {
    enabled = before;
  }
}

/** Runs `fn` without recording: for evaluation. */
export function noGrad<T>(fn: () => T): T {
  return withGrad(false, fn);
}

export class Variable {
  /** The gradient after `backward`, for leaves that require one. Lives until `zeroGrad`. */
  grad: Tensor | undefined;
  /** @internal */
  node: GraphNode | undefined;
  /** @internal gradient on its way through the graph */
  pending: Tensor | undefined;
  private retained = false;
  /** Whether a backward has freed the graph behind it. */
  private consumed = false;
  private differentiable = false;

  constructor(
    readonly value: Tensor,
    options: { requiresGrad?: boolean } = {},
  ) {
    this.requiresGrad = options.requiresGrad ?? false;
  }

  /** Whether `backward` computes its gradient. Throws when it is turned on for a dtype other than f32. */
  get requiresGrad(): boolean {
    return this.differentiable;
  }

  set requiresGrad(on: boolean) {
    if (on && this.value.dtype !== 'f32') {
      throw new AutogradError('dtype', `variable: expected dtype f32 to differentiate, got ${this.value.dtype}`);
    }
    this.differentiable = on;
  }

  get shape(): readonly number[] {
    return this.value.shape;
  }

  /** Whether it was made by the user rather than by an op. */
  get isLeaf(): boolean {
    return this.node === undefined && !this.consumed;
  }

  /** Keeps value and gradient of an intermediate result through `backward`. */
  retain(): this {
    this.retained = true;
    return this;
  }

  /** The same value, cut off from the graph. */
  detach(): Variable {
    return new Variable(this.value.reshape(...this.shape));
  }

  zeroGrad(): void {
    this.grad?.dispose();
    this.grad = undefined;
  }

  /** What a scope must keep when a Variable is returned from it: its value, and the graph that `backward` will need. */
  *owned(): Iterable<Tensor> {
    const seen = new Set<Variable>([this]);
    for (const { value, node } of seen) {
      yield value;
      if (!node) continue;
      yield* node.saved;
      for (const parent of node.parents) seen.add(parent);
    }
  }

  /** The only element of a variable of size 1. */
  item(): Promise<number> {
    return this.value.item();
  }

  /**
   * Adds the derivatives of this value to `grad` of every leaf that requires it. Without `gradient` the value must have
   * one element. The graph is freed; with `retainGraph` it stays, for another `backward`.
   */
  backward(options: { gradient?: Tensor; retainGraph?: boolean } = {}): void {
    if (!this.requiresGrad) {
      throw new AutogradError(
        'backward',
        'backward: expected a value that depends on a leaf with requiresGrad, got none',
      );
    }
    if (!options.gradient && this.value.size !== 1) {
      throw new AutogradError('backward', `backward: expected one element or a gradient, got shape [${this.shape}]`);
    }
    const { backend } = this.value;
    const order = reverseOrder(this);
    for (const variable of order) variable.expectWhole();
    try {
      scope(() => {
        this.pending = options.gradient?.reshape(...this.shape) ?? full(this.shape, 1, { backend });
        withGrad(false, () => {
          for (const variable of order) variable.propagate(options.retainGraph === true, variable === this);
        });
      });
    } finally {
      // an error on the way leaves gradients behind
      for (const variable of order) {
        variable.pending?.dispose();
        variable.pending = undefined;
      }
    }
  }

  private expectWhole(): void {
    if (!this.consumed) return;
    throw new AutogradError(
      'backward',
      'backward: expected a whole graph, got one that an earlier backward freed in part; give that one retainGraph',
    );
  }

  private propagate(retainGraph: boolean, isRoot: boolean): void {
    const { node, pending: dy } = this;
    if (!node) {
      if (!dy) return;
      this.expectWhole();
      this.pending = undefined;
      this.accumulate(dy);
      return;
    }
    if (dy) {
      // what the derivative makes on its way is freed at once; what it adds to a parent is kept
      scope(() => node.backward(dy, gradientsOf(node.parents)));
      this.pending = undefined;
      if (this.retained) this.accumulate(dy);
      else dy.dispose();
    }
    if (retainGraph) return;
    for (const tensor of node.saved) tensor.dispose();
    this.node = undefined;
    this.consumed = true;
    if (!isRoot && !this.retained) this.value.dispose();
  }

  private accumulate(dy: Tensor): void {
    if (!this.grad) {
      // `dy` may be the memory of another gradient (that of a sum): a leaf has its own, for updates in place
      this.grad = (dy.shared ? affine(dy, 1) : dy).keep();
    } else if (this.grad.shared) {
      const sum = add(this.grad, dy).keep();
      this.grad.dispose();
      this.grad = sum;
    } else {
      axpy(this.grad, dy);
    }
    if (this.grad !== dy) dy.dispose();
  }
}

function gradientsOf(parents: readonly Variable[]): Gradients {
  return {
    needs: (i) => parents[i]!.requiresGrad,
    existing: (i) => (parents[i]!.pending?.shared === false ? parents[i]!.pending : undefined),
    add(i, g) {
      const parent = parents[i]!;
      if (!parent.requiresGrad) return;
      if (!parent.pending) {
        parent.pending = g.keep();
      } else if (parent.pending.shared) {
        const sum = add(parent.pending, g).keep();
        parent.pending.dispose();
        g.dispose();
        parent.pending = sum;
      } else {
        axpy(parent.pending, g);
        g.dispose();
      }
    },
  };
}

/** Every variable that `root` depends on through the graph, each before its parents. Iterative: graphs are deep. */
function reverseOrder(root: Variable): Variable[] {
  const order: Variable[] = [];
  const seen = new Set<Variable>([root]);
  const stack: { variable: Variable; next: number }[] = [{ variable: root, next: 0 }];
  while (stack.length > 0) {
    const top = stack.at(-1)!;
    const parent = top.variable.node?.parents[top.next++];
    if (!parent) {
      order.push(top.variable);
      stack.pop();
    } else if (parent.requiresGrad && !seen.has(parent)) {
      seen.add(parent);
      stack.push({ variable: parent, next: 0 });
    }
  }
  return order.reverse();
}

/**
 * Makes the result of an op. `backward` receives the gradient of the value and adds to its parents'; `saved` are tensors
 * made for it alone, freed with the graph. Nothing is recorded when no parent requires a gradient or under `noGrad`.
 */
export function record(
  name: string,
  value: Tensor,
  parents: readonly Variable[],
  backward: (dy: Tensor, to: Gradients) => void,
  saved: readonly Tensor[] = [],
): Variable {
  const variable = new Variable(value);
  if (enabled && parents.some((parent) => parent.requiresGrad)) {
    variable.requiresGrad = true;
    variable.node = { name, parents, backward, saved };
  } else {
    for (const tensor of saved) tensor.dispose();
  }
  return variable;
}

/** What a checkpointed function has drawn, for its second run. */
class Tape {
  private readonly values: unknown[] = [];
  /** The next value to hand out again; undefined in the first run. */
  private next: number | undefined;

  constructor(private readonly outer: Tape | undefined) {}

  rewind(): this {
    this.next = 0;
    return this;
  }

  take<T>(draw: () => T): T {
    if (this.next !== undefined) return this.values[this.next++] as T;
    const value = this.outer ? this.outer.take(draw) : draw();
    this.values.push(value);
    return value;
  }
}

let tape: Tape | undefined;

function withTape<T>(next: Tape, fn: () => T): T {
  const before = tape;
  tape = next;
  try {
    return fn();
  } finally {
    tape = before;
  }
}

/** What `draw` gives; when a checkpointed function runs again, what it gave the first time. For randomness and the like. */
export function drawOnce<T>(draw: () => T): T {
  return tape ? tape.take(draw) : draw();
}

/**
 * Activation checkpointing (Chen et al. 2016): keeps nothing of what happens inside `fn` but its result, and runs it again
 * during `backward`. `fn` must be deterministic but for what it draws by `drawOnce`, as `dropout` does. Leaves that it uses
 * besides its inputs receive their gradients too.
 */
export function checkpoint(fn: (...inputs: Variable[]) => Variable, ...inputs: Variable[]): Variable {
  if (!enabled) return fn(...inputs);
  let needsGrad = false;
  const drawn = new Tape(tape);
  const value = scope(() => {
    const first = withTape(drawn, () => fn(...inputs));
    needsGrad = first.requiresGrad;
    return first.value;
  });
  const result = new Variable(value, { requiresGrad: needsGrad });
  if (!needsGrad) return result;
  const backward = (dy: Tensor, to: Gradients): void => {
    const copies = inputs.map((x) => new Variable(x.value.reshape(...x.shape), { requiresGrad: x.requiresGrad }));
    scope(() => withGrad(true, () => withTape(drawn.rewind(), () => fn(...copies))).backward({ gradient: dy }));
    copies.forEach((copy, i) => {
      if (copy.grad) to.add(i, copy.grad);
      copy.value.dispose();
    });
  };
  result.node = { name: 'checkpoint', parents: inputs, backward, saved: [] };
  return result;
}
