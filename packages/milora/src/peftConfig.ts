/**
 * `adapter_config.json` of PEFT, read strictly and written in the smallest form that every PEFT version loads.
 *
 * PEFT ignores what it does not know; this reader refuses every setting that would change the outputs and that
 * this library does not compute, and names all of them at once. How the adapter was initialised is no such setting,
 * as the weights are in the file — but see `initChangesBase` for the initialisations that also change the base.
 * Reference: PEFT 0.21, `LoraConfig` (https://github.com/huggingface/peft/blob/v0.21.0/src/peft/tuners/lora/config.py).
 */
import { MiloraError } from './errors.js';
import { nearest } from './suggest.js';

/** The part of PEFT's `LoraConfig` that decides what an adapter computes. */
export interface PeftLoraConfig {
  /** `base_model_name_or_path`: a hub name or a folder; null if unknown. */
  baseModelNameOrPath: string | null;
  /** `r`. */
  rank: number;
  /** `lora_alpha`; need not be whole. */
  alpha: number;
  /** `lora_dropout`, in `[0, 1)`: dropout on the adapter's input while training. */
  dropout: number;
  /** `target_modules`: names, or a Python regular expression, or "all-linear". See `selectTargets`. */
  targetModules: string | readonly string[];
  /** `rank_pattern`: ranks of modules that differ from `rank`, in order. See `patternValue`. */
  rankPattern: Readonly<Record<string, number>>;
  /** `alpha_pattern`: alphas of modules that differ from `alpha`, in order. */
  alphaPattern: Readonly<Record<string, number>>;
  /** `use_rslora`: scale by alpha / √rank. */
  useRslora: boolean;
  /** `init_lora_weights` as read; written as true whatever it is here. */
  initLoraWeights: boolean | string;
}

/** The factor on B·A: alpha / rank, or alpha / √rank with rank-stabilised LoRA (arXiv 2312.03732). */
export function scaling(rank: number, alpha: number, useRslora: boolean): number {
  return alpha / (useRslora ? Math.sqrt(rank) : rank);
}

/**
 * Whether PEFT changes the base weights under this `init_lora_weights`, so that the adapter's A and B belong to a
 * residual and not to the base as published. Such an adapter gives wrong answers on the plain base.
 */
export function initChangesBase(initLoraWeights: boolean | string): boolean {
  return (
    typeof initLoraWeights === 'string' && /^(pissa|olora|corda|loftq|lora_ga)/.test(initLoraWeights.toLowerCase())
  );
}

/** Settings without influence on a loaded adapter's outputs, whatever their value. */
const irrelevant = new Set([
  'auto_mapping',
  'corda_config',
  'ensure_weight_tying',
  'eva_config',
  'inference_mode',
  'layers_pattern',
  'loftq_config',
  'lora_ga_config',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
  'revision',
  'runtime_config',
]);

/** What the settings do that are refused unless they are null, false or empty. */
const unsupported: Readonly<Record<string, string>> = {
  alora_invocation_tokens: 'activated LoRA',
  arrow_config: 'Arrow routing between adapters',
  exclude_modules: 'excluding modules from target_modules',
  fan_in_fan_out: 'weights stored as [in, out]',
  kasa_config: 'KaSA',
  layer_replication: 'repeated layers',
  layers_to_transform: 'adapters on some layers only (name them in target_modules)',
  lora_bias: 'a bias on lora_B',
  megatron_config: 'Megatron parallel layers',
  modules_to_save: 'whole modules trained and saved with the adapter',
  monteclora_config: 'MonteCLoRA',
  target_parameters: 'adapters on bare parameters',
  trainable_token_indices: 'trained token embeddings',
  use_bdlora: 'block-diagonal LoRA',
  use_dora: 'DoRA',
  use_qalora: 'QA-LoRA',
  velora_config: 'VeLoRA',
};

