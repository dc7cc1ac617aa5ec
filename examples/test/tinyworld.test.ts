import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { Philox } from '@milora/tensor';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { arithmeticProblems, extractAnswer, type Problem } from '../tinyworld/arithmetic.js';
import { FLOCK, THINGS, worldDocuments } from '../tinyworld/documents.js';
import { MAKE_DEFAULTS, makeTinyworld } from '../tinyworld/files.js';
import { tokenizerConfig, trainTokenizer } from '../tinyworld/tokenizer.js';
import { ANIMALS_BY_SIZE, createWorld, JOBS, worldFacts, type Person } from '../tinyworld/world.js';

const SEED = 7;
const world = createWorld(new Philox(SEED, 0));
const documents = (n: number, stream = 1, seed = SEED) => [...worldDocuments(world, new Philox(seed, stream), n)];

const person = (name: string): Person => {
  const found = world.people.get(name);
  if (found === undefined) throw new Error(`nobody is called ${name}`);
  return found;
};

/** Patterns that state a fact, with what the world says; `hero` is the first person a document names. */
const PATTERNS: readonly [pattern: RegExp, holds: (groups: string[], hero: () => Person) => boolean][] = [
  [/\b([A-Z]\w+) lives in ([A-Z]\w+)\./g, ([name, village]) => person(name!).village.name === village],
  [/The home of (\w+) is in (\w+)\./g, ([name, village]) => person(name!).village.name === village],
  [/walks from (\w+) to (\w+)\./g, ([from], hero) => hero().village.name === from],
  [/\b([A-Z]\w+) (?:is a|works as a|the) (\w+er|\w+or)\b/g, ([name, job]) => person(name!).job.name === job],
  [/the \w+ walks to the (\w+)\./g, ([place], hero) => hero().job.place === place],
  [/There (?:she|he) ([a-z]\w+ \w+)\./g, ([does], hero) => hero().job.does === does],
  [/\b([A-Z]\w+) likes to eat (\w+)\./g, ([name, food]) => person(name!).food === food],
  [/best friend of (\w+) is (\w+)\./g, ([a, b]) => person(a!).friend === b && person(b!).friend === a],
  [/(?:her|his) friend ([A-Z]\w+)/g, ([friend], hero) => hero().friend === friend],
  [/The house of (\w+) is ([a-z]+)\./g, ([name, colour]) => person(name!).houseColour === colour],
  [/in the (\w+) house\./g, ([colour], hero) => hero().houseColour === colour],
  [/The house of (\w+) is number (\d+)\./g, ([name, number]) => person(name!).houseNumber === Number(number)],
  [/(\w+) has a (\w+) called (\w+)\./g, ([name, kind, pet]) => hasPet(person(name!), kind!, pet!)],
  [/(\w+) is the (\w+) of (\w+)\./g, ([pet, kind, name]) => hasPet(person(name!), kind!, pet!)],
  [/(?:her|his) ([a-z]+) ([A-Z]\w+)\./g, ([kind, pet], hero) => kind === 'friend' || hasPet(hero(), kind!, pet!)],
  [
    /[Hh](?:er|is) ([a-z]+) \w+ ([A-Z]\w+) plays/g,
    ([colour, pet], hero) => hero().pet.colour === colour && hero().pet.name === pet,
  ],
  [
    /sees a (\w+) (\w+) at the old (\w+)/g,
    ([colour, kind, landmark], hero) => {
      const { pet, village } = hero();
      return pet.colour === colour && pet.kind === kind && village.landmark === landmark;
    },
  ],
  [/A (\w+) is bigger than a (\w+)\./g, ([big, small]) => size(big!) > size(small!)],
  [/A (\w+) works at the (\w+)\./g, ([job, place]) => JOBS.some((j) => j.name === job && j.place === place)],
  [/The number (\d+) is more than (\d+)\./g, ([more, less]) => Number(more) > Number(less)],
  [/After (\d+) comes (\d+)\./g, ([before, after]) => Number(before) + 1 === Number(after)],
];
const hasPet = ({ pet }: Person, kind: string, name: string) => pet.kind === kind && pet.name === name;
const size = (animal: string) => ANIMALS_BY_SIZE.indexOf(animal);

