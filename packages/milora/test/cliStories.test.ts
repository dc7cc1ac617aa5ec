/**
 * The command on a real model, stories260K, and real data, where the folder `shared` stands beside the repository: greedy
 * text as published, finetuning with each of the three methods, and what comes of their adapters.
 */
import { loadModel } from '@milora/llama/node';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadPeftFolder } from '../src/node/adapterFolder.js';
import { readCheckpoint, restartInit } from '../src/node/checkpoint.js';
import { inject } from '../src/adapter.js';
import { setValue } from '../src/trainer.js';
import { difference, logitsOf, milora, sharedPath } from './support/tiny.js';

const model = sharedPath('models', 'stories260K-hf') ?? '';
const questions = sharedPath('data', 'gsm8k', 'train.jsonl') ?? '';
const stories = sharedPath('data', 'tinystories', 'tinystories_sample_2MiB.txt') ?? '';
const isThere = model !== '' && questions !== '' && stories !== '';

describe.skipIf(!isThere)('stories260K (needs the folder shared)', () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'milora-stories-'));
    const lines = (await readFile(questions, 'utf8')).split('\n');
    await writeFile(join(dir, 'questions.jsonl'), `${lines.slice(0, 120).join('\n')}\n`);
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  it('writes the greedy text that llama2.c writes, from both forms of the model', async () => {
    const expected = JSON.parse(await readFile(join(model, 'expected_generate.json'), 'utf8')) as {
      greedy_ids: number[];
      greedy_text: string;
    };
    const bin = sharedPath('models', 'stories260K', 'stories260K.bin');
    const tokenizer = sharedPath('models', 'stories260K', 'tok512.bin');
    const forms = [['--model', model], ...(bin && tokenizer ? [['--model', bin, '--tokenizer', tokenizer]] : [])];
    for (const form of forms) {
      for (const cache of [[], ['--no-cache']]) {
        const outcome = await milora([
          'generate',
          ...form,
          ...cache,
          '--prompt',
          '',
          '--max-new-tokens',
          '200',
          '--json',
        ]);
        expect(outcome.err).toBe('');
        const [event] = outcome.events();
        expect([...(event!['prompt'] as number[]), ...(event!['ids'] as number[])]).toEqual(expected.greedy_ids);
        expect((event!['text'] as string).trimStart()).toBe(expected.greedy_text.trimStart());
      }
    }
  });

  it('asks for a tokenizer where the model has none', async () => {
    const { code, err } = await milora(['generate', '--model', join(model, 'model.safetensors'), '--prompt', 'a']);
    expect(code).toBe(1);
    expect(err).toMatch(/^milora: .*expected/);
  });

  it.each(['milora', 'pissa', 'lora'])(
    'learns with %s, and its adapter and merged model give its logits',
    async (method) => {
      const out = join(dir, method);
      const outcome = await milora([
        ...['train', '--model', model, '--data', join(dir, 'questions.jsonl'), '--method', method, '--rank', '8'],
        ...['--forgetting', stories, '--forgetting-tokens', '1000', '--valid-fraction', '0.1', '--max-length', '256'],
        ...[
          '--lr',
          '1e-2',
          '--steps',
          '24',
          '--batch',
          '8',
          '--eval-every',
          '12',
          '--seed',
          '3',
          '--out',
          out,
          '--json',
        ],
      ]);
      expect(outcome.err).toBe('');
      const summary = outcome.events().at(-1)!;
      const { before, after } = summary['validation'] as { before: number; after: number };
      expect(after).toBeLessThan(before - 2);
      const lost = summary['forgetting'] as { kl: number; loss: number };
      expect(lost.kl).toBeGreaterThan(0);
      expect(lost.loss).toBeGreaterThan(lost.kl);

      // the trained model, put together again from its checkpoint
      const checkpoint = await readCheckpoint(join(out, 'checkpoints', 'best'));
      const start = checkpoint!.start!;
      const trained = await loadModel(model);
      const adapter = await inject(trained, restartInit({ ...checkpoint!, start }), start.provenance.adapter);
      for (const [name, { value }] of adapter.trainable()) setValue(value, checkpoint!.trainer.parameters.get(name)!);
      const expected = await logitsOf(trained);

      const base = await loadModel(model);
      expect(difference(await logitsOf(base), expected)).toBeGreaterThan(1e-2);
      await loadPeftFolder(join(out, 'adapter'), base);
      expect(difference(await logitsOf(base), expected)).toBeLessThan(1e-5);

      const merged = join(dir, `${method}-merged`);
      expect((await milora(['merge', '--model', model, '--adapter', join(out, 'adapter'), '--out', merged])).code).toBe(
        0,
      );
      expect(difference(await logitsOf(await loadModel(merged)), expected)).toBeLessThan(1e-5);
    },
  );
});
