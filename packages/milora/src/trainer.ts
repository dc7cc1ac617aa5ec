/**
 * Trainer: an async iterator of events. It owns the loop (accumulation, clipping, schedule, validation) and nothing else:
 * progress bars, logs, checkpoints and early stopping listen to the events. Between two events the trainer stands still, so a
 * listener may save `state()`, and a trainer that loads it goes on with the same bits as if it had never stopped.
 *
 *     for await (const event of trainer.run()) if (event.type === 'step') console.log(event.step, event.loss);
 */
import { AdamW, clipFactor, gradNorm as jointNorm, schedules } from '@milora/autograd';
import type { OptimizerState, ScheduleName, Variable } from '@milora/autograd';
import { nextTargets } from '@milora/llama';
import type { LlamaForCausalLM } from '@milora/llama';
import { Philox, scope } from '@milora/tensor';
import type { HostTensor, PhiloxState, Tensor } from '@milora/tensor';
import { AdapterLinear } from './adapterLinear.js';
import type { Batch, BatchIterator, BatchPosition } from './batches.js';
import { countTargets } from './tokenize.js';
import { MiloraError } from './errors.js';

export interface TrainOptions {
  /** Optimiser steps in all. */
  steps: number;
  /** Peak learning rate. */
  lr: number;
  /** Default linear. */
  schedule?: ScheduleName;
  /** Steps of linear warmup. Default 0. */
  warmupSteps?: number;
  betas?: readonly [number, number];
  weightDecay?: number;
  /** Batches per optimiser step; the loss is the mean over all their target tokens. Default 1. */
  accumulation?: number;
  /** Largest norm of all gradients together; 0 turns clipping off. Default 1. */
  maxGradNorm?: number;
  /** Steps between two validations; 0 for none but the first and the last. Default 0. */
  evalEvery?: number;
  /** Computes the validation loss. Without it there is no validation. */
  validate?: () => Promise<number>;
  /** Ends the run after the step in progress. */
  signal?: AbortSignal;
}

export interface StepEvent {
  type: 'step';
  /** Steps done, from 1. */
  step: number;
  steps: number;
  /** Mean loss of the step's target tokens, before its update. */
  loss: number;
  lr: number;
  /** Norm of all gradients before clipping. */
  gradNorm: number;
  /** Tokens read in the step, padding not counted. */
  tokens: number;
  seconds: number;
}

export interface EvalEvent {
  type: 'eval';
  step: number;
  loss: number;
  /** Whether it is the lowest so far. */
  best: boolean;
}

export interface EndEvent {
  type: 'end';
  step: number;
  /** False when a signal ended the run early. */
  finished: boolean;
}

export type TrainEvent = StepEvent | EvalEvent | EndEvent;

/** All that a run needs to go on: plain data and host tensors. */
export interface TrainerState {
  step: number;
  best: number | null;
  position: BatchPosition;
  optimizer: OptimizerState;
  /** Trained parameters. */
  parameters: Map<string, HostTensor>;
  /** Generators of dropout, by module. */
  random: Record<string, PhiloxState>;
}

export class Trainer {
  /** Steps done. */
  step = 0;
  /** Lowest validation loss so far. */
  best = Infinity;
  private readonly optimizer: AdamW;
  private readonly options: Required<Omit<TrainOptions, 'validate' | 'signal'>> & TrainOptions;

  constructor(
    readonly model: LlamaForCausalLM,
    private readonly batches: BatchIterator,
    options: TrainOptions,
  ) {
    this.options = {
      schedule: 'linear',
      warmupSteps: 0,
      betas: [0.9, 0.999],
      weightDecay: 0,
      accumulation: 1,
      maxGradNorm: 1,
      evalEvery: 0,
      ...options,
    };
    const { betas, weightDecay, lr } = this.options;
    this.optimizer = new AdamW(model.trainable(), { lr, betas, weightDecay });
  }

  /** Parameters in training. */
  private get parameters(): [string, Variable][] {
    return this.model.trainable();
  }

  /** Trains to the end, yielding an event after every step and validation. */
  async *run(): AsyncGenerator<TrainEvent, void> {
    const { steps, validate, signal } = this.options;
    if (validate && this.step === 0) yield await this.validation(validate);
    this.model.train();
    try {
      while (this.step < steps && !signal?.aborted) {
        yield await this.trainStep();
        if (validate && this.validationDue) yield await this.validation(validate);
      }
    } finally {
      // also when the listener leaves the loop
      this.model.eval();
    }
    yield { type: 'end', step: this.step, finished: this.step >= steps };
  }

