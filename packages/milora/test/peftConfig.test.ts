import fc from 'fast-check';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import type { MiloraError } from '../src/errors.js';
import {
  doubleRank,
  initChangesBase,
  parsePeftConfig,
  type PeftLoraConfig,
  scaling,
  serializePeftConfig,
} from '../src/peftConfig.js';

/** Adapters saved by PEFT 0.21, present where the shared fixtures are. */
const fixtures = fileURLToPath(new URL('../../../../shared/fixtures/adapters/', import.meta.url));

const config: PeftLoraConfig = {
  baseModelNameOrPath: 'modèle/😀',
  rank: 8,
  alpha: 16,
  dropout: 0,
  targetModules: ['q_proj', 'v_proj'],
  rankPattern: { q_proj: 4 },
  alphaPattern: {},
  useRslora: false,
  initLoraWeights: true,
};

const minimal = { peft_type: 'LORA', r: 8, lora_alpha: 16, target_modules: ['q_proj'] };

const failure = (record: object): MiloraError => {
  try {
    parsePeftConfig(JSON.stringify(record), 'adapter_config.json');
  } catch (error) {
    return error as MiloraError;
  }
  throw new Error('expected an error, got none');
};

const pattern = (value: fc.Arbitrary<number>) =>
  fc.dictionary(fc.stringMatching(/^[a-z_.*]{1,12}$/), value, { maxKeys: 4, noNullPrototype: true });
const anyConfig: fc.Arbitrary<PeftLoraConfig> = fc.record({
  baseModelNameOrPath: fc.oneof(fc.constant(null), fc.string({ minLength: 1, unit: 'grapheme' })),
  rank: fc.integer({ min: 1, max: 512 }),
  alpha: fc.oneof(fc.integer({ min: 1, max: 512 }), fc.double({ min: 0.1, max: 100, noNaN: true })),
  dropout: fc.constantFrom(0, 0.05, 0.1, 0.5),
  targetModules: fc.oneof(
    fc.constant('all-linear'),
    fc.array(fc.stringMatching(/^[a-z_]+$/), { minLength: 1, maxLength: 7 }),
  ),
  rankPattern: pattern(fc.integer({ min: 1, max: 512 })),
  alphaPattern: pattern(fc.integer({ min: 1, max: 512 })),
  useRslora: fc.boolean(),
  initLoraWeights: fc.constant(true),
});

describe('parsePeftConfig', () => {
  it.skipIf(!existsSync(fixtures)).each(['lora', 'milora', 'pissa'])(
    'reads the %s adapter as PEFT 0.21 saved it',
    (name) => {
      const file = `${fixtures}${name}/adapter_config.json`;
      expect(parsePeftConfig(readFileSync(file, 'utf8'), file)).toEqual({
        baseModelNameOrPath: 'llama2-style',
        rank: 6,
        alpha: name === 'lora' ? 12 : 6,
        dropout: 0,
        targetModules: ['k_proj', 'q_proj', 'down_proj', 'up_proj', 'v_proj'],
        rankPattern: {},
        alphaPattern: {},
        useRslora: false,
        initLoraWeights: name === 'pissa' ? 'pissa' : true,
      });
    },
  );

  it('fills in what old files lack, and takes null for empty', () => {
    const parsed = parsePeftConfig(JSON.stringify({ ...minimal, rank_pattern: null, modules_to_save: null }), 'a.json');
    expect(parsed).toEqual({
      baseModelNameOrPath: null,
      rank: 8,
      alpha: 16,
      dropout: 0,
      targetModules: ['q_proj'],
      rankPattern: {},
      alphaPattern: {},
      useRslora: false,
      initLoraWeights: true,
    });
  });

  it('names every problem at once', () => {
    const error = failure({
      peft_type: 'IA3',
      bias: 'all',
      R: 8,
      lora_alpha: '16',
      lora_dropout: 1,
      target_modules: [],
      fan_in_fan_out: true,
      modules_to_save: ['lm_head'],
      layers_to_transform: [0, 1],
      lora_bias: false,
      tile_size: 16,
      rank_patern: { q_proj: 4 },
      future_flag: null,
    });
    expect(error.code).toBe('peft-config');
    expect(error.message.split('\n')).toEqual([
      'adapter_config.json: expected a LoRA config that can be computed exactly, got',
      '  peft_type: expected "LORA", got "IA3"',
      '  bias: expected "none" (trained biases are not supported), got "all"',
      '  r: expected a value, got none (but there is "R")',
      '  lora_alpha: expected a finite number, got "16"',
      '  lora_dropout: expected a number in [0, 1), got 1',
      '  target_modules: expected a string or a non-empty list of strings, got []',
      '  R: unknown setting with value 8; did you mean "r"?',
      '  fan_in_fan_out: weights stored as [in, out] is not supported; expected null, false or empty, got true',
      '  modules_to_save: whole modules trained and saved with the adapter is not supported; expected null, false or empty, got ["lm_head"]',
      '  layers_to_transform: adapters on some layers only (name them in target_modules) is not supported; expected null, false or empty, got [0,1]',
      '  tile_size: unknown setting with value 16; remove it if the outputs do not depend on it',
      '  rank_patern: unknown setting with value {"q_proj":4}; did you mean "rank_pattern"?',
    ]);
  });

  it.each([
    [{ ...minimal, use_dora: true }, 'dora-unsupported', 'DoRA is not supported'],
    [{ ...minimal, r: 0 }, 'peft-config', 'r: expected a whole number ≥ 1, got 0'],
    [{ ...minimal, task_type: 'SEQ_CLS' }, 'peft-config', 'task_type: expected "CAUSAL_LM", got "SEQ_CLS"'],
    [
      { ...minimal, rank_pattern: { q_proj: 0.5 } },
      'peft-config',
      'rank_pattern: expected whole numbers ≥ 1 by pattern',
    ],
    [[], 'peft-config', 'expected a JSON object, got []'],
  ])('%j: %s', (record, code, message) => {
    const error = failure(record);
    expect(error.code).toBe(code);
    expect(error.message).toContain(message);
  });

  it('names the file with malformed JSON', () => {
    expect(() => parsePeftConfig('{"r": 8', 'run/adapter_config.json')).toThrow(
      /^run\/adapter_config.json: expected JSON, got/,
    );
  });
});

