import type { Tokenizer } from '@milora/llama';
import fc from 'fast-check';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Example, parseDataset, renderPrompt } from '../src/dataset.js';
import { describeMasking, IGNORE, tokenizeDataset, tokenizeExample } from '../src/tokenize.js';
import { readDataset } from '../src/node/data.js';

/** One token for each character, its code point, with the marks `<s>` and `</s>` as single tokens. */
const marks = ['', '<s>', '</s>'];
const characters: Tokenizer = {
  vocabSize: 0x110000,
  bosId: 1,
  eosIds: [2],
  padId: undefined,
  encode: (text, { addSpecialTokens = true } = {}) => {
    const ids = (text.match(/<\/?s>|[^]/gu) ?? []).map((piece) => characters.tokenToId(piece)!);
    return addSpecialTokens ? [1, ...ids] : ids;
  },
  decode: (ids, { skipSpecialTokens = true } = {}) =>
    ids.map((id) => (skipSpecialTokens && marks[id] ? '' : characters.idToToken(id))).join(''),
  tokenToId: (token) => (marks.indexOf(token) > 0 ? marks.indexOf(token) : token.codePointAt(0)),
  idToToken: (id) => marks[id] || String.fromCodePoint(id),
};

/** The text of token ids, marks included. */
const textOf = (ids: Iterable<number>): string => characters.decode([...ids], { skipSpecialTokens: false });

const chatTemplate =
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}{{ eos_token }}" +
  '{% else %}U:{{ m.content }}|{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}';
const chatCharacters: Tokenizer = { ...characters, chatTemplate };

const trainedText = (example: Example, tokenizer = characters, options = {}): string => {
  const { ids, labels } = tokenizeExample(example, tokenizer, { maxLength: 1000, ...options });
  return textOf(ids.filter((_, t) => labels[t] !== IGNORE));
};

const parse = (text: string, name = 'data.jsonl', options = {}) => parseDataset(text, { name, ...options });
const jsonl = (...records: unknown[]): string => records.map((r) => JSON.stringify(r)).join('\n') + '\n';

describe('parseDataset: formats', () => {
  it.each<[string, object, Example]>([
    [
      'alpaca',
      { instruction: 'Add.', input: '1, 2', output: '3' },
      { prompt: 'Question: Add.\n1, 2\nAnswer:', completion: ' 3' },
    ],
    [
      'alpaca',
      { instruction: 'Add.', input: null, output: '3' },
      { prompt: 'Question: Add.\nAnswer:', completion: ' 3' },
    ],
    ['question-answer', { question: '1 + 1?', answer: '2' }, { prompt: 'Question: 1 + 1?\nAnswer:', completion: ' 2' }],
    ['query-response', { query: '1 + 1?', response: '2' }, { prompt: 'Question: 1 + 1?\nAnswer:', completion: ' 2' }],
    ['prompt-completion', { prompt: 'a', completion: 'b' }, { prompt: 'a', completion: 'b' }],
    ['text', { text: 'so it goes' }, { text: 'so it goes' }],
    [
      'messages',
      {
        messages: [
          { role: 'user', content: 'a' },
          { role: 'assistant', content: 'b' },
        ],
      },
      {
        messages: [
          { role: 'user', content: 'a' },
          { role: 'assistant', content: 'b' },
        ],
      },
    ],
  ])('%s in JSON Lines and in an array', (format, record, example) => {
    expect(parse(jsonl(record, record))).toMatchObject({ format, examples: [example, example] });
    expect(parse(JSON.stringify([record], null, 2), 'data.json')).toMatchObject({ format, examples: [example] });
  });

  it('tells what it did not use', () => {
    const dataset = parse(jsonl({ instruction: 'a', output: 'b', answer: 'b', id: 1 }));
    expect(dataset.ignoredFields).toEqual(['answer', 'id']);
  });

  it('reads a byte-order mark, CRLF and blank lines at the end', () => {
    const text = '\ufeff' + jsonl({ text: 'a' }, { text: 'b' }).replaceAll('\n', '\r\n') + '\r\n\n  \n';
    expect(parse(text).examples).toEqual([{ text: 'a' }, { text: 'b' }]);
  });

  it('cuts plain text at blank lines, at a mark, or not at all', () => {
    const texts = (text: string, options = {}) =>
      parse(text, 'data.txt', options).examples.map((e) => (e as { text: string }).text);
    expect(texts('\none\ntwo\n \n\nthree\r\n\r\nfour\n')).toEqual(['one\ntwo', 'three', 'four']);
    expect(texts('one\n\ntwo\n<|endoftext|>\nthree\n<|endoftext|>\n')).toEqual(['one\n\ntwo', 'three']);
    expect(texts('one\n\ntwo', { separator: 'none' })).toEqual(['one\n\ntwo']);
    expect(texts('one---two', { separator: '---' })).toEqual(['one', 'two']);
  });

  it('gives back any records it is given, in order', () => {
    const record = fc.record({
      prompt: fc.string({ unit: 'grapheme' }),
      completion: fc.string({ unit: 'grapheme', minLength: 1 }).filter((s) => s.trim() !== ''),
    });
    fc.assert(
      fc.property(fc.array(record, { minLength: 1, maxLength: 8 }), fc.boolean(), (records, asLines) => {
        const text = asLines ? jsonl(...records) : JSON.stringify(records, null, 1);
        expect(parse(text, asLines ? 'd.jsonl' : 'd.json').examples).toEqual(records);
      }),
      { numRuns: 200 },
    );
  });
});

