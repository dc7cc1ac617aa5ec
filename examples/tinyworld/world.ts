/**
 * A small invented world: 18 people in 6 villages, their jobs, pets, houses, friends and favourite food.
 *
 * {@link createWorld} draws the world from a random generator, {@link worldFacts} lists what is true in it (about 220
 * facts, each with its statements, its question and its answer), and `documents.ts` writes text that obeys it. A model
 * pretrained on that text can be asked the facts back, so that one can see what finetuning on a new task
 * (`arithmetic.ts`) makes it forget.
 *
 * The lists are short on purpose: every word here must fit a vocabulary of 512 tokens.
 */
import { between, pick, sample, type Rng } from './rng.js';

export interface Name {
  readonly name: string;
  readonly subject: 'she' | 'he';
  readonly object: 'her' | 'him';
  readonly possessive: 'her' | 'his';
}

const she = (name: string): Name => ({ name, subject: 'she', object: 'her', possessive: 'her' });
const he = (name: string): Name => ({ name, subject: 'he', object: 'him', possessive: 'his' });

/** An even number of them, since friends come in pairs. */
export const NAMES: readonly Name[] = [
  ...['Mia', 'Anna', 'Lily', 'Rosa', 'Nora', 'Ella', 'Ida', 'Vera', 'Emma'].map(she),
  ...['Tom', 'Ben', 'Max', 'Sam', 'Finn', 'Otto', 'Leo', 'Hugo', 'Karl'].map(he),
];

export interface Job {
  readonly name: string;
  readonly place: string;
  /** Third person: "bakes bread". */
  readonly does: string;
}

export const JOBS: readonly Job[] = [
  { name: 'baker', place: 'bakery', does: 'bakes bread' },
  { name: 'farmer', place: 'farm', does: 'grows corn' },
  { name: 'miller', place: 'mill', does: 'makes flour' },
  { name: 'potter', place: 'shop', does: 'makes cups' },
  { name: 'singer', place: 'hall', does: 'sings songs' },
  { name: 'fisher', place: 'lake', does: 'sells fish' },
];

const VILLAGES = ['Elm', 'Glen', 'Holt', 'Lund', 'Oak', 'Ross'];
const SURROUNDINGS = ['river', 'sea', 'forest', 'hill', 'road', 'moor'];
const LANDMARKS = ['bridge', 'tower', 'well', 'gate', 'tree', 'wall'];
const WEATHER = ['wet', 'dry', 'hot', 'cold'];

export const FOODS: readonly string[] = ['bread', 'soup', 'fish', 'rice', 'corn', 'cake', 'jam'];
export const COLOURS: readonly string[] = ['red', 'blue', 'green', 'white', 'black', 'grey'];
const FUR = ['white', 'black', 'grey'];
const PETS = ['cat', 'dog', 'hen', 'goat', 'pony'];
const PET_NAMES = 'Pip Dot Rex Gus Kit Tig Roo Bo Fay Lux Nip Pim Wim Zip Bub Jet Fig Sol'.split(' '); // one each

export const SEASONS: readonly string[] = ['spring', 'summer', 'autumn', 'winter'];

/** From the smallest to the biggest. */
export const ANIMALS_BY_SIZE: readonly string[] = ['mouse', 'hen', 'cat', 'dog', 'goat', 'pony', 'cow'];

export interface Village {
  readonly name: string;
  readonly near: string;
  readonly landmark: string;
  readonly weather: string;
}

export interface Pet {
  readonly name: string;
  readonly kind: string;
  readonly colour: string;
}

export interface Person extends Name {
  readonly village: Village;
  readonly job: Job;
  readonly food: string;
  readonly pet: Pet;
  readonly houseColour: string;
  /** 1 … 20 */
  readonly houseNumber: number;
  /** The name of the best friend; friendship is mutual. */
  readonly friend: string;
}

export interface World {
  readonly villages: readonly Village[];
  /** By name, in the order of {@link NAMES}. */
  readonly people: ReadonlyMap<string, Person>;
}

/**
 * Draws a world. The lists above are fixed; the generator decides who lives where, with whom and how.
 *
 * @example
 * const world = createWorld(new Philox(7, 0));
 * world.people.get('Mia')?.village.name;
 */
