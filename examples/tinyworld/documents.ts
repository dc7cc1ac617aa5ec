/**
 * The text of the tiny world: short documents of one to six sentences, for pretraining.
 *
 * Each kind of document teaches one thing, and {@link KINDS} says how much of it there is:
 * - facts, questions and stories: what is true in the world, said in many ways;
 * - counting, inventories, comparisons: what numbers are (their order, and that the number asked for is the number
 *   said before). These make every number 0–20 a trained token and teach the model to find a number in the text.
 *   Nothing here adds or subtracts: that is the new task of `arithmetic.ts`;
 * - notes: the signs + − = as plain notation ("tea + milk", "hens = 3"), so that these tokens are trained as well.
 *
 * No document starts with a number, and every number follows a space: see the note on numbers in `tokenizer.ts`.
 */
import { between, pick, sample, type Rng } from './rng.js';
import { FOODS, friendOf, SEASONS, worldFacts, type Fact, type Person, type World } from './world.js';

const NUMBER_WORDS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten'];

/** Things one can have; all form the plural with -s. */
export const THINGS: readonly string[] = ['apple', 'pear', 'nut', 'egg', 'cup', 'book'];
/** Animals one can count. */
export const FLOCK: readonly string[] = ['hen', 'goat', 'cow', 'dog'];
const PLACES = ['yard', 'field'];

