/**
 * Reading and writing safetensors: an 8-byte header length (u64, little endian), a JSON header
 * `{ name: { dtype, shape, data_offsets } }` with an optional `__metadata__` of strings, then the tensors' bytes, which the
 * offsets must cover without overlap or hole. Tensors are read one at a time and by range, so a checkpoint larger than
 * memory is no obstacle; everything about the header is checked before the first of them is.
 *
 * A sharded checkpoint is several such files and an index `{ weight_map: { tensor: file } }`.
 *
 * Source: https://huggingface.co/docs/safetensors and the reference implementation, safetensors/src/tensor.rs.
 */
import { allocHost, bytesPerElement, type DType } from './dtype.js';
import { TensorError } from './errors.js';
import { sizeOf, type ByteSource, type HostTensor, type TensorSource } from './host.js';

/** A byte source that may hold something open. */
export interface ClosableByteSource extends ByteSource {
  close?(): Promise<void>;
}

/** A tensor source over files; `close` lets go of them. */
export interface ClosableTensorSource extends TensorSource {
  close(): Promise<void>;
}

/** One tensor as the header lists it. */
export interface SafetensorsEntry {
  name: string;
  /** The file's spelling, e.g. `BF16`, also of dtypes that cannot be read here. */
  dtype: string;
  shape: readonly number[];
  /** First byte and number of bytes in the file. */
  offset: number;
  byteLength: number;
}

const LENGTH_BYTES = 8;
const MOST_HEADER_BYTES = 100_000_000;
const METADATA = '__metadata__';

/** What each of the file's dtypes is read as. I64 is narrowed to i32 and must fit. */
type FileDType = Exclude<DType, 'int8'>;
const READ_AS: ReadonlyMap<string, FileDType> = new Map([
  ['F64', 'f64'],
  ['F32', 'f32'],
  ['F16', 'f16'],
  ['BF16', 'bf16'],
  ['I32', 'i32'],
  ['I64', 'i32'],
]);
const WRITTEN_AS: Record<FileDType, string> = { f64: 'F64', f32: 'F32', f16: 'F16', bf16: 'BF16', i32: 'I32' };
/** The reference writer puts the widest dtypes first, for alignment. */
const WRITING_ORDER: readonly FileDType[] = ['f64', 'f32', 'i32', 'bf16', 'f16'];

/** Bits of one element, of every dtype of the format. */
const BITS: ReadonlyMap<string, number> = new Map(
  (
    [
      [4, 'F4'],
      [6, 'F6_E2M3 F6_E3M2'],
      [8, 'BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0'],
      [16, 'I16 U16 F16 BF16'],
      [32, 'I32 U32 F32'],
      [64, 'C64 F64 I64 U64'],
    ] as const
  ).flatMap(([bits, dtypes]) => dtypes.split(' ').map((dtype): [string, number] => [dtype, bits])),
);

/**
 * Opens a safetensors file: reads and checks its header, no tensor yet.
 *
 * Throws `safetensors-truncated` when the file is shorter than its header says, `safetensors-header` when the header is not
 * what the format prescribes and `safetensors-layout` when the tensors overlap, leave holes or have the wrong size.
 */
export async function openSafetensors(source: ClosableByteSource): Promise<SafetensorsFile> {
  const header = await readHeader(source);
  return new SafetensorsFile(source, header.entries, header.metadata);
}

/** An open safetensors file; made by `openSafetensors`. */
export class SafetensorsFile implements ClosableTensorSource {
  readonly name: string;
  private readonly byName: ReadonlyMap<string, SafetensorsEntry>;

  constructor(
    private readonly source: ClosableByteSource,
    /** All tensors, in the order of their bytes. */
    readonly entries: readonly SafetensorsEntry[],
    /** The header's `__metadata__`. */
    readonly metadata: Readonly<Record<string, string>>,
  ) {
    this.name = source.name;
    this.byName = new Map(entries.map((entry) => [entry.name, entry]));
  }

  names(): string[] {
    return this.entries.map((entry) => entry.name);
  }

  has(name: string): boolean {
    return this.byName.has(name);
  }

  /** Shape and the dtype that `read` gives; undefined when absent. Throws `safetensors-dtype` for one it cannot read. */
  info(name: string): { dtype: DType; shape: readonly number[] } | undefined {
    const entry = this.byName.get(name);
    return entry && { dtype: readableDType(this.name, entry), shape: entry.shape };
  }

