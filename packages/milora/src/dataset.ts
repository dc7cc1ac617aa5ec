/**
 * Training data: from the text of a file to examples.
 *
 *     text ──parseDataset──▶ Example[] ──tokenizeDataset──▶ TokenizedExample[] ──BatchIterator──▶ Batch
 *
 * `parseDataset` reads JSON Lines, a JSON array or plain text, and recognises the common record formats by their
 * fields (the table `formats` below). It reports what is wrong with line numbers, several problems at once, and never
 * skips a record silently. tokenize.ts makes token ids of the examples, batches.ts batches of those.
 */
import type { ChatMessage } from '@milora/llama';
import { MiloraError } from './errors.js';
import { didYouMean, nearest } from './suggest.js';

/** One piece of training data: a prompt with its completion, running text, or a conversation. */
export type Example =
  | { readonly prompt: string; readonly completion: string }
  | { readonly text: string }
  | { readonly messages: readonly ChatMessage[] };

/** The name of a record format; `plain-text` is a file without records. */
export type DatasetFormat =
  'messages' | 'alpaca' | 'question-answer' | 'query-response' | 'prompt-completion' | 'text' | 'plain-text';

/**
 * How a question becomes a prompt, and its answer a completion.
 *
 * Placeholders in the prompts, for every format with a question: `{question}` (the instruction, then the input on a
 * line of its own if there is one), `{instruction}`, `{input}`. In the completion: `{answer}`.
 *
 * The default is a neutral form. The scripts of PiSSA, LLM-Adapters and others use the wording of Stanford Alpaca,
 * which differs with and without input: put its two texts into `prompt` and `promptWithInput` to compare with them.
 */
export interface PromptTemplate {
  readonly prompt: string;
  /** For records with a non-empty input; `prompt` if left out. */
  readonly promptWithInput?: string;
  /** `{answer}` if left out. */
  readonly completion?: string;
}

/**
 * The prompt ends without a space and the completion starts with one, because tokenizers join a space to the word
 * after it; see `tokenizeExample`.
 */
export const defaultTemplate: PromptTemplate = { prompt: 'Question: {question}\nAnswer:', completion: ' {answer}' };

export interface ParseOptions {
  /** The file, for messages; its ending tells plain text (`.txt`, `.md`) from records. */
  readonly name: string;
  /** Default: `defaultTemplate`. Records that hold a finished prompt or a conversation are not affected. */
  readonly template?: PromptTemplate;
  /**
   * Plain text only: what stands between two documents. `'blank-line'`, `'none'` (the file is one document) or a
   * literal such as `<|endoftext|>`. Default: `<|endoftext|>` if that occurs in the file, else blank lines.
   */
  readonly separator?: string;
  /** Leave out records with an empty completion or text, and count them, instead of refusing the file. */
  readonly skipEmpty?: boolean;
}

export interface Dataset {
  readonly name: string;
  readonly format: DatasetFormat;
  readonly examples: readonly Example[];
  /** Fields that were present but not used, in order of appearance. */
  readonly ignoredFields: readonly string[];
  /** Records left out because of `skipEmpty`. */
  readonly skipped: number;
}

type JsonRecord = Record<string, unknown>;

interface RecordFormat {
  readonly required: readonly string[];
  readonly optional?: readonly string[];
  readonly example: (text: (field: string) => string, template: PromptTemplate) => Example;
}

/** Fields → example. The first format whose required fields are all present is taken. */
const formats: Readonly<Record<Exclude<DatasetFormat, 'messages' | 'plain-text'>, RecordFormat>> = {
  // Stanford Alpaca, LLM-Adapters
  alpaca: {
    required: ['instruction', 'output'],
    optional: ['input'],
    example: (text, template) => fromQuestion(template, text('instruction'), text('input'), text('output')),
  },
  // GSM8K
  'question-answer': {
    required: ['question', 'answer'],
    example: (text, template) => fromQuestion(template, text('question'), '', text('answer')),
  },
  // MetaMathQA
  'query-response': {
    required: ['query', 'response'],
    example: (text, template) => fromQuestion(template, text('query'), '', text('response')),
  },
  'prompt-completion': {
    required: ['prompt', 'completion'],
    example: (text) => ({ prompt: text('prompt'), completion: text('completion') }),
  },
  text: { required: ['text'], example: (text) => ({ text: text('text') }) },
};

