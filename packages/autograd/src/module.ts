/**
 * Module: a tree of named parts. A property that holds a Variable is a parameter, one that holds a Module (or an array of
 * them) is a child. Names in a state dict are the property names in snake case, joined by dots: they equal the names in
 * Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`), so loading is the identity.
 */
import type { Tensor } from '@milora/tensor';
import { AutogradError } from './errors.js';
import { Variable } from './variable.js';

const snake = (name: string): string => name.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
const camel = (name: string): string => name.replace(/_([a-z])/g, (_, c: string) => c.toUpperCase());

export abstract class Module {
  /** Whether the module is in training mode, which turns dropout on. */
  training = false;

  /** Direct parts by name, parameters and modules; arrays give one entry per element. */
  private *parts(): Iterable<[string, Variable | Module]> {
    for (const [key, value] of Object.entries(this) as [string, unknown][]) {
      if (value instanceof Variable || value instanceof Module) yield [snake(key), value];
      else if (Array.isArray(value)) {
        for (const [i, part] of value.entries()) if (part instanceof Module) yield [`${snake(key)}.${i}`, part];
      }
    }
  }

  /** Every module below (this one with the empty path first), with its dotted path. */
  *namedModules(prefix = ''): Iterable<[string, Module]> {
    yield [prefix, this];
    for (const [name, part] of this.parts()) {
      if (part instanceof Module) yield* part.namedModules(prefix ? `${prefix}.${name}` : name);
    }
  }

  /** Every parameter with its dotted path, each once. */
  *namedParameters(): Iterable<[string, Variable]> {
    const seen = new Set<Variable>();
    for (const [path, module] of this.namedModules()) {
      for (const [name, part] of module.parts()) {
        if (part instanceof Module || seen.has(part)) continue;
        seen.add(part);
        yield [path ? `${path}.${name}` : name, part];
      }
    }
  }

  parameters(): Variable[] {
    return [...this.namedParameters()].map(([, parameter]) => parameter);
  }

  /** Parameters that are trained. */
  trainable(): [string, Variable][] {
    return [...this.namedParameters()].filter(([, parameter]) => parameter.requiresGrad);
  }

  /** All parameter tensors by name. They are the module's own, not copies. */
  stateDict(): Map<string, Tensor> {
    return new Map([...this.namedParameters()].map(([name, parameter]) => [name, parameter.value]));
  }

  /** Freezes or unfreezes all parameters. */
  requiresGrad(on: boolean): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = on;
    return this;
  }

  /** Turns training mode on (or off) for all modules. */
  train(on = true): this {
    for (const [, module] of this.namedModules()) module.training = on;
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.zeroGrad();
  }

  /** The module at a dotted path. Throws when there is none. */
  getModule(path: string): Module {
    for (const [name, module] of this.namedModules()) if (name === path) return module;
    throw new AutogradError('module', `module: expected a module at '${path}', got none`);
  }

  /** Puts another module in the place at a dotted path, and returns the one that was there. */
  replaceModule(path: string, next: Module): Module {
    if (path === '') throw new AutogradError('module', "module: expected the path of a part, got ''");
    const before = this.getModule(path);
    const keys = path.split('.').map(camel);
    const last = keys.pop()!;
    const owner = keys.reduce((part, key) => part[key] as Record<string, unknown>, this as Record<string, unknown>);
    owner[last] = next;
    next.train(before.training);
    return before;
  }

  /** Frees all parameters and their gradients. */
  dispose(): void {
    for (const parameter of this.parameters()) {
      parameter.zeroGrad();
      parameter.value.dispose();
    }
  }
}