  /**
   * Reads one tensor. Throws `safetensors-missing` when there is none of that name, `safetensors-dtype` when its dtype is
   * not supported or an I64 does not fit i32, `safetensors-truncated` when the file has shrunk.
   */
  async read(name: string): Promise<HostTensor> {
    const entry = this.byName.get(name);
    if (!entry) throw missing(this.name, name, this.names());
    const dtype = readableDType(this.name, entry);
    const bytes = await readExactly(this.source, entry.offset, entry.byteLength, `tensor ${quote(name)}`);
    const data = entry.dtype === 'I64' ? narrow(bytes, this.name, name) : hostArray(bytes, dtype);
    return { dtype, shape: entry.shape, data };
  }

  async close(): Promise<void> {
    await this.source.close?.();
  }
}

/** Opens one of a checkpoint's files by name. */
export type OpenShard = (file: string) => Promise<ClosableByteSource>;

/**
 * Opens a sharded checkpoint: its parsed index (`model.safetensors.index.json`), the index's name for messages, and a
 * function that opens a shard by file name. The headers of all shards are read at once, so that shapes are known and
 * damage shows before anything is loaded; tensors are read when asked for.
 *
 * Throws `safetensors-index` when the index is malformed or names a tensor that its shard does not hold, and
 * `safetensors-shard` when a shard cannot be opened.
 */
export async function openShardedSafetensors(
  indexJson: unknown,
  indexName: string,
  open: OpenShard,
): Promise<ShardedSafetensors> {
  const weightMap = parseIndex(indexJson, indexName);
  const shards = new Map<string, SafetensorsFile>();
  try {
    for (const file of new Set(weightMap.values())) shards.set(file, await openShard(file, indexName, open));
    const absent = [...weightMap].filter(([name, file]) => !shards.get(file)!.has(name));
    if (absent.length > 0) {
      const list = absent.map(([name, file]) => `${quote(name)} in ${file}`).join(', ');
      throw new TensorError('safetensors-index', `${indexName}: expected its shards to hold ${list}; they do not`);
    }
    return new ShardedSafetensors(indexName, weightMap, shards);
  } catch (error) {
    await Promise.allSettled([...shards.values()].map((shard) => shard.close()));
    throw error;
  }
}

/** An open sharded checkpoint; made by `openShardedSafetensors`. */
export class ShardedSafetensors implements ClosableTensorSource {
  constructor(
    readonly name: string,
    private readonly weightMap: ReadonlyMap<string, string>,
    private readonly shards: ReadonlyMap<string, SafetensorsFile>,
  ) {}

  names(): string[] {
    return [...this.weightMap.keys()];
  }

  info(name: string): { dtype: DType; shape: readonly number[] } | undefined {
    return this.shardOf(name)?.info(name);
  }

  async read(name: string): Promise<HostTensor> {
    const shard = this.shardOf(name);
    if (!shard) throw missing(this.name, name, this.names());
    return shard.read(name);
  }

  async close(): Promise<void> {
    await Promise.all([...this.shards.values()].map((shard) => shard.close()));
  }

  private shardOf(name: string): SafetensorsFile | undefined {
    const file = this.weightMap.get(name);
    return file === undefined ? undefined : this.shards.get(file);
  }
}

/**
 * The bytes of a safetensors file as chunks to be written one after the other; the tensors' memory is not copied. Tensors
 * are ordered as the reference implementation orders them: by dtype, widest first, then by name.
 *
 * Throws `safetensors-encode` for a name that appears twice or is reserved and for data that does not match its dtype and shape.
 */
