/**
 * Fingerprints of tensors: whether a file's weights are those an adapter was made for. SHA-256 comes from the platform
 * (Web Crypto, in Node and browsers alike).
 */
import { TensorError } from './errors.js';
import type { HostTensor } from './host.js';

/** Web Crypto copies what it digests; pieces of this many bytes bound the copy and stay below every engine's limit. */
const PIECE = 2 ** 26;

/**
 * `sha256:` and the hex digest of dtype, shape and bytes: SHA-256 of the text `f32[2,3]` (dtype and shape) followed by the
 * SHA-256 of each 64 MiB of the data. Throws `no-crypto` where Web Crypto is missing (a page without HTTPS).
 */
export async function fingerprint(host: HostTensor): Promise<string> {
  const bytes = new Uint8Array(host.data.buffer, host.data.byteOffset, host.data.byteLength);
  const parts: Uint8Array[] = [new TextEncoder().encode(`${host.dtype}[${host.shape.join(',')}]`)];
  for (let at = 0; at < bytes.length; at += PIECE) parts.push(await sha256(bytes.subarray(at, at + PIECE)));
  const digest = await sha256(concatenate(parts));
  return 'sha256:' + Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  // undefined on insecure pages, whatever the type says
  const subtle = globalThis.crypto?.subtle as SubtleCrypto | undefined;
  if (!subtle)
    throw new TensorError('no-crypto', 'fingerprint: expected Web Crypto, got none; serve the page over HTTPS');
  // shared memory is refused there
  const own = bytes.buffer instanceof ArrayBuffer ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
  return new Uint8Array(await subtle.digest('SHA-256', own));
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
