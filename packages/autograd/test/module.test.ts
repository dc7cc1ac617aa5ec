import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createWasmBackend, full, intTensor, ones, scope, setBackend, tensor } from '@milora/tensor';
import * as t from '@milora/tensor';
import type { WasmBackend } from '@milora/tensor';
import { AutogradError, Embedding, Linear, Module, RMSNorm, Variable, add, square, sum } from '@milora/autograd';

let backend: WasmBackend;
beforeAll(() => {
  backend = createWasmBackend({ threads: 1 });
  setBackend(backend);
});
afterEach(() => {
  expect(backend.memory()).toMatchObject({ liveBytes: 0, liveBuffers: 0 });
});
afterAll(() => backend.close());

class Attention extends Module {
  qProj = new Linear(ones([2, 3]));
  oProj = new Linear(ones([3, 2]), ones([3]));
}

class Layer extends Module {
  selfAttn = new Attention();
  inputLayernorm = new RMSNorm(ones([3]), 1e-5);
}

/** Property names as those of a model: camel case, arrays, a tied parameter, and things that are no parts. */
class Model extends Module {
  readonly numHiddenLayers = 2;
  readonly config = { hiddenSize: 3 };
  embedTokens = new Embedding(full([5, 3], 0.5));
  layers = [new Layer(), new Layer()];
  normScale = new Variable(ones([3]));
  lmHead = new Linear(ones([1, 1]));

  constructor() {
    super();
    this.lmHead.weight.value.dispose();
    this.lmHead.weight = this.embedTokens.weight;
  }
}

const NAMES = [
  'norm_scale',
  'embed_tokens.weight',
  'layers.0.self_attn.q_proj.weight',
  'layers.0.self_attn.o_proj.weight',
  'layers.0.self_attn.o_proj.bias',
  'layers.0.input_layernorm.weight',
  'layers.1.self_attn.q_proj.weight',
  'layers.1.self_attn.o_proj.weight',
  'layers.1.self_attn.o_proj.bias',
  'layers.1.input_layernorm.weight',
];

/** Runs `fn` with a model that is freed afterwards. */
function withModel(fn: (model: Model) => void): void {
  const model = new Model();
  try {
    fn(model);
  } finally {
    model.dispose();
  }
}

describe('names', () => {
  test('are property names in snake case, joined by dots, arrays by index; a tied parameter counts once', () => {
    withModel((model) => {
      expect([...model.namedParameters()].map(([name]) => name)).toEqual(NAMES);
      expect(model.parameters().length).toBe(NAMES.length);
      expect(new Set(model.parameters()).size).toBe(NAMES.length);
    });
  });

  test('of modules: the root is the empty path', () => {
    withModel((model) => {
      expect([...model.namedModules()].map(([name]) => name)).toEqual([
        '',
        'embed_tokens',
        ...[0, 1].flatMap((i) => [
          `layers.${i}`,
          `layers.${i}.self_attn`,
          `layers.${i}.self_attn.q_proj`,
          `layers.${i}.self_attn.o_proj`,
          `layers.${i}.input_layernorm`,
        ]),
        'lm_head',
      ]);
    });
  });

  test('are the keys of the state dict, whose tensors are the parameters themselves', () => {
    withModel((model) => {
      const state = model.stateDict();
      expect([...state.keys()]).toEqual(NAMES);
      expect(state.get('layers.1.self_attn.o_proj.bias')).toBe(model.layers[1]!.selfAttn.oProj.bias!.value);
      expect(state.get('embed_tokens.weight')).toBe(model.lmHead.weight.value);
    });
  });
});

describe('getModule and replaceModule', () => {
  test('find a module by its path', () => {
    withModel((model) => {
      expect(model.getModule('layers.1.self_attn.q_proj')).toBe(model.layers[1]!.selfAttn.qProj);
      expect(model.getModule('')).toBe(model);
    });
  });

  test.each(['layers.2', 'layers.0.selfAttn', 'layers.0.self_attn.q_proj.weight', 'nothing'])('none at %s', (path) => {
    withModel((model) => {
      expect(() => model.getModule(path)).toThrow(
        new AutogradError('module', `module: expected a module at '${path}', got none`),
      );
      expect(() => model.replaceModule(path, model.lmHead)).toThrow(expect.objectContaining({ code: 'module' }));
    });
  });

  test('put another module in the place, in its mode, and return the one before', () => {
    withModel((model) => {
      model.train();
      const before = model.layers[1]!.selfAttn.qProj;
      const next = new Linear(full([2, 3], 7));
      expect(model.replaceModule('layers.1.self_attn.q_proj', next)).toBe(before);
      expect(model.layers[1]!.selfAttn.qProj).toBe(next);
      expect(model.stateDict().get('layers.1.self_attn.q_proj.weight')).toBe(next.weight.value);
      expect(next.training).toBe(true);
      before.dispose();

      const layer = new Layer();
      const old = model.replaceModule('layers.0', layer);
      expect(model.layers[0]).toBe(layer);
      expect(layer.selfAttn.qProj.training).toBe(true);
      old.dispose();
    });
  });

  test('the root has no place to be replaced in', () => {
    withModel((model) => {
      expect(() => model.replaceModule('', model.lmHead)).toThrow(
        expect.objectContaining({
          code: 'module',
          message: "module: expected the path of a part, got ''",
        }),
      );
    });
  });
});

