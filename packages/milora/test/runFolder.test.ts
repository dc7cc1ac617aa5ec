/**
 * A run that was killed goes on to the bit: losses, weights, optimiser and the exported adapter equal those of a run that
 * was never interrupted. With dropout, accumulation, shuffling, validation and a last batch that is not full.
 */
import { readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { finetune, finetuneDefaults, resumeFinetune } from '../src/node/finetune.js';
import type { FinetuneOptions } from '../src/node/finetune.js';
import { pretrain, pretrainDefaults, resumePretrain } from '../src/node/pretrain.js';
import type { PretrainOptions } from '../src/node/pretrain.js';
import { RunFolder } from '../src/node/runFolder.js';
import type { RunEvent } from '../src/node/training.js';
import { spawnMilora } from './support/child.js';
import { makeFixture, milora, sums, writeModel } from './support/tiny.js';
import type { Fixture } from './support/tiny.js';

let fixture: Fixture;
let options: FinetuneOptions;
beforeAll(async () => {
  fixture = await makeFixture();
  options = {
    ...finetuneDefaults,
    model: fixture.at('model'),
    data: fixture.at('sums.jsonl'),
    valid: fixture.at('valid.jsonl'),
    rank: 3,
    lr: 3e-3,
    dropout: 0.1,
    batch: 4,
    accumulate: 2,
    steps: 10,
    evalEvery: 4,
    saveEvery: 3,
    seed: 5,
    drift: false,
  };
});
afterAll(() => fixture.remove());

class Killed extends Error {}

const killAt = (matches: (event: RunEvent) => boolean) => ({
  onEvent: (event: RunEvent) => {
    if (matches(event)) throw new Killed();
  },
});

/** Everything a run leaves behind that must not depend on interruptions. */
async function traces(out: string): Promise<unknown> {
  const folder = await RunFolder.open(out);
  const read = async (...parts: string[]): Promise<string> => {
    const path = join(out, ...parts);
    return existsSync(path) ? (await readFile(path)).toString('base64') : 'absent';
  };
  return {
    events: (await folder.metrics()).map(({ seconds: _, result: __, ...event }) => event),
    last: await read('checkpoints', 'last', 'state.safetensors'),
    lastState: await read('checkpoints', 'last', 'state.json'),
    best: await read('checkpoints', 'best', 'state.safetensors'),
    adapter: await read('adapter', 'adapter_model.safetensors'),
    model: await read('model', 'model.safetensors'),
    files: (await readdir(out)).sort(),
    checkpoints: (await readdir(join(out, 'checkpoints'))).sort(),
  };
}

describe('a finetuning run', () => {
  let whole: unknown;
  beforeAll(async () => {
    const { summary } = await finetune(options, fixture.at('whole'));
    expect(summary!.validation!.after).toBeLessThan(summary!.validation!.before);
    whole = await traces(fixture.at('whole'));
  });

  it('keeps every step and validation in its metrics, once', async () => {
    const events = await (await RunFolder.open(fixture.at('whole'))).metrics();
    expect(events.map(({ type, step }) => `${type} ${step}`)).toEqual([
      'eval 0',
      ...['step 1', 'step 2', 'step 3', 'step 4', 'eval 4', 'step 5', 'step 6', 'step 7', 'step 8', 'eval 8'],
      ...['step 9', 'step 10', 'eval 10', 'summary 10'],
    ]);
  });

  it('has its settings in full', async () => {
    const { config } = await RunFolder.open(fixture.at('whole'));
    expect(config).toMatchObject({ kind: 'finetune', backend: 'wasm' });
    expect(config.options).toMatchObject({ rank: 3, alpha: 3, steps: 10, maxLength: 64, warmup: 0, evalEvery: 4 });
  });

  const kills: [string, (event: RunEvent) => boolean][] = [
    ['at the start', (e) => e.type === 'start'],
    ['after the first validation', (e) => e.type === 'eval'],
    ['at step 1', (e) => e.type === 'step' && e.step === 1],
    ['after the checkpoint of step 3', (e) => e.type === 'checkpoint' && e.name === 'last' && e.step === 3],
    ['between step 4 and its validation', (e) => e.type === 'step' && e.step === 4],
    ['at the validation of step 4', (e) => e.type === 'eval' && e.step === 4],
    ['after the best checkpoint of step 8', (e) => e.type === 'checkpoint' && e.name === 'best' && e.step === 8],
    ['before the checkpoint of step 9', (e) => e.type === 'step' && e.step === 9],
    ['after the last validation', (e) => e.type === 'eval' && e.step === 10],
    ['after the last checkpoint', (e) => e.type === 'checkpoint' && e.name === 'last' && e.step === 10],
    ['at the end', (e) => e.type === 'summary'],
  ];
  it.each(kills)('killed %s goes on to the bit', async (name, matches) => {
    const out = fixture.at(`killed ${name}`);
    await expect(finetune(options, out, killAt(matches))).rejects.toThrow(Killed);
    await resumeFinetune(out);
    expect(await traces(out)).toEqual(whole);
  });

  it('killed three times goes on to the bit', async () => {
    const out = fixture.at('thrice');
    const atStep = (n: number) => killAt((e) => e.type === 'step' && e.step === n);
    await expect(finetune(options, out, atStep(2))).rejects.toThrow(Killed);
    await expect(resumeFinetune(out, {}, atStep(5))).rejects.toThrow(Killed);
    await expect(resumeFinetune(out, {}, atStep(8))).rejects.toThrow(Killed);
    await resumeFinetune(out);
    expect(await traces(out)).toEqual(whole);
  });

  it('stopped by a signal saves its checkpoint and goes on to the bit', async () => {
    const out = fixture.at('stopped');
    const stop = new AbortController();
    const events: string[] = [];
    const onEvent = (e: RunEvent): void => {
      events.push(e.type);
      if (e.type === 'step' && e.step === 7) stop.abort();
    };
    expect((await finetune(options, out, { onEvent, signal: stop.signal })).summary).toBeUndefined();
    expect(events.at(-1)).toBe('interrupted');
    expect((await (await RunFolder.open(out)).last()).trainer.step).toBe(7);
    await resumeFinetune(out);
    expect(await traces(out)).toEqual(whole);
  });

  it.each(['pissa', 'lora', 'mica', 'random'] as const)('of %s goes on to the bit', async (method) => {
    const own = { ...options, method, steps: 5 };
    await finetune(own, fixture.at(`whole ${method}`));
    const out = fixture.at(`killed ${method}`);
    await expect(
      finetune(
        own,
        out,
        killAt((e) => e.type === 'step' && e.step === 4),
      ),
    ).rejects.toThrow(Killed);
    await resumeFinetune(out);
    expect(await traces(out)).toEqual(await traces(fixture.at(`whole ${method}`)));
  });

  it('in the offset form, packed and without validation goes on to the bit', async () => {
    await writeModel(fixture.at('model16'), { dtype: 'bf16' });
    const own: FinetuneOptions = {
      ...options,
      model: fixture.at('model16'),
      dtype: 'storage',
      valid: null,
      validFraction: 0,
      pack: true,
      steps: 5,
    };
    await finetune(own, fixture.at('whole 16'));
    const out = fixture.at('killed 16');
    await expect(
      finetune(
        own,
        out,
        killAt((e) => e.type === 'step' && e.step === 4),
      ),
    ).rejects.toThrow(Killed);
    await resumeFinetune(out);
    const expected = (await traces(fixture.at('whole 16'))) as { best: string };
    expect(expected.best).toBe('absent');
    expect(await traces(out)).toEqual(expected);
  });

  it.each([
    ['between the two renames', (last: string) => rename(last, last.replace(/last$/, '.last.old'))],
    ['after them', (last: string) => writeFile(last.replace(/last$/, '.last.abc.tmp'), 'half')],
  ])('killed while it replaced its checkpoint, %s, goes on to the bit', async (name, damage) => {
    const out = fixture.at(`renaming ${name}`);
    await expect(
      finetune(
        options,
        out,
        killAt((e) => e.type === 'step' && e.step === 5),
      ),
    ).rejects.toThrow(Killed);
    await damage(join(out, 'checkpoints', 'last'));
    await writeFile(join(out, 'metrics.jsonl'), '{"type":"step","step":6,"lo', { flag: 'a' });
    await resumeFinetune(out);
    expect(await traces(out)).toEqual(whole);
  });

  it.each(['random', 'position', 'optimizerStep'])('would not without its %s', async (field) => {
    const out = fixture.at(`without ${field}`);
    await expect(
      finetune(
        options,
        out,
        killAt((e) => e.type === 'step' && e.step === 4),
      ),
    ).rejects.toThrow(Killed);
    const path = join(out, 'checkpoints', 'last', 'state.json');
    const state = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
    const reset = { random: {}, position: { epoch: 0, index: 0 }, optimizerStep: 0 }[field];
    await writeFile(path, JSON.stringify({ ...state, [field]: reset }));
    await resumeFinetune(out);
    const { last } = (await traces(out)) as { last: string };
    expect(last).not.toBe((whole as { last: string }).last);
  });

  it('refuses to go on with another base, other data or another tokenizer', async () => {
    const out = fixture.at('changed');
    await expect(
      finetune(
        options,
        out,
        killAt((e) => e.type === 'step' && e.step === 4),
      ),
    ).rejects.toThrow(Killed);
    const before = await readFile(join(out, 'metrics.jsonl'), 'utf8');
    await writeModel(fixture.at('other'), { seed: 2 });
    await expect(resumeFinetune(out, { model: fixture.at('other') })).rejects.toThrow(/expected the base model/);
    await writeFile(fixture.at('others.jsonl'), sums(23, 1));
    await expect(resumeFinetune(out, { data: fixture.at('others.jsonl') })).rejects.toThrow(
      /expected the training data/,
    );
    expect(await readFile(join(out, 'metrics.jsonl'), 'utf8')).toBe(before);
  });

  it('does not start in a folder that holds something', async () => {
    await expect(finetune(options, fixture.at('whole'))).rejects.toThrow(/expected a new or empty folder/);
    await expect(finetune(options, fixture.at('sums.jsonl'))).rejects.toThrow(/expected a new folder, got a file/);
  });

  it('reports a folder that is no run', async () => {
    await expect(resumeFinetune(fixture.at('nowhere'))).rejects.toThrow(
      /expected the folder of a run with config.json, got none/,
    );
    await expect(resumeFinetune(fixture.at('model'))).rejects.toThrow(
      /expected the settings of a run, got another file/,
    );
  });
});

describe('a pretraining run', () => {
  it('killed goes on to the bit, with all its parameters', async () => {
    await writeFile(fixture.at('text.txt'), Array.from({ length: 30 }, (_, i) => `Line ${i} of the text.`).join('\n'));
    const own: PretrainOptions = {
      ...pretrainDefaults,
      config: fixture.at('model', 'config.json'),
      tokenizer: fixture.at('model'),
      data: fixture.at('text.txt'),
      maxLength: 32,
      batch: 4,
      accumulate: 2,
      steps: 8,
      evalEvery: 3,
      saveEvery: 2,
      validFraction: 0.2,
    };
    const { summary } = await pretrain(own, fixture.at('whole pretrain'));
    expect(summary!.validation!.after).toBeLessThan(summary!.validation!.before);
    const whole = await traces(fixture.at('whole pretrain'));
    for (const step of [1, 3, 6, 8]) {
      const out = fixture.at(`pretrain ${step}`);
      await expect(
        pretrain(
          own,
          out,
          killAt((e) => e.type === 'step' && e.step === step),
        ),
      ).rejects.toThrow(Killed);
      await expect(resumeFinetune(out)).rejects.toThrow(/expected a finetuning run, got a pretrain run/);
      await resumePretrain(out);
      expect(await traces(out)).toEqual(whole);
      await rm(out, { recursive: true });
    }
  });
});

describe('a process', () => {
  const args = (out: string): string[] => [
    ...['train', '--model', fixture.at('model'), '--data', fixture.at('sums.jsonl'), '--out', out],
    ...['--rank', '3', '--dropout', '0.1', '--batch', '4', '--accumulate', '2', '--lr', '1e-3'],
    ...['--steps', '150', '--eval-every', '20', '--save-every', '7', '--no-drift', '--svd-cache', 'none'],
  ];

  it('killed with SIGKILL goes on to the bit', async () => {
    expect((await milora(args(fixture.at('process whole')))).code).toBe(0);
    const out = fixture.at('process killed');
    const child = await spawnMilora([...args(out), '--json'], (text, kill) => {
      if (text.includes('"type":"step","step":40,')) kill('SIGKILL');
    });
    expect(child.signal, child.err).toBe('SIGKILL');
    expect((await milora(['train', '--resume', out])).code).toBe(0);
    expect(await traces(out)).toEqual(await traces(fixture.at('process whole')));
  });

  it('interrupted with Ctrl-C saves, says how to resume, and exits with 130', async () => {
    const out = fixture.at('process interrupted');
    let sent = false;
    const child = await spawnMilora(args(out), (text, kill) => {
      if (!sent && text.includes('step 20: validation loss')) kill('SIGINT');
      sent ||= text.includes('step 20: validation loss');
    });
    expect(child.code, child.err).toBe(130);
    expect(child.out).toContain(`resume with: milora train --resume ${out}`);
    const resumed = await milora(['train', '--resume', out]);
    expect(resumed.code).toBe(0);
    expect(await traces(out)).toEqual(await traces(fixture.at('process whole')));
  });
});
