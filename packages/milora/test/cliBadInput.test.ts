/** What the command says to bad input: one clear message on stderr, exit code 1, and nothing half-written. */
import { openSafetensorsFile } from '@milora/tensor/node';
import { cp, readFile, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { makeFixture, milora, sums, writeModel, writeTokenizer } from './support/tiny.js';
import type { Fixture } from './support/tiny.js';

let fixture: Fixture;
let adapter: string;
beforeAll(async () => {
  fixture = await makeFixture();
  const made = fixture.at('run');
  const { code } = await milora([
    'train',
    '--model',
    fixture.at('model'),
    '--data',
    fixture.at('sums.jsonl'),
    '--rank',
    '2',
    '--steps',
    '1',
    '--out',
    made,
  ]);
  expect(code).toBe(0);
  adapter = join(made, 'adapter');
});
afterAll(() => fixture.remove());

/** A copy of the model folder to be damaged. */
async function copyOfModel(name: string): Promise<string> {
  const to = fixture.at(name);
  await cp(fixture.at('model'), to, { recursive: true });
  return to;
}

interface Case {
  name: string;
  args: () => string[] | Promise<string[]>;
  expected: RegExp | RegExp[];
}

const train = (...rest: string[]): string[] => [
  ...['train', '--model', fixture.at('model'), '--data', fixture.at('sums.jsonl')],
  ...['--steps', '1', '--out', fixture.at('out'), ...rest],
];
/** Training on the lines of a file of its own. */
const trainOn = async (file: string, text: string): Promise<string[]> => {
  await writeFile(fixture.at(file), text);
  return ['train', '--model', fixture.at('model'), '--data', fixture.at(file), '--out', fixture.at('out')];
};
const trainModel = (model: string): string[] => [
  'train',
  '--model',
  model,
  '--data',
  fixture.at('sums.jsonl'),
  '--out',
  fixture.at('out'),
];

const cases: Case[] = [
  {
    name: 'an unknown verb',
    args: () => ['trian'],
    expected: /^milora: trian: expected train, eval, .*; did you mean train\?$/,
  },
  {
    name: 'an unknown option',
    args: () => train('--learning-rate', '1'),
    expected: /--learning-rate: expected an option of milora train, got an unknown one; see milora train --help/,
  },
  { name: 'a mistyped option', args: () => train('--rnak', '8'), expected: /--rnak: .*did you mean --rank\?$/ },
  { name: 'a mistyped flag', args: () => train('--no-mask-promt'), expected: /did you mean --no-mask-prompt\?$/ },
  {
    name: 'a bare word',
    args: () => train('extra'),
    expected: /extra: expected an option of milora train, got a bare word/,
  },
  {
    name: 'an option without a value',
    args: () => train('--rank', '--alpha', '8'),
    expected: /--rank: expected a value \(N\), got none/,
  },
  { name: 'a value for a flag', args: () => train('--pack=yes'), expected: /--pack: expected no value, got "yes"/ },
  {
    name: 'a number that is none',
    args: () => train('--lr', 'fast'),
    expected: /--lr: expected a number above 0, got "fast"/,
  },
  { name: 'a negative rate', args: () => train('--lr', '-1'), expected: /--lr: expected a number above 0, got "-1"/ },
  {
    name: 'a broken rank',
    args: () => train('--rank', '2.5'),
    expected: /--rank: expected a whole number ≥ 1, got "2.5"/,
  },
  {
    name: 'dropout of 1',
    args: () => train('--dropout', '1'),
    expected: /--dropout: expected a number ≥ 0 below 1, got "1"/,
  },
  {
    name: 'an unknown method',
    args: () => train('--method', 'milroa'),
    expected: /--method: expected milora, pissa, .*; did you mean milora\?/,
  },
  {
    name: 'no model',
    args: () => ['train', '--data', 'x'],
    expected: /--model: expected a value, got none; it is the base model/,
  },
  {
    name: 'a model that is not there',
    args: () => trainModel(fixture.at('modle')),
    expected: /modle: expected a model folder or a llama2\.c \.bin file, got nothing there/,
  },
  {
    name: 'a folder that is no model',
    args: async () => (
      await rm(join(await copyOfModel('configless'), 'config.json')),
      trainModel(fixture.at('configless'))
    ),
    expected: /configless: expected a model directory with config\.json, got none/,
  },
  {
    name: 'no weights',
    args: async () => (
      await rm(join(await copyOfModel('weightless'), 'model.safetensors')),
      trainModel(fixture.at('weightless'))
    ),
    expected: /weightless: expected model\.safetensors or model\.safetensors\.index\.json, got neither/,
  },
  {
    name: 'truncated weights',
    args: async () => (
      await truncate(join(await copyOfModel('cut'), 'model.safetensors'), 20_000),
      trainModel(fixture.at('cut'))
    ),
    expected: /cut\/model\.safetensors: expected .* got/,
  },
  {
    name: 'a shard that is missing',
    args: async () => {
      const dir = await copyOfModel('sharded');
      const file = await openSafetensorsFile(join(dir, 'model.safetensors'));
      const names = file.names();
      await file.close();
      await rm(join(dir, 'model.safetensors'));
      const weight_map = Object.fromEntries(names.map((name) => [name, 'model-00001-of-00001.safetensors']));
      await writeFile(join(dir, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map }));
      return trainModel(dir);
    },
    expected: /model-00001-of-00001\.safetensors/,
  },
  {
    name: 'weights that are not finite',
    args: async () => {
      const path = join(await copyOfModel('nan'), 'model.safetensors');
      const bytes = await readFile(path);
      bytes.writeFloatLE(NaN, bytes.length - 4);
      await writeFile(path, bytes);
      return trainModel(fixture.at('nan'));
    },
    expected: /model\.norm\.weight: expected finite values, got NaN at entry 23 of 24/,
  },
  {
    name: 'weights of other shapes',
    args: async () => {
      const dir = await copyOfModel('shapes');
      const config = JSON.parse(await readFile(join(dir, 'config.json'), 'utf8')) as object;
      await writeFile(join(dir, 'config.json'), JSON.stringify({ ...config, intermediate_size: 44 }));
      return trainModel(dir);
    },
    expected: [/6 problem\(s\)/, /model\.layers\.1\.mlp\.down_proj\.weight: expected shape \[24, 44\], got \[24, 40\]/],
  },
  {
    name: 'a tokenizer of another model',
    args: async () => (
      await writeTokenizer(await copyOfModel('tokens'), { extra: 9 }),
      trainModel(fixture.at('tokens'))
    ),
    expected: /expected ids below the model's vocabSize 258, got ids up to 266/,
  },
  {
    name: 'no tokenizer',
    args: async () => (await rm(join(await copyOfModel('mute'), 'tokenizer.json')), trainModel(fixture.at('mute'))),
    expected: /mute: expected tokenizer\.json, got none/,
  },
  {
    name: 'a rank that is too large',
    args: () => train('--rank', '13'),
    expected:
      /model\.layers\.0\.self_attn\.k_proj: expected a rank ≤ 12, the largest possible for a weight of shape \[12, 24\], got 13/,
  },
  {
    name: 'an unknown target',
    args: () => train('--targets', 'q,kk_proj'),
    expected: /"kk_proj"; did you mean "k_proj"\?/,
  },
  {
    name: 'an expression without a match',
    args: () => train('--targets', '.*_prok$'),
    expected: /expected the regular expression .* matches none/,
  },
  {
    name: 'too long a length',
    args: () => train('--max-length', '65'),
    expected: /max-length: expected at most 64, .* got 65/,
  },
  {
    name: 'data that is not there',
    args: () => ['train', '--model', fixture.at('model'), '--data', fixture.at('sum.jsonl')],
    expected: /sum\.jsonl: expected a data file, got no such file; did you mean "sums\.jsonl"\?/,
  },
  {
    name: 'an empty data file',
    args: () => trainOn('empty.jsonl', ''),
    expected: /empty\.jsonl: expected training data, got an empty file/,
  },
  {
    name: 'malformed and blank lines',
    args: () => trainOn('malformed.jsonl', `${sums(1)}\n{"question": \n${sums(1)}`),
    expected: [
      /malformed\.jsonl:/,
      /line 2: expected one JSON object, got a blank line/,
      /line 3: expected one JSON object, got/,
    ],
  },
  {
    name: 'a record with other fields',
    args: () => trainOn('fields.jsonl', '{"qestion": "a", "answer": "b"}\n'),
    expected: /fields\.jsonl: line 1: .*did you mean qestion → question\?/,
  },
  {
    name: 'an empty answer',
    args: () => trainOn('blank.jsonl', `${sums(2)}{"question": "a", "answer": ""}\n`),
    expected: /blank\.jsonl: line 3: answer: expected text to train on, got ""/,
  },
  {
    name: 'prompts that leave nothing to train on',
    args: () => trainOn('long.jsonl', `${JSON.stringify({ question: 'x'.repeat(200), answer: 'y' })}\n`),
    expected: /expected at least one example with a trained token within maxLength 64/,
  },
  {
    name: 'an adapter on another base',
    args: async () => {
      await writeModel(fixture.at('other'), { seed: 2 });
      return ['merge', '--model', fixture.at('other'), '--adapter', adapter, '--out', fixture.at('out')];
    },
    expected:
      /adapter: expected the base model '.*model' that the adapter was trained on, got a model that differs in model\.embed_tokens\.weight, .*\(16 in all\)/,
  },
  {
    name: 'an adapter that is cut off',
    args: async () => {
      const dir = fixture.at('cut-adapter');
      await cp(adapter, dir, { recursive: true });
      await truncate(join(dir, 'adapter_model.safetensors'), 3000);
      return ['eval', '--model', fixture.at('model'), '--adapter', dir, '--data', fixture.at('sums.jsonl')];
    },
    expected: /cut-adapter\/adapter_model\.safetensors: expected/,
  },
  {
    name: 'an adapter that is none',
    args: () => ['generate', '--model', fixture.at('model'), '--adapter', fixture.at('run'), '--prompt', 'a'],
    expected:
      /run: expected an adapter folder with adapter_config\.json, got none; for the result of this run give .*adapter/,
  },
  {
    name: 'an output that is there',
    args: () => train('--out', fixture.at('run')),
    expected: /run: expected a new or empty folder, got one with files; .*--resume/,
  },
  {
    name: 'a run that is not there',
    args: () => ['train', '--resume', fixture.at('none')],
    expected: /none: expected the folder of a run with config\.json, got none/,
  },
  {
    name: 'no prompt',
    args: () => ['generate', '--model', fixture.at('model')],
    expected: /--prompt: expected a value, got none; give --prompt TEXT, or --chat/,
  },
  {
    name: 'a chat without a template',
    args: async () => (
      await writeTokenizer(await copyOfModel('no-chat')),
      ['generate', '--model', fixture.at('no-chat'), '--chat', '--prompt', 'a']
    ),
    expected: /--chat: expected a model with a chat template, got one without/,
  },
  {
    name: 'nothing to inspect',
    args: () => ['inspect', fixture.at('nothing')],
    expected: /nothing: expected a file or folder, got nothing there/,
  },
  {
    name: 'a folder that is nothing known',
    args: () => ['inspect', fixture.dir],
    expected: /expected a model \(config\.json\), an adapter/,
  },
  {
    name: 'forgetting without an adapter',
    args: () => ['eval', '--model', fixture.at('model'), '--data', 'x', '--forgetting', 'y'],
    expected: /--forgetting: expected --adapter with it/,
  },
  { name: 'a backend that this machine lacks', args: () => train('--backend', 'gpu/webgl2'), expected: /expected/ },
];

