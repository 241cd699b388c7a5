import { decodeBase64, encodeBase64 } from '@trellis/protocol/base64.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { signableText, signaturesBy, verifyKey, verifySignature } from '@trellis/protocol/signing.ts';
import { isObject } from './outbound/answers.ts';

/** A server's key as it was published. */
export interface ServerKey {
  readonly keyId: string;
  /** In unpadded Base64. */
  readonly publicKey: string;
  /** When the key stops being valid; of an expired key, when it was retired. */
  readonly validUntil: number;
  /** From `old_verify_keys`: good for events of its time, not for requests. */
  readonly expired: boolean;
}

const WEEK = 7 * 24 * 3_600_000;
const MAX_KEYS = 200;
const KEY_ID = /^ed25519:[\w.+/=-]{1,128}$/;

/**
 * The keys in a server's answer, checked: it is about that server and signed with a key that it publishes.
 * https://spec.matrix.org/v1.18/server-server-api/#retrieving-server-keys
 */
export function readKeyResponse(response: JsonObject, serverName: string, now: number): ServerKey[] {
  if (response.server_name !== serverName) throw new Error('the keys are for another server');
  const validUntil = response.valid_until_ts;
  if (typeof validUntil !== 'number' || !Number.isSafeInteger(validUntil))
    throw new Error('the keys have no valid_until_ts');
  const capped = Math.min(validUntil, now + WEEK);
  const current = readKeys(response.verify_keys, () => capped, false);
  const old = readKeys(
    response.old_verify_keys,
    (entry) => (typeof entry.expired_ts === 'number' ? Math.min(entry.expired_ts, now) : undefined),
    true,
  );
  checkSelfSignature(response, serverName, current);
  const currentIds = new Set(current.map(({ keyId }) => keyId));
  return [...current, ...old.filter(({ keyId }) => !currentIds.has(keyId))];
}

/** Signatures that `serverName` has put on a JSON object: key id to signature. */
export function signaturesOf(
  object: JsonObject,
  serverName: string,
): Array<[keyId: string, signature: string]> {
  return Object.entries(signaturesBy(object, serverName)).filter(
    (entry): entry is [string, string] => KEY_ID.test(entry[0]) && typeof entry[1] === 'string',
  );
}

/** Whether `signature` is one by `publicKey` over `text`. */
export function isSignature(publicKey: string, text: string, signature: string): boolean {
  const key = verifyKey(publicKey);
  return key !== undefined && verifySignature(key, text, signature);
}

function checkSelfSignature(response: JsonObject, serverName: string, keys: readonly ServerKey[]): void {
  const text = signableText(response);
  let good = 0;
  for (const [keyId, signature] of signaturesOf(response, serverName)) {
    const key = keys.find((candidate) => candidate.keyId === keyId);
    if (!key) continue;
    if (!isSignature(key.publicKey, text, signature)) throw new Error(`the signature by ${keyId} is wrong`);
    good++;
  }
  if (good === 0) throw new Error('the keys are not signed by any of themselves');
}

function readKeys(
  from: JsonObject[string] | undefined,
  validUntil: (entry: JsonObject) => number | undefined,
  expired: boolean,
): ServerKey[] {
  if (!isObject(from)) return [];
  const entries = Object.entries(from);
  if (entries.length > MAX_KEYS) throw new Error('too many keys');
  const keys: ServerKey[] = [];
  for (const [keyId, entry] of entries) {
    if (!KEY_ID.test(keyId) || !isObject(entry) || typeof entry.key !== 'string') continue;
    const until = validUntil(entry);
    const publicKey = decodeBase64(entry.key);
    if (until === undefined || publicKey?.length !== 32) continue;
    keys.push({ keyId, publicKey: encodeBase64(publicKey), validUntil: until, expired });
  }
  return keys;
}
