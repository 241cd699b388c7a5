import { Buffer } from 'node:buffer';
import {
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  sign as nodeSign,
  verify as nodeVerify,
  randomBytes,
} from 'node:crypto';
import { decodeBase64, encodeBase64 } from './base64.ts';
import { canonicalJson } from './canonical-json.ts';
import type { JsonObject, JsonValue } from './event.ts';
import { RecentlyUsed } from './recently-used.ts';

/** DER headers of ed25519 keys, before the 32 raw bytes (RFC 8410). */
const PRIVATE_HEADER = Buffer.from('302e020100300506032b657004220420', 'hex');
const PUBLIC_HEADER = Buffer.from('302a300506032b6570032100', 'hex');

/** A server's ed25519 signing key (spec: appendices, "Signing Details"). */
export class SigningKey {
  /** `ed25519:version` */
  readonly keyId: string;
  readonly publicKeyBase64: string;
  // Private members do not get into logs.
  readonly #seed: Buffer;
  readonly #key: KeyObject;

  private constructor(keyId: string, seed: Buffer) {
    this.keyId = keyId;
    this.#seed = seed;
    this.#key = createPrivateKey({
      key: Buffer.concat([PRIVATE_HEADER, seed]),
      format: 'der',
      type: 'pkcs8',
    });
    const publicKey = createPublicKey(this.#key).export({ format: 'der', type: 'spki' });
    this.publicKeyBase64 = encodeBase64(publicKey.subarray(PUBLIC_HEADER.length));
  }

  static generate(version = `a_${randomBytes(3).toString('hex')}`): SigningKey {
    return new SigningKey(`ed25519:${version}`, randomBytes(32));
  }

  /** @throws when the seed is not 32 bytes of Base64 or the key id not `ed25519:…` */
  static fromSeed(keyId: string, seedBase64: string): SigningKey {
    const seed = decodeBase64(seedBase64);
    if (seed?.length !== 32) throw new Error('a signing key is 32 bytes in Base64');
    if (!/^ed25519:[A-Za-z0-9_]+$/.test(keyId))
      throw new Error(`${keyId} is no key id: it looks like ed25519:a_1`);
    return new SigningKey(keyId, seed);
  }

  /** The secret itself, for whoever stores the key. */
  get seedBase64(): string {
    return encodeBase64(this.#seed);
  }

  /** The signature over a text's UTF-8, in unpadded Base64. */
  sign(text: string): string {
    return encodeBase64(nodeSign(null, Buffer.from(text), this.#key));
  }
}

/** Making a key object costs as much as verifying a signature, so they are kept. */
const verifyKeys = new RecentlyUsed<string, VerifyKey>(10_000);

export type VerifyKey = KeyObject;

/** A public key for `verifySignature`; `undefined` when the text is no ed25519 key. */
export function verifyKey(publicKeyBase64: string): VerifyKey | undefined {
  const cached = verifyKeys.get(publicKeyBase64);
  if (cached) return cached;
  const raw = decodeBase64(publicKeyBase64);
  if (raw?.length !== 32) return undefined;
  try {
    const key = createPublicKey({ key: Buffer.concat([PUBLIC_HEADER, raw]), format: 'der', type: 'spki' });
    verifyKeys.set(publicKeyBase64, key);
    return key;
  } catch {
    return undefined;
  }
}

export function verifySignature(key: VerifyKey, text: string, signatureBase64: string): boolean {
  const signature = decodeBase64(signatureBase64);
  return signature?.length === 64 && nodeVerify(null, Buffer.from(text), key, signature);
}

/** The same off the event loop: for many signatures at once. */
export function verifySignatureAsync(
  key: VerifyKey,
  text: string,
  signatureBase64: string,
): Promise<boolean> {
  const signature = decodeBase64(signatureBase64);
  if (signature?.length !== 64) return Promise.resolve(false);
  return new Promise((resolve) => {
    nodeVerify(null, Buffer.from(text), key, signature, (error, valid) => resolve(!error && valid));
  });
}

/** The text that a JSON object's signatures are over: canonical, without `signatures` and `unsigned`. */
export function signableText(object: JsonObject, options?: { lax: boolean }): string {
  return canonicalJson({ ...object, signatures: undefined, unsigned: undefined }, options);
}

/** The object with a signature added (spec: appendices, "Signing JSON"). */
export function signJson<T extends JsonObject>(
  object: T,
  serverName: string,
  key: SigningKey,
): T & { signatures: JsonObject } {
  return withSignature(object, serverName, key.keyId, key.sign(signableText(object)));
}

/** The object with one more signature beside those that it has. */
export function withSignature<T extends JsonObject>(
  object: T,
  serverName: string,
  keyId: string,
  signature: string,
): T & { signatures: JsonObject } {
  const own = { ...signaturesBy(object, serverName), [keyId]: signature };
  return { ...object, signatures: { ...asObject(object.signatures), [serverName]: own } };
}

/** Whether the object bears a valid signature of that name and key id. */
export function verifyJson(
  object: JsonObject,
  serverName: string,
  keyId: string,
  publicKeyBase64: string,
): boolean {
  const key = verifyKey(publicKeyBase64);
  const signature = signatureOf(object, serverName, keyId);
  if (!key || signature === undefined) return false;
  try {
    return verifySignature(key, signableText(object), signature);
  } catch {
    return false;
  }
}

/** The signature in an object's `signatures`, if there is one of that name and key id. */
export function signatureOf(object: JsonObject, serverName: string, keyId: string): string | undefined {
  const signature = signaturesBy(object, serverName)[keyId];
  return typeof signature === 'string' ? signature : undefined;
}

/** All of a server's signatures on an object, by key id. */
export function signaturesBy(object: JsonObject, serverName: string): JsonObject {
  const signatures = asObject(object.signatures);
  return Object.hasOwn(signatures, serverName) ? asObject(signatures[serverName]) : {};
}

function asObject(value: JsonValue | undefined): JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : {};
}
