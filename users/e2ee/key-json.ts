import { Buffer } from 'node:buffer';
import { decodeBase64 } from '@trellis/protocol/base64.ts';
import { canonicalJson } from '@trellis/protocol/canonical-json.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';

/** Shapes of the keys that clients and servers exchange (spec: "Key management API"). */

const MAX_NAME_BYTES = 255;
/** A device's identity keys, a cross-signing key or a one-time key with all its signatures. */
export const MAX_KEY_BYTES = 65_536;

export type CrossSigningUsage = 'master' | 'self_signing' | 'user_signing';

export function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** An id of a device, key or session: what may stand in a look-up column. */
export function isName(text: JsonValue | undefined): text is string {
  return (
    typeof text === 'string' &&
    text !== '' &&
    text.length <= MAX_NAME_BYTES &&
    Buffer.byteLength(text) <= MAX_NAME_BYTES &&
    !text.includes('\0') &&
    text.isWellFormed()
  );
}

/** Whether a value has the shape of `DeviceKeys`, and is of this device. */
export function isDeviceKeys(
  value: JsonValue | undefined,
  userId: string,
  deviceId: string,
): value is JsonObject {
  return (
    isObject(value) &&
    value.user_id === userId &&
    value.device_id === deviceId &&
    Array.isArray(value.algorithms) &&
    isObject(value.keys) &&
    Object.values(value.keys).every((key) => typeof key === 'string') &&
    isObject(value.signatures ?? {}) &&
    isOfSize(value)
  );
}

/** Whether a value has the shape of `CrossSigningKey`, of this user and for this usage. */
export function isCrossSigningKey(
  value: JsonValue | undefined,
  userId: string,
  usage: CrossSigningUsage,
): value is JsonObject {
  return (
    isObject(value) &&
    value.user_id === userId &&
    Array.isArray(value.usage) &&
    value.usage.includes(usage) &&
    publicKeyOf(value) !== undefined &&
    isObject(value.signatures ?? {}) &&
    isOfSize(value)
  );
}

/** The one key of a cross-signing key, in Base64; its name must repeat it (`ed25519:KEY`). */
export function publicKeyOf(key: JsonObject): string | undefined {
  const entries = isObject(key.keys) ? Object.entries(key.keys) : [];
  const [name, value] = entries[0] ?? [];
  if (entries.length !== 1 || typeof value !== 'string' || name !== `ed25519:${value}`) return undefined;
  return decodeBase64(value)?.length === 32 ? value : undefined;
}

/** The ed25519 key by which a device signs. */
export function signingKeyOf(deviceKeys: JsonObject, deviceId: string): string | undefined {
  const { keys } = deviceKeys;
  const key = isObject(keys) && Object.hasOwn(keys, `ed25519:${deviceId}`) && keys[`ed25519:${deviceId}`];
  return typeof key === 'string' ? key : undefined;
}

export function isOfSize(value: JsonValue): boolean {
  return Buffer.byteLength(JSON.stringify(value)) <= MAX_KEY_BYTES;
}

export function sameJson(a: JsonValue | undefined, b: JsonValue | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return canonicalJson(a, { lax: true }) === canonicalJson(b, { lax: true });
}

/** Whether two objects differ in nothing that is signed. */
export function sameWhenSigned(a: JsonObject, b: JsonObject): boolean {
  return sameJson(unsigned(a), unsigned(b));
}

function unsigned({ signatures: _, unsigned: __, ...rest }: JsonObject): JsonObject {
  return rest;
}