export function encodeSafetensors(
  tensors: Iterable<readonly [string, HostTensor]>,
  metadata?: Readonly<Record<string, string>>,
): Uint8Array[] {
  const ordered = [...tensors].sort(
    ([nameA, a], [nameB, b]) =>
      WRITING_ORDER.indexOf(a.dtype as FileDType) - WRITING_ORDER.indexOf(b.dtype as FileDType) ||
      (nameA < nameB ? -1 : nameA > nameB ? 1 : 0),
  );
  // a Map, because an object would sort names that look like numbers first
  const fields = new Map<string, unknown>();
  if (metadata) {
    if (!isStringRecord(metadata)) {
      throw new TensorError('safetensors-encode', 'encodeSafetensors: expected metadata of strings, got other values');
    }
    fields.set(METADATA, metadata);
  }
  const chunks: Uint8Array[] = [];
  let offset = 0;
  for (const [name, tensor] of ordered) {
    const problem = whatIsWrong(name, tensor, fields);
    if (problem) throw new TensorError('safetensors-encode', `encodeSafetensors: tensor ${quote(name)}: ${problem}`);
    const { buffer, byteOffset, byteLength } = tensor.data;
    const end = offset + byteLength;
    fields.set(name, {
      dtype: WRITTEN_AS[tensor.dtype as FileDType],
      shape: tensor.shape,
      data_offsets: [offset, end],
    });
    chunks.push(new Uint8Array(buffer, byteOffset, byteLength));
    offset = end;
  }
  return [encodeHeader(fields), ...chunks];
}

function whatIsWrong(name: string, tensor: HostTensor, taken: ReadonlyMap<string, unknown>): string | undefined {
  const { dtype, shape, data } = tensor;
  if (name === METADATA) return 'expected another name, this one is reserved';
  if (taken.has(name)) return 'expected each name once, got it twice';
  if (!shape.every(isCount)) return `expected a shape of whole numbers, got [${shape.join(', ')}]`;
  if (dtype === 'int8') return 'expected a dtype that files have, got int8; convertHost makes f32';
  const expected = allocHost(dtype, 0).constructor;
  if (data.constructor !== expected)
    return `expected ${dtype} data in a ${expected.name}, got a ${data.constructor.name}`;
  if (data.length !== sizeOf(shape))
    return `expected ${sizeOf(shape)} elements of shape [${shape.join(', ')}], got ${data.length}`;
  return undefined;
}

function encodeHeader(fields: ReadonlyMap<string, unknown>): Uint8Array {
  const json = `{${[...fields].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')}}`;
  const text = new TextEncoder().encode(json);
  const length = Math.ceil(text.length / 8) * 8;
  if (length > MOST_HEADER_BYTES) {
    throw new TensorError(
      'safetensors-encode',
      `encodeSafetensors: expected a header of at most 100 MB, got ${length} bytes`,
    );
  }
  const out = new Uint8Array(LENGTH_BYTES + length).fill(0x20, LENGTH_BYTES);
  new DataView(out.buffer).setBigUint64(0, BigInt(length), true);
  out.set(text, LENGTH_BYTES);
  return out;
}

/** Bytes in memory as a source. `read` copies, so tensors read from it own their memory. */
export function bytesSource(name: string, bytes: Uint8Array): ByteSource {
  return {
    name,
    size: bytes.length,
    async read(offset, length) {
      if (!isCount(offset) || !isCount(length) || offset + length > bytes.length) {
        const range = `${offset} … ${offset + length}`;
        throw new TensorError('range', `${name}: expected a range within its ${bytes.length} bytes, got ${range}`);
      }
      return bytes.slice(offset, offset + length);
    },
  };
}

// --- The header -----------------------------------------------------------------------------------------------------

interface Header {
  entries: SafetensorsEntry[];
  metadata: Record<string, string>;
}

async function readHeader(source: ByteSource): Promise<Header> {
  const file = source.name;
  if (source.size < LENGTH_BYTES) {
    throw truncated(file, `the ${LENGTH_BYTES} bytes of the header's length`, `a file of ${source.size}`);
  }
  const start = await readExactly(source, 0, LENGTH_BYTES, "the header's length");
  // a u64; every number that float64 cannot hold exactly is far above the limit
  const length = Number(new DataView(start.buffer, start.byteOffset, LENGTH_BYTES).getBigUint64(0, true));
  if (length > MOST_HEADER_BYTES) throw badHeader(file, `expected a length of at most 100 MB, got ${length} bytes`);
  if (LENGTH_BYTES + length > source.size) {
    throw truncated(file, `a header of ${length} bytes`, `a file of ${source.size}`);
  }
  const bytes = await readExactly(source, LENGTH_BYTES, length, 'the header');
  const fields = parseHeader(bytes, file);
  const metadata = parseMetadata(fields.get(METADATA), file);
  fields.delete(METADATA);
  const dataStart = LENGTH_BYTES + length;
  const entries = [...fields].map(([name, value]) => parseEntry(name, value, file, dataStart));
  checkLayout(entries, dataStart, source);
  return { entries, metadata };
}

