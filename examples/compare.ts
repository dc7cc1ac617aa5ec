/**
 * The main job on the tiny world: finetune one small LLaMA on a new task with several methods, and measure for each what it
 * learned and what it forgot. Everything is seeded; the same call gives the same numbers.
 */
import { BatchIterator, Trainer, complete, evaluate, forgetting, inject, methods, tokenizeDataset } from 'milora';
import type { Batch, Example, MethodName, TokenizedExample } from 'milora';
import type { LlamaForCausalLM, Tokenizer } from '@milora/llama';
import { loadModel, loadTokenizer } from '@milora/llama/node';
import { Philox } from '@milora/tensor';
import { arithmeticProblems, extractAnswer } from './tinyworld/arithmetic.js';
import type { Problem } from './tinyworld/arithmetic.js';
import { worldDocuments } from './tinyworld/documents.js';
import { TINYWORLD_SEED } from './tinyworld/files.js';
import { createWorld } from './tinyworld/world.js';

export interface CompareOptions {
  /** Folder of the base model. */
  model: string;
  rank: number;
  steps: number;
  batchSize: number;
  /** Learning rate of each method. */
  rates: Partial<Record<MethodName, number>>;
  /** Problems to train on, and to test on. */
  trainProblems: number;
  testProblems: number;
  /** Documents of the world that measure forgetting. */
  documents: number;
  seed: number;
  /** Called with a short line of what happens. */
  onProgress?: (line: string) => void;
}

export interface Row {
  method: MethodName | 'base';
  rate: number | undefined;
  trainable: number;
  /** Loss per token of the completions of unseen problems. */
  taskLoss: number;
  /** Share of unseen problems whose answer is right. */
  exactMatch: number;
  /** Loss per token on the world's own text. */
  worldLoss: number;
  /** KL(base ‖ model) per token on the world's own text: what was forgotten. */
  forgettingKl: number;
  seconds: number;
}

interface Material {
  tokenizer: Tokenizer;
  train: readonly TokenizedExample[];
  test: readonly TokenizedExample[];
  problems: Problem[];
  world: readonly TokenizedExample[];
}

/** Yields a row for the untouched base, then one for each method. */
export async function* compare(options: CompareOptions): AsyncGenerator<Row, void> {
  const material = await makeMaterial(options);
  const base = await loadModel(options.model);
  yield {
    method: 'base',
    rate: undefined,
    trainable: 0,
    ...(await measure(base, material)),
    forgettingKl: 0,
    seconds: 0,
  };
  base.dispose();
  for (const [method, rate] of Object.entries(options.rates) as [MethodName, number][]) {
    const started = performance.now();
    const model = await loadModel(options.model);
    const adapter = await inject(model, methods[method], { rank: options.rank, seed: options.seed });
    const batches = new BatchIterator(material.train, { batchSize: options.batchSize, seed: options.seed });
    const trainer = new Trainer(model, batches, {
      steps: options.steps,
      lr: rate,
      schedule: 'linear',
      warmupSteps: Math.round(options.steps / 20),
    });
    for await (const event of trainer.run()) {
      if (event.type !== 'step' || event.step % 50 !== 0) continue;
      options.onProgress?.(`${method}: step ${event.step}/${event.steps}, loss ${event.loss.toFixed(3)}`);
    }
    const seconds = (performance.now() - started) / 1000;
    const { kl } = await forgetting(model, adapter, inOrder(material.world));
    const measured = await measure(model, material);
    yield { method, rate, trainable: adapter.trainableCount, ...measured, forgettingKl: kl, seconds };
    trainer.dispose();
    adapter.unload();
    model.dispose();
  }
}

async function makeMaterial(options: CompareOptions): Promise<Material> {
  const tokenizer = await loadTokenizer(options.model);
  const tokenize = (examples: Iterable<Example>): readonly TokenizedExample[] =>
    tokenizeDataset([...examples], tokenizer, { maxLength: 128 }).examples;
  const random = new Philox(options.seed, 1);
  const problems = [...arithmeticProblems(random.split(0), options.testProblems, 'test')];
  const world = createWorld(new Philox(TINYWORLD_SEED));
  const documents = [...worldDocuments(world, random.split(1), options.documents)];
  return {
    tokenizer,
    train: tokenize(arithmeticProblems(random.split(2), options.trainProblems, 'train')),
    test: tokenize(problems),
    problems,
    world: tokenize(documents.map((text) => ({ text }))),
  };
}

async function measure(
  model: LlamaForCausalLM,
  { tokenizer, test, problems, world }: Material,
): Promise<Pick<Row, 'taskLoss' | 'exactMatch' | 'worldLoss'>> {
  const prompts = problems.map(({ prompt }) => tokenizer.encode(prompt));
  const answers = await complete(model, prompts, (ids) => tokenizer.decode([...ids]), { maxNewTokens: 16 });
  const right = problems.filter(({ completion }, i) => extractAnswer(answers[i]!) === extractAnswer(completion));
  return {
    taskLoss: (await evaluate(model, inOrder(test))).loss,
    exactMatch: right.length / problems.length,
    worldLoss: (await evaluate(model, inOrder(world))).loss,
  };
}

function inOrder(examples: readonly TokenizedExample[]): Iterable<Batch> {
  return new BatchIterator(examples, { batchSize: 32, seed: 0, shuffle: false });
}

/** The rows as a table in Markdown. */
export function table(rows: readonly Row[]): string {
  const head = ['method', 'rate', 'trained', 'task loss', 'exact match', 'world loss', 'forgetting KL', 'seconds'];
  const body = rows.map((row) => [
    row.method,
    row.rate === undefined ? '–' : String(row.rate),
    row.trainable === 0 ? '–' : row.trainable.toLocaleString('en-US'),
    row.taskLoss.toFixed(3),
    `${(row.exactMatch * 100).toFixed(1)} %`,
    row.worldLoss.toFixed(3),
    row.method === 'base' ? '–' : row.forgettingKl.toFixed(4),
    row.method === 'base' ? '–' : row.seconds.toFixed(1),
  ]);
  const widths = head.map((title, i) => Math.max(title.length, ...body.map((cells) => cells[i]!.length)));
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join(' | ')} |`;
  const rule = `|${widths.map((w, i) => (i === 0 ? '-'.repeat(w + 2) : `${'-'.repeat(w + 1)}:`)).join('|')}|`;
  return [line(head), rule, ...body.map(line)].join('\n');
}
