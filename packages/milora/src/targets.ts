/**
 * Which linear layers get an adapter: PEFT's `target_modules`, and its `rank_pattern` / `alpha_pattern` rule.
 *
 * - A list names modules: an entry is a module path or the end of one after a dot (`q_proj`, `self_attn.q_proj`).
 * - A string is a Python regular expression that must match a whole module path.
 * - `"all-linear"` (letter case ignored) is every linear layer but the output head.
 *
 * Unlike PEFT, a list entry that names nothing is an error: half an adapter is never what was meant.
 * Reference: PEFT 0.21, `check_target_module_exists` and `get_pattern_key`
 * (https://github.com/huggingface/peft/blob/v0.21.0/src/peft/tuners/tuners_utils.py).
 */
import { MiloraError } from './errors.js';
import { nearest } from './suggest.js';

/** The short names that the MiLoRA paper uses for LLaMA's seven linear layers. */
export const TARGET_ALIASES: Readonly<Record<string, string>> = {
  q: 'q_proj',
  k: 'k_proj',
  v: 'v_proj',
  o: 'o_proj',
  gate: 'gate_proj',
  up: 'up_proj',
  down: 'down_proj',
};

const OUTPUT_HEAD = 'lm_head';

/** `['q', 'up']` → `['q_proj', 'up_proj']`; names that are no alias, and strings (regular expressions), stay as they are. */
export function expandTargetAliases(targets: string | readonly string[]): string | string[] {
  return typeof targets === 'string' ? targets : targets.map(unalias);
}

function unalias(name: string): string {
  return (Object.hasOwn(TARGET_ALIASES, name) ? TARGET_ALIASES[name] : undefined) ?? name;
}

/**
 * The modules that `targets` selects, in the order of `modulePaths`.
 *
 * @param modulePaths paths of every linear layer of the model, e.g. `model.layers.0.self_attn.q_proj`
 * @throws MiloraError `unknown-target` naming every entry that matches no module, `no-targets` if nothing is selected,
 *   `target-pattern` if a regular expression cannot be read
 *
 * @example
 * selectTargets(['model.layers.0.mlp.up_proj', 'lm_head'], ['up_proj']); // ['model.layers.0.mlp.up_proj']
 */
export function selectTargets(modulePaths: readonly string[], targets: string | readonly string[]): string[] {
  const selected =
    typeof targets === 'string' ? selectByPattern(modulePaths, targets) : selectByName(modulePaths, targets);
  if (selected.length === 0) {
    throw new MiloraError(
      'no-targets',
      `target_modules: expected at least one linear layer, got ${JSON.stringify(targets)}`,
    );
  }
  return selected;
}

function selectByPattern(modulePaths: readonly string[], pattern: string): string[] {
  if (pattern.toLowerCase() === 'all-linear') {
    return modulePaths.filter((path) => path !== OUTPUT_HEAD && !path.endsWith(`.${OUTPUT_HEAD}`));
  }
  const regExp = pythonRegExp(pattern, (body) => `^(?:${body})$`);
  const selected = modulePaths.filter((path) => regExp.test(path));
  if (selected.length === 0) {
    const shown = JSON.stringify(pattern);
    const example = modulePaths[0] === undefined ? '' : ` such as ${modulePaths[0]}`;
    const named = suffixes(modulePaths, pattern).has(unalias(pattern));
    const hint = named
      ? `to select by name, pass the list [${JSON.stringify(unalias(pattern))}]`
      : 'to select by name, pass a list of names';
    throw new MiloraError(
      'unknown-target',
      `target_modules: expected the regular expression ${shown} to match a whole module path${example}, it matches none; ${hint}`,
    );
  }
  return selected;
}

function selectByName(modulePaths: readonly string[], names: readonly string[]): string[] {
  const unknown = names.filter((name) => !modulePaths.some((path) => isNamed(path, name)));
  if (unknown.length > 0) {
    const lines = unknown.map((name) => `  ${JSON.stringify(name)}${hintFor(name, modulePaths)}`);
    throw new MiloraError(
      'unknown-target',
      'target_modules: expected every entry to be a module path or the end of one after a dot, ' +
        `got ${unknown.length} that match${unknown.length === 1 ? 'es' : ''} no module:\n${lines.join('\n')}`,
    );
  }
  return modulePaths.filter((path) => names.some((name) => isNamed(path, name)));
}

function isNamed(path: string, name: string): boolean {
  return path === name || path.endsWith(`.${name}`);
}