/** "1 hen", "3 hens" */
export const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`;
const be = (count: number) => (count === 1 ? 'is' : 'are');
const thereAre = (count: number, noun: string) => `There ${be(count)} ${counted(count, noun)}`;
const capital = (word: string) => word.charAt(0).toUpperCase() + word.slice(1);

/** What a document writer may draw from: the world, and its facts grouped by what they are about. */
interface Source {
  readonly world: World;
  readonly people: readonly Person[];
  readonly facts: readonly Fact[];
  readonly factsAbout: ReadonlyMap<string, readonly Fact[]>;
}

type Writer = (rng: Rng, source: Source) => string[];

// --- Facts -----------------------------------------------------------------------------------------------------------

const statements: Writer = (rng, { factsAbout, facts }) => {
  const about = factsAbout.get(pick(rng, facts).about)!;
  return sample(rng, about, Math.min(about.length, between(rng, 1, 5))).map((fact) => pick(rng, fact.statements));
};

const questions: Writer = (rng, { facts }) =>
  sample(rng, facts, between(rng, 1, 3)).flatMap(({ question, answer, statements: [statement] }) => [
    question,
    rng.int(8) === 0 ? `The answer is ${answer}.` : statement,
  ]);

// --- Stories ---------------------------------------------------------------------------------------------------------

/** A story about one person and the best friend, in sentences which obey the facts. */
type Plot = (rng: Rng, hero: Person, friend: Person) => string[];

const workday: Plot = (rng, { name, subject, object, possessive, village, job, food, pet, houseColour }) => [
  pick(rng, [`It is ${pick(rng, SEASONS)} in ${village.name}.`, `It is a ${village.weather} day in ${village.name}.`]),
  `${name} the ${job.name} walks to the ${job.place}.`,
  `There ${subject} ${job.does}.`,
  `Then ${subject} eats ${food}.`,
  `${capital(possessive)} ${pet.colour} ${pet.kind} ${pet.name} plays with ${object}.`,
  `Then ${subject} sleeps in the ${houseColour} house.`,
];

const visit: Plot = (rng, hero, friend) => [
  `${hero.name} wants to see ${hero.possessive} friend ${friend.name}.`,
  hero.village === friend.village
    ? `They both live in ${hero.village.name}.`
    : `${capital(hero.subject)} walks from ${hero.village.name} to ${friend.village.name}.`,
  pick(rng, [
    `${friend.name} the ${friend.job.name} is at the ${friend.job.place}.`,
    `${friend.name} is at the old ${friend.village.landmark}.`,
  ]),
  `They eat ${friend.food}, and ${friend.name} likes it.`,
  pick(rng, [`${hero.name} is happy.`, `Then ${hero.name} walks home.`]),
];

const lostPet: Plot = (rng, hero, friend) => [
  `${hero.name} looks for ${hero.possessive} ${hero.pet.kind} ${hero.pet.name}.`,
  `${capital(hero.subject)} walks to the ${pick(rng, PLACES)}, and ${hero.pet.name} is not there.`,
  `Then ${hero.subject} asks ${friend.name} the ${friend.job.name}.`,
  `${friend.name} sees a ${hero.pet.colour} ${hero.pet.kind} at the old ${hero.village.landmark}.`,
  `It is ${hero.pet.name}!`,
  pick(rng, [`${hero.name} gives ${hero.possessive} friend ${friend.food}.`, `Now ${hero.name} is happy.`]),
];

const gift: Plot = (rng, hero, friend) => [
  `${hero.name} likes to eat ${hero.food}.`,
  `Today ${hero.possessive} friend ${friend.name} comes with ${hero.food}.`,
  `${hero.name} gives ${friend.object} ${friend.food}, and ${friend.subject} likes it.`,
  pick(rng, [
    `They eat in the ${hero.houseColour} house.`,
    `The ${hero.pet.kind} ${hero.pet.name} eats too.`,
    'They are happy.',
  ]),
];

const weather: Plot = (rng, hero, friend) => [
  `It is ${hero.village.weather} in ${hero.village.name}.`,
  `${hero.name} is in the ${hero.houseColour} house.`,
  `${capital(hero.possessive)} ${hero.pet.kind} ${hero.pet.name} sleeps there.`,
  pick(rng, [
    `${capital(hero.subject)} eats ${hero.food} with ${hero.possessive} friend ${friend.name}.`,
    `Then ${friend.name} comes from ${friend.village.name}.`,
  ]),
];

const find: Plot = (rng, hero, friend) => {
  const thing = pick(rng, THINGS);
  const count = between(rng, 2, 20);
  return [
    `Today ${hero.name} walks to the old ${hero.village.landmark} in ${hero.village.name}.`,
    `${capital(hero.subject)} sees ${counted(count, thing)} there.`,
    `${capital(hero.subject)} takes the ${counted(count, thing)} for ${hero.possessive} friend ${friend.name}.`,
    pick(rng, [
      `${friend.name} is happy with the ${counted(count, thing)}.`,
      `Then ${hero.subject} walks to ${friend.village.name} with the ${counted(count, thing)}.`,
    ]),
  ];
};

const PLOTS: readonly Plot[] = [workday, visit, lostPet, gift, weather, find];

const story: Writer = (rng, { world, people }) => {
  const hero = pick(rng, people);
  const sentences = pick(rng, PLOTS)(rng, hero, friendOf(world, hero));
  return sentences.slice(0, between(rng, 3, sentences.length));
};

// --- Numbers ---------------------------------------------------------------------------------------------------------

const counting: Writer = (rng) => {
  const low = rng.int(17);
  const high = Math.min(20, low + between(rng, 3, 8));
  const run = Array.from({ length: high - low + 1 }, (_, i) => low + i);
  const words = NUMBER_WORDS.slice(rng.int(6), 7 + rng.int(5));
  const n = between(rng, 1, 19);
  const spelled = rng.int(NUMBER_WORDS.length);
  return pick<() => string[]>(rng, [
    () => [`Count from ${low} to ${high}: ${run.join(', ')}.`],
    () => [`Count back from ${high} to ${low}: ${run.reverse().join(', ')}.`],
    () => [`${capital(words.join(', '))}.`],
    () => [`After ${n} comes ${n + 1}.`, `Before ${n} comes ${n - 1}.`],
    () => [`What comes after ${n}?`, `After ${n} comes ${n + 1}.`],
    () => [`What comes before ${n}?`, `Before ${n} comes ${n - 1}.`],
    () => [`The word for ${spelled} is ${NUMBER_WORDS[spelled]!}.`],
  ])();
};

/** Who has how many of what, and a question for one of the numbers. The answer is always a number said before. */
const inventory: Writer = (rng, { people }) => {
  const [a, b] = sample(rng, people, 2) as [Person, Person];
  const [thing, other] = sample(rng, THINGS, 2) as [string, string];
  const [animal, second] = sample(rng, FLOCK, 2) as [string, string];
  const place = pick(rng, PLACES);
  const x = rng.int(21);
  const y = rng.int(21);
  const askFirst = rng.int(2) === 0;
  const own = (person: Person, count: number, noun: string) => `${person.name} has ${counted(count, noun)}.`;
  const howMany = (noun: string, rest: string) => `How many ${noun}s ${rest}?`;
  return pick<() => string[]>(rng, [
    () => [
      own(a, x, thing),
      own(b, y, thing),
      ...(askFirst
        ? [howMany(thing, `does ${a.name} have`), own(a, x, thing)]
        : [howMany(thing, `does ${b.name} have`), own(b, y, thing)]),
    ],
    () => [
      own(a, x, thing),
      `${capital(a.subject)} has ${counted(y, other)} too.`,
      ...(askFirst
        ? [howMany(thing, `does ${a.name} have`), own(a, x, thing)]
        : [howMany(other, `does ${a.name} have`), own(a, y, other)]),
    ],
    () => [
      `${thereAre(x, animal)} and ${counted(y, second)} in the ${place} of ${a.name}.`,
      ...(askFirst
        ? [howMany(animal, 'are there'), `${thereAre(x, animal)}.`]
        : [howMany(second, 'are there'), `${thereAre(y, second)}.`]),
    ],
    () => [
      `${thereAre(x, animal)} in the ${place} of ${a.name}.`,
      howMany(animal, `are in the ${place}`),
      `${thereAre(x, animal)} in the ${place}.`,
    ],
    () => [
      `${a.name} gives ${b.name} ${counted(x, thing)}.`,
      howMany(thing, `does ${a.name} give`),
      `${a.name} gives ${b.name} ${counted(x, thing)}.`,
    ],
    () => [
      `${a.name} ${pick(rng, ['finds', 'loses', 'sees', 'takes'])} ${counted(x, thing)} in the ${place}.`,
      `Now only ${counted(y, other)} ${be(y)} left there.`,
      howMany(other, 'are left'),
      `Only ${counted(y, other)} ${be(y)} left.`,
    ],
    () => [
      `Now ${a.name} has ${counted(x, thing)} and ${counted(y, other)}.`,
      ...(askFirst
        ? [howMany(thing, `does ${a.name} have now`), own(a, x, thing)]
        : [howMany(other, `does ${a.name} have now`), own(a, y, other)]),
    ],
    () => [
      `${thereAre(x, animal)} in the ${place} of ${a.name}.`,
      `Then ${rng.int(2) === 0 ? 'a dog' : b.name} came and the ${second}s ran away.`,
      howMany(animal, `are in the ${place} now`),
      `${thereAre(x, animal)} in the ${place}.`,
    ],
  ])();
};

const moreOrLess: Writer = (rng, { people }) => {
  const [a, b] = sample(rng, people, 2) as [Person, Person];
  const thing = pick(rng, THINGS);
  const x = between(rng, 0, 20);
  const y = (x + between(rng, 1, 20)) % 21;
  const rich = x > y ? a : b;
  return pick<() => string[]>(rng, [
    () => [`The number ${Math.max(x, y)} is more than ${Math.min(x, y)}.`],
    () => [`What is more, ${x} or ${y}?`, `The number ${Math.max(x, y)} is more than ${Math.min(x, y)}.`],
    () => [
      `${a.name} has ${counted(x, thing)} and ${b.name} has ${counted(y, thing)}.`,
      `Who has more ${thing}s?`,
      `${rich.name} has more ${thing}s.`,
    ],
  ])();
};

/** + means with, - means without, = stands between a thing and how many there are. */
const notes: Writer = (rng) => {
  const [first, second] = sample(rng, FOODS, 2) as [string, string];
  const [animal, other] = sample(rng, FLOCK, 2) as [string, string];
  const x = rng.int(21);
  const y = rng.int(21);
  return pick<() => string[]>(rng, [
    () => [`Note: ${animal}s = ${x}, ${other}s = ${y}.`, `${thereAre(x, animal)} and ${counted(y, other)}.`],
    () => [`Note: ${first} with ${second}: ${first} + ${second}.`],
    () => [`Note: ${first} without ${second}: ${first} - ${second}.`],
  ])();
};

const beforeAfter: Writer = (rng, { people }) => {
  const { name, subject, food, pet, job } = pick(rng, people);
  const [first, second] = sample(
    rng,
    [`eats ${food}`, `plays with ${pet.name}`, `walks to the ${job.place}`, 'walks home', 'sleeps'],
    2,
  ) as [string, string];
  const told = pick(rng, [
    `First ${name} ${first}, then ${subject} ${second}.`,
    `${name} ${first} before ${subject} ${second}.`,
    `${name} ${second} after ${subject} ${first}.`,
  ]);
  return pick(rng, [
    [told, `What does ${name} do first?`, `First ${name} ${first}.`],
    [told, `What does ${name} do then?`, `Then ${name} ${second}.`],
  ]);
};

// --- All -------------------------------------------------------------------------------------------------------------

/** How many of a hundred documents are of each kind. */
const KINDS: readonly (readonly [share: number, write: Writer])[] = [
  [19, statements],
  [23, questions],
  [24, story],
  [4, counting],
  [18, inventory],
  [5, moreOrLess],
  [3, notes],
  [4, beforeAfter],
];
/** A hundred writers, each as often as its share. */
const BY_PERCENT = KINDS.flatMap(([share, write]) => Array<Writer>(share).fill(write));

/**
 * Documents about a world, one to six sentences each, joined by spaces.
 *
 * @param world what is true
 * @param rng decides which documents come, and in which order
 * @param n how many
 * @example
 * for (const text of worldDocuments(createWorld(new Philox(7, 0)), new Philox(7, 1), 3)) console.log(text);
 */
export function* worldDocuments(world: World, rng: Rng, n: number): Generator<string, void, undefined> {
  const facts = worldFacts(world);
  const factsAbout = new Map<string, Fact[]>();
  for (const fact of facts) factsAbout.set(fact.about, [...(factsAbout.get(fact.about) ?? []), fact]);
  const source: Source = { world, people: [...world.people.values()], facts, factsAbout };
  for (let i = 0; i < n; i++) yield pick(rng, BY_PERCENT)(rng, source).join(' ');
}
