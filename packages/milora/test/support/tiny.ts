/**
 * A small random model with a tokenizer and data, written to a temporary folder, and the command called in this process.
 */
import { randomLlama } from '@milora/llama';
import type { LlamaConfig, LlamaForCausalLM } from '@milora/llama';
import { saveModel } from '@milora/llama/node';
import { noGrad } from '@milora/autograd';
import { Philox, scope } from '@milora/tensor';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { main } from '../../src/cli/command.js';
import type { Io } from '../../src/cli/command.js';

/** One token per byte, then `<s>` and `</s>`. */
export const VOCABULARY = 258;

export const tinyConfig: LlamaConfig = {
  vocabSize: VOCABULARY,
  hiddenSize: 24,
  intermediateSize: 40,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 6,
  maxPositionEmbeddings: 64,
  rmsNormEps: 1e-5,
  ropeTheta: 10000,
  ropeScaling: null,
  tieWordEmbeddings: false,
  bosTokenId: 256,
  eosTokenId: [257],
  attentionBias: false,
  mlpBias: false,
};

/** GPT-2's visible characters for the 256 bytes. */
const byteCharacters = ((): string[] => {
  let hidden = 0;
  return Array.from({ length: 256 }, (_, byte) => {
    const isPrintable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    return String.fromCharCode(isPrintable ? byte : 256 + hidden++);
  });
})();

const special = (id: number, content: string): object => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
});

export const CHAT_TEMPLATE =
  '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}';

/** A byte-level tokenizer.json. With `extra` it has that many tokens more than the model has embeddings. */
export function tokenizerJson(extra = 0): object {
  const tokens = [...byteCharacters, '<s>', '</s>', ...Array.from({ length: extra }, (_, i) => `<extra${i}>`)];
  return {
    version: '1.0',
    added_tokens: tokens.slice(256).map((token, i) => special(256 + i, token)),
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [256], tokens: ['<s>'] } },
    },
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    model: { type: 'BPE', vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges: [] },
  };
}

export async function writeTokenizer(dir: string, options: { extra?: number; chat?: boolean } = {}): Promise<void> {
  await writeFile(join(dir, 'tokenizer.json'), JSON.stringify(tokenizerJson(options.extra)));
  const config = { bos_token: '<s>', eos_token: '</s>', ...(options.chat && { chat_template: CHAT_TEMPLATE }) };
  await writeFile(join(dir, 'tokenizer_config.json'), JSON.stringify(config));
}

/** Writes a model folder with random weights. */
export async function writeModel(
  dir: string,
  options: { seed?: number; config?: Partial<LlamaConfig>; chat?: boolean; dtype?: 'f32' | 'bf16' } = {},
): Promise<void> {
  const model = randomLlama({ ...tinyConfig, ...options.config }, new Philox(options.seed ?? 1), { std: 0.15 });
  await saveModel(dir, model, options.dtype);
  model.dispose();
  await writeTokenizer(dir, options);
}

/** Sums as questions and answers, of different lengths. */
export function sums(count: number, from = 0): string {
  const lines = Array.from({ length: count }, (_, i) => {
    const [a, b] = [from + i, (7 * i) % 13];
    return JSON.stringify({ question: `${a}+${b}?`, answer: `${a + b}${'!'.repeat(i % 5)}` });
  });
  return `${lines.join('\n')}\n`;
}

export interface Fixture {
  dir: string;
  /** A path in the folder. */
  at(...parts: string[]): string;
  remove(): Promise<void>;
}

/** A temporary folder with `model/`, `sums.jsonl`, `valid.jsonl` and `story.txt`. */
export async function makeFixture(): Promise<Fixture> {
  const dir = await mkdtemp(join(tmpdir(), 'milora-test-'));
  const at = (...parts: string[]): string => join(dir, ...parts);
  await writeModel(at('model'), { chat: true });
  await writeFile(at('sums.jsonl'), sums(23));
  await writeFile(at('valid.jsonl'), sums(6, 50));
  await writeFile(
    at('story.txt'),
    'The cat sat on the mat.\n\nA dog came by, and they went to the river together.\n\nThe end.\n',
  );
  return { dir, at, remove: () => rm(dir, { recursive: true, force: true }) };
}

export interface Outcome {
  code: number;
  out: string;
  err: string;
  /** Lines of stdout as JSON. */
  events: () => { type: string; [field: string]: unknown }[];
}

/** Runs the command in this process. */
export async function milora(args: readonly string[], io: Partial<Io> = {}): Promise<Outcome> {
  let [out, err] = ['', ''];
  const code = await main(args, {
    stdout: { write: (text) => (out += text) },
    stderr: { write: (text) => (err += text) },
    isTTY: false,
    ...io,
  });
  const events = (): ReturnType<Outcome['events']> =>
    out
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { type: string });
  return { code, out, err, events };
}

/** Logits of some tokens. */
export async function logitsOf(model: LlamaForCausalLM, length = 12): Promise<Float32Array> {
  const inputIds = Int32Array.from({ length }, (_, i) => (17 * i + 5) % model.config.vocabSize);
  return scope(async () => {
    const logits = noGrad(() => model.forward({ inputIds, batch: 1, length }).value);
    return (await logits.data()) as Float32Array;
  });
}

/** Largest difference, relative to the largest entry of the second. */
export function difference(a: Float32Array, b: Float32Array): number {
  let [most, size] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    most = Math.max(most, Math.abs(a[i]! - b[i]!));
    size = Math.max(size, Math.abs(b[i]!));
  }
  return a.length === b.length ? most / size : Infinity;
}

/** A path in the folder `shared` beside the repository, undefined where it is not there. */
export function sharedPath(...parts: string[]): string | undefined {
  const path = join(fileURLToPath(new URL('../../../../../shared', import.meta.url)), ...parts);
  return existsSync(path) ? path : undefined;
}