describe('the world', () => {
  it('is the same for the same seed, and another for another seed', () => {
    expect(createWorld(new Philox(SEED, 0))).toEqual(world);
    expect(createWorld(new Philox(SEED + 1, 0))).not.toEqual(world);
    expect(documents(200)).toEqual(documents(200));
    expect(documents(200)).not.toEqual(documents(200, 1, SEED + 1));
  });

  it('has a few hundred facts whose questions differ and whose first statement holds the answer', () => {
    const facts = worldFacts(world);
    expect(facts.length).toBeGreaterThan(200);
    expect(new Set(facts.map((fact) => fact.question)).size).toBe(facts.length);
    for (const { statements, answer } of facts) expect(statements[0].split(/\W+/)).toContain(answer);
  });

  it('is what every document says it is', () => {
    const texts = documents(20_000);
    for (const [pattern, holds] of PATTERNS) {
      let seen = 0;
      for (const text of texts) {
        const hero = () => person(text.match(/[A-Z]\w+/g)!.find((word) => world.people.has(word))!);
        for (const [sentence, ...groups] of text.matchAll(pattern)) {
          seen++;
          expect(holds(groups, hero), `"${sentence}" in "${text}"`).toBe(true);
        }
      }
      expect(seen, `${pattern}`).toBeGreaterThan(20);
    }
  });

  it('asks for numbers it has named, and never calculates', () => {
    let asked = 0;
    for (const text of documents(20_000)) {
      expect(text).not.toMatch(/\d [+-] \d/);
      expect(text).not.toMatch(/^\d|\S\d+\b(?<! \d+)/); // every number follows a space: it is one token
      const [, told, noun, answer] = /^(.*)How many (\w+)s .*\? .*?(\d+)/.exec(text) ?? [];
      if (answer === undefined) continue;
      asked++;
      expect(told).toMatch(new RegExp(` ${answer} ${noun}`));
    }
    expect(asked).toBeGreaterThan(2_000);
  });

  it('writes one to six short sentences a document', () => {
    for (const text of documents(5_000)) {
      const sentences = text.match(/[^.?!]+[.?!]/g)!;
      expect(sentences.length).toBeLessThanOrEqual(6);
      expect(text.length).toBeLessThan(400);
    }
  });
});

/** Reads a problem as a person would: who has what at first, and whether it becomes more. */
function solve(prompt: string): { x: number; y: number; sign: '+' | '-'; result: number } {
  const [x, y] = prompt.match(/\d+/g)!.map(Number) as [number, number];
  const more = /finds \d|more came|gives (her|him) \d/.test(prompt);
  const less = /loses \d|ran away|(She|He) gives [A-Z]\w+ \d/.test(prompt);
  expect(more).not.toBe(less);
  return { x, y, sign: more ? '+' : '-', result: more ? x + y : x - y };
}

describe('the new task', () => {
  const problems = (n: number, split: 'train' | 'test', stream: number, largest?: number) => [
    ...arithmeticProblems(new Philox(SEED, stream), n, split, largest === undefined ? {} : { largest }),
  ];

  it('has the right answers', () => {
    for (const largest of [3, 12, 20]) {
      for (const { prompt, completion } of problems(3_000, 'train', 3, largest)) {
        const { x, y, sign, result } = solve(prompt);
        expect(completion).toBe(` ${x} ${sign} ${y} = ${result}. The answer is ${result}.`);
        expect(extractAnswer(prompt + completion)).toBe(result);
        expect(Math.max(x, y, result)).toBeLessThanOrEqual(largest);
        expect(Math.min(x, y, result)).toBeGreaterThanOrEqual(0);
      }
    }
  });

  it('keeps the splits apart, whatever the nouns', () => {
    const nouns = new RegExp(`\\b(${[...THINGS, ...FLOCK].join('|')})s?\\b`, 'g');
    const key = ({ prompt }: Problem) => prompt.replace(nouns, '');
    const train = new Set(problems(30_000, 'train', 3).map(key));
    const test = problems(3_000, 'test', 4).map(key);
    expect(test.filter((problem) => train.has(problem))).toEqual([]);
    expect(new Set(test).size).toBeGreaterThan(1_000);
  });

  it('rejects numbers out of range', () => {
    expect(() => problems(1, 'train', 3, 2)).toThrow('largest: expected a whole number from 3 to 20, got 2');
    expect(() => problems(1, 'train', 3, 21)).toThrow('got 21');
  });

  it('reads the answer', () => {
    expect(extractAnswer(' 3 + 4 = 7. The answer is 7.')).toBe(7);
    expect(extractAnswer('The answer is -12. The answer is 3.')).toBe(-12);
    expect(extractAnswer('The answer is Elm.')).toBeUndefined();
    expect(extractAnswer('3 + 4 = 7')).toBeUndefined();
  });
});

