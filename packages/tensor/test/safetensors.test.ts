import fc from 'fast-check';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { allocHost, bytesPerElement, type DType } from '../src/dtype.js';
import { TensorError } from '../src/errors.js';
import { sizeOf, type ByteSource, type HostTensor } from '../src/host.js';
import {
  fileSource,
  openSafetensorsFile,
  openSafetensorsFolder,
  writeFileAtomic,
  writeSafetensors,
} from '../src/node.js';
import { Philox } from '../src/random.js';
import { bytesSource, encodeSafetensors, openSafetensors, openShardedSafetensors } from '../src/safetensors.js';

const fixture = fileURLToPath(new URL('./fixtures/svd.safetensors', import.meta.url));

function join8(chunks: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(chunks));
}

/** A file with this header text and data, whatever they hold. */
function file(header: string | Uint8Array, data: Uint8Array | number = 0, headerLength?: bigint): Uint8Array {
  const text = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const start = new Uint8Array(8);
  new DataView(start.buffer).setBigUint64(0, headerLength ?? BigInt(text.length), true);
  return join8([start, text, typeof data === 'number' ? new Uint8Array(data) : data]);
}

const open = (bytes: Uint8Array) => openSafetensors(bytesSource('test.safetensors', bytes));

const failure = (code: string, message: RegExp | string) =>
  expect.objectContaining({ constructor: TensorError, code, message: expect.stringMatching(message) });

const bytesOf = ({ data }: HostTensor) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** Tensors of every dtype, with any bits (NaN payloads too), empty ones and scalars. */
const hostTensors: fc.Arbitrary<HostTensor> = fc
  .record({
    dtype: fc.constantFrom<DType>('f32', 'f64', 'i32', 'bf16', 'f16'),
    shape: fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }),
    seed: fc.integer({ min: 0, max: 2 ** 32 }),
  })
  .map(({ dtype, shape, seed }) => {
    const data = allocHost(dtype, sizeOf(shape));
    const words = Int32Array.from({ length: Math.ceil(data.byteLength / 4) }, seededWords(seed));
    new Uint8Array(data.buffer).set(new Uint8Array(words.buffer).subarray(0, data.byteLength));
    return { dtype, shape, data };
  });

function seededWords(seed: number): () => number {
  const random = new Philox(seed);
  return () => random.uint32();
}

const names = fc.oneof(
  fc.string({ unit: 'grapheme' }),
  fc.constantFrom('__proto__', 'constructor', '1', '0', 'a"b\\', '{[:'),
);
const checkpoints = fc.record({
  tensors: fc.uniqueArray(
    fc.tuple(
      names.filter((name) => name !== '__metadata__'),
      hostTensors,
    ),
    {
      selector: ([name]) => name,
      maxLength: 6,
    },
  ),
  metadata: fc.option(fc.dictionary(fc.string(), fc.string(), { maxKeys: 3 }), { nil: undefined }),
});