describe('parseDataset: templates', () => {
  const template = {
    prompt: 'I {instruction}\nR',
    promptWithInput: 'I {instruction}\nX {input}\nR',
    completion: '>{answer}',
  };

  it('fills the prompt for records with and without input, once', () => {
    const { examples } = parse(
      jsonl(
        { instruction: 'do {input}', output: '{answer}' },
        { instruction: 'do', input: '$& {question}', output: 'b' },
      ),
      'data.jsonl',
      { template },
    );
    expect(examples).toEqual([
      { prompt: 'I do {input}\nR', completion: '>{answer}' },
      { prompt: 'I do\nX $& {question}\nR', completion: '>b' },
    ]);
  });

  it('renders a prompt alone, as it was trained', () => {
    expect(renderPrompt('Add.', '1, 2')).toBe('Question: Add.\n1, 2\nAnswer:');
    expect(renderPrompt('Add.', '1, 2', template)).toBe('I Add.\nX 1, 2\nR');
  });

  it.each([
    [
      { prompt: '{questoin}' },
      'template.prompt: expected only {question}, {instruction}, {input} in braces, got {questoin}; did you mean "question"?',
    ],
    [{ prompt: 'Answer:' }, 'template.prompt: expected {question}, {instruction}, {input} in it, got "Answer:"'],
    [{ prompt: '{question}', completion: '' }, 'template.completion: expected {answer} in it, got ""'],
  ])('%j', (bad, message) => {
    expect(() => parse(jsonl({ text: 'a' }), 'd', { template: bad })).toThrow(
      expect.objectContaining({ code: 'data-template', message }),
    );
  });
});