const knownFields = ['messages', ...Object.values(formats).flatMap((f) => [...f.required, ...(f.optional ?? [])])];

const formatList = ['messages', ...Object.values(formats).map((f) => f.required.join(' + '))].join(', or ');

/** One thing wrong with a file, before it is put into a message. */
interface Problem {
  readonly code: string;
  readonly message: string;
}

const PROBLEMS_SHOWN = 5;

/**
 * Reads the text of a data file.
 *
 * @throws MiloraError with up to five problems of the file, each with its 1-based line (in a JSON array: the index),
 *   and the code of the first: `data-empty` nothing in it · `data-line` a blank line between records, or malformed
 *   JSON · `data-fields` missing, mistyped or unusable fields · `data-mixed` records of several formats ·
 *   `data-template` an unknown placeholder
 *
 * @example
 * parseDataset('{"question": "1 + 1?", "answer": "2"}\n', { name: 'sums.jsonl' }).examples;
 * // [{ prompt: 'Question: 1 + 1?\nAnswer:', completion: ' 2' }]
 */
export function parseDataset(text: string, options: ParseOptions): Dataset {
  const { name } = options;
  const content = text.startsWith('\ufeff') ? text.slice(1) : text;
  const firstCharacter = /\S/.exec(content)?.[0];
  if (firstCharacter === undefined) {
    throw new MiloraError(
      'data-empty',
      `${name}: expected training data, got ${text === '' ? 'an empty file' : 'only blanks'}`,
    );
  }
  if (isPlainText(name, firstCharacter)) return parsePlainText(content, options);

  const problems: Problem[] = [];
  const records = firstCharacter === '[' ? readArray(content, problems) : readLines(content, problems);
  return interpret(records, problems, options);
}

function isPlainText(name: string, firstCharacter: string): boolean {
  if (/\.(txt|md)$/i.test(name)) return true;
  if (/\.(json|jsonl|ndjson)$/i.test(name)) return false;
  return firstCharacter !== '[' && firstCharacter !== '{';
}

function parsePlainText(content: string, { name, separator }: ParseOptions): Dataset {
  const endOfText = '<|endoftext|>';
  const between = separator ?? (content.includes(endOfText) ? endOfText : 'blank-line');
  const unified = content.replaceAll('\r\n', '\n');
  const pieces =
    between === 'none'
      ? [unified]
      : between === 'blank-line'
        ? unified.split(/\n(?:[ \t]*\n)+/)
        : splitBy(unified, between);
  // Blank pieces are no documents; that separators stand at the start, at the end or in a row is how such files are.
  const documents = pieces.map((piece) => piece.replace(/^\n+/, '').trimEnd()).filter((piece) => piece !== '');
  if (documents.length === 0) {
    throw new MiloraError(
      'data-empty',
      `${name}: expected text between the separators ${JSON.stringify(between)}, got none`,
    );
  }
  return { name, format: 'plain-text', examples: documents.map((d) => ({ text: d })), ignoredFields: [], skipped: 0 };
}

function splitBy(text: string, separator: string): string[] {
  if (separator === '')
    throw new MiloraError('data-separator', 'separator: expected "blank-line", "none" or a text, got ""');
  return text.split(separator);
}

interface Located {
  /** For messages: `line 3`, `index 2`. */
  readonly at: string;
  readonly value: unknown;
}

function readLines(content: string, problems: Problem[]): Located[] {
  const lines = content.trimEnd().split('\n');
  const records: Located[] = [];
  lines.forEach((line, i) => {
    const at = `line ${i + 1}`;
    if (line.trim() === '') {
      problems.push({ code: 'data-line', message: `${at}: expected one JSON object, got a blank line` });
      return;
    }
    try {
      records.push({ at, value: JSON.parse(line) });
    } catch (cause) {
      problems.push({ code: 'data-line', message: `${at}: expected one JSON object, got ${(cause as Error).message}` });
    }
  });
  return records;
}

function readArray(content: string, problems: Problem[]): Located[] {
  try {
    return (JSON.parse(content) as unknown[]).map((value, i) => ({ at: `index ${i}`, value }));
  } catch (cause) {
    problems.push(locateInArray(content) ?? { code: 'data-line', message: (cause as Error).message });
    return [];
  }
}