describe('encodeSafetensors and openSafetensors', () => {
  it('give back what was written', async () => {
    await fc.assert(
      fc.asyncProperty(checkpoints, async ({ tensors, metadata }) => {
        const read = await open(join8(encodeSafetensors(tensors, metadata)));
        expect({ ...read.metadata }).toEqual({ ...metadata });
        expect(read.names().sort()).toEqual(tensors.map(([name]) => name).sort());
        for (const [name, tensor] of tensors) {
          expect(read.info(name)).toEqual({ dtype: tensor.dtype, shape: tensor.shape });
          const back = await read.read(name);
          expect([back.dtype, back.shape, back.data.constructor]).toEqual([
            tensor.dtype,
            tensor.shape,
            tensor.data.constructor,
          ]);
          expect(Buffer.compare(bytesOf(back), bytesOf(tensor))).toBe(0);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('write, byte for byte, what the reference implementation does', async () => {
    const original = new Uint8Array(await readFile(fixture));
    const source = await open(original);
    const tensors = await Promise.all(source.names().map(async (name) => [name, await source.read(name)] as const));
    expect(Buffer.compare(join8(encodeSafetensors(tensors.reverse())), original)).toBe(0);
  });

  it('align the data to 8 bytes and put the metadata first', () => {
    const f32 = { dtype: 'f32', shape: [1], data: Float32Array.of(1) } as const;
    const [header] = encodeSafetensors([['w', f32]], { format: 'pt' });
    expect(header!.length % 8).toBe(0);
    expect(new TextDecoder().decode(header!.subarray(8)).trimEnd()).toBe(
      '{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    );
  });

  it('read only the bytes of the tensor asked for, wherever they lie in memory', async () => {
    const tensors: [string, HostTensor][] = [
      ['a', { dtype: 'f64', shape: [2], data: Float64Array.of(1, 2) }],
      ['b', { dtype: 'f16', shape: [3], data: Uint16Array.of(1, 2, 3) }],
    ];
    const bytes = join8(encodeSafetensors(tensors));
    const ranges: [number, number][] = [];
    const shifted: ByteSource = {
      name: 'shifted',
      size: bytes.length,
      read: async (offset, length) => {
        ranges.push([offset, length]);
        const unaligned = new Uint8Array(length + 1);
        unaligned.set(bytes.subarray(offset, offset + length), 1);
        return unaligned.subarray(1);
      },
    };
    const source = await openSafetensors(shifted);
    ranges.length = 0;
    expect((await source.read('b')).data).toEqual(Uint16Array.of(1, 2, 3));
    expect((await source.read('a')).data).toEqual(Float64Array.of(1, 2));
    expect(ranges).toEqual([
      [bytes.length - 6, 6],
      [bytes.length - 22, 16],
    ]);
  });

  it('give tensors that own their memory', async () => {
    const bytes = join8(encodeSafetensors([['w', { dtype: 'i32', shape: [1], data: Int32Array.of(7) }]]));
    const { data } = await (await open(bytes)).read('w');
    data[0] = 8;
    expect((await (await open(bytes)).read('w')).data).toEqual(Int32Array.of(7));
  });

  it('read I64 as i32 where it fits', async () => {
    const header = '{"ids":{"dtype":"I64","shape":[3],"data_offsets":[0,24]}}';
    const data = (values: bigint[]) => new Uint8Array(BigInt64Array.from(values).buffer);
    const fits = await open(file(header, data([-(2n ** 31n), -1n, 2n ** 31n - 1n])));
    expect(fits.info('ids')).toEqual({ dtype: 'i32', shape: [3] });
    expect(await fits.read('ids')).toEqual({
      dtype: 'i32',
      shape: [3],
      data: Int32Array.of(-(2 ** 31), -1, 2 ** 31 - 1),
    });
    for (const tooLarge of [2n ** 31n, -(2n ** 31n) - 1n, 2n ** 62n + 5n]) {
      await expect((await open(file(header, data([0n, tooLarge, 0n])))).read('ids')).rejects.toThrow(
        failure('safetensors-dtype', `got ${tooLarge} at element 1`),
      );
    }
  });

  it('list tensors of other dtypes and refuse to read them', async () => {
    const source = await open(
      file(
        '{"mask":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},"x":{"dtype":"NEW9","shape":[4],"data_offsets":[3,5]},"q":{"dtype":"F4","shape":[3,2],"data_offsets":[5,8]}}',
        8,
      ),
    );
    expect(source.names()).toEqual(['mask', 'x', 'q']);
    expect(source.entries[0]).toMatchObject({ dtype: 'BOOL', shape: [3], byteLength: 3 });
    for (const [name, dtype] of [
      ['mask', 'BOOL'],
      ['x', 'NEW9'],
      ['q', 'F4'],
    ] as const) {
      const error = failure('safetensors-dtype', `"${name}": expected one of F64, .* got ${dtype}`);
      await expect(source.read(name)).rejects.toThrow(error);
      expect(() => source.info(name)).toThrow(error);
    }
  });

  it('suggest the nearest names when a tensor is missing', async () => {
    const scalar: HostTensor = { dtype: 'f32', shape: [], data: Float32Array.of(1) };
    const q = 'model.layers.0.self_attn.q_proj.weight';
    const source = await open(
      join8(
        encodeSafetensors([
          [q, scalar],
          ['lm_head.weight', scalar],
        ]),
      ),
    );
    expect(source.info('x')).toBeUndefined();
    await expect(source.read('layers.0.self_attn.q_proj.weight')).rejects.toThrow(
      failure(
        'safetensors-missing',
        /^test\.safetensors: expected tensor "layers\.0\.self_attn\.q_proj\.weight".*nearest are "model\.layers\.0/,
      ),
    );
    await expect(source.read('x')).rejects.toThrow(failure('safetensors-missing', /none of that name$/));
  });

  it('refuse to encode what could not be read back', () => {
    const w: HostTensor = { dtype: 'f32', shape: [2], data: new Float32Array(2) };
    const encode =
      (...tensors: [string, HostTensor][]) =>
      () =>
        encodeSafetensors(tensors);
    expect(encode(['w', w], ['w', w])).toThrow(failure('safetensors-encode', '"w": expected each name once'));
    expect(encode(['__metadata__', w])).toThrow('reserved');
    expect(encode(['w', { ...w, shape: [3] }])).toThrow('expected 3 elements of shape [3], got 2');
    expect(encode(['w', { ...w, dtype: 'i32' }])).toThrow('expected i32 data in a Int32Array, got a Float32Array');
    expect(encode(['w', { ...w, shape: [-1, -2] }])).toThrow('whole numbers');
    expect(() => encodeSafetensors([], { n: 1 } as never)).toThrow('metadata of strings');
  });
});

describe('malformed files', () => {
  const f32 = (shape: string, offsets: string, name = 'w') =>
    `"${name}":{"dtype":"F32","shape":${shape},"data_offsets":${offsets}}`;

  const cases: [string, Uint8Array, string, RegExp][] = [
    ['an empty file', new Uint8Array(0), 'safetensors-truncated', /expected the 8 bytes/],
    ['a file of 7 bytes', new Uint8Array(7), 'safetensors-truncated', /a file of 7/],
    [
      'a header longer than the file',
      file('{}', 0, 3n),
      'safetensors-truncated',
      /header of 3 bytes, got a file of 10/,
    ],
    ['a header of 100 MB and more', file('{}', 0, 100_000_001n), 'safetensors-header', /100000001 bytes/],
    ['a header length near 2^64', file('{}', 0, 2n ** 64n - 1n), 'safetensors-header', /at most 100 MB/],
    ['no header', file(''), 'safetensors-header', /JSON/],
    ['no JSON', file('{"w":'), 'safetensors-header', /expected JSON/],
    ['no UTF-8', file(Uint8Array.of(0x7b, 0xff, 0x7d)), 'safetensors-header', /UTF-8/],
    ['a byte order mark', file('\ufeff{}'), 'safetensors-header', /JSON/],
    ['spaces first', file(' {}'), 'safetensors-header', /begin with \{/],
    ['an array', file('[]'), 'safetensors-header', /begin with \{/],
    ['null', file('null'), 'safetensors-header', /begin with \{/],
    ['an entry that is a number', file('{"w":1}'), 'safetensors-header', /"w": expected dtype, shape/],
    ['an entry that is null', file('{"w":null}'), 'safetensors-header', /"w".*got null/],
    ['no dtype', file('{"w":{"shape":[1],"data_offsets":[0,4]}}', 4), 'safetensors-header', /"w"/],
    ['a negative dimension', file(`{${f32('[-1]', '[0,4]')}}`, 4), 'safetensors-header', /"w"/],
    ['a fractional dimension', file(`{${f32('[0.5]', '[0,2]')}}`, 2), 'safetensors-header', /"w"/],
    ['a shape that is no array', file(`{${f32('1', '[0,4]')}}`, 4), 'safetensors-header', /"w"/],
    ['three offsets', file(`{${f32('[1]', '[0,4,4]')}}`, 4), 'safetensors-header', /"w"/],
    ['negative offsets', file(`{${f32('[1]', '[-4,0]')}}`, 4), 'safetensors-header', /"w"/],
    ['reversed offsets', file(`{${f32('[1]', '[4,0]')}}`, 4), 'safetensors-layout', /"w": expected 4 bytes/],
    ['offsets beyond the file', file(`{${f32('[2]', '[0,8]')}}`, 4), 'safetensors-truncated', /end of tensor "w"/],
    [
      'a size that is not the shape’s',
      file(`{${f32('[3]', '[0,8]')}}`, 8),
      'safetensors-layout',
      /12 bytes for F32 of shape \[3\]/,
    ],
    [
      'a shape whose size overflows',
      file(`{${f32('[9007199254740991,9007199254740991]', '[0,8]')}}`, 8),
      'safetensors-layout',
      /"w"/,
    ],
    [
      'an overlap',
      file(`{${f32('[2]', '[0,8]', 'a')},${f32('[1]', '[4,8]', 'b')}}`, 8),
      'safetensors-layout',
      /"b".*overlaps/,
    ],
    [
      'a hole',
      file(`{${f32('[1]', '[0,4]', 'a')},${f32('[1]', '[8,12]', 'b')}}`, 12),
      'safetensors-layout',
      /"b".*hole of 4/,
    ],
    ['a hole before the first', file(`{${f32('[1]', '[4,8]')}}`, 8), 'safetensors-layout', /"w".*hole of 4/],
    ['bytes after the last', file(`{${f32('[1]', '[0,4]')}}`, 5), 'safetensors-layout', /1 bytes more/],
    ['data without tensors', file('{}', 4), 'safetensors-layout', /4 bytes more/],
    [
      'a name twice',
      file(`{${f32('[1]', '[0,4]')},"\\u0077" :{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}`, 4),
      'safetensors-header',
      /"w" twice/,
    ],
    ['the metadata twice', file('{"__metadata__":{},"__metadata__":{}}'), 'safetensors-header', /"__metadata__" twice/],
    ['metadata that is a list', file('{"__metadata__":[]}'), 'safetensors-header', /__metadata__/],
    ['metadata of numbers', file('{"__metadata__":{"a":1}}'), 'safetensors-header', /strings, got \{"a":1\}/],
    [
      'a dtype called constructor',
      file('{"w":{"dtype":"constructor","shape":[1],"data_offsets":[0,4]}}'),
      'safetensors-truncated',
      /"w"/,
    ],
  ];
  it.each(cases)('%s', async (_, bytes, code, message) => {
    await expect(open(bytes)).rejects.toThrow(failure(code, message));
    await expect(open(bytes)).rejects.toThrow(/^test\.safetensors: /);
  });

  it('do not confuse names inside of metadata, or empty tensors, with errors', async () => {
    const header = `{"__metadata__":{"w":"{\\"w\\":[","x\\\\":"\\\\"},${f32('[0]', '[0,0]', 'z')},${f32('[1]', '[0,4]')},${f32('[2,0]', '[4,4]', 'y')}}`;
    const source = await open(file(header, 4));
    expect(source.metadata).toEqual({ w: '{"w":[', 'x\\': '\\' });
    expect(source.names()).toEqual(['z', 'w', 'y']);
  });

  it('cut off at any byte are an error, never a wrong tensor', async () => {
    await fc.assert(
      fc.asyncProperty(
        checkpoints,
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        async ({ tensors, metadata }, where) => {
          const bytes = join8(encodeSafetensors(tensors, metadata));
          await expect(open(bytes.subarray(0, Math.floor(where * bytes.length)))).rejects.toThrow(
            failure('safetensors-truncated', /^test\.safetensors: /),
          );
        },
      ),
      { numRuns: 500 },
    );
  });

  it('with any byte of the header changed are refused or still well-formed', async () => {
    await fc.assert(
      fc.asyncProperty(
        checkpoints,
        fc.nat(),
        fc.integer({ min: 0, max: 255 }),
        async ({ tensors, metadata }, where, byte) => {
          const [header, ...data] = encodeSafetensors(tensors, metadata);
          header![where % header!.length] = byte;
          const bytes = join8([header!, ...data]);
          const source = await open(bytes).catch((error: unknown) => {
            expect(error).toBeInstanceOf(TensorError);
            return undefined;
          });
          for (const { name, dtype, shape, byteLength } of source?.entries ?? []) {
            const tensor = await source!.read(name).catch((error: unknown) => {
              expect(error).toMatchObject({ code: 'safetensors-dtype' });
              return undefined;
            });
            if (!tensor) continue;
            expect(tensor.data.length).toBe(sizeOf(shape));
            expect(tensor.data.byteLength).toBe(dtype === 'I64' ? byteLength / 2 : byteLength);
            expect(bytesPerElement(tensor.dtype) * sizeOf(shape)).toBe(tensor.data.byteLength);
          }
        },
      ),
      { numRuns: 1000 },
    );
  });

  it('that shrink after they were opened, or sources that give too little, are errors', async () => {
    const bytes = join8(encodeSafetensors([['w', { dtype: 'f32', shape: [4], data: new Float32Array(4) }]]));
    let short = 0;
    const source: ByteSource = {
      name: 'short',
      size: bytes.length,
      read: async (offset, length) => bytes.slice(offset, offset + length - short),
    };
    const opened = await openSafetensors(source);
    short = 1;
    await expect(opened.read('w')).rejects.toThrow(failure('safetensors-truncated', '16 bytes for tensor "w", got 15'));
    await expect(openSafetensors(source)).rejects.toThrow(failure('safetensors-truncated', "the header's length"));
  });

  it('bytesSource refuses ranges beyond its end', async () => {
    const source = bytesSource('b', new Uint8Array(4));
    await expect(source.read(2, 3)).rejects.toThrow(failure('range', 'within its 4 bytes, got 2 … 5'));
    await expect(source.read(-1, 2)).rejects.toThrow(failure('range', 'b: '));
    expect(await source.read(4, 0)).toEqual(new Uint8Array(0));
  });
});

describe('openShardedSafetensors', () => {
  const scalar = (value: number): HostTensor => ({ dtype: 'f32', shape: [], data: Float32Array.of(value) });
  const shards: Record<string, Uint8Array> = {
    'one.safetensors': join8(
      encodeSafetensors([
        ['a', scalar(1)],
        ['b', scalar(2)],
      ]),
    ),
    'two.safetensors': join8(
      encodeSafetensors([
        ['c', scalar(3)],
        ['a', scalar(9)],
      ]),
    ),
    'broken.safetensors': new Uint8Array(3),
  };
  let closed: string[];
  beforeEach(() => {
    closed = [];
  });
  const openIndex = (json: unknown) =>
    openShardedSafetensors(json, 'index.json', async (name) => {
      if (!shards[name]) throw new Error(`no file ${name}`);
      return { ...bytesSource(name, shards[name]), close: async () => void closed.push(name) };
    });
  const weight_map = { a: 'one.safetensors', c: 'two.safetensors', b: 'one.safetensors' };

  it('reads every tensor from the shard the index names', async () => {
    const source = await openIndex({ metadata: { total_size: 12 }, weight_map });
    expect(source.names()).toEqual(['a', 'c', 'b']);
    expect(source.info('c')).toEqual({ dtype: 'f32', shape: [] });
    expect(source.info('d')).toBeUndefined();
    for (const [i, name] of ['a', 'b', 'c'].entries()) expect((await source.read(name)).data[0]).toBe(i + 1);
    await expect(source.read('aa')).rejects.toThrow(failure('safetensors-missing', /^index\.json: .*nearest are "a"/));
    await source.close();
    expect(closed.sort()).toEqual(['one.safetensors', 'two.safetensors']);
  });

  it('refuses malformed indices', async () => {
    for (const json of [null, [], {}, { weight_map: [] }, 'x']) {
      await expect(openIndex(json)).rejects.toThrow(
        failure('safetensors-index', /^index\.json: expected \{ weight_map/),
      );
    }
    for (const path of ['../one.safetensors', '/etc/passwd', 'a\\b', '..', '', 5, null]) {
      await expect(openIndex({ weight_map: { a: path } })).rejects.toThrow(
        failure('safetensors-index', /"a": expected a file name without a folder/),
      );
    }
  });

  it('names the shard that is missing or damaged, and closes the others', async () => {
    await expect(openIndex({ weight_map: { ...weight_map, d: 'three.safetensors' } })).rejects.toThrow(
      failure('safetensors-shard', 'index.json: expected shard three.safetensors, got an error: no file three'),
    );
    expect(closed.sort()).toEqual(['one.safetensors', 'two.safetensors']);
    closed = [];
    await expect(openIndex({ weight_map: { ...weight_map, d: 'broken.safetensors' } })).rejects.toThrow(
      failure('safetensors-shard', 'shard broken.safetensors, .*a file of 3'),
    );
    expect(closed.sort()).toEqual(['broken.safetensors', 'one.safetensors', 'two.safetensors']);
  });

  it('names the tensors that their shards do not hold', async () => {
    await expect(
      openIndex({ weight_map: { ...weight_map, d: 'two.safetensors', e: 'one.safetensors' } }),
    ).rejects.toThrow(failure('safetensors-index', '"d" in two.safetensors, "e" in one.safetensors'));
    expect(closed).toHaveLength(2);
  });
});

describe('files', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'milora-'));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true });
  });
  const w: HostTensor = { dtype: 'f32', shape: [2, 1], data: Float32Array.of(1, 2) };

  it('round trip, and can be closed', async () => {
    const path = join(folder, 'w.safetensors');
    await writeSafetensors(path, [['w', w]], { format: 'pt' });
    const source = await openSafetensorsFile(path);
    expect(source.name).toBe(path);
    expect(source.metadata).toEqual({ format: 'pt' });
    expect(await source.read('w')).toEqual(w);
    await source.close();
    await source.close();
    await expect(source.read('w')).rejects.toThrow(failure('file-closed', path));
  });

  it('that are missing, folders or cut off while open are errors', async () => {
    const path = join(folder, 'w.safetensors');
    await expect(openSafetensorsFile(path)).rejects.toThrow(failure('file-open', 'w.safetensors: .* got ENOENT'));
    await expect(fileSource(folder)).rejects.toThrow(failure('file-open', 'expected a file, got a folder'));
    await writeSafetensors(path, [['w', w]]);
    const source = await openSafetensorsFile(path);
    await truncate(path, (await stat(path)).size - 1);
    await expect(source.read('w')).rejects.toThrow(failure('file-truncated', 'expected 8 bytes .* got 7'));
    await source.close();
  });

  it('open as checkpoint folders, sharded or not', async () => {
    await expect(openSafetensorsFolder(folder)).rejects.toThrow(
      failure('checkpoint-missing', 'expected model.safetensors or model.safetensors.index.json, got neither'),
    );
    await writeFileAtomic(join(folder, 'model.safetensors.index.json'), '{');
    await expect(openSafetensorsFolder(folder)).rejects.toThrow(failure('safetensors-index', 'expected JSON'));
    await writeFileAtomic(
      join(folder, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: { w: 'model-00001-of-00001.safetensors' } }),
    );
    await expect(openSafetensorsFolder(folder)).rejects.toThrow(failure('safetensors-shard', 'model-00001.*ENOENT'));
    await writeSafetensors(join(folder, 'model-00001-of-00001.safetensors'), [['w', w]]);
    const sharded = await openSafetensorsFolder(folder);
    expect(await sharded.read('w')).toEqual(w);
    await sharded.close();
    await writeSafetensors(join(folder, 'adapter_model.safetensors'), [['lora_A', w]]);
    const single = await openSafetensorsFolder(folder, 'adapter_model');
    expect(single.names()).toEqual(['lora_A']);
    await single.close();
  });

  it('are replaced completely, keep their permissions and leave no temporary file', async () => {
    const path = join(folder, 'x.txt');
    await writeFileAtomic(path, 'a long first version');
    await chmod(path, 0o640);
    await writeFileAtomic(path, [Uint8Array.of(0x68), new Uint8Array(0), Uint8Array.of(0x69)]);
    expect(await readFile(path, 'utf8')).toBe('hi');
    expect((await stat(path)).mode & 0o777).toBe(0o640);
    await Promise.all(Array.from({ length: 20 }, (_, i) => writeFileAtomic(path, String(i).repeat(50_000))));
    expect(await readFile(path, 'utf8')).toMatch(/^(\d\d?)\1{49999}$/);
    expect(await readdir(folder)).toEqual(['x.txt']);
  });

  it('stay as they were when writing fails', async () => {
    const path = join(folder, 'x.txt');
    await writeFile(path, 'old');
    // a chunk that cannot be written, after one that can
    const chunks = [Uint8Array.of(1, 2, 3), { length: 5 } as unknown as Uint8Array];
    await expect(writeFileAtomic(path, chunks)).rejects.toThrow(failure('file-write', /x\.txt: expected to write/));
    expect(await readFile(path, 'utf8')).toBe('old');
    expect(await readdir(folder)).toEqual(['x.txt']);

    await mkdir(join(folder, 'sub'));
    await expect(writeFileAtomic(join(folder, 'sub'), 'new')).rejects.toThrow(failure('file-write', 'sub'));
    await expect(writeFileAtomic(join(folder, 'none', 'x'), 'new')).rejects.toThrow(failure('file-write', 'ENOENT'));
    expect((await readdir(folder)).sort()).toEqual(['sub', 'x.txt']);
  });

  it('bad tensors leave the old checkpoint', async () => {
    const path = join(folder, 'w.safetensors');
    await writeSafetensors(path, [['w', w]]);
    await expect(writeSafetensors(path, [['w', { ...w, shape: [3] }]])).rejects.toThrow('expected 3 elements');
    const source = await openSafetensorsFile(path);
    expect(await source.read('w')).toEqual(w);
    await source.close();
  });
});
