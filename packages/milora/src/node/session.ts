/** A model to use: loaded with its tokenizer and, where one is given, an adapter whose base it must be. */
import { loadModel } from '@milora/llama/node';
import { castWeights } from '@milora/llama';
import type { LlamaForCausalLM, LoadOptions, Tokenizer } from '@milora/llama';
import type { Adapter } from '../adapter.js';
import { loadPeftFolder } from './adapterFolder.js';
import { tokenizerFor } from './training.js';

export interface Session {
  model: LlamaForCausalLM;
  tokenizer: Tokenizer;
  adapter: Adapter | undefined;
  /** Merges the adapter into the model for good, if there is one. */
  merge(): void;
  dispose(): void;
}

export interface SessionOptions {
  model: string;
  tokenizer?: string | undefined;
  adapter?: string | undefined;
  /** See `LoadOptions`. With bf16 and int8 an adapter is merged first, so that the session has none. */
  dtype?: LoadOptions['dtype'];
}

/** Throws what `loadModel`, `loadTokenizer` and `loadPeftFolder` throw, and `tokenizer-mismatch`. */
export async function openSession(options: SessionOptions): Promise<Session> {
  const { dtype = 'f32' } = options;
  // an adapter is made for the numbers of its base, and its fingerprints are checked: they are rounded together, afterwards
  const later = options.adapter !== undefined && (dtype === 'bf16' || dtype === 'int8');
  const model = await loadModel(options.model, { dtype: later ? 'f32' : dtype });
  let adapter: Adapter | undefined;
  const dispose = (): void => {
    adapter?.unload();
    model.dispose();
  };
  try {
    const tokenizer = await tokenizerFor(model.config, options.tokenizer ?? null, options.model);
    if (options.adapter !== undefined) adapter = await loadPeftFolder(options.adapter, model);
    const session: Session = {
      model,
      tokenizer,
      adapter,
      merge() {
        adapter?.mergeAndUnload();
        session.adapter = adapter = undefined;
      },
      dispose,
    };
    if (later) {
      session.merge();
      castWeights(model, dtype);
    }
    return session;
  } catch (error) {
    dispose();
    throw error;
  }
}
