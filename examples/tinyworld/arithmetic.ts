/**
 * The new task: small word problems, which the text of the tiny world (`documents.ts`) never solves.
 *
 *   prompt      "Mia has 3 apples. Tom gives her 4 apples. How many apples does Mia have now?"
 *   completion  " 3 + 4 = 7. The answer is 7."
 *
 * The completion names the equation first, so that a small model can do the work in steps: find the two numbers, choose
 * the sign, know one entry of the table, repeat it.
 */
import { counted, FLOCK, THINGS } from './documents.js';
import { between, pick, sample, type Rng } from './rng.js';
import { NAMES, type Name } from './world.js';

export interface Problem {
  /** Ends with the question mark. */
  readonly prompt: string;
  /** Starts with the space that separates it from the prompt. */
  readonly completion: string;
}

export interface ArithmeticOptions {
  /** No number of a problem, its result included, is larger: 3 … 20. Default 12. */
  readonly largest?: number;
}

export type Split = 'train' | 'test';

interface Slots {
  readonly a: Name;
  readonly b: Name;
  readonly x: number;
  readonly y: number;
  readonly thing: string;
  readonly animal: string;
}

type Template = (slots: Slots) => string;

const have = (name: Name, thing: string) => `How many ${thing}s does ${name.name} have now?`;

const TEMPLATES: readonly { sign: '+' | '-'; write: Template }[] = [
  {
    sign: '+',
    write: ({ a, b, x, y, thing }) =>
      `${a.name} has ${counted(x, thing)}. ${b.name} gives ${a.object} ${counted(y, thing)}. ${have(a, thing)}`,
  },
  {
    sign: '+',
    write: ({ a, x, y, thing }) => `${a.name} has ${counted(x, thing)} and finds ${y} more. ${have(a, thing)}`,
  },
  {
    sign: '+',
    write: ({ a, x, y, animal }) =>
      `There are ${counted(x, animal)} in the yard of ${a.name}. Then ${y} more came. How many ${animal}s are in the yard now?`,
  },
  {
    sign: '-',
    write: ({ a, b, x, y, thing }) =>
      `${a.name} has ${counted(x, thing)}. ${capitalSubject(a)} gives ${b.name} ${counted(y, thing)}. ${have(a, thing)}`,
  },
  {
    sign: '-',
    write: ({ a, x, y, thing }) => `${a.name} has ${counted(x, thing)} and loses ${y}. How many ${thing}s are left?`,
  },
  {
    sign: '-',
    write: ({ a, x, y, animal }) =>
      `There are ${counted(x, animal)} in the yard of ${a.name}. Then ${y} ran away. How many ${animal}s are left?`,
  },
];

function capitalSubject(name: Name): string {
  return name.subject === 'she' ? 'She' : 'He';
}

/**
 * Word problems of one split. A problem belongs to the test split when the hash of its template, names and numbers
 * says so (one in ten does), whatever the generator: so no test problem, not even with another noun, can be in a
 * training file, and a training file can be made longer without a new test file.
 *
 * @param rng decides which problems come
 * @param n how many
 * @param split `'train'` or `'test'`
 * @throws RangeError when `largest` is not a whole number from 3 to 20
 * @example
 * const [problem] = arithmeticProblems(new Philox(7, 2), 1, 'train');
 */
export function* arithmeticProblems(
  rng: Rng,
  n: number,
  split: Split,
  { largest = 12 }: ArithmeticOptions = {},
): Generator<Problem, void, undefined> {
  if (!Number.isInteger(largest) || largest < 3 || largest > 20) {
    throw new RangeError(`largest: expected a whole number from 3 to 20, got ${largest}`);
  }
  for (let left = n; left > 0;) {
    const { sign, write } = pick(rng, TEMPLATES);
    const [a, b] = sample(rng, NAMES, 2) as [Name, Name];
    // Numbers from 1 on: with nothing to add or take away the sign would not matter. x ≥ 2 keeps "there are" right.
    const x = between(rng, 2, sign === '+' ? largest - 1 : largest);
    const y = between(rng, 1, sign === '+' ? largest - x : x);
    const slots = { a, b, x, y, thing: pick(rng, THINGS), animal: pick(rng, FLOCK) };
    // The problem without its nouns is its template, the names it uses and its numbers.
    if (splitOf(write({ ...slots, thing: '', animal: '' })) !== split) continue;
    const result = sign === '+' ? x + y : x - y;
    yield {
      prompt: write(slots),
      completion: ` ${x} ${sign} ${y} = ${result}. The answer is ${result}.`,
    };
    left--;
  }
}

/** FNV-1a, 32 bits (http://www.isthe.com/chongo/tech/comp/fnv/): a hash that is the same on every machine. */
function splitOf(key: string): Split {
  let hash = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
  // The low bits of FNV-1a mix worst, and modulo 10 looks at them: fold the high half in.
  return ((hash ^ (hash >>> 16)) >>> 0) % 10 === 0 ? 'test' : 'train';
}

/** The number after the first "The answer is", or undefined when the text has none. */
export function extractAnswer(text: string): number | undefined {
  const digits = /The answer is (-?\d+)/.exec(text)?.[1];
  return digits === undefined ? undefined : Number(digits);
}
