/**
 * Compares this engine with golden values from PyTorch: `npm run -s golden -- DIR…` prints one JSON line per check,
 * `{case, check, backend, error, limit, ok}`, and exits with 1 if any is not ok.
 *
 * A path is one of
 * - a Hugging Face folder with `golden.safetensors` (input_ids, labels, attention_mask, logits, loss, grad.*, generate.*);
 * - an adapters folder with `trajectories.json`, one PEFT folder per method, and its base model as a sibling folder;
 * - a safetensors file of matrices with `<name>.singular_values_f64`;
 * - any folder that holds such things.
 */
import { AdamW, noGrad } from '@milora/autograd';
import { generate } from '@milora/llama';
import type { LlamaForCausalLM, LlamaInput } from '@milora/llama';
import { loadModel } from '@milora/llama/node';
import { convertHost, createWasmBackend, scope, svd } from '@milora/tensor';
import type { Backend, HostTensor } from '@milora/tensor';
import { createGpuBackend } from '@milora/tensor/gpu';
import { openSafetensorsFile } from '@milora/tensor/node';
import { factorsInit, inject, methods, parsePeftConfig, peftFactors } from 'milora';
import type { Adapter, Init, MethodName } from 'milora';
import { existsSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

interface Check {
  case: string;
  check: string;
  backend: string;
  error: number;
  limit: number;
  ok: boolean;
}

type Report = (check: string, error: number, limit: number) => void;

/** Largest |a − b|, relative to the largest |b| (or absolute where b is zero). */
function worst(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) return Infinity;
  let [difference, scale] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (!(d <= difference)) difference = d;
    scale = Math.max(scale, Math.abs(b[i]!));
  }
  return Number.isNaN(difference) ? Infinity : difference / (scale || 1);
}

const numbers = ({ data, dtype }: HostTensor): Float64Array => convertHost(data, dtype, 'f64');

/** The golden tensors of a file, by name. */
async function golden(path: string): Promise<Map<string, HostTensor>> {
  const source = await openSafetensorsFile(path);
  const tensors = new Map<string, HostTensor>();
  for (const name of source.names()) tensors.set(name, await source.read(name));
  await source.close();
  return tensors;
}

function valuesOf(tensors: ReadonlyMap<string, HostTensor>, name: string): Float64Array {
  const tensor = tensors.get(name);
  if (!tensor)
    throw new Error(`golden values: expected a tensor '${name}', got ${[...tensors.keys()].slice(0, 8).join(', ')}, …`);
  return numbers(tensor);
}

interface GoldenBatch {
  input: LlamaInput;
  labels: Float64Array;
}

function goldenBatch(tensors: ReadonlyMap<string, HostTensor>): GoldenBatch {
  const inputIds = valuesOf(tensors, 'input_ids');
  const [batch, length] = tensors.get('input_ids')!.shape as [number, number];
  return {
    input: { inputIds, batch, length, attentionMask: valuesOf(tensors, 'attention_mask') },
    labels: valuesOf(tensors, 'labels'),
  };
}

/**
 * Loads a model as the golden values were made: the script cast 16-bit models as a whole, rotary frequencies included
 * (see `LlamaConfig.ropeFrequencyDtype`), and computed in float32.
 */
function loadGolden(folder: string, backend: Backend): Promise<LlamaForCausalLM> {
  const config = readJson(join(folder, 'config.json')) as { dtype?: string; torch_dtype?: string };
  const cast = (config.dtype ?? config.torch_dtype) === 'bfloat16';
  return loadModel(folder, { backend, ropeFrequencyDtype: cast ? 'bf16' : 'f32' });
}

const logitsOf = (model: LlamaForCausalLM, input: LlamaInput): Promise<Float64Array> =>
  scope(async () => Float64Array.from(await noGrad(() => model.forward(input)).value.data()));