/** The header's top-level fields. */
function parseHeader(bytes: Uint8Array, file: string): Map<string, unknown> {
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    json = JSON.parse(text);
  } catch (cause) {
    throw badHeader(file, `expected JSON in UTF-8, got something else (${(cause as Error).message})`, { cause });
  }
  if (bytes[0] !== 0x7b || !isRecord(json)) throw badHeader(file, 'expected it to begin with {, got something else');
  // JSON.parse keeps the last of two equal keys, silently
  const seen = new Set<string>();
  for (const key of topLevelKeys(text)) {
    if (seen.has(key)) throw badHeader(file, `expected each name once, got ${quote(key)} twice`);
    seen.add(key);
  }
  return new Map(Object.entries(json));
}

/** The keys of the outermost object of valid JSON, with repetitions. */
function* topLevelKeys(json: string): Generator<string> {
  let depth = 0;
  for (const [token] of json.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"(?:\s*:)?|[{}[\]]/gs)) {
    if (token === '{' || token === '[') depth++;
    else if (token === '}' || token === ']') depth--;
    else if (depth === 1 && token.endsWith(':')) yield JSON.parse(token.slice(0, -1)) as string;
  }
}

function parseMetadata(value: unknown, file: string): Record<string, string> {
  if (value === undefined) return {};
  if (!isStringRecord(value)) {
    throw badHeader(file, `expected ${METADATA} to map names to strings, got ${JSON.stringify(value).slice(0, 100)}`);
  }
  return value;
}

function parseEntry(name: string, value: unknown, file: string, dataStart: number): SafetensorsEntry {
  const { dtype, shape, data_offsets: offsets } = isRecord(value) ? value : {};
  if (typeof dtype !== 'string' || !isCounts(shape) || !isCounts(offsets) || offsets.length !== 2) {
    const got = JSON.stringify(value).slice(0, 200);
    throw badHeader(file, `tensor ${quote(name)}: expected dtype, shape and two data_offsets, got ${got}`);
  }
  const [begin, end] = offsets as [number, number];
  const bits = BITS.get(dtype);
  // a dtype newer than this list can be listed but not measured
  const expected = bits === undefined ? end - begin : (sizeOf(shape) * bits) / 8;
  if (end < begin || end - begin !== expected) {
    throw badLayout(
      file,
      `tensor ${quote(name)}: expected ${expected} bytes for ${dtype} of shape [${shape.join(', ')}], got data_offsets [${begin}, ${end}]`,
    );
  }
  return { name, dtype, shape, offset: dataStart + begin, byteLength: end - begin };
}

/** Sorts the entries by place and checks that they cover the rest of the file, each byte once. */
function checkLayout(entries: SafetensorsEntry[], dataStart: number, source: ByteSource): void {
  entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let at = dataStart;
  for (const { name, offset, byteLength } of entries) {
    if (offset !== at) {
      const what = offset < at ? 'overlaps the tensor before it' : `leaves a hole of ${offset - at} bytes`;
      throw badLayout(
        source.name,
        `tensor ${quote(name)}: expected it to begin at byte ${at}, got ${offset}, which ${what}`,
      );
    }
    at = offset + byteLength;
  }
  const last = entries.at(-1);
  if (at > source.size) {
    throw truncated(
      source.name,
      `${at} bytes, up to the end of tensor ${quote(last!.name)}`,
      `a file of ${source.size}`,
    );
  }
  if (at < source.size) {
    throw badLayout(
      source.name,
      `expected the file to end with its tensors at byte ${at}, got ${source.size - at} bytes more`,
    );
  }
}

// --- The data -------------------------------------------------------------------------------------------------------

async function readExactly(source: ByteSource, offset: number, length: number, what: string): Promise<Uint8Array> {
  const bytes = await source.read(offset, length);
  if (bytes.length !== length) throw truncated(source.name, `${length} bytes for ${what}`, `${bytes.length}`);
  return bytes;
}

function readableDType(file: string, entry: SafetensorsEntry): FileDType {
  const dtype = READ_AS.get(entry.dtype);
  if (dtype) return dtype;
  throw new TensorError(
    'safetensors-dtype',
    `${file}: tensor ${quote(entry.name)}: expected one of ${[...READ_AS.keys()].join(', ')}, got ${entry.dtype}`,
  );
}