describe('the tokenizer', () => {
  const json = trainTokenizer(documents(20_000, 5));
  const tokenizer = new Tokenizer(json, tokenizerConfig(256));
  const encode = (text: string) => tokenizer.encode(text, { add_special_tokens: false }).ids;
  const texts = documents(2_000, 2);

  it('learns the merges of the example in Sennrich et al. 2016', () => {
    const count = { low: 5, lower: 2, newest: 6, widest: 3 };
    const { model } = trainTokenizer(Object.entries(count).flatMap(([word, n]) => Array<string>(n).fill(word)));
    expect(model.merges.slice(24, 28)).toEqual(['e s', 'es t', 'l o', 'lo w']);
  });

  it('has 512 tokens with the special ones in front', () => {
    const ids = Object.values(json.model.vocab).sort((a, b) => a - b);
    expect(ids).toEqual(Array.from({ length: 512 }, (_, id) => id));
    expect(tokenizer.encode('Mia').ids[0]).toBe(tokenizer.token_to_id('<s>'));
    expect(['<s>', '</s>', '<pad>'].map((token) => tokenizer.token_to_id(token))).toEqual([0, 1, 2]);
    expect(() => trainTokenizer([], 200)).toThrow('vocabularySize: expected at least 283, got 200');
  });

  it('keeps every number and sign whole', () => {
    for (let n = 0; n <= 20; n++) expect(tokenizer.tokenize(` ${n}`, { add_special_tokens: false })).toEqual([`Ġ${n}`]);
    expect(tokenizer.tokenize(' 3 + 12 = 15.', { add_special_tokens: false })).toEqual([
      'Ġ3',
      'Ġ+',
      'Ġ12',
      'Ġ=',
      'Ġ15',
      '.',
    ]);
  });

  it('gives back what it was given', () => {
    for (const text of texts) expect(tokenizer.decode(encode(text))).toBe(text);
    fc.assert(
      fc.property(fc.string({ unit: 'binary', minLength: 1, maxLength: 40 }), (text) => {
        expect(tokenizer.decode(encode(text))).toBe(text);
      }),
      { numRuns: 1_000 },
    );
  });

  it('needs at most 0.35 tokens a character', () => {
    const characters = texts.reduce((sum, text) => sum + text.length, 0);
    const tokens = texts.reduce((sum, text) => sum + encode(text).length, 0);
    expect(tokens / characters).toBeLessThan(0.35);
  });

  it('leaves the new task no token that pretraining never showed', () => {
    const trained = new Set(documents(20_000).flatMap(encode));
    const used = new Set<number>();
    for (const { prompt, completion } of arithmeticProblems(new Philox(SEED, 3), 3_000, 'train', { largest: 20 })) {
      const ids = encode(prompt + completion);
      // Prompt and completion have the same tokens apart and joined: the loss can be masked by the prompt's length.
      expect(ids).toEqual([...encode(prompt), ...encode(completion)]);
      for (const id of ids) used.add(id);
    }
    expect([...used].filter((id) => !trained.has(id)).map((id) => tokenizer.id_to_token(id))).toEqual([]);
  });
});

describe('the files', () => {
  it('are written whole, the same for the same seed', () => {
    const options = { ...MAKE_DEFAULTS, documents: 300, valid: 50, train: 100, test: 20 };
    const out = mkdtempSync(join(tmpdir(), 'tinyworld-'));
    try {
      const write = (folder: string) => {
        const made = [...makeTinyworld(join(out, folder), options)];
        const read = made.map(({ file }) => readFileSync(join(out, folder, file), 'utf8'));
        expect(readdirSync(join(out, folder)).sort()).toEqual(made.map(({ file }) => file).sort());
        made.forEach(({ lines }, i) => expect(read[i]!.split('\n')).toHaveLength(lines + 1));
        return Object.fromEntries(made.map(({ file }, i) => [file, read[i]!]));
      };
      const files = write('a');
      expect(write('b')).toEqual(files);
      expect(Object.keys(files)).toEqual([
        'world.jsonl',
        'world.valid.jsonl',
        'world.questions.jsonl',
        'arithmetic.train.jsonl',
        'arithmetic.test.jsonl',
        'tokenizer.json',
        'tokenizer_config.json',
      ]);
      const lines = files['world.jsonl']!.trimEnd().split('\n');
      expect(lines.map((line) => (JSON.parse(line) as { text: string }).text)).toEqual(documents(300));
      expect(JSON.parse(files['tokenizer.json']!)).toEqual(
        JSON.parse(JSON.stringify(trainTokenizer(documents(20_000, 5)))),
      );
    } finally {
      rmSync(out, { recursive: true });
    }
  });
});