/** A model folder: logits, loss, every gradient, greedy generation with and without cache. */
async function checkModel(folder: string, backend: Backend, report: Report): Promise<void> {
  const values = await golden(join(folder, 'golden.safetensors'));
  const read = (name: string): Float64Array => valuesOf(values, name);
  const model = await loadGolden(folder, backend);
  const { input, labels } = goldenBatch(values);
  report('logits', worst(await logitsOf(model, input), read('logits')), 2e-5);

  model.requiresGrad(true);
  const loss = await scope(async () => {
    const value = model.loss(input, labels);
    value.backward();
    return value.item();
  });
  const expected = read('loss')[0]!;
  report('loss', Math.abs(loss - expected) / Math.abs(expected), 1e-6);
  const parameters = new Map(model.namedParameters());
  for (const name of [...values.keys()].filter((key) => key.startsWith('grad.'))) {
    const gradient = parameters.get(name.slice('grad.'.length))?.grad;
    report(name, gradient ? worst(await gradient.data(), read(name)) : Infinity, 1e-4);
  }
  model.zeroGrad();

  const prompt = [...read('generate.prompt')];
  const greedy = [...read('generate.greedy')];
  for (const useCache of [true, false]) {
    const ids = [...prompt];
    const maxNewTokens = greedy.length - prompt.length;
    for await (const id of generate(model, prompt, { maxNewTokens, stopIds: [], useCache })) ids.push(id);
    const wrong = greedy.filter((id, i) => ids[i] !== id).length + Math.abs(ids.length - greedy.length);
    report(useCache ? 'greedy tokens' : 'greedy tokens without cache', wrong, 0);
  }
  model.dispose();
}

interface Trajectories {
  base_model: string;
  rank: number;
  target_modules: string[];
  optimizer: string;
  losses_before_each_step: Record<string, number[]>;
}

/** Reads "AdamW lr=… betas=(…,…) eps=… weight_decay=…; lr(s) = lr*(s+1)/W for s<W else lr*(N-s)/(N−W), …". */
function parseOptimizer(text: string): {
  options: { lr: number; betas: [number, number]; eps: number; weightDecay: number };
  rate: (step: number) => number;
} {
  const number = (pattern: RegExp): number => {
    const found = pattern.exec(text);
    if (!found) throw new Error(`trajectories.json: expected an optimizer with ${String(pattern)}, got "${text}"`);
    return Number(found[1]);
  };
  const lr = number(/\blr=([\d.e-]+)/);
  const warmup = number(/lr\*\(s\+1\)\/(\d+)/);
  const total = number(/lr\*\((\d+)-s\)/);
  const fall = number(/lr\*\(\d+-s\)\/(\d+)/);
  return {
    options: {
      lr,
      betas: [number(/betas=\(([\d.]+)/), number(/betas=\([\d.]+,\s*([\d.]+)\)/)],
      eps: number(/eps=([\d.e-]+)/),
      weightDecay: number(/weight_decay=([\d.e-]+)/),
    },
    rate: (s) => (s < warmup ? (lr * (s + 1)) / warmup : (lr * (total - s)) / fall),
  };
}

/** The losses before each of the steps, with the golden optimiser and schedule. */
async function trajectory(
  model: LlamaForCausalLM,
  { input, labels }: GoldenBatch,
  text: string,
  steps: number,
): Promise<number[]> {
  const { options, rate } = parseOptimizer(text);
  const optimizer = new AdamW(model.trainable(), options);
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const loss = await scope(async () => {
      const value = model.loss(input, labels);
      value.backward();
      optimizer.lr = rate(step);
      optimizer.step();
      optimizer.zeroGrad();
      return value.item();
    });
    losses.push(loss);
  }
  optimizer.dispose();
  return losses;
}

const relative = (a: readonly number[], b: readonly number[]): number =>
  a.length === b.length ? Math.max(...b.map((x, i) => Math.abs(a[i]! - x) / Math.abs(x))) : Infinity;