export function createWorld(rng: Rng): World {
  const near = sample(rng, SURROUNDINGS);
  const landmarks = sample(rng, LANDMARKS);
  const villages = VILLAGES.map((name, i) => ({
    name,
    near: near[i]!,
    landmark: landmarks[i]!,
    weather: pick(rng, WEATHER),
  }));

  const pairs = sample(rng, NAMES);
  const friendOf = new Map(pairs.map(({ name }, i) => [name, pairs[i ^ 1]!.name]));
  const petNames = sample(rng, PET_NAMES);
  const people = NAMES.map((name, i): [string, Person] => [
    name.name,
    {
      ...name,
      village: pick(rng, villages),
      job: pick(rng, JOBS),
      food: pick(rng, FOODS),
      pet: { name: petNames[i]!, kind: pick(rng, PETS), colour: pick(rng, FUR) },
      houseColour: pick(rng, COLOURS),
      houseNumber: between(rng, 1, 20),
      friend: friendOf.get(name.name)!,
    },
  ]);
  return { villages, people: new Map(people) };
}

/** The best friend of a person. */
export function friendOf(world: World, person: Person): Person {
  return world.people.get(person.friend)!;
}

/** One thing that is true in the world. */
export interface Fact {
  /** Whom or what it is about: a name, a village, a job, a season or an animal. */
  readonly about: string;
  /** Ways to say it; the first is the one that answers the question. */
  readonly statements: readonly [string, ...string[]];
  readonly question: string;
  /** One word or number of the first statement. */
  readonly answer: string;
}

/** All facts of a world, in a fixed order. */
export function worldFacts(world: World): Fact[] {
  const facts: Fact[] = [];
  const add = (about: string, question: string, answer: string, ...statements: [string, ...string[]]) =>
    facts.push({ about, statements, question, answer });

  for (const { name, village, job, food, pet, houseColour, houseNumber, friend } of world.people.values()) {
    add(
      name,
      `Where does ${name} live?`,
      village.name,
      `${name} lives in ${village.name}.`,
      `The home of ${name} is in ${village.name}.`,
    );
    add(name, `What is the job of ${name}?`, job.name, `${name} is a ${job.name}.`, `${name} works as a ${job.name}.`);
    add(
      name,
      `What does ${name} like to eat?`,
      food,
      `${name} likes to eat ${food}.`,
      `The best food for ${name} is ${food}.`,
    );
    add(name, `Who is the best friend of ${name}?`, friend, `The best friend of ${name} is ${friend}.`);
    add(name, `Which animal does ${name} have?`, pet.kind, `${name} has a ${pet.kind}.`);
    add(
      name,
      `What colour is the ${pet.kind} of ${name}?`,
      pet.colour,
      `The ${pet.kind} of ${name} is ${pet.colour}.`,
      `${name} has a ${pet.colour} ${pet.kind}.`,
    );
    add(
      name,
      `Who has a ${pet.kind} called ${pet.name}?`,
      name,
      `${name} has a ${pet.kind} called ${pet.name}.`,
      `${pet.name} is the ${pet.kind} of ${name}.`,
    );
    add(
      name,
      `What colour is the house of ${name}?`,
      houseColour,
      `The house of ${name} is ${houseColour}.`,
      `${name} has a ${houseColour} house.`,
    );
    add(
      name,
      `What number is the house of ${name}?`,
      `${houseNumber}`,
      `The house of ${name} is number ${houseNumber}.`,
    );
  }

  for (const { name, near, landmark, weather } of world.villages) {
    add(name, `What is near ${name}?`, near, `Near ${name} there is a ${near}.`, `${name} is near a ${near}.`);
    add(
      name,
      `Where is the old ${landmark}?`,
      name,
      `The old ${landmark} is in ${name}.`,
      `In ${name} there is an old ${landmark}.`,
    );
    add(name, `How is the weather in ${name}?`, weather, `It is ${weather} in ${name}.`);
  }

  for (const { name, place, does } of JOBS) {
    add(name, `Where does a ${name} work?`, place, `A ${name} works at the ${place}.`);
    add(name, `Who ${does}?`, name, `A ${name} ${does}.`, `A ${name} at the ${place} ${does}.`);
  }

  SEASONS.forEach((season, i) => {
    const next = SEASONS[(i + 1) % SEASONS.length]!;
    add(
      season,
      `What comes after ${season}?`,
      next,
      `After ${season} comes ${next}.`,
      `Before ${next} comes ${season}.`,
    );
  });

  ANIMALS_BY_SIZE.forEach((big, i) => {
    for (const small of ANIMALS_BY_SIZE.slice(0, i)) {
      // The bigger animal must not always come at the same place of the question.
      const [first, second] = (i + small.length) % 2 === 0 ? [big, small] : [small, big];
      add(
        big,
        `Which is bigger, a ${first} or a ${second}?`,
        big,
        `A ${big} is bigger than a ${small}.`,
        `A ${small} is smaller than a ${big}.`,
      );
    }
  });
  return facts;
}