/** The bytes as elements; copied only where their place in memory is not a multiple of the element's size. */
function hostArray(bytes: Uint8Array, dtype: FileDType): HostTensor['data'] {
  const { buffer, byteOffset } = bytes.byteOffset % bytesPerElement(dtype) === 0 ? bytes : bytes.slice();
  const length = bytes.length / bytesPerElement(dtype);
  switch (dtype) {
    case 'f32':
      return new Float32Array(buffer, byteOffset, length);
    case 'f64':
      return new Float64Array(buffer, byteOffset, length);
    case 'i32':
      return new Int32Array(buffer, byteOffset, length);
    case 'bf16':
    case 'f16':
      return new Uint16Array(buffer, byteOffset, length);
  }
}

/** I64 → i32, refused where a number does not fit. */
function narrow(bytes: Uint8Array, file: string, name: string): Int32Array {
  const words = hostArray(bytes, 'i32');
  const out = new Int32Array(words.length / 2);
  for (let i = 0; i < out.length; i++) {
    const low = words[2 * i]!;
    const high = words[2 * i + 1]!;
    if (high !== low >> 31) {
      const value = (BigInt(high) << 32n) | BigInt(low >>> 0);
      throw new TensorError(
        'safetensors-dtype',
        `${file}: tensor ${quote(name)}: expected I64 numbers that fit i32, got ${value} at element ${i}`,
      );
    }
    out[i] = low;
  }
  return out;
}

// --- The index ------------------------------------------------------------------------------------------------------

function parseIndex(json: unknown, indexName: string): Map<string, string> {
  const weightMap = isRecord(json) ? json['weight_map'] : undefined;
  if (!isRecord(weightMap)) {
    throw new TensorError('safetensors-index', `${indexName}: expected { weight_map: { tensor: file } }, got none`);
  }
  const out = new Map<string, string>();
  for (const [name, file] of Object.entries(weightMap)) {
    // a path could lead out of the checkpoint's folder
    if (typeof file !== 'string' || file === '' || /[/\\]/.test(file) || file === '.' || file === '..') {
      throw new TensorError(
        'safetensors-index',
        `${indexName}: tensor ${quote(name)}: expected a file name without a folder, got ${JSON.stringify(file)}`,
      );
    }
    out.set(name, file);
  }
  return out;
}

async function openShard(file: string, indexName: string, open: OpenShard): Promise<SafetensorsFile> {
  let source: ClosableByteSource | undefined;
  try {
    source = await open(file);
    return await openSafetensors(source);
  } catch (cause) {
    await source?.close?.();
    const message = `${indexName}: expected shard ${file}, got an error: ${(cause as Error).message}`;
    throw new TensorError('safetensors-shard', message, { cause });
  }
}

// --- Errors and small checks ----------------------------------------------------------------------------------------

function truncated(file: string, expected: string, got: string): TensorError {
  return new TensorError(
    'safetensors-truncated',
    `${file}: expected ${expected}, got ${got}; is the download complete?`,
  );
}

function badHeader(file: string, problem: string, options?: ErrorOptions): TensorError {
  return new TensorError('safetensors-header', `${file}: header: ${problem}`, options);
}

function badLayout(file: string, problem: string): TensorError {
  return new TensorError('safetensors-layout', `${file}: ${problem}`);
}

function missing(file: string, name: string, present: readonly string[]): TensorError {
  const near = nearest(name, present);
  const hint = near.length > 0 ? `; nearest are ${near.map(quote).join(', ')}` : '';
  return new TensorError(
    'safetensors-missing',
    `${file}: expected tensor ${quote(name)}, got none of that name${hint}`,
  );
}

/** Up to three names that differ from `name` in at most half of its letters. */
function nearest(name: string, present: readonly string[]): string[] {
  return present
    .map((other) => ({ other, distance: editDistance(name, other) }))
    .filter(({ distance }) => distance <= name.length / 2)
    .sort((a, b) => a.distance - b.distance)
    .slice(0, 3)
    .map(({ other }) => other);
}

/** Levenshtein distance: insertions, deletions and substitutions that turn a into b. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substituted = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substituted, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

const quote = (name: string): string => JSON.stringify(name);
const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;
const isCounts = (value: unknown): value is number[] => Array.isArray(value) && value.every(isCount);
const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isStringRecord = (value: unknown): value is Record<string, string> =>
  isRecord(value) && Object.values(value).every((entry) => typeof entry === 'string');
