/**
 * `milora.json`: where an adapter comes from, beside PEFT's files. It holds what PEFT's config cannot say (method, window,
 * seed, precision) and a fingerprint of every tensor of the base model, so that an adapter is never put on another base.
 */
import type { LlamaForCausalLM } from '@milora/llama';
import { convertHost, fingerprint } from '@milora/tensor';
import type { Adapter, ResolvedAdapterConfig } from './adapter.js';
import { MiloraError } from './errors.js';
import { boundsOf } from './window.js';
import type { Window } from './window.js';

export const PROVENANCE_VERSION = 1;

export interface Provenance {
  version: number;
  method: string;
  /** The adapter as trained: rank and alpha before any doubling by the export. */
  adapter: ResolvedAdapterConfig;
  /** Triplets taken per module: first and one past the last index, or the list of indices. */
  windows: Record<string, { from: number; to: number } | readonly number[]>;
  /** How the triplets were computed. */
  svd: string;
  form: string;
  base: {
    /** As given by the user. */
    name: string;
    /** SHA-256 over shape and float32 values of each tensor, by name. */
    fingerprints: Record<string, string>;
  };
}

/**
 * Fingerprints of all parameters as float32, so that they do not depend on how the model was loaded. Take them before an
 * adapter goes in.
 */
export async function fingerprintModel(model: LlamaForCausalLM): Promise<Record<string, string>> {
  const prints: Record<string, string> = {};
  for (const [name, tensor] of model.stateDict()) {
    const { shape, dtype, data } = await tensor.toHost();
    prints[name] = await fingerprint({ shape, dtype: 'f32', data: convertHost(data, dtype, 'f32', shape) });
  }
  return prints;
}

export function provenanceOf(
  adapter: Adapter,
  method: string,
  base: { name: string; fingerprints: Record<string, string> },
): Provenance {
  const windows: Provenance['windows'] = {};
  const forms = new Set<string>();
  for (const [path, layer] of adapter.layers) {
    forms.add(layer.form);
    if (layer.window) windows[path] = boundsOf(layer.window) ?? layer.window;
  }
  const svdMethods = new Set([...adapter.certificates.values()].map(({ method }) => method));
  return {
    version: PROVENANCE_VERSION,
    method,
    adapter: adapter.config,
    windows,
    svd: ['float64', ...svdMethods].join(', '),
    form: [...forms].join(', '),
    base,
  };
}

/** Reads `milora.json`. Throws `provenance` when it is not one of a version this library knows. */
export function parseProvenance(text: string, name: string): Provenance {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new MiloraError('provenance', `${name}: expected JSON, got ${(cause as Error).message}`, { cause });
  }
  const version = (json as Provenance | null)?.version;
  if (version !== PROVENANCE_VERSION) {
    throw new MiloraError('provenance', `${name}: expected version ${PROVENANCE_VERSION}, got ${String(version)}`);
  }
  return json as Provenance;
}

/** The indices of a recorded window. */
export function windowOf(recorded: Provenance['windows'][string]): Window {
  return 'from' in recorded
    ? Array.from({ length: recorded.to - recorded.from }, (_, i) => recorded.from + i)
    : recorded;
}

/** Throws `wrong-base`, naming the tensors, unless the model's fingerprints are those the adapter was made for. */
export function checkBase(expected: Provenance['base'], actual: Record<string, string>, name: string): void {
  const differing = Object.keys(expected.fingerprints).filter((key) => expected.fingerprints[key] !== actual[key]);
  const extra = Object.keys(actual).filter((key) => !(key in expected.fingerprints));
  const all = [...differing, ...extra];
  if (all.length === 0) return;
  const shown = all.slice(0, 5).join(', ') + (all.length > 5 ? `, … (${all.length} in all)` : '');
  throw new MiloraError(
    'wrong-base',
    `${name}: expected the base model '${expected.name}' that the adapter was trained on, got a model that differs in ${shown}. ` +
      'Give the original base model.',
  );
}
