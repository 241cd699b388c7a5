import { Buffer } from 'node:buffer';

/** Unpadded Base64 (spec: appendices, "Unpadded Base64"). */
export function encodeBase64(bytes: Uint8Array): string {
  return asBuffer(bytes).toString('base64').replace(/=+$/, '');
}

/** URL-safe unpadded Base64, as in event ids since room version 4. */
export function encodeBase64Url(bytes: Uint8Array): string {
  return asBuffer(bytes).toString('base64url');
}

/**
 * Reads Base64 of either alphabet, padded or not; `undefined` for anything else. Bits of the last character that
 * belong to no byte may be set: they are in the spec's own example of a seed.
 */
export function decodeBase64(text: string): Buffer | undefined {
  if (!/^(?:[A-Za-z0-9+/_-]+={0,2})?$/.test(text)) return undefined;
  const stripped = text.replace(/=+$/, '');
  if (stripped.length % 4 === 1) return undefined;
  return Buffer.from(stripped, 'base64');
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