describe('serializePeftConfig', () => {
  it('writes what Python writes with json.dumps(config, indent=2, sort_keys=True)', () => {
    expect(serializePeftConfig(config)).toBe(
      '{\n  "alpha_pattern": {},\n  "base_model_name_or_path": "mod\\u00e8le/\\ud83d\\ude00",\n  "bias": "none",\n  ' +
        '"fan_in_fan_out": false,\n  "inference_mode": true,\n  "init_lora_weights": true,\n  "lora_alpha": 16,\n  ' +
        '"lora_dropout": 0.0,\n  "modules_to_save": null,\n  "peft_type": "LORA",\n  "r": 8,\n  "rank_pattern": {\n    ' +
        '"q_proj": 4\n  },\n  "target_modules": [\n    "q_proj",\n    "v_proj"\n  ],\n  "task_type": "CAUSAL_LM",\n  ' +
        '"use_dora": false,\n  "use_rslora": false\n}',
    );
  });

  it('reads back as the same config, with the patterns in the same order', () => {
    fc.assert(
      fc.property(anyConfig, (original) => {
        const back = parsePeftConfig(serializePeftConfig(original), 'a.json');
        expect(back).toEqual(original);
        expect(Object.keys(back.rankPattern)).toEqual(Object.keys(original.rankPattern));
      }),
      { numRuns: 300 },
    );
  });

  it('never writes the name of an initialisation, which loading would run again', () => {
    expect(serializePeftConfig({ ...config, initLoraWeights: 'pissa' })).toContain('"init_lora_weights": true');
  });
});

describe('scaling and rank doubling', () => {
  it('alpha / r, or alpha / √r with rsLoRA', () => {
    expect(scaling(64, 128, false)).toBe(2);
    expect(scaling(64, 128, true)).toBe(16);
  });

  it('doubling keeps the scaling of every module', () => {
    fc.assert(
      fc.property(anyConfig, (original) => {
        const refused =
          original.useRslora && Object.keys({ ...original.rankPattern, ...original.alphaPattern }).length > 0;
        if (refused) {
          expect(() => doubleRank(original)).toThrow(expect.objectContaining({ code: 'rslora-patterns' }));
          return;
        }
        const doubled = doubleRank(original);
        expect(doubled.rank).toBe(2 * original.rank);
        const at = (pattern: Readonly<Record<string, number>>, key: string, fallback: number): number =>
          Object.hasOwn(pattern, key) ? pattern[key]! : fallback;
        const rank = (c: PeftLoraConfig, key: string): number => at(c.rankPattern, key, c.rank);
        const alpha = (c: PeftLoraConfig, key: string): number => at(c.alphaPattern, key, c.alpha);
        for (const key of ['', ...Object.keys(original.rankPattern), ...Object.keys(original.alphaPattern)]) {
          const before = scaling(rank(original, key), alpha(original, key), original.useRslora);
          const after = scaling(rank(doubled, key), alpha(doubled, key), doubled.useRslora);
          expect(Math.abs(after / before - 1)).toBeLessThan(1e-14);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('initChangesBase', () => {
  it.each(['pissa', 'pissa_niter_16', 'PiSSA', 'olora', 'corda', 'loftq', 'lora_ga'])('%s does', (init) =>
    expect(initChangesBase(init)).toBe(true),
  );
  it.each([true, false, 'gaussian', 'eva', 'orthogonal', 'mica'])('%s does not', (init) =>
    expect(initChangesBase(init)).toBe(false),
  );
});