describe('parseDataset: errors', () => {
  const qa = { question: 'q', answer: 'a' };
  it.each<[string, string, string, string | RegExp, string?]>([
    ['empty file', '', 'data-empty', 'd.jsonl: expected training data, got an empty file'],
    ['blank file', ' \n\n', 'data-empty', 'd.jsonl: expected training data, got only blanks'],
    ['empty list', '[]', 'data-empty', 'd.json: expected at least one example, got an empty list', 'd.json'],
    [
      'blank line',
      jsonl(qa) + '\n' + jsonl(qa),
      'data-line',
      'd.jsonl: line 2: expected one JSON object, got a blank line',
    ],
    [
      'malformed line',
      jsonl(qa) + '{"question": "q", \n',
      'data-line',
      /^d.jsonl: line 2: expected one JSON object, got .*JSON/,
    ],
    ['no object', jsonl(qa, 7), 'data-fields', 'd.jsonl: line 2: expected a JSON object, got 7'],
    [
      'number for text',
      jsonl({ question: 'q', answer: 4 }),
      'data-fields',
      'd.jsonl: line 1: answer: expected a string, got 4',
    ],
    [
      'empty completion',
      jsonl(qa, { ...qa, answer: ' ' }),
      'data-fields',
      'd.jsonl: line 2: answer: expected text to train on, got " " (skipEmpty leaves such records out)',
    ],
    [
      'mixed',
      jsonl(qa, qa, { text: 'a' }),
      'data-mixed',
      'd.jsonl: line 3: expected the format question-answer, as at line 1, got text',
    ],
    [
      'near miss',
      jsonl({ instruction: 'a', inputs: 'b', output: 'c' }),
      'data-fields',
      'd.jsonl: line 1: expected no field "inputs"; did you mean "input"?',
    ],
    [
      'unknown fields',
      jsonl({ promt: 'a', completion: 'b' }),
      'data-fields',
      'd.jsonl: line 1: expected the fields messages, or instruction + output, or question + answer, or query + response, or prompt + completion, or text; got the fields promt, completion; did you mean promt → prompt?',
    ],
    [
      'in an array',
      JSON.stringify([qa, {}]),
      'data-fields',
      /^d.json: index 1: expected the fields .*; got no field$/,
      'd.json',
    ],
    [
      'malformed array',
      '[\n {"text": "a \\", ]"},\n {"text": b}\n]',
      'data-line',
      /^d.json: line 3, index 1: expected a JSON object, got .*JSON/,
      'd.json',
    ],
    [
      'cut-off array',
      '[\n {"text": "a"},\n {"text": "',
      'data-line',
      'd.json: line 3, index 1: expected a JSON object, got the end of the file: it is cut off',
      'd.json',
    ],
    [
      'open string',
      '[{"text": "a\n"}]',
      'data-line',
      'd.json: line 1, index 0: expected a JSON object, got a string that does not end on its line',
      'd.json',
    ],
    [
      'no messages',
      jsonl({ messages: [] }),
      'data-fields',
      'd.jsonl: line 1: messages: expected a non-empty list of { role, content }, got []',
    ],
    [
      'bad turn',
      jsonl({ messages: [{ role: 'user' }] }),
      'data-fields',
      'd.jsonl: line 1: messages[0]: expected { role, content } with two strings, got {"role":"user"}',
    ],
    [
      'no answer',
      jsonl({ messages: [{ role: 'user', content: 'a' }] }),
      'data-fields',
      'd.jsonl: line 1: messages: expected a turn with the role "assistant" to train on, got the roles user',
    ],
  ])('%s', (_, text, code, message, name = 'd.jsonl') => {
    expect(() => parse(text, name)).toThrow(
      expect.objectContaining({
        code,
        message: typeof message === 'string' ? message : expect.stringMatching(message),
      }),
    );
  });

  it('shows five problems and counts the rest', () => {
    const lines = Array.from({ length: 8 }, () => '{}').join('\n');
    const act = () => parse(lines, 'd.jsonl');
    expect(act).toThrow(/\n {2}line 5: .*\n {2}… and 3 more$/);
  });

  it('leaves records with an empty completion out on request, and counts them', () => {
    const text = jsonl(qa, { ...qa, answer: '' }, qa);
    expect(parse(text, 'd.jsonl', { skipEmpty: true })).toMatchObject({ skipped: 1, examples: { length: 2 } });
    expect(() => parse(jsonl({ ...qa, answer: '' }), 'd.jsonl', { skipEmpty: true })).toThrow(
      /got 1 with an empty completion/,
    );
  });
});

