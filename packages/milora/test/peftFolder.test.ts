import { loadModel } from '@milora/llama/node';
import { openSafetensorsFile } from '@milora/tensor/node';
import { Philox } from '@milora/tensor';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { inject } from '../src/adapter.js';
import type { AdapterConfig } from '../src/adapter.js';
import { compressPeft } from '../src/compress.js';
import { methods } from '../src/inits.js';
import type { MethodName } from '../src/inits.js';
import { loadPeftFolder, readPeftFolder, savePeftFolder } from '../src/node/adapterFolder.js';
import { writeFolderAtomic } from '../src/node/folders.js';
import { importPeft } from '../src/peft.js';
import { fingerprintModel } from '../src/provenance.js';
import { difference, logitsOf, makeFixture, writeModel } from './support/tiny.js';
import type { Fixture } from './support/tiny.js';

let fixture: Fixture;
beforeAll(async () => {
  fixture = await makeFixture();
});
afterAll(() => fixture.remove());

/** Puts an adapter on a model, moves its factors as training would, and saves it. Returns the moved model's logits. */
async function trainAndSave(
  dir: string,
  method: MethodName,
  config: AdapterConfig,
  options: { model?: string; dtype?: 'f32' | 'storage' } = {},
): Promise<Float32Array> {
  const path = options.model ?? fixture.at('model');
  const model = await loadModel(path, { dtype: options.dtype ?? 'f32' });
  const fingerprints = await fingerprintModel(model);
  const adapter = await inject(model, methods[method], config);
  const random = new Philox(9);
  for (const [, { value }] of adapter.trainable()) {
    const moved = (await value.data()) as Float32Array;
    const noise = random.normalArray(moved.length, 0, 0.05);
    value.replaceStorage(
      value.backend.upload(
        moved.map((x, i) => x + noise[i]!),
        'f32',
      ),
    );
  }
  const logits = await logitsOf(model);
  await savePeftFolder(dir, adapter, { baseModel: path, method, fingerprints });
  return logits;
}

