/** `milora eval`: loss and perplexity on data, and forgetting on other text. */
import type { Batch } from '../batches.js';
import { MiloraError } from '../errors.js';
import { castAndCompare, evaluate, forgetting } from '../evaluate.js';
import type { Evaluation, Exactness } from '../evaluate.js';
import { withPauses } from '../node/pause.js';
import { openSession } from '../node/session.js';
import { loadData, loadText, measuringBatches, textBatches } from '../node/textData.js';
import { commonOptions, required, weightOptions } from './options.js';
import type { OptionTable } from './options.js';
import { backendOptions, count, jsonOption, onBackend, short } from './verb.js';
import type { Verb } from './verb.js';

/** Tokens whose logits are compared: all of them at once, in both formats. */
const PROBE = 64;

const table = {
  model: {
    type: 'text',
    value: 'PATH',
    help: 'the model: a Hugging Face folder or a llama2.c .bin file',
    group: 'Files',
  },
  adapter: { type: 'text', value: 'DIR', help: 'adapter folder on top of it' },
  data: { type: 'text', value: 'FILE', help: 'data to measure the loss on' },
  forgetting: { type: 'text', value: 'FILE', help: 'text to measure forgetting on; needs an adapter' },
  tokenizer: { type: 'text', value: 'PATH', help: "another tokenizer than the model folder's" },
  ...weightOptions,
  limit: { type: 'whole', min: 1, help: 'examples at most, from the beginning (default: all)', group: 'Examples' },
  'max-length': { type: 'whole', min: 2, help: 'longest example in tokens (default 512, or what the model allows)' },
  batch: { type: 'whole', default: 16, min: 1, help: 'examples at once' },
  'no-mask-prompt': { type: 'flag', help: 'count the loss of the prompts too' },
  'forgetting-tokens': { type: 'whole', default: 8192, min: 2, help: 'tokens of the forgetting text at most' },
  ...backendOptions,
  ...jsonOption,
  ...commonOptions,
} as const satisfies OptionTable;

export const evalVerb: Verb<typeof table> = {
  name: 'eval',
  summary: 'measures loss and perplexity of a model, with or without an adapter',
  usage: '--model PATH --data FILE [--adapter DIR] [options]',
  table,
  example: 'milora eval --model models/SmolLM2-135M --adapter runs/first/adapter --data test.jsonl',
  async run({ values }, io) {
    const path = required('model', values.model);
    const file = required('data', values.data);
    if (values.forgetting !== undefined && values.adapter === undefined) {
      throw new MiloraError(
        'usage',
        '--forgetting: expected --adapter with it, got none; forgetting compares a model with its base',
      );
    }
    const { tokenizer, dtype } = values;
    const coarse = dtype === 'bf16' || dtype === 'int8' ? dtype : undefined;
    if (values.forgetting !== undefined && coarse !== undefined) {
      throw new MiloraError('usage', `--forgetting: expected --dtype f32 or storage with it, got ${coarse}`);
    }
    return onBackend(values, async () => {
      // measured in f32 first: the difference is part of the report
      const session = await openSession({
        model: path,
        adapter: values.adapter,
        tokenizer,
        dtype: coarse ? 'f32' : dtype,
      });
      try {
        const { model, adapter } = session;
        const maxLength = values['max-length'] ?? Math.min(512, model.config.maxPositionEmbeddings);
        const { examples, report } = await loadData(file, session.tokenizer, {
          maxLength,
          maskPrompt: !values['no-mask-prompt'],
          limit: values.limit,
        });
        const batches = (): AsyncIterable<Batch> => withPauses(measuringBatches(examples, values.batch));
        let exactness: Exactness | undefined;
        let result: Evaluation;
        if (coarse) {
          session.merge();
          ({ exactness, ...result } = await castAndCompare(model, coarse, batches, examples[0]!.ids.slice(0, PROBE)));
        } else {
          result = await evaluate(model, batches());
        }
        let lost: Awaited<ReturnType<typeof forgetting>> | undefined;
        if (values.forgetting !== undefined) {
          const other = await loadText(values.forgetting, session.tokenizer, {
            maxLength,
            tokens: values['forgetting-tokens'],
          });
          const text = textBatches(other.examples, values['forgetting-tokens'], model.config.vocabSize);
          lost = await forgetting(model, adapter!, withPauses(text.batches()));
        }
        if (values.json) {
          const { truncated, dropped } = report;
          const all = {
            type: 'eval',
            ...result,
            examples: examples.length,
            truncated,
            dropped,
            dtype,
            exactness: exactness ?? null,
            forgetting: lost ?? null,
          };
          io.stdout.write(`${JSON.stringify(all)}\n`);
          return 0;
        }
        const lines = [
          `loss              ${result.loss.toFixed(4)}`,
          `perplexity        ${short(result.perplexity)}`,
          `tokens            ${count(result.targets)} of ${count(examples.length)} examples`,
        ];
        if (exactness) {
          const change = 100 * (result.perplexity / exactness.perplexity - 1);
          const sign = change < 0 ? '' : '+';
          lines.push(
            `in f32            perplexity ${short(exactness.perplexity)}: ${dtype} changes it by ${sign}${short(change, 3)} %`,
          );
          lines.push(
            `logit error       ${short(exactness.logitError, 3)} of the largest logit, at most, in ${count(exactness.logitTokens)} tokens`,
          );
        }
        if (report.truncated > 0)
          lines.push(`cut off           ${count(report.truncated)} examples, at ${maxLength} tokens`);
        if (report.dropped > 0)
          lines.push(`dropped           ${count(report.dropped)} examples without a token to measure`);
        if (lost) {
          lines.push(`forgetting loss   ${lost.loss.toFixed(4)} on ${count(lost.tokens)} tokens`);
          lines.push(`forgetting KL     ${short(lost.kl)}`);
        }
        io.stdout.write(`${lines.join('\n')}\n`);
        return 0;
      } finally {
        session.dispose();
      }
    });
  },
};
