import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { add, createWasmBackend, mul, ones, scope, setBackend, tensor, tensorScope, zeros } from '../src/index.js';
import type { WasmBackend, Tensor } from '../src/index.js';

let backend: WasmBackend;
beforeAll(() => {
  backend = createWasmBackend({ threads: 1 });
  setBackend(backend);
});
afterEach(() => {
  expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
});
afterAll(() => backend.close());

const live = (): number => backend.memory().liveBuffers;
/** Frees what a test made on purpose outside of any scope. */
const free = (...tensors: Tensor[]): void => {
  for (const t of tensors) t.dispose();
};

describe('scope', () => {
  test('frees what was made inside but for the result', () => {
    let product: Tensor | undefined;
    const sum = scope(() => {
      product = mul(tensor([1, 2]), tensor([3, 4]));
      return add(product, product);
    });
    expect([...sum.dataSync()]).toEqual([6, 16]);
    expect(product!.disposed).toBe(true);
    expect(live()).toBe(1);
    free(sum);
  });

  test('the result belongs to the scope around it', () => {
    let inner: Tensor | undefined;
    scope(() => {
      inner = scope(() => scope(() => add(ones([3]), ones([3]))));
      expect([...inner.dataSync()]).toEqual([2, 2, 2]);
      expect(live()).toBe(1);
    });
    expect(inner!.disposed).toBe(true);
  });

  test('keep() takes a tensor out of all scopes', () => {
    const kept: Tensor[] = [];
    scope(() => scope(() => kept.push(ones([2]).keep(), ones([2]))));
    expect(kept.map((t) => t.disposed)).toEqual([false, true]);
    free(kept[0]!);
  });

  test('a kept tensor stays out when it is returned', () => {
    let kept: Tensor | undefined;
    scope(() => {
      kept = scope(() => ones([2]).keep());
    });
    expect(kept!.disposed).toBe(false);
    free(kept!);
  });

  test('a result of the scope around stays there', () => {
    const outer = ones([2]);
    scope(() => scope(() => outer));
    expect(outer.disposed).toBe(false);
    free(outer);

    let passed: Tensor | undefined;
    scope(() => {
      passed = ones([2]);
      scope(() => passed);
      expect(passed.disposed).toBe(false);
    });
    expect(passed!.disposed).toBe(true);
  });

  test('looks into arrays, plain objects and objects with owned()', () => {
    class Pair {
      constructor(
        readonly shown: Tensor,
        readonly hidden: Tensor,
      ) {}
      *owned(): Iterable<Tensor> {
        yield this.shown;
      }
    }
    const result = scope(() => {
      zeros([5]);
      return {
        list: [ones([1]), [ones([2])]],
        nested: { x: ones([3]) },
        pair: new Pair(ones([4]), ones([5])),
        n: 1,
        no: null,
      };
    });
    expect(live()).toBe(4);
    expect(result.pair.shown.disposed).toBe(false);
    expect(result.pair.hidden.disposed).toBe(true);
    free(result.list[0] as Tensor, (result.list[1] as Tensor[])[0]!, result.nested.x, result.pair.shown);
  });

  test('an error frees everything but what was kept, and passes through', () => {
    const boom = new Error('boom');
    let kept: Tensor | undefined;
    let inner: Tensor | undefined;
    scope(() => {
      expect(() =>
        scope(() => {
          kept = ones([1]).keep();
          ones([2]);
          throw boom;
        }),
      ).toThrow(boom);
      expect(live()).toBe(1);
      // the scope around is the innermost again
      inner = ones([3]);
    });
    expect(inner!.disposed).toBe(true);
    free(kept!);
  });

  test('an async function keeps its scope open until it settles', async () => {
    let product: Tensor | undefined;
    const sum = await scope(async () => {
      product = mul(tensor([2]), tensor([3]));
      await new Promise((done) => setTimeout(done, 1));
      expect(product.disposed).toBe(false);
      const data = await product.data();
      return { y: tensor([data[0]! + 1]) };
    });
    expect(product!.disposed).toBe(true);
    expect([...sum.y.dataSync()]).toEqual([7]);
    expect(live()).toBe(1);
    free(sum.y);
  });

  test('a rejected promise frees everything and stays rejected', async () => {
    await expect(
      scope(async () => {
        ones([1]);
        await Promise.resolve();
        ones([2]);
        throw new Error('late');
      }),
    ).rejects.toThrow('late');
    expect(live()).toBe(0);
  });

  test('async scopes nest', async () => {
    let inner: Tensor | undefined;
    await scope(async () => {
      const before = ones([1]);
      inner = await scope(async () => {
        await Promise.resolve();
        return scope(() => add(ones([1]), before));
      });
      expect(live()).toBe(2);
      expect([...inner.dataSync()]).toEqual([2]);
    });
    expect(inner!.disposed).toBe(true);
  });
});

