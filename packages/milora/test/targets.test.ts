import { describe, expect, it } from 'vitest';
import type { MiloraError } from '../src/errors.js';
import { presets } from '../src/presets.js';
import { expandTargetAliases, patternValue, selectTargets } from '../src/targets.js';

const paths = [0, 1, 10]
  .flatMap((layer) =>
    ['self_attn.q_proj', 'self_attn.o_proj', 'mlp.gate_proj', 'mlp.down_proj'].map((n) => `model.layers.${layer}.${n}`),
  )
  .concat('lm_head');

const indices = (selected: readonly string[]): number[] => selected.map((path) => paths.indexOf(path));

const failure = (act: () => unknown): MiloraError => {
  try {
    act();
  } catch (error) {
    return error as MiloraError;
  }
  throw new Error('expected an error, got none');
};

describe('selectTargets: regular expressions', () => {
  // Expected values: [i for i, path in enumerate(paths) if re.fullmatch(pattern, path)] in Python 3.11.
  it.each<[string, number[]]>([
    ['.*\\.q_proj', [0, 4, 8]],
    ['.*q_proj|.*down_proj', [0, 3, 4, 7, 8, 11]],
    ['model\\.layers\\.(0|10)\\..*', [0, 1, 2, 3, 8, 9, 10, 11]],
    ['.*\\.(?:q|o)_proj', [0, 1, 4, 5, 8, 9]],
    ['.*layers\\.[0-9]+\\.mlp\\..*', [2, 3, 6, 7, 10, 11]],
    ['(?P<x>m).*(?P=x)lp.*', [2, 3, 6, 7, 10, 11]],
    ['(?i).*\\.Q_PROJ', [0, 4, 8]],
    ['\\Amodel.*gate_proj\\Z', [2, 6, 10]],
    ['.*\\.\\d{,1}\\.mlp.*', [2, 3, 6, 7]],
    ['.*(?<!down)_proj', [0, 1, 2, 4, 5, 6, 8, 9, 10]],
    ['(?!lm).*(?#comment)head|.*layers\\.1\\..*', [4, 5, 6, 7]],
    ['.*[]_]proj', [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
    ['.*layers\\.[^]0]\\.mlp.*', [6, 7]],
    ['model.layers.1.*?gate_proj', [6, 10]],
    ['(?s)(?=m).*o_proj', [1, 5, 9]],
    ['.+\\.self_attn\\.\\w+', [0, 1, 4, 5, 8, 9]],
    ['lm_head', [12]],
  ])('%s', (pattern, expected) => {
    expect(indices(selectTargets(paths, pattern))).toEqual(expected);
  });

  it.each(['(?x) .*q_proj', '.*+q_proj', '(?>.*)q_proj', '(?(1)a|b)', '(?i:.*Q_PROJ)', '.*\\y', '.*(q_proj', '[q'])(
    'refuses %s, which JavaScript has no equal for',
    (pattern) => {
      const error = failure(() => selectTargets(paths, pattern));
      expect(error.code).toBe('target-pattern');
      expect(error.message).toContain(JSON.stringify(pattern));
    },
  );

  it('a bare name as a string matches no whole path, and the message says how to pass it', () => {
    const error = failure(() => selectTargets(paths, 'q_proj'));
    expect(error.code).toBe('unknown-target');
    expect(error.message).toContain('pass the list ["q_proj"]');
  });
});

describe('selectTargets: names', () => {
  it('takes paths and ends of paths after a dot, in model order', () => {
    expect(indices(selectTargets(paths, ['down_proj', 'self_attn.q_proj', 'model.layers.1.mlp.gate_proj']))).toEqual([
      0, 3, 4, 6, 7, 8, 11,
    ]);
  });

  it('names every entry that matches nothing, with what is near', () => {
    const error = failure(() =>
      selectTargets(paths, ['qproj', 'o_proj', 'proj', 'mlp.gateproj', 'q', '.*q_proj', 'all-linear']),
    );
    expect(error.code).toBe('unknown-target');
    expect(error.message.split('\n')).toEqual([
      'target_modules: expected every entry to be a module path or the end of one after a dot, got 6 that match no module:',
      '  "qproj"; did you mean "q_proj"?',
      '  "proj"; did you mean "q_proj"?',
      '  "mlp.gateproj"; did you mean "mlp.gate_proj"?',
      '  "q"; did you mean "q_proj"?',
      '  ".*q_proj"; a regular expression is passed as a string, not in a list',
      '  "all-linear"; pass "all-linear" as a string, not in a list',
    ]);
    expect(failure(() => selectTargets(paths, ['embed_tokens'])).message).toContain(
      'names here: q_proj, o_proj, gate_proj, down_proj, lm_head',
    );
  });

  it('refuses an empty selection', () => {
    expect(failure(() => selectTargets(paths, [])).code).toBe('no-targets');
    expect(failure(() => selectTargets(['lm_head'], 'all-linear')).code).toBe('no-targets');
  });

  it.each(['all-linear', 'All-Linear'])('%s is every layer but the output head', (targets) => {
    expect(selectTargets(paths, targets)).toEqual(paths.slice(0, -1));
  });

  it("the paper's short names stand for LLaMA's", () => {
    expect(expandTargetAliases(['q', 'k', 'v', 'up', 'down'])).toEqual(presets.commonsense.targetModules);
    expect(expandTargetAliases(['q_proj', 'constructor', 'o'])).toEqual(['q_proj', 'constructor', 'o_proj']);
    expect(expandTargetAliases('q')).toBe('q');
  });
});

describe('patternValue', () => {
  // Expected values: re.match(rf"(.*\.)?({key})$", path) in Python 3.11.
  it.each<[string, number[]]>([
    ['q_proj', [0, 4, 8]],
    ['proj', []],
    ['layers.1.mlp.down_proj', [7]],
    ['0.*q_proj', [0]],
    ['model.layers.1.*', [4, 5, 6, 7, 8, 9, 10, 11]],
    ['q_proj|mlp.gate_proj', [0, 2, 4, 6, 8, 10]],
    ['layers\\.[01]\\..*_proj', [0, 1, 2, 3, 4, 5, 6, 7]],
    ['^model.layers.0.*', [0, 1, 2, 3]],
  ])('%s', (key, expected) => {
    expect(indices(paths.filter((path) => patternValue({ [key]: 1 }, path, 0) === 1))).toEqual(expected);
  });

  it('takes the first key that matches, else the fallback', () => {
    const pattern = { 'layers.1.*q_proj': 2, q_proj: 4, '.*': 8 };
    expect(patternValue(pattern, 'model.layers.1.self_attn.q_proj', 16)).toBe(2);
    expect(patternValue(pattern, 'model.layers.0.self_attn.q_proj', 16)).toBe(4);
    expect(patternValue(pattern, 'model.layers.0.mlp.up_proj', 16)).toBe(8);
    expect(patternValue({}, 'model.layers.0.mlp.up_proj', 16)).toBe(16);
  });
});