describe('tokenizeExample', () => {
  const example = { prompt: 'Q?', completion: ' A' };

  it('trains the completion and the end mark', () => {
    const { ids, labels, truncated } = tokenizeExample(example, characters, { maxLength: 10 });
    expect([...ids]).toEqual([1, 81, 63, 32, 65, 2]);
    expect([...labels]).toEqual([-100, -100, -100, 32, 65, 2]);
    expect(truncated).toBe(false);
  });

  it('trains every token but the first without masking, and in running text', () => {
    expect(trainedText(example, characters, { maskPrompt: false })).toBe('Q? A</s>');
    expect(trainedText({ text: 'abc' })).toBe('abc</s>');
    expect(trainedText({ text: 'abc' }, characters, { addBos: false, addEos: false })).toBe('bc');
  });

  it('begins and ends as asked', () => {
    const ids = (options: object, tokenizer = characters) => [
      ...tokenizeExample({ prompt: 'a', completion: 'b' }, tokenizer, { maxLength: 9, ...options }).ids,
    ];
    expect(ids({ addBos: false, addEos: false })).toEqual([97, 98]);
    const noHabit: Tokenizer = {
      ...characters,
      encode: (text) => characters.encode(text, { addSpecialTokens: false }),
    };
    expect(ids({}, noHabit)).toEqual([97, 98, 2]);
    expect(ids({ addBos: true }, noHabit)).toEqual([1, 97, 98, 2]);
    const noMarks: Tokenizer = { ...noHabit, bosId: undefined, eosIds: [] };
    expect(ids({}, noMarks)).toEqual([97, 98]);
    expect(() => ids({ addEos: true }, noMarks)).toThrow(expect.objectContaining({ code: 'no-eos' }));
    expect(() => ids({ addBos: true }, noMarks)).toThrow(expect.objectContaining({ code: 'no-bos' }));
    expect(() => ids({ maxLength: 1 })).toThrow(expect.objectContaining({ code: 'max-length' }));
  });

  it('leaves one space where the tokenizer puts one before every text', () => {
    const spaceFirst: Tokenizer = { ...characters, encode: (text, options) => characters.encode(` ${text}`, options) };
    const whole = (completion: string, tokenizer: Tokenizer): string =>
      textOf(tokenizeExample({ prompt: 'Q:', completion }, tokenizer, { maxLength: 99, addBos: false }).ids);
    expect(whole(' A', spaceFirst)).toBe(' Q: A</s>');
    expect(whole('A', spaceFirst)).toBe(' Q: A</s>');
    expect(whole('  A', spaceFirst)).toBe(' Q:  A</s>');
    expect(whole(' A', characters)).toBe('Q: A</s>');
  });

  it('is the prompt as asked later, then the completion, cut at the right', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', ' ', 'é') });
    fc.assert(
      fc.property(text, text, fc.integer({ min: 2, max: 12 }), (prompt, completion, maxLength) => {
        const { ids, labels, truncated } = tokenizeExample({ prompt, completion }, characters, { maxLength });
        const whole = [
          ...characters.encode(prompt, { addSpecialTokens: true }),
          ...characters.encode(completion, { addSpecialTokens: false }),
          2,
        ];
        expect([...ids]).toEqual(whole.slice(0, maxLength));
        expect(truncated).toBe(whole.length > maxLength);
        const start = 1 + prompt.length;
        expect([...labels]).toEqual(whole.slice(0, maxLength).map((id, t) => (t >= start ? id : IGNORE)));
      }),
      { numRuns: 200 },
    );
  });
});

describe('tokenizeExample: conversations', () => {
  const messages = [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: 'yo' },
    { role: 'user', content: 'so?' },
    { role: 'assistant', content: 'bye' },
    { role: 'user', content: 'ok' },
  ];

  it("trains the assistant's turns with their end marks, and nothing else", () => {
    const { ids } = tokenizeExample({ messages }, chatCharacters, { maxLength: 100 });
    expect(textOf(ids)).toBe('<s>U:hi|A:yo</s>U:so?|A:bye</s>U:ok|');
    expect(trainedText({ messages }, chatCharacters)).toBe('yo</s>bye</s>');
    expect(trainedText({ messages }, chatCharacters, { maskPrompt: false })).toBe('U:hi|A:yo</s>U:so?|A:bye</s>U:ok|');
  });

  it('finds every assistant turn of any conversation', () => {
    const turn = fc.record({ role: fc.constantFrom('user', 'assistant'), content: fc.stringMatching(/^[a-z]{1,5}$/) });
    fc.assert(
      fc.property(fc.array(turn, { minLength: 1, maxLength: 6 }), (turns) => {
        const answers = turns.filter((m) => m.role === 'assistant').map((m) => `${m.content}</s>`);
        expect(trainedText({ messages: turns }, chatCharacters)).toBe(answers.join(''));
      }),
      { numRuns: 200 },
    );
  });

  it('refuses a tokenizer without a template, and a template whose turns move', () => {
    expect(() => trainedText({ messages })).toThrow(expect.objectContaining({ code: 'no-chat-template' }));
    const counting = { ...characters, chatTemplate: `{{ messages | length }}${chatTemplate}` };
    expect(() => trainedText({ messages }, counting)).toThrow(expect.objectContaining({ code: 'chat-template' }));
  });
});