/** Where a malformed JSON array goes wrong, which the engine's message does not always say. */
function locateInArray(content: string): Problem | undefined {
  const lineAt = (offset: number): number => content.slice(0, offset).split('\n').length;
  const problem = (offset: number, index: number, got: string): Problem => ({
    code: 'data-line',
    message: `line ${lineAt(offset)}, index ${index}: expected a JSON object, got ${got}`,
  });
  let start = content.indexOf('[') + 1;
  let index = 0;
  let depth = 0;
  let inString = false;
  for (let i = start; i < content.length; i++) {
    const c = content[i]!;
    if (inString) {
      if (c === '\\') i++;
      else if (c === '"') inString = false;
      else if (c === '\n') return problem(i, index, 'a string that does not end on its line');
    } else if (c === '"') inString = true;
    else if (c === '{' || c === '[') depth++;
    else if (depth > 0 && (c === '}' || c === ']')) depth--;
    else if (depth === 0 && (c === ',' || c === ']' || c === '}')) {
      const first = start + Math.max(0, content.slice(start, i).search(/\S/));
      try {
        JSON.parse(content.slice(start, i).trim());
      } catch (cause) {
        return problem(first, index, (cause as Error).message);
      }
      if (c === ']') return undefined;
      start = i + 1;
      index++;
    }
  }
  return problem(content.trimEnd().length, index, 'the end of the file: it is cut off');
}

function interpret(records: readonly Located[], problems: Problem[], options: ParseOptions): Dataset {
  const template = options.template ?? defaultTemplate;
  checkTemplate(template);
  const examples: Example[] = [];
  const ignored = new Set<string>();
  let first: { at: string; format: DatasetFormat } | undefined;
  let skipped = 0;

  for (const { at, value } of records) {
    const result = readRecord(value, template, ignored);
    if (result.format !== undefined) {
      first ??= { at, format: result.format };
      if (result.format !== first.format) {
        const message = `${at}: expected the format ${first.format}, as at ${first.at}, got ${result.format}`;
        problems.push({ code: 'data-mixed', message });
        continue;
      }
    }
    if ('example' in result) examples.push(result.example);
    else if (result.empty && options.skipEmpty) skipped++;
    else problems.push({ code: 'data-fields', message: `${at}: ${result.problem}` });
  }

  const { name } = options;
  if (problems.length > 0) {
    const shown = problems.slice(0, PROBLEMS_SHOWN).map((p) => p.message);
    const more = problems.length - shown.length;
    if (more > 0) shown.push(`… and ${more} more`);
    throw new MiloraError(
      problems[0]!.code,
      shown.length === 1 ? `${name}: ${shown[0]!}` : `${name}:\n  ${shown.join('\n  ')}`,
    );
  }
  if (examples.length === 0) {
    const got = skipped > 0 ? `${skipped} with an empty completion` : 'an empty list';
    throw new MiloraError('data-empty', `${name}: expected at least one example, got ${got}`);
  }
  return { name, format: first!.format, examples, ignoredFields: [...ignored], skipped };
}

type RecordResult =
  { format: DatasetFormat; example: Example } | { format: DatasetFormat | undefined; problem: string; empty?: boolean };

function readRecord(value: unknown, template: PromptTemplate, ignored: Set<string>): RecordResult {
  if (!isRecord(value)) return { format: undefined, problem: `expected a JSON object, got ${show(value)}` };
  if ('messages' in value) return readMessages(value, ignored);

  const found = Object.entries(formats).find(([, f]) => f.required.every((field) => field in value));
  if (found === undefined) return { format: undefined, problem: unrecognised(value) };
  const [name, format] = found as [DatasetFormat, RecordFormat];
  const optional = format.optional ?? [];

  for (const key of Object.keys(value)) {
    if (format.required.includes(key) || optional.includes(key)) continue;
    const meant = nearest(
      key,
      optional.filter((field) => !(field in value)),
    );
    if (meant !== undefined)
      return { format: name, problem: `expected no field ${show(key)}; did you mean ${show(meant)}?` };
    ignored.add(key);
  }
  for (const field of [...format.required, ...optional]) {
    const content = value[field];
    if (typeof content === 'string' || (optional.includes(field) && (content === undefined || content === null)))
      continue;
    return { format: name, problem: `${field}: expected a string, got ${show(content)}` };
  }
  const text = (field: string): string => (value[field] as string | null | undefined) ?? '';
  const trained = format.required[format.required.length - 1]!;
  if (text(trained).trim() === '') {
    const problem = `${trained}: expected text to train on, got ${show(text(trained))} (skipEmpty leaves such records out)`;
    return { format: name, problem, empty: true };
  }
  return { format: name, example: format.example(text, template) };
}