function hintFor(name: string, modulePaths: readonly string[]): string {
  if (name.toLowerCase() === 'all-linear') return '; pass "all-linear" as a string, not in a list';
  if (/[*+?^$|()[\]\\]/.test(name)) return '; a regular expression is passed as a string, not in a list';
  const known = suffixes(modulePaths, name);
  const near = known.has(unalias(name)) ? unalias(name) : nearest(name, known);
  return near === undefined ? `; names here: ${[...known].join(', ')}` : `; did you mean ${JSON.stringify(near)}?`;
}

/** The distinct ends of the paths with as many dotted parts as `name` has, `layers.0.` and the like left out. */
function suffixes(modulePaths: readonly string[], name: string): Set<string> {
  const parts = name.split('.').length;
  return new Set(modulePaths.map((path) => path.split('.').slice(-parts).join('.')));
}

/**
 * The value for one module out of `rank_pattern` or `alpha_pattern`: that of the first key for which the Python
 * expression `(.*\.)?(key)$` matches the path, else `fallback`. The order of the keys matters.
 *
 * @throws MiloraError `target-pattern` if a key is not a regular expression that can be read
 *
 * @example
 * patternValue({ 'layers.0.*q_proj': 4, q_proj: 8 }, 'model.layers.1.self_attn.q_proj', 16); // 8
 */
export function patternValue(pattern: Readonly<Record<string, number>>, path: string, fallback: number): number {
  for (const [key, value] of Object.entries(pattern)) {
    if (pythonRegExp(key, (body) => `^(.*\\.)?(${body})$`).test(path)) return value;
  }
  return fallback;
}

/**
 * A Python `re` pattern as a JavaScript one. The two syntaxes agree on nearly everything that occurs in module
 * patterns; what differs is rewritten, and what JavaScript lacks is refused rather than read as something else.
 */
function pythonRegExp(pattern: string, wrap: (body: string) => string): RegExp {
  const refuse = (why: string): never => {
    throw new MiloraError(
      'target-pattern',
      `target_modules: cannot read the regular expression ${JSON.stringify(pattern)}: ${why}`,
    );
  };
  let flags = '';
  let body = '';
  let rest = pattern;

  const global = /^\(\?([a-zA-Z]+)\)/.exec(rest);
  if (global) {
    for (const flag of global[1]!) {
      if (flag === 'i' || flag === 's' || flag === 'm') flags += flags.includes(flag) ? '' : flag;
      else if (flag !== 'a' && flag !== 'u') refuse(`the flag (?${flag}) is not supported`);
    }
    rest = rest.slice(global[0].length);
  }

  // Longest forms first; every step consumes one syntactic piece.
  while (rest.length > 0) {
    const take = (form: RegExp): RegExpExecArray | null => form.exec(rest);
    let piece: RegExpExecArray | null;
    let js: string;
    if ((piece = take(/^\(\?#[^)]*\)/))) js = '';
    else if ((piece = take(/^\(\?P<(\w+)>/))) js = `(?<${piece[1]!}>`;
    else if ((piece = take(/^\(\?P=(\w+)\)/))) js = `\\k<${piece[1]!}>`;
    else if ((piece = take(/^\(\?(?:[:=!]|<[=!])/))) js = piece[0];
    else if ((piece = take(/^\(\?.{0,2}/))) js = refuse(`the group ${piece[0]} is not supported`);
    else if ((piece = take(/^\\A/))) js = '^';
    else if ((piece = take(/^\\Z/))) js = '$';
    else if ((piece = take(/^\\[a-zA-Z]/))) {
      if (!/[dDsSwWbBnrtfvxu]/.test(piece[0][1]!)) refuse(`the escape ${piece[0]} is not supported`);
      js = piece[0];
    } else if ((piece = take(/^\\[^]/))) js = piece[0];
    else if ((piece = take(/^\[(\^?)(\]?)((?:\\[^]|[^\]\\])*)\]/))) {
      // A ] right after the opening bracket is an ordinary member in Python, the end of an empty class in JavaScript.
      js = `[${piece[1]!}${piece[2] ? '\\]' : ''}${piece[3]!}]`;
    } else if ((piece = take(/^\{,(\d+)\}/))) js = `{0,${piece[1]!}}`;
    else if ((piece = take(/^(?:[*+?]|\{\d+(?:,\d*)?\})\+/)))
      js = refuse(`the possessive quantifier ${piece[0]} is not supported`);
    else {
      piece = take(/^[^]/)!;
      js = piece[0];
    }
    body += js;
    rest = rest.slice(piece[0].length);
  }

  try {
    return new RegExp(wrap(body), flags);
  } catch (cause) {
    return refuse((cause as Error).message);
  }
}