describe('tokenizeDataset', () => {
  it('counts, and drops examples with nothing left to train', () => {
    const examples = [
      { prompt: 'ab', completion: 'cd' },
      { prompt: 'abcdefgh', completion: 'i' },
      { prompt: 'a', completion: 'bcdefgh' },
    ];
    const result = tokenizeDataset(examples, characters, { maxLength: 6 });
    expect(result).toMatchObject({ truncated: 1, dropped: [1], tokens: 12, targets: 3 + 4 });
    expect(result.examples.map(({ ids }) => textOf(ids))).toEqual(['<s>abcd</s>', '<s>abcde']);
  });

  it('refuses data that leaves nothing', () => {
    expect(() => tokenizeDataset([{ prompt: 'abc', completion: 'd' }], characters, { maxLength: 4 })).toThrow(
      expect.objectContaining({ code: 'no-labels' }),
    );
  });
});

describe('describeMasking', () => {
  it('shows which stretches are trained', () => {
    const tokenized = tokenizeExample({ prompt: '1 + 1?\nA:', completion: ' 2' }, characters, { maxLength: 12 });
    expect(describeMasking(tokenized, characters)).toBe(
      [
        'not trained    10 tokens  "<s>1 + 1?\\nA:"',
        'trained         2 tokens  " 2"',
        '12 tokens, 2 of them trained; cut off at the end',
      ].join('\n'),
    );
    expect(describeMasking(tokenized, characters, 7)).toContain('"<s … A:"');
  });
});

describe('readDataset', () => {
  let folder: string;
  beforeAll(async () => void (folder = await mkdtemp(join(tmpdir(), 'milora-data-'))));
  afterAll(() => rm(folder, { recursive: true }));

  it('reads a file', async () => {
    await writeFile(join(folder, 'train.jsonl'), jsonl({ text: 'é' }));
    expect(await readDataset(join(folder, 'train.jsonl'))).toMatchObject({ format: 'text', examples: [{ text: 'é' }] });
  });

  it('says what is wrong with a path', async () => {
    await writeFile(join(folder, 'train.jsonl'), '');
    await writeFile(join(folder, 'latin1.txt'), Buffer.from([0x66, 0xfc, 0x72]));
    await expect(readDataset(join(folder, 'tain.jsonl'))).rejects.toThrow(
      /no such file; did you mean "train.jsonl"\?$/,
    );
    await expect(readDataset(folder)).rejects.toThrow(/got a folder; name a file in it$/);
    await expect(readDataset(join(folder, 'latin1.txt'))).rejects.toThrow(
      expect.objectContaining({ code: 'data-file' }),
    );
    await expect(readDataset(join(folder, 'train.jsonl'))).rejects.toThrow(
      /train.jsonl: expected training data, got an empty file$/,
    );
  });
});

/** Public data sets, present beside the repository on some machines only. */
const shared = fileURLToPath(new URL('../../../../shared/data/', import.meta.url));

describe.skipIf(!existsSync(shared))('public data sets (skipped where ../shared/data is absent)', () => {
  it.each([
    ['gsm8k/train.jsonl', 'question-answer', 7473],
    ['gsm8k/test.jsonl', 'question-answer', 1319],
    ['dolly/dolly_train.sdft.json', 'alpaca', 2000],
    ['llm-adapters/dataset/boolq/train.json', 'alpaca', 9427],
  ])('%s is %s with %d examples', async (file, format, count) => {
    expect(await readDataset(shared + file)).toMatchObject({ format, examples: { length: count }, skipped: 0 });
  });

  it('finds the three records without an answer in the LLM-Adapters math set', async () => {
    const file = `${shared}llm-adapters/ft-training_set/math_data.json`;
    await expect(readDataset(file)).rejects.toThrow(/index \d+: output: expected text to train on/);
    expect(await readDataset(file, { skipEmpty: true })).toMatchObject({ skipped: 3, examples: { length: 3257 } });
  });

  it('reads stories and plays as plain text', async () => {
    const stories = await readDataset(`${shared}tinystories/tinystories_sample_2MiB.txt`);
    expect(stories.examples.length).toBeGreaterThan(1000);
    expect(stories.examples.every((e) => 'text' in e && !e.text.includes('<|endoftext|>'))).toBe(true);
    expect((await readDataset(`${shared}tinyshakespeare/input.txt`)).examples).toHaveLength(7222);
  });
});