it.each(cases)('$name', async ({ args, expected }) => {
  const prepared = await args();
  const before = await readdir(fixture.dir);
  const { code, out, err } = await milora(prepared);
  for (const pattern of [expected].flat()) expect(err.trimEnd()).toMatch(pattern);
  expect(err.startsWith('milora: ')).toBe(true);
  expect(err).not.toMatch(/^\s+at /m);
  expect(err).not.toContain('unexpected');
  expect(code).toBe(1);
  expect(await readdir(fixture.dir)).toEqual(before);
  // what was read before the mistake showed may have been reported
  expect(out).not.toMatch(/step|wrote/);
});

it('shows the stack with --debug only', async () => {
  const { err } = await milora([...train('--rank', '13'), '--debug']);
  expect(err).toMatch(/^\s+at /m);
});

it('a loss that is not finite ends the run and leaves its checkpoint to resume from', async () => {
  const out = fixture.at('diverged');
  const { code, err } = await milora([
    'train',
    '--model',
    fixture.at('model'),
    '--data',
    fixture.at('sums.jsonl'),
    '--steps',
    '40',
    '--warmup',
    '0',
    '--lr',
    '1e30',
    '--clip',
    '0',
    '--out',
    out,
  ]);
  expect(code).toBe(1);
  expect(err).toMatch(/train: expected a finite loss at step \d+, got loss .*Lower the learning rate/);
  expect((await readdir(out)).sort()).toEqual(['checkpoints', 'config.json', 'metrics.jsonl']);
});