describe('using tensorScope()', () => {
  test('frees what the block made', () => {
    let inside: Tensor | undefined;
    let kept: Tensor | undefined;
    {
      using _here = tensorScope();
      inside = ones([2]);
      kept = add(inside, inside).keep();
      expect(live()).toBe(2);
    }
    expect(inside.disposed).toBe(true);
    expect([...kept.dataSync()]).toEqual([2, 2]);
    free(kept);
  });

  test('also when the block throws', () => {
    expect(() => {
      using _here = tensorScope();
      ones([2]);
      throw new Error('boom');
    }).toThrow('boom');
    expect(live()).toBe(0);
  });

  test('using a tensor frees it alone', () => {
    {
      using x = ones([2]);
      expect(x.size).toBe(2);
    }
    expect(live()).toBe(0);
  });

  test('closing twice is refused', () => {
    const here = tensorScope();
    here[Symbol.dispose]();
    expect(() => here[Symbol.dispose]()).toThrow(
      expect.objectContaining({
        code: 'scope',
        message: 'scope: expected an open scope, got one that was closed before',
      }),
    );
  });
});

describe('memory', () => {
  test('a reshape shares it; the last of them frees it', () => {
    const x = tensor([1, 2, 3, 4]);
    const y = x.reshape(2, 2);
    const z = y.reshape(4, 1);
    expect([x.shared, live()]).toEqual([true, 1]);
    free(x, z);
    expect(y.shared).toBe(false);
    expect([...y.dataSync()]).toEqual([1, 2, 3, 4]);
    free(y);
    expect(live()).toBe(0);
  });

  test('a reshape that is returned keeps the memory of the tensor that is not', () => {
    const y = scope(() => tensor([1, 2]).reshape(2, 1));
    expect([...y.dataSync()]).toEqual([1, 2]);
    expect(y.shared).toBe(false);
    free(y);
  });

  test('disposing twice is harmless, before and after the end of a scope', () => {
    const [x, y] = [ones([2]), ones([3])];
    x.dispose();
    x.dispose();
    expect(live()).toBe(1);
    const result = scope(() => {
      const gone = ones([4]);
      gone.dispose();
      return gone;
    });
    result.dispose();
    expect(live()).toBe(1);
    free(y);
  });

  test('comes back to the same bytes after every step of a loop', () => {
    const state = ones([100]);
    const before = backend.memory();
    for (let step = 0; step < 50; step++) {
      scope(() => {
        const y = mul(add(state, tensor(step)), state).reshape(10, 10);
        return add(y, y).dataSync();
      });
      expect(backend.memory().liveBytes).toBe(before.liveBytes);
      expect(backend.memory().reservedBytes).toBe(before.reservedBytes);
    }
    free(state);
  });

  test('peakBytes remembers the most that lived at once', () => {
    backend.resetPeak();
    scope(() => {
      const x = ones([16]);
      scope(() => void [ones([16]), ones([16])]);
      return void x;
    });
    expect(backend.memory().peakBytes).toBe(3 * 64);
  });

  test('a tensor that was lost is freed once it is garbage', async () => {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const [kept] = [tensor([1, 2])].map((x) => {
      const view = x.reshape(2, 1);
      x.dispose();
      return view;
    });
    (() => void [ones([1000]), ones([1000]).reshape(10, 100)])();
    expect(live()).toBe(3);
    for (let i = 0; i < 200 && live() > 1; i++) {
      collect();
      await new Promise((done) => setTimeout(done, 10));
    }
    // a view lives on when the tensor it came from, freed long ago, is collected
    expect(live()).toBe(1);
    expect([...kept!.dataSync()]).toEqual([1, 2]);
    free(kept!);
  });
});