function readMessages(record: JsonRecord, ignored: Set<string>): RecordResult {
  const fail = (problem: string): RecordResult => ({ format: 'messages', problem });
  const { messages } = record;
  if (!Array.isArray(messages) || messages.length === 0) {
    return fail(`messages: expected a non-empty list of { role, content }, got ${show(messages)}`);
  }
  for (const [i, message] of (messages as unknown[]).entries()) {
    if (!isRecord(message) || typeof message.role !== 'string' || typeof message.content !== 'string') {
      return fail(`messages[${i}]: expected { role, content } with two strings, got ${show(message)}`);
    }
  }
  for (const key of Object.keys(record)) if (key !== 'messages') ignored.add(key);
  const conversation = messages as ChatMessage[];
  const answers = conversation.filter((message) => message.role === 'assistant');
  if (answers.length === 0) {
    const roles = conversation.map((message) => message.role).join(', ');
    return fail(`messages: expected a turn with the role "assistant" to train on, got the roles ${roles}`);
  }
  if (answers.every((message) => message.content.trim() === '')) {
    return {
      format: 'messages',
      problem: 'messages: expected an assistant turn with text, got empty ones only',
      empty: true,
    };
  }
  return { format: 'messages', example: { messages: conversation } };
}

function unrecognised(record: JsonRecord): string {
  const keys = Object.keys(record);
  const got = keys.length === 0 ? 'no field' : `the fields ${keys.join(', ')}`;
  const hints = keys
    .filter((key) => !knownFields.includes(key))
    .map((key) => [key, nearest(key, knownFields)] as const)
    .filter(([, meant]) => meant !== undefined)
    .map(([key, meant]) => `${key} → ${meant}`);
  return `expected the fields ${formatList}; got ${got}${hints.length > 0 ? `; did you mean ${hints.join(', ')}?` : ''}`;
}

function fromQuestion(template: PromptTemplate, instruction: string, input: string, answer: string): Example {
  const hasInput = input.trim() !== '';
  const values = { instruction, input, question: hasInput ? `${instruction}\n${input}` : instruction };
  const prompt = (hasInput ? template.promptWithInput : undefined) ?? template.prompt;
  return { prompt: fill(prompt, values), completion: fill(template.completion ?? '{answer}', { answer }) };
}

/** Fills a template's prompt, as for a training record; for questions asked after training. */
export function renderPrompt(instruction: string, input = '', template: PromptTemplate = defaultTemplate): string {
  checkTemplate(template);
  return (fromQuestion(template, instruction, input, '') as { prompt: string }).prompt;
}

const placeholder = /\{(\w+)\}/g;

/** In one pass, so that braces in the data stay what they are. */
function fill(template: string, values: Readonly<Record<string, string>>): string {
  return template.replace(placeholder, (whole, key: string) => values[key] ?? whole);
}

function checkTemplate({ prompt, promptWithInput, completion }: PromptTemplate): void {
  const check = (
    part: string,
    text: string | undefined,
    allowed: readonly string[],
    needed: readonly string[],
  ): void => {
    if (text === undefined) return;
    const used = [...text.matchAll(placeholder)].map((match) => match[1]!);
    const unknown = used.find((key) => !allowed.includes(key));
    const list = allowed.map((key) => `{${key}}`).join(', ');
    if (unknown !== undefined) {
      const hint = didYouMean(unknown, allowed);
      throw new MiloraError(
        'data-template',
        `template.${part}: expected only ${list} in braces, got {${unknown}}${hint}`,
      );
    }
    if (!used.some((key) => needed.includes(key))) {
      throw new MiloraError('data-template', `template.${part}: expected ${list} in it, got ${show(text)}`);
    }
  };
  const question = ['question', 'instruction', 'input'];
  check('prompt', prompt, question, ['question', 'instruction']);
  check('promptWithInput', promptWithInput, question, ['question', 'instruction']);
  check('completion', completion, ['answer'], ['answer']);
}

function isRecord(value: unknown): value is JsonRecord {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}
