/**
 * Optimisers with PyTorch's arithmetic: SGD, and AdamW with decoupled weight decay (Loshchilov & Hutter 2019) and bias
 * correction. Plus clipping by global norm.
 */
import * as t from '@milora/tensor';
import type { HostTensor, Tensor } from '@milora/tensor';
import { AutogradError } from './errors.js';
import type { Variable } from './variable.js';

export type NamedParameters = Iterable<readonly [string, Variable]>;

/** State of an optimiser on the host: the step count and tensors named `<parameter>.<slot>`. */
export interface OptimizerState {
  step: number;
  tensors: Map<string, HostTensor>;
}

/** A parameter that has a gradient. */
interface LiveParameter {
  name: string;
  parameter: Variable;
  gradient: Tensor;
}

/** What optimisers share: their parameters, one set of state tensors each, and saving and loading of it. */
abstract class Optimizer {
  readonly parameters: readonly (readonly [string, Variable])[];
  /** Steps taken. */
  steps = 0;
  protected readonly state = new Map<string, Tensor>();

  constructor(
    parameters: NamedParameters,
    private readonly slots: readonly string[],
    public lr: number,
  ) {
    this.parameters = [...parameters];
    if (this.parameters.length === 0) throw new AutogradError('optimizer', 'optimizer: expected parameters, got none');
  }

  /** The state tensor of a parameter, zero at first. */
  protected slot(name: string, parameter: Variable, slot: string): Tensor {
    const key = `${name}.${slot}`;
    let tensor = this.state.get(key);
    if (!tensor) {
      tensor = t.zeros(parameter.shape, { backend: parameter.value.backend }).keep();
      this.state.set(key, tensor);
    }
    return tensor;
  }

  protected abstract update(live: readonly LiveParameter[], factor: Tensor | undefined): void;

  /**
   * One step with the gradients at hand; parameters without one stay as they are. With `factor` (see `clipFactor`) the step
   * is that of gradients times it.
   */
  step(factor?: Tensor): void {
    this.steps++;
    const live: LiveParameter[] = [];
    for (const [name, parameter] of this.parameters) {
      if (parameter.grad) live.push({ name, parameter, gradient: parameter.grad });
    }
    this.update(live, factor);
  }

  zeroGrad(): void {
    for (const [, parameter] of this.parameters) parameter.zeroGrad();
  }

  /** Copies the state to the host. */
  async stateDict(): Promise<OptimizerState> {
    const tensors = new Map<string, HostTensor>();
    for (const [key, tensor] of this.state) tensors.set(key, await tensor.toHost());
    return { step: this.steps, tensors };
  }

  /** Puts a state back. Throws, naming every tensor that is missing, unknown or of another shape or dtype. */
  loadStateDict(state: OptimizerState): void {
    const expected = new Map<string, Variable>();
    for (const [name, parameter] of this.parameters) {
      for (const slot of this.slots) expected.set(`${name}.${slot}`, parameter);
    }
    const problems: string[] = [];
    for (const [name] of this.parameters) {
      const keys = this.slots.map((slot) => `${name}.${slot}`);
      // a parameter that had no gradient yet has no state at all
      if (!keys.some((key) => state.tensors.has(key))) continue;
      for (const key of keys) if (!state.tensors.has(key)) problems.push(`${key}: missing`);
    }
    for (const [key, host] of state.tensors) {
      const parameter = expected.get(key);
      if (!parameter) problems.push(`${key}: unknown`);
      else if (host.dtype !== 'f32') problems.push(`${key}: expected dtype f32, got ${host.dtype}`);
      else if (String(host.shape) !== String(parameter.shape)) {
        problems.push(`${key}: expected shape [${parameter.shape}], got [${host.shape}]`);
      }
    }
    if (problems.length > 0) {
      throw new AutogradError(
        'state',
        `optimizer state: expected the tensors of this optimizer, got\n${problems.join('\n')}`,
      );
    }
    for (const tensor of this.state.values()) tensor.dispose();
    this.state.clear();
    for (const [key, host] of state.tensors) {
      this.state.set(key, t.Tensor.fromHost(host, expected.get(key)!.value.backend).keep());
    }
    this.steps = state.step;
  }

