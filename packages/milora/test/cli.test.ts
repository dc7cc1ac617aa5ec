/** The command on a small random model: every verb, what it prints, and what it leaves behind. */
import { generate } from '@milora/llama';
import { loadModel, loadTokenizer } from '@milora/llama/node';
import { openSafetensorsFile } from '@milora/tensor/node';
import { existsSync } from 'node:fs';
import { cp, readFile, readdir, writeFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { verbs } from '../src/cli/command.js';
import { parseOptions } from '../src/cli/options.js';
import { parseTargets } from '../src/cli/train.js';
import { loadPeftFolder } from '../src/node/adapterFolder.js';
import { presets } from '../src/presets.js';
import { difference, logitsOf, makeFixture, milora, writeModel, writeTokenizer } from './support/tiny.js';
import type { Fixture } from './support/tiny.js';

let fixture: Fixture;
let run: string;
let adapter: string;
const base = (): string[] => ['--model', fixture.at('model')];
const training = (): string[] => [...base(), '--data', fixture.at('sums.jsonl')];

beforeAll(async () => {
  fixture = await makeFixture();
  run = fixture.at('run');
  adapter = fixture.at('run', 'adapter');
  const { code, err } = await milora([
    ...['train', ...training(), '--valid', fixture.at('valid.jsonl'), '--forgetting', fixture.at('story.txt')],
    ...['--rank', '3', '--alpha', '6', '--lr', '2e-3', '--steps', '12', '--batch', '8', '--out', run],
  ]);
  expect(err).toBe('');
  expect(code).toBe(0);
});
afterAll(() => fixture.remove());

describe('help', () => {
  it('is shown for the command and every verb, with an example', async () => {
    const overview = await milora(['--help']);
    expect(overview.code).toBe(0);
    for (const verb of verbs) {
      expect(overview.out).toContain(`  ${verb.name} `);
      const help = await milora([verb.name, '--help']);
      expect(help.code).toBe(0);
      expect(help.out.trimEnd().split('\n').at(-1)).toBe(`  ${verb.example}`);
      for (const name of Object.keys(verb.table)) expect(help.out).toContain(`--${name}`);
      for (const line of help.out.split('\n')) expect(line.length).toBeLessThanOrEqual(140);
    }
    expect((await milora([])).out).toBe(overview.out);
  });

  it.each(verbs.map((verb) => [verb.name, verb] as const))("%s's example parses", (_, verb) => {
    const [command, name, ...args] = [...verb.example.matchAll(/"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? m[2]!);
    expect([command, name]).toEqual(['milora', verb.name]);
    const { given, positionals } = parseOptions(verb.name, verb.table, args, verb.positionals ?? 0);
    expect(given.size + positionals.length).toBeGreaterThan(0);
  });

  it("every verb's example works, with this folder's files in place of its own", async () => {
    const moves: [string | RegExp, string][] = [
      [/models\/SmolLM2-135M|models\/tiny/g, fixture.at('model')],
      [/ config\.json/g, ` ${fixture.at('model', 'config.json')}`],
      [/ (train|test)\.jsonl/g, ` ${fixture.at('sums.jsonl')}`],
      [/stories\.txt/g, fixture.at('story.txt')],
      [/(runs|adapters|models)\/(first|tiny|mine)/g, `${fixture.at('examples')}/$1-$2`],
      ['--steps 2000', '--steps 3'],
    ];
    const order = ['train', 'eval', 'generate', 'merge', 'export', 'inspect', 'pretrain'];
    expect(verbs.map((verb) => verb.name).sort()).toEqual([...order].sort());
    for (const name of order) {
      let line = verbs.find((verb) => verb.name === name)!.example;
      for (const [from, to] of moves) line = line.replaceAll(from, to);
      const args = [...line.matchAll(/"([^"]*)"|(\S+)/g)].map((m) => m[1] ?? m[2]!).slice(1);
      const outcome = await milora(args);
      expect(outcome.err, line).toBe('');
      expect(outcome.code, line).toBe(0);
    }
  });
});

describe('train', () => {
  it('says what it did', async () => {
    const { out, code } = await milora([
      ...['train', ...training(), '--method', 'pissa', '--steps', '3', '--max-length', '25'],
      ...['--rank', '2', '--out', fixture.at('said'), '--forgetting', fixture.at('story.txt')],
    ]);
    expect(code).toBe(0);
    expect(out).toMatch(/training data: .*sums\.jsonl \(question-answer\): \d+ examples/);
    expect(out).toMatch(/examples were dropped/);
    expect(out).toMatch(/validation data: 1 examples? held out/);
    expect(out).toMatch(/decomposing 1\/10 model\.layers\.0\.self_attn\.q_proj/);
    expect(out).toMatch(/step 3\/3 {2}loss \d\.\d{4} {2}lr .* tokens\/s {2}ETA 0\.0 s/);
    expect(out).toMatch(/validation loss {3}\d\.\d{4} → \d\.\d{4}/);
    expect(out).toMatch(/forgetting KL {5}\S+/);
    expect(out).toMatch(/subspace drift {4}B \S+, A \S+ \(largest layer\)/);
    expect(out).toContain(`result            ${fixture.at('said', 'adapter')}`);
  });

  it('writes only JSON with --json, one event a line', async () => {
    const outcome = await milora(['train', ...training(), '--steps', '4', '--json', '--out', fixture.at('json')]);
    expect(outcome.err).toBe('');
    const events = outcome.events();
    const types = events.map(({ type }) => type);
    expect(types.filter((type) => type === 'step')).toHaveLength(4);
    expect(events.filter((event) => event.type === 'init' && !('stage' in event))).toHaveLength(11);
    expect(types.slice(0, 2)).toEqual(['data', 'data']);
    expect(events.at(-1)).toMatchObject({ type: 'summary', step: 4, result: fixture.at('json', 'adapter') });
  });

  it('writes one line over again on a terminal', async () => {
    const { out } = await milora(['train', ...training(), '--steps', '2', '--out', fixture.at('tty')], {
      isTTY: true,
      columns: 40,
    });
    expect(out).toContain('\r\x1b[Kdecomposing 1/10');
    expect(out).toContain('\r\x1b[Kstep 1/2  loss ');
    for (const piece of out.split(/\r\x1b\[K|\n/).filter((p) => p.startsWith('step 1/2'))) {
      expect(piece.length).toBeLessThan(40);
    }
  });

  it('shows the masking on request', async () => {
    const show = ['train', ...training(), '--steps', '1', '--show-masking'];
    expect((await milora([...show, '--out', fixture.at('m1')])).out).toMatch(
      /not trained +\d+ tokens {2}"<s>Question: .*\n +trained|not trained.*\ntrained/,
    );
    const { out } = await milora([...show, '--no-mask-prompt', '--out', fixture.at('m2')]);
    expect(out).toMatch(/^trained +\d+ tokens {2}"Question: /m);
  });

  it('takes settings from a preset, unless given', async () => {
    const options = ['--steps', '1', '--rank', '4', '--batch', '4', '--out', fixture.at('preset')];
    expect(
      (await milora(['train', ...training(), '--preset', 'commonsense', '--method', 'lora', ...options])).code,
    ).toBe(0);
    const config = JSON.parse(await readFile(fixture.at('preset', 'config.json'), 'utf8')) as { options: object };
    const { learningRate, dropout, schedule, warmup } = presets.commonsense;
    expect(config.options).toMatchObject({
      lr: learningRate,
      dropout,
      schedule,
      warmup: (warmup as { steps: number }).steps,
    });
    expect(config.options).toMatchObject({ rank: 4, alpha: 4, batch: 4, epochs: 3, method: 'lora' });
  });

  it('runs on the GPU.js backend and with a number of threads', async () => {
    const losses: unknown[][] = [];
    for (const machine of [
      ['--threads', '1'],
      ['--threads', '2'],
      ['--backend', 'gpu/cpu'],
    ]) {
      const out = fixture.at(`machine ${machine.join(' ')}`);
      const outcome = await milora([
        'train',
        ...training(),
        '--steps',
        '2',
        '--batch',
        '2',
        '--json',
        '--out',
        out,
        ...machine,
      ]);
      expect(outcome.code, outcome.err).toBe(0);
      losses.push(
        outcome
          .events()
          .filter(({ type }) => type === 'step')
          .map(({ loss }) => loss),
      );
    }
    expect(losses[0]).toEqual(losses[1]);
    losses[2]!.forEach((loss, i) => expect(loss).toBeCloseTo(losses[0]![i] as number, 4));
  });

  it('keeps to names, all-linear and expressions as targets', () => {
    expect(parseTargets('q,k, up')).toEqual(['q', 'k', 'up']);
    expect(parseTargets('model.layers.0.mlp.up_proj')).toEqual(['model.layers.0.mlp.up_proj']);
    expect(parseTargets('All-Linear')).toBe('All-Linear');
    expect(parseTargets('.*layers.0.*(q|k)_proj')).toBe('.*layers.0.*(q|k)_proj');
  });

  it('does not resume with other settings', async () => {
    const { code, err } = await milora(['train', '--resume', run, '--lr', '1']);
    expect([code, err]).toEqual([
      1,
      "milora: --resume: expected the run's own settings to go on, got --lr; leave them out\n",
    ]);
  });

  it('stops before anything is written when interrupted early', async () => {
    const signal = AbortSignal.abort();
    const { code, err } = await milora(['train', ...training(), '--out', fixture.at('early')], { signal });
    expect([code, err]).toEqual([130, 'milora: interrupted before the first step; nothing was written\n']);
    expect(existsSync(fixture.at('early'))).toBe(false);
  });
});

describe('eval', () => {
  it('measures the base and the adapter', async () => {
    const measure = ['eval', ...base(), '--data', fixture.at('valid.jsonl'), '--json'];
    const [before] = (await milora(measure)).events();
    const [after] = (
      await milora([...measure, '--adapter', adapter, '--forgetting', fixture.at('story.txt')])
    ).events();
    expect(before).toMatchObject({ type: 'eval', examples: 6, forgetting: null });
    expect(after!['perplexity']).toBeCloseTo(Math.exp(after!['loss'] as number), 8);
    const metrics = (await readFile(fixture.at('run', 'metrics.jsonl'), 'utf8')).trimEnd().split('\n');
    const summary = JSON.parse(metrics.at(-1)!) as Record<string, Record<string, number>>;
    expect(before!['loss']).toBeCloseTo(summary['validation']!['before']!, 5);
    expect(after!['loss']).toBeCloseTo(summary['validation']!['after']!, 5);
    const lost = after!['forgetting'] as Record<string, number>;
    expect(lost['kl']).toBeCloseTo(summary['forgetting']!['kl']!, 5);
    expect(lost['kl']).toBeGreaterThan(0);
    expect(lost['loss']).toBeCloseTo(summary['forgetting']!['loss']!, 4);
  });

  it('says it in words, on so many examples', async () => {
    const { out } = await milora(['eval', ...base(), '--data', fixture.at('valid.jsonl'), '--limit', '2']);
    expect(out).toMatch(/^loss {14}\d\.\d{4}\nperplexity {8}\S+\ntokens {12}\d+ of 2 examples\n$/);
  });

  it('says what coarser weights change', async () => {
    const measure = ['eval', ...base(), '--adapter', adapter, '--data', fixture.at('valid.jsonl'), '--json'];
    const [exact] = (await milora(measure)).events();
    for (const [dtype, least, most] of [
      ['bf16', 1e-5, 0.02],
      ['int8', 1e-4, 0.1],
    ] as const) {
      const [coarse] = (await milora([...measure, '--dtype', dtype])).events();
      const { perplexity, logitError } = coarse!['exactness'] as Record<string, number>;
      expect(perplexity).toBeCloseTo(exact!['perplexity'] as number, 3);
      expect(coarse!['perplexity']).not.toBe(perplexity);
      expect(logitError).toBeGreaterThan(least);
      expect(logitError).toBeLessThan(most);
    }
    const { out } = await milora(['eval', ...base(), '--data', fixture.at('valid.jsonl'), '--dtype', 'int8']);
    expect(out).toMatch(
      /\nin f32 {12}perplexity \S+: int8 changes it by \S+ %\nlogit error {7}\S+ of the largest logit/,
    );
    const both = await milora([...measure, '--dtype', 'int8', '--forgetting', fixture.at('story.txt')]);
    expect(both.err).toMatch(/--forgetting: expected --dtype f32 or storage/);
  });
});

describe('merge', () => {
  it('writes a model that gives the logits of the adapter, as does the PEFT folder', async () => {
    const out = fixture.at('merged');
    const outcome = await milora(['merge', ...base(), '--adapter', adapter, '--out', out]);
    expect(outcome.err).toBe('');
    expect(outcome.out).toMatch(/largest logit difference, adapter against merged model: \S+e-\d/);
    const merged = await loadModel(out);
    const model = await loadModel(fixture.at('model'));
    const untouched = await logitsOf(model);
    await loadPeftFolder(adapter, model);
    expect(difference(await logitsOf(merged), await logitsOf(model))).toBeLessThan(1e-5);
    expect(difference(await logitsOf(merged), untouched)).toBeGreaterThan(1e-3);
    expect((await readdir(out)).sort()).toEqual(
      ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'].sort(),
    );
    const [a, b] = await Promise.all([loadTokenizer(out), loadTokenizer(fixture.at('model'))]);
    expect(a.encode('Hello')).toEqual(b.encode('Hello'));
  });

  it('warns of 16 bits, with the change that they make', async () => {
    const out = fixture.at('merged16');
    const outcome = await milora(['merge', ...base(), '--adapter', adapter, '--out', out, '--dtype', 'bf16', '--json']);
    expect(outcome.err).toMatch(/warning: bf16 rounds the weights: it moved a logit by up to 0\.\d+/);
    expect(outcome.events()[0]!['difference']).toBeGreaterThan(1e-4);
    const file = await openSafetensorsFile(fixture.at('merged16', 'model.safetensors'));
    expect(file.info('lm_head.weight')!.dtype).toBe('bf16');
    await file.close();
  });

  it('replaces a model folder only with --force, and never another folder or an input', async () => {
    const out = fixture.at('forced');
    await cp(fixture.at('merged16'), out, { recursive: true });
    const merge = ['merge', ...base(), '--adapter', adapter, '--out'];
    expect((await milora([...merge, out])).err).toMatch(
      /forced: expected a new or empty folder, got one with files; .*--force/,
    );
    expect((await milora([...merge, out, '--force'])).code).toBe(0);
    expect((await loadModel(out)).stateDict().get('lm_head.weight')!.dtype).toBe('f32');
    expect((await milora([...merge, fixture.dir, '--force'])).err).toMatch(
      /it has no config.json, so --force does not replace it/,
    );
    expect((await milora([...merge, fixture.at('model'), '--force'])).err).toMatch(
      /expected another folder than those that are read/,
    );
    expect(existsSync(fixture.at('model', 'tokenizer.json'))).toBe(true);
  });
});

describe('export', () => {
  it("equals the run's own adapter, and can take the last checkpoint", async () => {
    const outcome = await milora(['export', '--run', run, '--out', fixture.at('exported')]);
    expect(outcome.err).toBe('');
    expect(outcome.out).toMatch(/rank 6, [\d,]+ numbers, of step \d+/);
    for (const file of ['adapter_config.json', 'adapter_model.safetensors', 'milora.json']) {
      expect(await readFile(fixture.at('exported', file))).toEqual(await readFile(fixture.at('run', 'adapter', file)));
    }
    const last = await milora(['export', '--run', run, '--checkpoint', 'last', '--out', fixture.at('last'), '--json']);
    expect(last.events()[0]).toMatchObject({ type: 'export', rank: 6, step: 12, error: 0 });
  });

  it('compresses an adapter folder, exactly at the rank of its change', async () => {
    const out = fixture.at('small');
    const outcome = await milora(['export', '--adapter', adapter, '--rank', '6', '--out', out, '--json']);
    expect(outcome.events()[0]!['error']).toBeLessThan(1e-7);
    const [full, small] = [await loadModel(fixture.at('model')), await loadModel(fixture.at('model'))];
    await loadPeftFolder(adapter, full);
    await loadPeftFolder(out, small);
    expect(difference(await logitsOf(small), await logitsOf(full))).toBeLessThan(1e-5);
    expect((await milora(['export', '--adapter', adapter, '--rank', '7', '--out', fixture.at('x')])).err).toMatch(
      /rank ≤ 6/,
    );
  });

  it('wants one source', async () => {
    expect((await milora(['export', '--out', fixture.at('x')])).err).toMatch(
      /--run, --adapter: expected one of the two, got none/,
    );
    expect((await milora(['export', '--run', run, '--adapter', adapter, '--out', fixture.at('x')])).err).toMatch(
      /got both/,
    );
  });
});

describe('generate', () => {
  const ids = async (...options: string[]): Promise<unknown> => {
    const outcome = await milora([
      'generate',
      ...base(),
      '--prompt',
      'The',
      '--max-new-tokens',
      '9',
      '--json',
      ...options,
    ]);
    expect(outcome.err).toBe('');
    return outcome.events()[0]!['ids'];
  };

  it('is greedy by default, with and without the cache', async () => {
    const model = await loadModel(fixture.at('model'));
    const tokenizer = await loadTokenizer(fixture.at('model'));
    const expected: number[] = [];
    for await (const id of generate(model, tokenizer.encode('The'), { maxNewTokens: 9 })) expected.push(id);
    expect(await ids()).toEqual(expected);
    expect(await ids('--no-cache')).toEqual(expected);
    expect(await ids('--temperature', '0')).toEqual(expected);
    expect(await ids('--adapter', adapter)).not.toEqual(expected);
  });

  it('draws the same with the same seed', async () => {
    const draw = ['--temperature', '1.5', '--top-k', '40', '--top-p', '0.95', '--repetition-penalty', '1.2'];
    expect(await ids(...draw, '--seed', '1')).toEqual(await ids(...draw, '--seed', '1'));
    expect(await ids(...draw, '--seed', '1')).not.toEqual(await ids(...draw, '--seed', '2'));
  });

  it('streams text, from an empty prompt too', async () => {
    const pieces: string[] = [];
    const stdout = { write: (text: string) => pieces.push(text) };
    expect((await milora(['generate', ...base(), '--prompt', '', '--max-new-tokens', '20'], { stdout })).code).toBe(0);
    expect(pieces.at(-1)).toBe('\n');
    expect(pieces.length).toBeGreaterThan(2);
  });

  it('holds a conversation', async () => {
    async function* lines(): AsyncGenerator<string> {
      yield 'Hello';
      yield '';
      yield 'Bye';
    }
    const outcome = await milora(['generate', ...base(), '--chat', '--max-new-tokens', '3', '--json'], { lines });
    expect(outcome.err).toBe('');
    const tokenizer = await loadTokenizer(fixture.at('model'));
    const [first, second] = outcome.events().map((e) => tokenizer.decode(e['prompt'] as number[]));
    expect(first).toBe('user: Hello\nassistant: ');
    expect(second).toBe(`user: Hello\nassistant: ${String(outcome.events()[0]!['text'])}\nuser: Bye\nassistant: `);
  });

  it('stops between tokens when interrupted', async () => {
    const stop = new AbortController();
    let text = '';
    const stdout = { write: (piece: string) => ((text += piece), stop.abort()) };
    const args = ['generate', ...base(), '--prompt', 'The', '--max-new-tokens', '50'];
    expect((await milora(args, { stdout, signal: stop.signal })).code).toBe(130);
    expect(text.length).toBeLessThan(20);
  });
});

describe('inspect', () => {
  it('knows a model and its spectrum', async () => {
    const { out } = await milora(['inspect', fixture.at('model'), '--tensors', '--spectrum', '--targets', 'q']);
    expect(out).toContain('layers            2, width 24, MLP 40');
    expect(out).toContain('  model.layers.1.mlp.down_proj.weight  f32 [24, 40]');
    expect(out).toMatch(/model\.layers\.0\.self_attn\.q_proj: largest \S+, smallest \S+, condition \S+/);
  });

  it('knows an adapter', async () => {
    const { out } = await milora(['inspect', adapter]);
    expect(out).toContain('as LoRA           rank 6, alpha 12, dropout 0');
    expect(out).toContain('method            milora, trained at rank 3, alpha 6, residual form, seed 0');
    expect(out).toContain('window            triplets 21 … 23; triplets 9 … 11');
    expect(out).toContain('fingerprints of 21 tensors');
  });

  it('knows a run', async () => {
    const { out } = await milora(['inspect', run]);
    expect(out).toContain('steps             12 of 12');
    expect(out).toContain('checkpoint last   step 12');
    expect(out).toContain('validation loss');
  });

  it('knows a safetensors file, and all of them as JSON', async () => {
    const file = fixture.at('run', 'adapter', 'adapter_model.safetensors');
    expect((await milora(['inspect', file])).out).toContain('format            pt');
    for (const [path, kind] of [
      [file, 'safetensors'],
      [run, 'run'],
      [adapter, 'adapter'],
      [fixture.at('model'), 'model'],
    ] as const) {
      expect(JSON.parse((await milora(['inspect', path, '--json'])).out)).toMatchObject({ kind });
    }
  });
});

describe('pretrain', () => {
  it('makes a model folder that loads and generates', async () => {
    await writeFile(
      fixture.at('long.txt'),
      Array.from({ length: 40 }, (_, i) => `${i} cats and ${i + 1} dogs.`).join(' '),
    );
    const out = fixture.at('pretrained');
    const outcome = await milora([
      ...['pretrain', '--config', fixture.at('model', 'config.json'), '--tokenizer', fixture.at('model')],
      ...['--data', fixture.at('long.txt'), '--out', out, '--steps', '15', '--lr', '3e-3', '--dtype', 'f16', '--json'],
    ]);
    expect(outcome.err).toBe('');
    const summary = outcome.events().at(-1)!;
    const { before, after } = summary['validation'] as { before: number; after: number };
    // random weights know nothing: ln 258 nats per byte
    expect(before).toBeGreaterThan(5);
    expect(before).toBeLessThan(6);
    expect(after).toBeLessThan(before - 0.5);
    expect((await readdir(fixture.at('pretrained', 'model'))).sort()).toEqual(
      ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'].sort(),
    );
    const made = ['--model', fixture.at('pretrained', 'model')];
    expect((await milora(['generate', ...made, '--prompt', '1', '--max-new-tokens', '4'])).code).toBe(0);
    // all of the one long text is trained on, not its first 64 tokens alone
    const train = outcome.events().find((e) => e.type === 'data' && e['role'] === 'train')!;
    expect((train['report'] as { targets: number }).targets).toBeGreaterThan(600);
  });

  it('wants a tokenizer that fits', async () => {
    await writeModel(fixture.at('wide'));
    await writeTokenizer(fixture.at('wide'), { extra: 3 });
    const { code, err } = await milora([
      ...['pretrain', '--config', fixture.at('model'), '--tokenizer', fixture.at('wide')],
      ...['--data', fixture.at('story.txt'), '--out', fixture.at('unfit')],
    ]);
    expect(code).toBe(1);
    expect(err).toMatch(/expected ids below the model's vocabSize 258, got ids up to 260/);
    expect(existsSync(fixture.at('unfit'))).toBe(false);
  });
});