/** One method of an adapters folder, from the stored start and from our own. */
async function checkAdapter(folder: string, method: string, backend: Backend, report: Report): Promise<void> {
  const { base_model, optimizer, losses_before_each_step } = readJson(
    join(folder, 'trajectories.json'),
  ) as Trajectories;
  const basePath = join(dirname(folder), base_model);
  const values = await golden(join(folder, method, 'golden.safetensors'));
  const read = (name: string): Float64Array => valuesOf(values, name);
  // the batch stands with the method's golden values, or with the base model's
  const batch = goldenBatch(values.has('input_ids') ? values : await golden(join(basePath, 'golden.safetensors')));
  const configPath = join(folder, method, 'adapter_config.json');
  const config = parsePeftConfig(readFileSync(configPath, 'utf8'), configPath);
  const losses = losses_before_each_step[method]!;
  const splits = method !== 'lora';
  const start = async (init: (model: LlamaForCausalLM) => Promise<Init>): Promise<[LlamaForCausalLM, Adapter]> => {
    const model = await loadGolden(basePath, backend);
    const { rank, alpha, targetModules, rankPattern, alphaPattern, useRslora } = config;
    const settings = { rank, alpha, targetModules, rankPattern, alphaPattern, useRslora };
    return [model, await inject(model, await init(model), settings)];
  };

  const [model, adapter] = await start(async (base) => {
    const tensors = await golden(join(folder, method, 'adapter_model.safetensors'));
    return factorsInit(peftFactors(base, { config, tensors }), splits);
  });
  report('logits at init', worst(await logitsOf(model, batch.input), read('logits_at_init')), 2e-5);
  for (const [path, layer] of adapter.layers) {
    const name = `residual.${path}`;
    if (values.has(name)) report(name, worst(await layer.weight.value.data(), read(name)), 1e-5);
  }
  report('losses', relative(await trajectory(model, batch, optimizer, losses.length), losses), 2e-5);
  const trained = await logitsOf(model, batch.input);
  report('logits after the steps', worst(trained, read('logits_after_40_steps')), 1e-3);
  adapter.merge();
  const merged = await logitsOf(model, batch.input);
  report('merged against unmerged', worst(merged, trained), 2e-5);
  report('merged logits', worst(merged, read('logits_merged')), 1e-3);
  adapter.unload();
  model.dispose();

  if (splits && method in methods) {
    const [own, ownAdapter] = await start(() => Promise.resolve(methods[method as MethodName]));
    report('logits at our init', worst(await logitsOf(own, batch.input), read('logits_at_init')), 2e-5);
    report('losses from our init', relative(await trajectory(own, batch, optimizer, losses.length), losses), 1e-3);
    ownAdapter.unload();
    own.dispose();
  }
}

/** Every matrix of a file: singular values, reconstruction, orthogonality. */
async function checkSvd(path: string, backend: Backend, report: (name: string) => Report): Promise<void> {
  const values = await golden(path);
  for (const [name, a] of values) {
    const expected = values.get(`${name}.singular_values_f64`)?.data;
    if (!expected) continue;
    const [m, n] = a.shape as [number, number];
    const k = Math.min(m, n);
    const decomposition = await svd(a, { backend });
    const { s } = decomposition;
    const [u, vt] = [decomposition.u.data, decomposition.vt.data];
    const check = report(name);
    check('singular values', worst(s, expected), 1e-6);
    const product = new Float64Array(m * n);
    for (let i = 0; i < m; i++)
      for (let d = 0; d < k; d++) {
        const f = u[i * k + d]! * s[d]!;
        for (let j = 0; j < n; j++) product[i * n + j]! += f * vt[d * n + j]!;
      }
    check('reconstruction', worst(product, numbers(a)), 1e-5);
    let orthogonality = 0;
    for (let p = 0; p < k; p++)
      for (let q = 0; q <= p; q++) {
        let [left, right] = [0, 0];
        for (let i = 0; i < m; i++) left += u[i * k + p]! * u[i * k + q]!;
        for (let j = 0; j < n; j++) right += vt[p * n + j]! * vt[q * n + j]!;
        const target = p === q ? 1 : 0;
        orthogonality = Math.max(orthogonality, Math.abs(left - target), Math.abs(right - target));
      }
    check('orthogonality', orthogonality, 1e-5);
  }
}