describe('PEFT folder', () => {
  it.each(Object.keys(methods) as MethodName[])('of %s gives the same logits on the untouched base', async (method) => {
    const dir = fixture.at('adapter', method);
    const trained = await trainAndSave(dir, method, { rank: 3, alpha: 6, seed: 4 });
    const model = await loadModel(fixture.at('model'));
    expect(difference(await logitsOf(model), trained)).toBeGreaterThan(1e-3);
    await loadPeftFolder(dir, model);
    expect(difference(await logitsOf(model), trained)).toBeLessThan(1e-5);
  });

  it('does so in the offset form on a 16-bit base, however that is loaded later', async () => {
    await writeModel(fixture.at('model16'), { dtype: 'bf16' });
    const dir = fixture.at('adapter16');
    const trained = await trainAndSave(dir, 'milora', { rank: 4 }, { model: fixture.at('model16'), dtype: 'storage' });
    expect((await readPeftFolder(dir)).provenance!.form).toBe('offset');
    for (const dtype of ['storage', 'f32'] as const) {
      const model = await loadModel(fixture.at('model16'), { dtype });
      await loadPeftFolder(dir, model);
      expect(difference(await logitsOf(model), trained)).toBeLessThan(1e-5);
    }
  });

  it('doubles the rank with rsLoRA at the same scaling', async () => {
    const dir = fixture.at('rslora');
    const trained = await trainAndSave(dir, 'milora', { rank: 4, alpha: 3, useRslora: true });
    const { config } = await readPeftFolder(dir);
    expect(config.rank).toBe(8);
    expect(config.alpha).toBeCloseTo(3 * Math.SQRT2, 12);
    const model = await loadModel(fixture.at('model'));
    await loadPeftFolder(dir, model);
    expect(difference(await logitsOf(model), trained)).toBeLessThan(1e-5);
  });

  it('has the files, keys and metadata that PEFT expects', async () => {
    const dir = fixture.at('keys');
    await trainAndSave(dir, 'milora', { rank: 2, targetModules: ['q'] });
    expect((await readdir(dir)).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors', 'milora.json']);
    const file = await openSafetensorsFile(join(dir, 'adapter_model.safetensors'));
    expect(file.metadata).toEqual({ format: 'pt' });
    expect(file.names().sort()).toEqual(
      [0, 1].flatMap((i) =>
        ['A', 'B'].map((f) => `base_model.model.model.layers.${i}.self_attn.q_proj.lora_${f}.weight`),
      ),
    );
    expect(file.info('base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight')!.shape).toEqual([4, 24]);
    await file.close();
    const config = JSON.parse(await readFile(join(dir, 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
    expect(config).toMatchObject({ r: 4, lora_alpha: 4, init_lora_weights: true, target_modules: ['q_proj'] });
    const { provenance } = await readPeftFolder(dir);
    expect(provenance).toMatchObject({ method: 'milora', form: 'residual', adapter: { rank: 2 } });
    expect(provenance!.windows['model.layers.0.self_attn.q_proj']).toEqual({ from: 22, to: 24 });
    expect(Object.keys(provenance!.base.fingerprints)).toHaveLength(21);
  });

  it('is refused on another base, naming what differs, and leaves that model as it was', async () => {
    const dir = fixture.at('adapter', 'milora');
    await writeModel(fixture.at('other'), { seed: 2 });
    const model = await loadModel(fixture.at('other'));
    const before = await logitsOf(model);
    await expect(loadPeftFolder(dir, model)).rejects.toThrow(
      /expected the base model .* got a model that differs in model/,
    );
    expect(await logitsOf(model)).toEqual(before);
  });

  it('without milora.json loads all the same', async () => {
    const dir = fixture.at('foreign');
    const trained = await trainAndSave(dir, 'lora', { rank: 3 });
    await rm(join(dir, 'milora.json'));
    const model = await loadModel(fixture.at('model'));
    await loadPeftFolder(dir, model);
    expect(difference(await logitsOf(model), trained)).toBeLessThan(1e-5);
  });

  it('names a value that is not finite', async () => {
    const dir = fixture.at('nan');
    await trainAndSave(dir, 'lora', { rank: 2, targetModules: ['v'] });
    const path = join(dir, 'adapter_model.safetensors');
    const bytes = await readFile(path);
    bytes.writeFloatLE(NaN, bytes.length - 4);
    await writeFile(path, bytes);
    await expect(readPeftFolder(dir)).rejects.toThrow(/v_proj\.lora_B\.weight: expected finite values, got NaN/);
  });

  it('says what is missing', async () => {
    await expect(readPeftFolder(fixture.at('nowhere'))).rejects.toThrow(
      /nowhere: expected an adapter folder, got nothing there/,
    );
    await expect(readPeftFolder(fixture.at('model'))).rejects.toThrow(
      /expected an adapter folder with adapter_config.json, got none/,
    );
    const dir = fixture.at('pickle');
    await mkdir(dir);
    await writeFile(
      join(dir, 'adapter_config.json'),
      await readFile(fixture.at('adapter', 'lora', 'adapter_config.json')),
    );
    await writeFile(join(dir, 'adapter_model.bin'), '');
    await expect(readPeftFolder(dir)).rejects.toThrow(/got adapter_model\.bin, a pickle/);
  });
});

describe('compressPeft', () => {
  it('is exact at the rank that the change has, and says its error below', async () => {
    const dir = fixture.at('compress');
    const trained = await trainAndSave(dir, 'milora', { rank: 3, alpha: 5 });
    const folder = await readPeftFolder(dir);
    for (const rank of [6, 2]) {
      const { adapter, error } = compressPeft(folder, rank);
      const model = await loadModel(fixture.at('model'));
      await importPeft(model, adapter);
      const off = difference(await logitsOf(model), trained);
      if (rank === 6) expect(Math.max(error, off)).toBeLessThan(1e-5);
      else {
        expect(error).toBeGreaterThan(1e-3);
        expect(error).toBeLessThan(1);
        expect(off).toBeGreaterThan(1e-4);
      }
    }
    expect(() => compressPeft(folder, 7)).toThrow(/proj: expected a rank ≤ 6/);
  });
});

describe('writeFolderAtomic', () => {
  it('leaves the old folder when writing the new one fails', async () => {
    const dir = fixture.at('atomic', 'folder');
    await writeFolderAtomic(dir, (temporary) => writeFile(join(temporary, 'a'), '1'));
    await expect(
      writeFolderAtomic(dir, async (temporary) => {
        await writeFile(join(temporary, 'a'), '2');
        throw new Error('disk full');
      }),
    ).rejects.toThrow('disk full');
    expect(await readFile(join(dir, 'a'), 'utf8')).toBe('1');
    expect(await readdir(fixture.at('atomic'))).toEqual(['folder']);
    await writeFolderAtomic(dir, (temporary) => writeFile(join(temporary, 'a'), '3'));
    expect(await readFile(join(dir, 'a'), 'utf8')).toBe('3');
    expect(await readdir(fixture.at('atomic'))).toEqual(['folder']);
  });
});
