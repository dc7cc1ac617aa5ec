/**
 * Conversations to text: chat templates in Jinja, as they stand in tokenizer_config.json or chat_template.jinja
 * (https://huggingface.co/docs/transformers/main/en/chat_templating). A template may refuse a conversation by calling
 * `raise_exception`.
 */
import { Template } from '@huggingface/jinja';
import { LlamaError } from './errors.js';

/** One turn of a conversation. */
export interface ChatMessage {
  /** Usually system, user or assistant; the template decides. */
  readonly role: string;
  readonly content: string;
  /** Whatever else the template reads, such as `tool_calls`. */
  readonly [field: string]: unknown;
}

export interface RenderChatOptions {
  /** The text of the begin token, `bos_token` in the template. */
  readonly bosToken?: string;
  /** The text of the end token, `eos_token` in the template. */
  readonly eosToken?: string;
  /** End with the opening of an assistant turn, for the model to go on. */
  readonly addGenerationPrompt?: boolean;
  /** Further variables, such as `tools` or `date_string`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/**
 * Renders a conversation. The text contains the special tokens: encode it with `addSpecialTokens: false`.
 *
 * @throws LlamaError `chat-template` when the template is not valid Jinja or refuses the conversation
 *
 * @example
 * renderChat(template, [{ role: 'user', content: 'Hello' }], { bosToken: '<s>', addGenerationPrompt: true });
 */
export function renderChat(
  template: string,
  messages: readonly ChatMessage[],
  { bosToken = '', eosToken = '', addGenerationPrompt = false, variables = {} }: RenderChatOptions = {},
): string {
  const compiled = compile(template);
  try {
    return compiled.render({
      ...variables,
      messages,
      bos_token: bosToken,
      eos_token: eosToken,
      add_generation_prompt: addGenerationPrompt,
    });
  } catch (error) {
    throw failure(`expected a conversation that the template accepts, got roles ${rolesOf(messages)}`, error);
  }
}

// A data set renders one template thousands of times.
let last: { readonly source: string; readonly compiled: Template } | undefined;

function compile(source: string): Template {
  if (last?.source !== source) {
    try {
      last = { source, compiled: new Template(source) };
    } catch (error) {
      throw failure('expected a Jinja template, got a syntax error', error);
    }
  }
  return last.compiled;
}

const rolesOf = (messages: readonly ChatMessage[]): string => messages.map(({ role }) => role).join(', ') || 'none';

function failure(what: string, error: unknown): LlamaError {
  const reason = error instanceof Error ? error.message : String(error);
  return new LlamaError('chat-template', `chat template: ${what}: ${reason}`, { cause: error });
}