describe('modes', () => {
  test('train and eval reach every module', () => {
    withModel((model) => {
      const modes = (): boolean[] => [...new Set([...model.namedModules()].map(([, module]) => module.training))];
      expect(modes()).toEqual([false]);
      expect(model.train()).toBe(model);
      expect(modes()).toEqual([true]);
      model.layers[0]!.eval();
      expect([model.training, model.layers[0]!.selfAttn.training, model.layers[1]!.training]).toEqual([
        true,
        false,
        true,
      ]);
      model.eval();
      expect(modes()).toEqual([false]);
    });
  });

  test('requiresGrad freezes and unfreezes; trainable lists what is not frozen', () => {
    withModel((model) => {
      expect(model.trainable()).toEqual([]);
      model.requiresGrad(true);
      expect(model.trainable().map(([name]) => name)).toEqual(NAMES);
      model.layers[0]!.requiresGrad(false);
      expect(model.trainable().map(([name]) => name)).toEqual(NAMES.filter((name) => !name.startsWith('layers.0')));
      model.requiresGrad(false);
      expect(model.trainable()).toEqual([]);
    });
  });

  test('a module with bf16 weights cannot be unfrozen', () => {
    scope(() => {
      const layer = new Linear(t.cast(ones([2, 2]), 'bf16'));
      expect(() => layer.requiresGrad(true)).toThrow(expect.objectContaining({ code: 'dtype' }));
    });
  });

  test('zeroGrad frees all gradients', () => {
    withModel((model) => {
      model.requiresGrad(true);
      const before = backend.memory().liveBuffers;
      scope(() => {
        const h = model.embedTokens.forward(intTensor([0, 4, 4]));
        sum(square(model.layers[0]!.inputLayernorm.forward(h))).backward();
      });
      expect(
        model
          .trainable()
          .filter(([, p]) => p.grad)
          .map(([name]) => name),
      ).toEqual(['embed_tokens.weight', 'layers.0.input_layernorm.weight']);
      model.zeroGrad();
      expect(model.parameters().every((p) => p.grad === undefined)).toBe(true);
      expect(backend.memory().liveBuffers).toBe(before);
    });
  });
});

describe('layers', () => {
  test('Linear is x Wᵀ + bias', () => {
    scope(() => {
      const layer = new Linear(
        tensor([
          [1, 2],
          [3, 4],
          [5, 6],
        ]),
        tensor([10, 20, 30]),
      );
      expect([layer.inFeatures, layer.outFeatures]).toEqual([2, 3]);
      const y = layer.forward(new Variable(tensor([[[1, 1]], [[0, 2]]]))).value;
      expect([y.shape, [...y.dataSync()]]).toEqual([
        [2, 1, 3],
        [13, 27, 41, 14, 28, 42],
      ]);
      const plain = new Linear(layer.weight.value).forward(new Variable(tensor([[1, 0]]))).value;
      expect([...plain.dataSync()]).toEqual([1, 3, 5]);
    });
  });

  test('Embedding reads rows, RMSNorm divides by the root of the mean square', () => {
    scope(() => {
      const rows = new Embedding(
        tensor([
          [1, 2],
          [3, 4],
        ]),
      ).forward(intTensor([1, 0, 1], [3, 1])).value;
      expect([rows.shape, [...rows.dataSync()]]).toEqual([
        [3, 1, 2],
        [3, 4, 1, 2, 3, 4],
      ]);
      const y = new RMSNorm(tensor([1, 10]), 0).forward(new Variable(tensor([[1, 7]]))).value.dataSync();
      // √((1 + 49) / 2) = 5; one rounding each for the factor and two products
      expect(Math.abs(y[0]! - 0.2)).toBeLessThan(1e-7);
      expect(Math.abs(y[1]! - 14)).toBeLessThan(5e-6);
    });
  });

  test('a tied weight gets the gradients of both uses', () => {
    scope(() => {
      const weight = new Variable(ones([3, 2]), { requiresGrad: true });
      const embedding = new Embedding(weight.value);
      embedding.weight = weight;
      const head = new Linear(weight.value);
      head.weight = weight;
      const h = embedding.forward(intTensor([1]));
      add(sum(head.forward(h)), sum(h)).backward();
      // Σ_v w_v·w_1 + Σ w_1: each row v gets w_1, row 1 also Σ_v w_v + 1
      expect([...weight.grad!.dataSync()]).toEqual([1, 1, 5, 5, 1, 1]);
      weight.zeroGrad();
    });
  });
});
