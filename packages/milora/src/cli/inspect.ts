/** `milora inspect`: what is in a model, an adapter, a run or a safetensors file. */
import { inspectPath } from '../node/inspect.js';
import type { Inspection, TensorRow } from '../node/inspect.js';
import type { RunSummary } from '../node/training.js';
import { commonOptions } from './options.js';
import type { OptionTable } from './options.js';
import { summaryLines } from './report.js';
import { parseTargets } from './train.js';
import { MiloraError } from '../errors.js';
import { count, jsonOption, short } from './verb.js';
import type { Verb } from './verb.js';

const table = {
  tensors: { type: 'flag', help: 'list every tensor' },
  spectrum: { type: 'flag', help: 'singular values of the target layers of a model' },
  targets: { type: 'text', value: 'LIST', default: 'q,k,v,up,down', help: 'those layers, as for train' },
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const inspect: Verb<typeof table> = {
  name: 'inspect',
  summary: 'says what is in a model folder, an adapter folder, a run folder or a safetensors file',
  usage: 'PATH [options]',
  positionals: 1,
  table,
  example: 'milora inspect runs/first/adapter',
  async run({ values, positionals }, io) {
    const [path] = positionals;
    if (path === undefined) throw new MiloraError('usage', 'PATH: expected a file or folder to look at, got none');
    const inspection = await inspectPath(path, values.spectrum ? { spectrum: parseTargets(values.targets) } : {});
    const text = values.json ? JSON.stringify(inspection) : describe(inspection, values.tensors).join('\n');
    io.stdout.write(`${text}\n`);
    return 0;
  },
};

const row = (name: string, value: string): string => `${name.padEnd(18)}${value}`;

function describe(i: Inspection, everyTensor: boolean): string[] {
  switch (i.kind) {
    case 'model': {
      const c = i.config;
      const heads = `${c.numAttentionHeads} heads of ${c.headDim}, ${c.numKeyValueHeads} for keys and values`;
      const lines = [
        row('model', i.path),
        row('layers', `${c.numHiddenLayers}, width ${c.hiddenSize}, MLP ${c.intermediateSize}`),
        row('attention', heads),
        row('vocabulary', `${count(c.vocabSize)}${c.tieWordEmbeddings ? ', output tied to the embedding' : ''}`),
        row(
          'positions',
          `${count(c.maxPositionEmbeddings)}, rope theta ${c.ropeTheta}${c.ropeScaling ? `, scaling ${c.ropeScaling.type}` : ''}`,
        ),
        row('parameters', count(i.parameters)),
        ...tensorLines(i.tensors, everyTensor),
      ];
      for (const s of i.spectrum ?? []) {
        lines.push(
          `${s.module}: largest ${short(s.largest)}, smallest ${short(s.smallest)}, condition ${short(s.condition)}`,
        );
      }
      return lines;
    }
    case 'adapter': {
      const { config: c, provenance: p } = i;
      const lines = [
        row('adapter', i.path),
        row(
          'as LoRA',
          `rank ${c.rank}, alpha ${short(c.alpha, 6)}${c.useRslora ? ', rsLoRA' : ''}, dropout ${c.dropout}`,
        ),
        row('targets', typeof c.targetModules === 'string' ? c.targetModules : c.targetModules.join(', ')),
        row('base', c.baseModelNameOrPath ?? 'not said'),
        row('parameters', count(i.parameters)),
      ];
      if (p) {
        lines.push(
          row(
            'method',
            `${p.method}, trained at rank ${p.adapter.rank}, alpha ${short(p.adapter.alpha, 6)}, ${p.form} form, seed ${p.adapter.seed}`,
          ),
          row('window', windowText(Object.values(p.windows))),
          row('made for', `${p.base.name}, fingerprints of ${p.base.tensors} tensors`),
        );
      } else lines.push(row('provenance', 'none (no milora.json): the base cannot be checked'));
      return [...lines, ...tensorLines(i.tensors, everyTensor)];
    }
    case 'run': {
      const lines = [
        row('run', i.path),
        row('kind', `${i.config.kind} on ${i.config.backend}`),
        row('steps', `${i.steps} of ${String(i.config.options['steps'])}`),
        ...Object.entries(i.checkpoints).map(([name, step]) => row(`checkpoint ${name}`, `step ${step}`)),
        row('result', i.result ?? 'none yet: the run is not finished'),
        '',
        ...Object.entries(i.config.options).map(([name, value]) => row(name, JSON.stringify(value))),
      ];
      if (i.last?.type === 'summary') lines.push(...summaryLines(i.last as RunSummary));
      return lines;
    }
    case 'safetensors':
      return [
        row('safetensors', i.path),
        ...Object.entries(i.metadata).map(([name, value]) => row(name, value)),
        row('numbers', count(i.parameters)),
        ...tensorLines(i.tensors, true),
      ];
  }
}

function tensorLines(tensors: readonly TensorRow[], every: boolean): string[] {
  const dtypes = [...new Set(tensors.map(({ dtype }) => dtype.toLowerCase()))].join(', ');
  const head = row('tensors', `${tensors.length} (${dtypes})`);
  return every
    ? [head, ...tensors.map(({ name, dtype, shape }) => `  ${name}  ${dtype.toLowerCase()} [${shape.join(', ')}]`)]
    : [head];
}

type Windows = { from: number; to: number } | readonly number[];

function windowText(windows: readonly Windows[]): string {
  if (windows.length === 0) return 'none: the base weights are whole';
  const texts = windows.map((w) => ('from' in w ? `triplets ${w.from} … ${w.to - 1}` : `triplets ${w.join(', ')}`));
  const distinct = [...new Set(texts)];
  return distinct.length > 3 ? `${distinct.slice(0, 3).join('; ')}; …` : distinct.join('; ');
}
