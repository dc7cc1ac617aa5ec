/** `milora generate`: text from a prompt, or a conversation. */
import {
  createStreamDecoder,
  generate as generateIds,
  greedy,
  renderChat,
  repetitionPenalty,
  sample,
  withProcessors,
} from '@milora/llama';
import type { ChatMessage, Sampler, Tokenizer } from '@milora/llama';
import { Philox } from '@milora/tensor';
import { MiloraError } from '../errors.js';
import { pause } from '../node/pause.js';
import { openSession } from '../node/session.js';
import type { Session } from '../node/session.js';
import { commonOptions, required, weightOptions } from './options.js';
import type { OptionTable, Values } from './options.js';
import { INTERRUPTED, backendOptions, jsonOption, onBackend } from './verb.js';
import type { Io, Verb } from './verb.js';

const table = {
  model: {
    type: 'text',
    value: 'PATH',
    help: 'the model: a Hugging Face folder or a llama2.c .bin file',
    group: 'Files',
  },
  adapter: { type: 'text', value: 'DIR', help: 'adapter folder on top of it' },
  tokenizer: { type: 'text', value: 'PATH', help: "another tokenizer than the model folder's" },
  ...weightOptions,
  prompt: { type: 'text', value: 'TEXT', help: 'what to go on from; may be empty', group: 'Text' },
  chat: {
    type: 'flag',
    help: "a conversation in the model's chat format: --prompt is its first turn, or type the turns",
  },
  'max-new-tokens': { type: 'whole', default: 200, min: 1, help: 'tokens to make at most' },
  temperature: {
    type: 'number',
    min: 0,
    help: '0 always takes the likeliest token, 1 draws by probability (default 0)',
    group: 'Choice',
  },
  'top-k': { type: 'whole', min: 1, help: 'draw from so many of the likeliest tokens' },
  'top-p': { type: 'number', above: 0, max: 1, help: 'draw from the likeliest tokens of this probability together' },
  'repetition-penalty': { type: 'number', above: 0, help: 'above 1 makes tokens that have occurred less likely' },
  seed: { type: 'whole', default: 0, min: 0, help: 'seed of the draws' },
  'no-cache': { type: 'flag', help: 'read the whole text again for every token: slow, the same text' },
  ...backendOptions,
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const generate: Verb<typeof table> = {
  name: 'generate',
  summary: 'writes text from a prompt',
  usage: '--model PATH [--adapter DIR] --prompt TEXT | --chat [options]',
  table,
  example: 'milora generate --model models/SmolLM2-135M --prompt "Once upon a time" --max-new-tokens 100',
  async run({ values }, io) {
    const path = required('model', values.model);
    if (!values.chat) required('prompt', values.prompt, 'give --prompt TEXT, or --chat for a conversation');
    const sampler = samplerOf(values);
    return onBackend(values, async () => {
      const { adapter, tokenizer, dtype } = values;
      const session = await openSession({ model: path, adapter, tokenizer, dtype });
      try {
        if (values.chat) return await converse(session, values, sampler, io);
        await answer(session, promptIds(session, values.prompt!), values, sampler, io);
        return io.signal?.aborted ? INTERRUPTED : 0;
      } finally {
        session.dispose();
      }
    });
  },
};

function samplerOf(values: Values<typeof table>): Sampler {
  const { temperature, 'top-k': topK, 'top-p': topP, 'repetition-penalty': penalty } = values;
  const draws = temperature !== undefined || topK !== undefined || topP !== undefined;
  const random = new Philox(values.seed);
  const chosen = draws
    ? sample({
        random: () => random.uniform(),
        ...(temperature !== undefined && { temperature }),
        ...(topK !== undefined && { topK }),
        ...(topP !== undefined && { topP }),
      })
    : greedy();
  return penalty === undefined ? chosen : withProcessors([repetitionPenalty(penalty)], chosen);
}

/** An empty prompt is the begin token alone. */
function promptIds({ tokenizer, model }: Session, prompt: string): number[] {
  const begin = tokenizer.bosId ?? model.config.bosTokenId;
  if (prompt !== '') return tokenizer.encode(prompt);
  if (begin !== undefined) return [begin];
  throw new MiloraError('prompt', '--prompt: expected some text, since the model has no begin token, got ""');
}

/** Streams what follows the prompt; returns its text. */
async function answer(
  { model, tokenizer }: Session,
  prompt: readonly number[],
  values: Values<typeof table>,
  sampler: Sampler,
  io: Io,
): Promise<string> {
  const started = performance.now();
  const decoder = createStreamDecoder(tokenizer, { prompt });
  const ids: number[] = [];
  let text = '';
  const emit = (piece: string): void => {
    text += piece;
    if (!values.json && piece !== '') io.stdout.write(piece);
  };
  const stopIds = [...new Set([...model.config.eosTokenId, ...tokenizer.eosIds])];
  const options = { maxNewTokens: values['max-new-tokens'], sampler, stopIds, useCache: !values['no-cache'] };
  for await (const id of generateIds(model, prompt, options)) {
    ids.push(id);
    emit(decoder.push(id));
    await pause();
    if (io.signal?.aborted) break;
  }
  emit(decoder.finish());
  const seconds = (performance.now() - started) / 1000;
  const record = { type: 'text', text, ids, prompt, tokens: ids.length, seconds };
  io.stdout.write(values.json ? `${JSON.stringify(record)}\n` : '\n');
  return text;
}

async function converse(session: Session, values: Values<typeof table>, sampler: Sampler, io: Io): Promise<number> {
  const { tokenizer } = session;
  const { chatTemplate } = tokenizer;
  if (chatTemplate === undefined) {
    throw new MiloraError(
      'no-chat-template',
      '--chat: expected a model with a chat template, got one without; use --prompt',
    );
  }
  const messages: ChatMessage[] = [];
  const reply = async (content: string): Promise<void> => {
    messages.push({ role: 'user', content });
    const text = renderChat(chatTemplate, messages, {
      bosToken: special(tokenizer, tokenizer.bosId),
      eosToken: special(tokenizer, tokenizer.eosIds[0]),
      addGenerationPrompt: true,
    });
    const prompt = tokenizer.encode(text, { addSpecialTokens: false });
    messages.push({ role: 'assistant', content: await answer(session, prompt, values, sampler, io) });
  };
  if (values.prompt !== undefined) await reply(values.prompt);
  else for await (const line of turns(io)) await reply(line);
  return io.signal?.aborted ? INTERRUPTED : 0;
}

const special = (tokenizer: Tokenizer, id: number | undefined): string =>
  id === undefined ? '' : (tokenizer.idToToken(id) ?? '');

async function* turns(io: Io): AsyncGenerator<string, void> {
  const ask = (): unknown => io.isTTY && io.stdout.write('> ');
  ask();
  for await (const line of io.lines?.() ?? []) {
    if (line.trim() !== '') yield line;
    if (io.signal?.aborted) return;
    ask();
  }
}