// ---- random programs against a model ----

type Action =
  | { kind: 'make' }
  | { kind: 'reshape' | 'dispose' | 'keep'; pick: number }
  | { kind: 'scope'; body: Action[]; returned: number[]; throws: boolean };

const { program } = fc.letrec<{ action: Action; program: Action[] }>((tie) => ({
  action: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.constant<Action>({ kind: 'make' }),
    fc.record({ kind: fc.constantFrom('reshape', 'dispose', 'keep'), pick: fc.nat(1000) }) as fc.Arbitrary<Action>,
    fc.record({
      kind: fc.constant('scope' as const),
      body: tie('program'),
      returned: fc.array(fc.nat(1000), { maxLength: 3 }),
      throws: fc.boolean(),
    }),
  ),
  program: fc.array(tie('action'), { maxLength: 8 }),
}));

/** What a tensor should be: its memory, and the scope it belongs to. */
interface Model {
  real: Tensor;
  memory: { users: number };
  owner: object | undefined;
  dead: boolean;
}

test('random programs of nested scopes free exactly what they should', () => {
  fc.assert(
    fc.property(program, (actions) => {
      const all: Model[] = [];
      const blocks: { users: number }[] = [];
      const scopes: object[] = [];
      const pick = (n: number): Model | undefined => all[n % Math.max(1, all.length)];
      const born = (real: Tensor, memory: { users: number }): void => {
        memory.users++;
        all.push({ real, memory, owner: scopes.at(-1), dead: false });
      };
      const die = (m: Model): void => {
        if (m.dead) return;
        m.dead = true;
        m.owner = undefined;
        m.memory.users--;
      };
      const compare = (): void => {
        expect(live()).toBe(blocks.filter((block) => block.users > 0).length);
        for (const m of all) if (m.real.disposed !== m.dead) throw new Error(`expected disposed ${m.dead}`);
      };
      const run = (action: Action): void => {
        if (action.kind === 'make') {
          const memory = { users: 0 };
          blocks.push(memory);
          born(ones([4]), memory);
        } else if (action.kind === 'scope') {
          const me = {};
          const returned: Model[] = [];
          const inside = (): Tensor[] => {
            scopes.push(me);
            action.body.forEach(run);
            if (action.throws) throw new Error('thrown');
            returned.push(...action.returned.map(pick).filter((m) => m !== undefined));
            return returned.map((m) => m.real);
          };
          if (action.throws) expect(() => scope(inside)).toThrow('thrown');
          else scope(inside);
          scopes.pop();
          for (const m of returned) if (m.owner === me) m.owner = scopes.at(-1);
          for (const m of all) if (m.owner === me) die(m);
        } else {
          const m = pick(action.pick);
          if (!m) return;
          if (action.kind === 'dispose') {
            m.real.dispose();
            die(m);
          } else if (action.kind === 'keep') {
            m.real.keep();
            m.owner = undefined;
          } else if (!m.dead) {
            born(m.real.reshape(2, 2), m.memory);
          }
        }
        compare();
      };
      try {
        actions.forEach(run);
      } finally {
        free(...all.map((m) => m.real));
      }
    }),
    { numRuns: 500 },
  );
});