  /** Frees the state. */
  dispose(): void {
    for (const tensor of this.state.values()) tensor.dispose();
    this.state.clear();
  }
}

export interface AdamWOptions {
  /** Learning rate. Default 1e-3. */
  lr?: number;
  /** Decay of the two moments. Default [0.9, 0.999]. */
  betas?: readonly [number, number];
  /** Default 1e-8. */
  eps?: number;
  /** Decoupled weight decay. Default 0 (PyTorch: 0.01). */
  weightDecay?: number;
}

export class AdamW extends Optimizer {
  private readonly options: Required<Omit<AdamWOptions, 'lr'>>;

  constructor(parameters: NamedParameters, options: AdamWOptions = {}) {
    super(parameters, ['exp_avg', 'exp_avg_sq'], options.lr ?? 1e-3);
    const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0 } = options;
    this.options = { betas, eps, weightDecay };
  }

  protected update(live: readonly LiveParameter[], factor: Tensor | undefined): void {
    const { betas, eps, weightDecay } = this.options;
    const parts = live.map(({ name, parameter, gradient }) => ({
      p: parameter.value,
      g: gradient,
      m: this.slot(name, parameter, 'exp_avg'),
      v: this.slot(name, parameter, 'exp_avg_sq'),
    }));
    const spec = {
      lr: this.lr,
      beta1: betas[0],
      beta2: betas[1],
      eps,
      weightDecay,
      biasCorrection1: 1 - betas[0] ** this.steps,
      biasCorrection2: 1 - betas[1] ** this.steps,
    };
    t.adamw(parts, spec, factor);
  }
}

export interface SGDOptions {
  /** Learning rate. Default 1e-3. */
  lr?: number;
  momentum?: number;
  dampening?: number;
  weightDecay?: number;
  nesterov?: boolean;
}

export class SGD extends Optimizer {
  private readonly options: Required<Omit<SGDOptions, 'lr'>>;

  constructor(parameters: NamedParameters, options: SGDOptions = {}) {
    super(parameters, ['momentum_buffer'], options.lr ?? 1e-3);
    const { momentum = 0, dampening = 0, weightDecay = 0, nesterov = false } = options;
    this.options = { momentum, dampening, weightDecay, nesterov };
  }

  protected update(live: readonly LiveParameter[], factor: Tensor | undefined): void {
    for (const { name, parameter, gradient } of live) {
      if (factor) t.scaleBy(gradient, factor);
      const first = !this.state.has(`${name}.momentum_buffer`);
      // PyTorch starts the buffer at the first gradient, undamped, and has none without momentum
      const options = first || this.options.momentum === 0 ? { ...this.options, dampening: 0 } : this.options;
      t.sgd(parameter.value, gradient, this.slot(name, parameter, 'momentum_buffer'), { lr: this.lr, ...options });
    }
  }
}

/** The joint 2-norm of all gradients, as a tensor of one element on the device; 0 when there are none. */
export function gradNorm(parameters: Iterable<Variable>): Tensor {
  const gradients = [...parameters].map((p) => p.grad).filter((g) => g !== undefined);
  if (gradients.length === 0) return t.zeros([]);
  return t.scope(() => t.sqrt(t.squaredNorm(gradients)));
}

/** What gradients of joint norm `norm` are multiplied by so that it is at most `maxNorm`, as in PyTorch: at most 1. */
export function clipFactor(norm: Tensor, maxNorm: number): Tensor {
  const { backend } = norm;
  return t.scope(() =>
    t.minimum(t.div(t.full([], maxNorm, { backend }), t.affine(norm, 1, 1e-6)), t.ones([], { backend })),
  );
}

/**
 * Scales all gradients by one factor so that their joint 2-norm is at most `maxNorm`, on the device. Returns the norm before,
 * as a tensor of one element that the caller may read later. Same arithmetic as PyTorch's `clip_grad_norm_`.
 */
export function clipGradNorm(parameters: Iterable<Variable>, maxNorm: number): Tensor {
  const all = [...parameters];
  return t.scope(() => {
    const norm = gradNorm(all);
    const factor = clipFactor(norm, maxNorm);
    for (const { grad } of all) if (grad) t.scaleBy(grad, factor);
    return norm;
  });
}
