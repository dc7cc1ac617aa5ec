/**
 * What a run shows while it goes: one line that is written over on a terminal, plain lines at intervals elsewhere, or
 * one JSON object per event.
 */
import type { RunEvent, RunSummary } from '../node/training.js';
import type { DataReport } from '../node/textData.js';
import { count, duration, short } from './verb.js';
import type { Io } from './verb.js';

export type Reporter = (event: RunEvent) => void;

/** One JSON object per event on stdout; of the stages within a module one a second. */
export function jsonReporter(io: Io): Reporter {
  let shown = -Infinity;
  return (event) => {
    if (event.type === 'init') {
      if (event.stage !== undefined && performance.now() - shown < JSON_INTERVAL) return;
      shown = performance.now();
    }
    io.stdout.write(`${JSON.stringify(event)}\n`);
  };
}

/** Milliseconds between JSON objects of stages, between plain lines, and between changes of the line on a terminal. */
const JSON_INTERVAL = 1000;
const PLAIN_INTERVAL = 5000;
const LIVE_INTERVAL = 100;

/** Sentences for people. `resume` is the command that goes on with a run. */
export function textReporter(io: Io, resume: (out: string) => string): Reporter {
  const pace = new Pace();
  let live = '';
  let shown = -Infinity;
  const clear = (): void => {
    if (live !== '') io.stdout.write('\r\x1b[K');
    live = '';
  };
  const say = (text: string): void => {
    clear();
    io.stdout.write(`${text}\n`);
  };
  /** A line that the next one replaces; elsewhere than on a terminal, one of several. */
  const update = (text: string, force: boolean): void => {
    const now = performance.now();
    if (!force && now - shown < (io.isTTY ? LIVE_INTERVAL : PLAIN_INTERVAL)) return;
    shown = now;
    if (!io.isTTY) return say(text);
    live = text.slice(0, (io.columns ?? 80) - 1);
    io.stdout.write(`\r\x1b[K${live}`);
  };

  return (event) => {
    switch (event.type) {
      case 'data':
        return dataLines(event.role, event.report, event.examples).forEach(say);
      case 'masking':
        return say(`\n${event.text}\n`);
      case 'init':
        if (event.done < event.total) {
          const stage = event.stage === undefined ? '' : `  ${event.stage} ${Math.floor(100 * (event.share ?? 0))} %`;
          const isFirst = event.done === 0 && stage === '';
          return update(`decomposing ${event.done + 1}/${event.total} ${event.module}${stage}`, isFirst);
        }
        return say(`adapter on ${event.total} layers`);
      case 'uncertain':
        return say(uncertainLine(event));
      case 'warning':
        return say(`warning: ${event.message}`);
      case 'start': {
        const share = event.trainable < event.parameters ? ` of ${count(event.parameters)}` : '';
        say(`training ${count(event.trainable)}${share} parameters`);
        return say(
          `${event.resumed ? `resuming ${event.out} after step ${event.step}` : `run folder ${event.out}`}, ${event.steps} steps`,
        );
      }
      case 'step': {
        pace.add(event);
        const parts = [
          `step ${event.step}/${event.steps}`,
          `loss ${event.loss.toFixed(4)}`,
          `lr ${short(event.lr, 3)}`,
          `${count(Math.round(pace.tokensPerSecond))} tokens/s`,
          `ETA ${duration((event.steps - event.step) * pace.secondsPerStep)}`,
        ];
        return update(parts.join('  '), event.step === 1 || event.step === event.steps);
      }
      case 'eval':
        return say(
          `step ${event.step}: validation loss ${event.loss.toFixed(4)}${event.best && event.step > 0 ? ', the lowest so far' : ''}`,
        );
      case 'checkpoint':
        return undefined;
      case 'interrupted':
        say(`stopped after step ${event.step} of ${event.steps}; the checkpoint is saved`);
        return say(`resume with: ${resume(event.out)}`);
      case 'summary':
        return summaryLines(event).forEach(say);
    }
  };
}

const ROLES = { train: 'training data', valid: 'validation data', forgetting: 'forgetting text' } as const;

function dataLines(role: keyof typeof ROLES, report: DataReport, examples: number): string[] {
  const name = `${ROLES[role]}: ${report.file}`;
  if (role === 'valid' && examples < report.examples) return [`${ROLES.valid}: ${count(examples)} examples held out`];
  const lines = [
    `${name} (${report.format}): ${count(examples)} examples` +
      (examples === report.examples
        ? `, ${count(report.tokens)} tokens, ${count(report.targets)} of them trained`
        : ` of ${count(report.examples)}`),
  ];
  if (report.truncated > 0)
    lines.push(`  ${count(report.truncated)} examples were cut off at the longest length (--max-length)`);
  if (report.dropped > 0)
    lines.push(`  ${count(report.dropped)} examples were dropped: their prompt alone fills the longest length`);
  if (report.ignoredFields.length > 0) lines.push(`  fields not used: ${report.ignoredFields.join(', ')}`);
  return lines;
}

function uncertainLine({ tied, sensitive }: { tied: string[]; sensitive: string[] }): string {
  const named = (paths: string[]): string =>
    paths.slice(0, 3).join(', ') + (paths.length > 3 ? `, … (${paths.length} in all)` : '');
  const parts = [
    ...(tied.length > 0 ? [`equal in ${named(tied)}`] : []),
    ...(sensitive.length > 0 ? [`nearly equal in ${named(sensitive)}`] : []),
  ];
  return (
    `note: the singular values on both sides of the window's edge are ${parts.join('; ')}: ` +
    'the start is exact, but another program may choose other directions there'
  );
}

export function summaryLines(s: RunSummary): string[] {
  const lines: string[] = [''];
  if (s.validation) {
    const at = s.resultStep === s.step ? '' : ` (best, at step ${s.resultStep})`;
    lines.push(`validation loss   ${s.validation.before.toFixed(4)} → ${s.validation.after.toFixed(4)}${at}`);
  }
  if (s.forgetting) {
    lines.push(`forgetting loss   ${s.forgetting.loss.toFixed(4)} on ${count(s.forgetting.tokens)} tokens`);
    lines.push(`forgetting KL     ${short(s.forgetting.kl)}`);
  }
  if (s.drift)
    lines.push(`subspace drift    B ${short(s.drift.left, 3)}, A ${short(s.drift.right, 3)} (largest layer)`);
  lines.push(`parameters        ${count(s.trainable)} trained of ${count(s.parameters)}`);
  lines.push(`time              ${duration(s.seconds)} in ${s.step} steps`);
  lines.push(`result            ${s.result}`);
  return lines;
}

/** Running averages over the last steps. */
class Pace {
  private tokens = 0;
  private seconds = 0;
  private steps = 0;

  add(event: { tokens: number; seconds: number }): void {
    const fade = this.steps < 20 ? 1 : 0.95;
    this.tokens = this.tokens * fade + event.tokens;
    this.seconds = this.seconds * fade + event.seconds;
    this.steps = this.steps * fade + 1;
  }

  get tokensPerSecond(): number {
    return this.tokens / this.seconds;
  }

  get secondsPerStep(): number {
    return this.seconds / this.steps;
  }
}
