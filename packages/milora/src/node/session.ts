/** A model to use: loaded with its tokenizer and, where one is given, an adapter whose base it must be. */
import { loadModel } from '@milora/llama/node';
import type { LlamaForCausalLM, Tokenizer } from '@milora/llama';
import type { Adapter } from '../adapter.js';
import { loadPeftFolder } from './adapterFolder.js';
import { tokenizerFor } from './training.js';

export interface Session {
  model: LlamaForCausalLM;
  tokenizer: Tokenizer;
  adapter: Adapter | undefined;
  dispose(): void;
}

export interface SessionOptions {
  model: string;
  tokenizer?: string | undefined;
  adapter?: string | undefined;
  dtype?: 'f32' | 'storage';
}

/** Throws what `loadModel`, `loadTokenizer` and `loadPeftFolder` throw, and `tokenizer-mismatch`. */
export async function openSession(options: SessionOptions): Promise<Session> {
  const model = await loadModel(options.model, { dtype: options.dtype ?? 'f32' });
  let adapter: Adapter | undefined;
  const dispose = (): void => {
    adapter?.unload();
    model.dispose();
  };
  try {
    const tokenizer = await tokenizerFor(model.config, options.tokenizer ?? null, options.model);
    if (options.adapter !== undefined) adapter = await loadPeftFolder(options.adapter, model);
    return { model, tokenizer, adapter, dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}