const readJson = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'));

/** What a path holds, as functions that check it on one backend. */
async function* casesOf(
  path: string,
): AsyncGenerator<[name: string, run: (backend: Backend, emit: Emit) => Promise<void>]> {
  if (statSync(path).isFile()) {
    const name = basename(path, '.safetensors');
    yield [name, (backend, emit) => checkSvd(path, backend, (matrix) => emit(`${name}/${matrix}`))];
  } else if (existsSync(join(path, 'trajectories.json'))) {
    const { losses_before_each_step } = readJson(join(path, 'trajectories.json')) as Trajectories;
    for (const method of Object.keys(losses_before_each_step)) {
      const name = `${basename(path)}/${method}`;
      yield [name, (backend, emit) => checkAdapter(path, method, backend, emit(name))];
    }
  } else if (existsSync(join(path, 'config.json')) && existsSync(join(path, 'golden.safetensors'))) {
    yield [basename(path), (backend, emit) => checkModel(path, backend, emit(basename(path)))];
  } else {
    let found = false;
    for (const entry of readdirSync(path).sort()) {
      const below = join(path, entry);
      if (!statSync(below).isDirectory() && !(await isSvdFile(below))) continue;
      for await (const inner of casesOf(below)) {
        found = true;
        yield inner;
      }
    }
    if (!found) throw new Error(`${path}: expected a folder with golden values (see bench/README.md), got none`);
  }
}

async function isSvdFile(path: string): Promise<boolean> {
  if (!path.endsWith('.safetensors')) return false;
  const source = await openSafetensorsFile(path);
  const found = source.names().some((name) => name.endsWith('.singular_values_f64'));
  await source.close();
  return found;
}

type Emit = (name: string) => Report;

const BACKENDS: Record<string, (threads: number) => Backend> = {
  wasm: (threads) => createWasmBackend({ threads }),
  'wasm-strict': (threads) => createWasmBackend({ threads, build: 'strict' }),
  'gpu/cpu': () => createGpuBackend('cpu'),
  'gpu/webasm': () => createGpuBackend('webasm'),
};

/** Runs all checks of the paths on the backends and hands each to `emit`. Returns whether all are ok. */
export async function runGolden(
  paths: readonly string[],
  backends: readonly string[],
  threads: number,
  emit: (check: Check) => void,
): Promise<boolean> {
  let allOk = true;
  for (const path of paths) {
    for await (const [, run] of casesOf(resolve(path))) {
      for (const name of backends) {
        const make = BACKENDS[name];
        if (!make) throw new Error(`--backend: expected ${Object.keys(BACKENDS).join(', ')}, got ${name}`);
        await run(make(threads), (of) => (check, error, limit) => {
          const ok = error <= limit;
          allOk &&= ok;
          emit({ case: of, check, backend: name, error, limit, ok });
        });
      }
    }
  }
  return allOk;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { backend: { type: 'string' }, threads: { type: 'string', default: '2' } },
  });
  if (positionals.length === 0) throw new Error('golden: expected at least one folder or file, got none');
  const backends = values.backend?.split(',') ?? ['wasm', 'gpu/cpu', 'gpu/webasm'];
  const ok = await runGolden(positionals, backends, Number(values.threads), (check) =>
    console.log(JSON.stringify(check)),
  );
  process.exitCode = ok ? 0 : 1;
}

if (process.argv[1] && /golden\.(m?js|ts)$/.test(process.argv[1])) {
  main().catch((error: unknown) => {
    console.error(`golden: ${(error as Error).message}`);
    process.exitCode = 1;
  });
}