  /** Whether the step just done is followed by a validation: a state to resume from is best taken after it. */
  get validationDue(): boolean {
    const { steps, evalEvery, validate } = this.options;
    return validate !== undefined && (this.step === steps || (evalEvery > 0 && this.step % evalEvery === 0));
  }

  private async validation(validate: () => Promise<number>): Promise<EvalEvent> {
    const loss = await validate();
    const best = loss < this.best;
    if (best) this.best = loss;
    return { type: 'eval', step: this.step, loss, best };
  }

  private async trainStep(): Promise<StepEvent> {
    const { accumulation, maxGradNorm, lr, schedule, steps, warmupSteps } = this.options;
    const started = performance.now();
    const parts = Array.from({ length: accumulation }, () => this.batches.nextBatch());
    const normalizer = parts.reduce((n, part) => n + targetsOf(part), 0);
    const rate = lr * schedules[schedule]({ warmupSteps, totalSteps: steps })(this.step);
    const [loss, gradNorm] = await scope(async () => {
      const losses: Tensor[] = [];
      for (const part of parts) {
        losses.push(
          scope(() => {
            const loss = this.model.loss(part, part.labels, { normalizer: Math.max(1, normalizer) });
            loss.backward();
            return loss.value;
          }),
        );
      }
      const norm = jointNorm(this.parameters.map(([, p]) => p));
      this.optimizer.lr = rate;
      this.optimizer.step(maxGradNorm > 0 ? clipFactor(norm, maxGradNorm) : undefined);
      this.optimizer.zeroGrad();
      let total = 0;
      for (const value of losses) total += await value.item();
      return [total, await norm.item()] as const;
    });
    this.step++;
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      throw new MiloraError(
        'diverged',
        `train: expected a finite loss at step ${this.step}, got loss ${loss} with gradient norm ${gradNorm}. ` +
          'Lower the learning rate, lengthen the warmup, or clip the gradients; the last checkpoint is intact.',
      );
    }
    const tokens = parts.reduce((n, part) => n + part.tokens, 0);
    const seconds = (performance.now() - started) / 1000;
    return { type: 'step', step: this.step, steps, loss, lr: rate, gradNorm, tokens, seconds };
  }

  /** A copy of everything that the rest of the run depends on. */
  async state(): Promise<TrainerState> {
    const parameters = new Map<string, HostTensor>();
    for (const [name, parameter] of this.parameters) parameters.set(name, await parameter.value.toHost());
    return {
      step: this.step,
      best: Number.isFinite(this.best) ? this.best : null,
      position: this.batches.position(),
      optimizer: await this.optimizer.stateDict(),
      parameters,
      random: Object.fromEntries(this.generators().map(([path, layer]) => [path, layer.dropout.random.state()])),
    };
  }

  /** Goes back to a state taken from a trainer of the same model, data and options. */
  load(state: TrainerState): void {
    const own = new Map(this.parameters);
    const problems = [...own.keys()].filter(
      (name) => String(state.parameters.get(name)?.shape) !== String(own.get(name)!.shape),
    );
    if (problems.length > 0 || state.parameters.size !== own.size) {
      throw new MiloraError(
        'state',
        `resume: expected the trained parameters of this model, got other names or shapes: ${problems.slice(0, 5).join(', ')}`,
      );
    }
    for (const [name, parameter] of own) setValue(parameter.value, state.parameters.get(name)!);
    this.optimizer.loadStateDict(state.optimizer);
    this.batches.seek(state.position);
    this.step = state.step;
    this.best = state.best ?? Infinity;
    for (const [path, layer] of this.generators()) {
      const random = state.random[path];
      if (random) layer.dropout.random = Philox.fromState(random);
    }
  }

  private generators(): [string, AdapterLinear][] {
    return [...this.model.namedModules()].filter(
      (entry): entry is [string, AdapterLinear] => entry[1] instanceof AdapterLinear,
    );
  }

  /** Frees the optimiser's state. */
  dispose(): void {
    this.optimizer.dispose();
  }
}

const targetsOf = (batch: Batch): number => countTargets(nextTargets(batch.labels, batch.batch, batch.length));

/** Overwrites the memory of a tensor, keeping the tensor. */
export function setValue(tensor: Tensor, host: HostTensor): void {
  tensor.replaceStorage(tensor.backend.upload(host.data, host.dtype));
}