const understood = [
  'alpha_pattern',
  'base_model_name_or_path',
  'bias',
  'init_lora_weights',
  'lora_alpha',
  'lora_dropout',
  'peft_type',
  'r',
  'rank_pattern',
  'target_modules',
  'task_type',
  'use_rslora',
];

/**
 * Reads the text of an `adapter_config.json`.
 *
 * @param name the file, for messages
 * @throws MiloraError `peft-config` listing everything wrong or unsupported; `dora-unsupported` if DoRA is among it
 */
export function parsePeftConfig(json: string, name: string): PeftLoraConfig {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch (cause) {
    throw new MiloraError('peft-config', `${name}: expected JSON, got ${(cause as Error).message}`, { cause });
  }
  if (!isRecord(parsed)) throw new MiloraError('peft-config', `${name}: expected a JSON object, got ${show(parsed)}`);

  const record = parsed;
  const problems: string[] = [];
  const missing = (key: string): void => {
    const near = nearest(
      key,
      Object.keys(record).filter((k) => !understood.includes(k)),
    );
    problems.push(`${key}: expected a value, got none${near === undefined ? '' : ` (but there is ${show(near)})`}`);
  };
  /** The value at `key` if it is as expected; notes a problem otherwise. Absent or null gives the fallback, if any. */
  const field = <T>(key: string, expected: string, accepts: (value: unknown) => value is T, fallback?: T): T => {
    const value = record[key];
    if (value === undefined || value === null) {
      if (fallback === undefined) missing(key);
      return fallback as T;
    }
    if (!accepts(value)) problems.push(`${key}: expected ${expected}, got ${show(value)}`);
    return value as T;
  };

  field('peft_type', '"LORA"', (v): v is 'LORA' => v === 'LORA');
  field('task_type', '"CAUSAL_LM"', (v): v is string => v === 'CAUSAL_LM', 'CAUSAL_LM');
  field('bias', '"none" (trained biases are not supported)', (v): v is string => v === 'none', 'none');
  const config: PeftLoraConfig = {
    baseModelNameOrPath: field<string>('base_model_name_or_path', 'a string', isString, '') || null,
    rank: field('r', 'a whole number ≥ 1', isRank),
    alpha: field('lora_alpha', 'a finite number', isFinite),
    dropout: field('lora_dropout', 'a number in [0, 1)', (v): v is number => isFinite(v) && v >= 0 && v < 1, 0),
    targetModules: field('target_modules', 'a string or a non-empty list of strings', isTargets),
    rankPattern: field('rank_pattern', 'whole numbers ≥ 1 by pattern', (v) => isRecordOf(v, isRank), {}),
    alphaPattern: field('alpha_pattern', 'finite numbers by pattern', (v) => isRecordOf(v, isFinite), {}),
    useRslora: field<boolean>('use_rslora', 'true or false', isBoolean, false),
    initLoraWeights: field<boolean | string>(
      'init_lora_weights',
      'true, false or a name',
      (v): v is boolean | string => isBoolean(v) || isString(v),
      true,
    ),
  };

  for (const [key, value] of Object.entries(record)) {
    if (understood.includes(key) || irrelevant.has(key) || isInert(value)) continue;
    const what = Object.hasOwn(unsupported, key) ? unsupported[key] : undefined;
    if (what !== undefined) {
      problems.push(`${key}: ${what} is not supported; expected null, false or empty, got ${show(value)}`);
      continue;
    }
    const near = nearest(
      key,
      understood.filter((k) => !(k in record)),
    );
    const hint = near === undefined ? 'remove it if the outputs do not depend on it' : `did you mean ${show(near)}?`;
    problems.push(`${key}: unknown setting with value ${show(value)}; ${hint}`);
  }

  if (problems.length > 0) {
    const code = isInert(record.use_dora) ? 'peft-config' : 'dora-unsupported';
    throw new MiloraError(
      code,
      `${name}: expected a LoRA config that can be computed exactly, got\n  ${problems.join('\n  ')}`,
    );
  }
  return config;
}

/**
 * The text of an `adapter_config.json`, byte for byte as PEFT would write these keys: sorted, indented by 2, no newline
 * at the end, ASCII only. `init_lora_weights` is always true, since loading runs the named initialisation again on
 * the base. Patterns keep their order, which has a meaning (PEFT's own writer sorts them and may change it).
 */
export function serializePeftConfig(config: PeftLoraConfig): string {
  const fields: Record<string, unknown> = {
    alpha_pattern: config.alphaPattern,
    base_model_name_or_path: config.baseModelNameOrPath,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    lora_alpha: config.alpha,
    lora_dropout: config.dropout,
    modules_to_save: null,
    peft_type: 'LORA',
    r: config.rank,
    rank_pattern: config.rankPattern,
    target_modules: config.targetModules,
    task_type: 'CAUSAL_LM',
    use_dora: false,
    use_rslora: config.useRslora,
  };
  const lines = Object.keys(fields)
    .sort()
    .map((key) => {
      const value = JSON.stringify(fields[key], null, 2).replaceAll('\n', '\n  ');
      // Python writes the float 0 as 0.0.
      return `  ${JSON.stringify(key)}: ${key === 'lora_dropout' && Number.isInteger(config.dropout) ? `${value}.0` : value}`;
    });
  const escape = (unit: string): string => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return `{\n${lines.join(',\n')}\n}`.replace(/[\u0080-\uffff]/g, escape);
}

/**
 * The config of the plain LoRA of twice the rank that equals a residual-form adapter on the untouched base:
 * A' = [A; A₀], B' = [B, −B₀]. Ranks and alphas double (alpha·√2 with rsLoRA), so that the scaling stays the same.
 *
 * @throws MiloraError `rslora-patterns` for rsLoRA with a rank or alpha pattern, whose scalings PEFT does not convert
 */
export function doubleRank(config: PeftLoraConfig): PeftLoraConfig {
  const patterns = [...Object.keys(config.rankPattern), ...Object.keys(config.alphaPattern)];
  if (config.useRslora && patterns.length > 0) {
    throw new MiloraError(
      'rslora-patterns',
      'export to twice the rank: expected no rank_pattern and alpha_pattern together with rsLoRA, ' +
        `got ${patterns.map(show).join(', ')}; export the residual form with its base, or train without rsLoRA`,
    );
  }
  return {
    ...config,
    rank: 2 * config.rank,
    alpha: config.alpha * (config.useRslora ? Math.SQRT2 : 2),
    rankPattern: doubled(config.rankPattern),
    alphaPattern: doubled(config.alphaPattern),
  };
}

function doubled(pattern: Readonly<Record<string, number>>): Record<string, number> {
  return Object.fromEntries(Object.entries(pattern).map(([key, value]) => [key, 2 * value]));
}

const isString = (v: unknown): v is string => typeof v === 'string';
const isBoolean = (v: unknown): v is boolean => typeof v === 'boolean';
const isFinite = (v: unknown): v is number => Number.isFinite(v);
const isRank = (v: unknown): v is number => Number.isInteger(v) && (v as number) >= 1;
const isRecord = (v: unknown): v is Record<string, unknown> => typeof v === 'object' && v !== null && !Array.isArray(v);
const isTargets = (v: unknown): v is string | string[] =>
  (isString(v) && v !== '') || (Array.isArray(v) && v.length > 0 && v.every(isString));

function isRecordOf<T>(v: unknown, accepts: (value: unknown) => value is T): v is Record<string, T> {
  return isRecord(v) && Object.values(v).every(accepts);
}

/** Whether a setting is at a value that means "off". */
function isInert(value: unknown): boolean {
  if (value === undefined || value === null || value === false) return true;
  return typeof value === 'object' && Object.keys(value).length === 0;
}

function show(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}
