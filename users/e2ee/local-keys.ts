import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { withSignature } from '@trellis/protocol/signing.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { type CrossSigningUsage, publicKeyOf } from './key-json.ts';

/** What is known of a user's keys. */
export interface UserKeys {
  /** By device id: the uploaded keys; `undefined` for devices without. */
  readonly devices: Map<string, { displayName: string | null; keys: JsonObject | undefined }>;
  readonly masterKey?: JsonObject;
  readonly selfSigningKey?: JsonObject;
  /** Of local users only, and for nobody else to see. */
  readonly userSigningKey?: JsonObject;
}

export interface KeySignature {
  readonly userId: string;
  readonly target: string;
  readonly signer: string;
  readonly keyId: string;
  readonly signature: string;
}

/**
 * Devices and keys of local users, with the signatures that the viewer may see (spec: "Cross-signing"): those that
 * the owner made, and on the master key also the viewer's own. Users that there are none of are left out.
 */
export async function localKeys(
  db: Queryable,
  userIds: readonly string[],
  viewer?: string,
): Promise<Map<string, UserKeys>> {
  if (userIds.length === 0) return new Map();
  const [users, devices, crossSigning, signatures] = await Promise.all([
    db.query<{ userId: string }>(
      {
        name: 'keys-users',
        text: 'SELECT user_id AS "userId" FROM accounts WHERE user_id = ANY($1) AND deactivated_ts IS NULL',
      },
      [userIds],
    ),
    db.query<{ userId: string; deviceId: string; displayName: string | null; json: string | null }>(
      {
        name: 'keys-devices',
        text: `SELECT d.user_id AS "userId", d.device_id AS "deviceId", d.display_name AS "displayName", k.json
               FROM devices d LEFT JOIN device_keys k USING (user_id, device_id) WHERE d.user_id = ANY($1)`,
      },
      [userIds],
    ),
    crossSigningKeys(db, userIds),
    keySignatures(db, userIds, viewer),
  ]);
  const found = new Map<string, UserKeys>();
  const own = groupBy(devices);
  const ownCrossSigning = groupBy(crossSigning);
  const ownSignatures = groupBy(signatures);
  for (const { userId } of users) {
    const signed = (key: JsonObject, target: string, byOthers: boolean) =>
      addSignatures(key, target, ownSignatures.get(userId) ?? [], byOthers ? undefined : userId);
    const key = (usage: CrossSigningUsage) => {
      const json = ownCrossSigning.get(userId)?.find((row) => row.usage === usage)?.json;
      if (json === undefined) return undefined;
      const parsed = decodeJson(json) as JsonObject;
      return usage === 'master' ? signed(parsed, publicKeyOf(parsed) ?? '', true) : parsed;
    };
    found.set(userId, {
      devices: new Map(
        own.get(userId)?.map(({ deviceId, displayName, json }) => [
          deviceId,
          {
            displayName,
            keys: json === null ? undefined : signed(decodeJson(json) as JsonObject, deviceId, false),
          },
        ]),
      ),
      masterKey: key('master'),
      selfSigningKey: key('self_signing'),
      userSigningKey: key('user_signing'),
    });
  }
  return found;
}

export function crossSigningKeys(
  db: Queryable,
  userIds: readonly string[],
): Promise<Array<{ userId: string; usage: CrossSigningUsage; publicKey: string; json: string }>> {
  return db.query(
    {
      name: 'keys-cross-signing',
      text: `SELECT user_id AS "userId", usage, public_key AS "publicKey", json
             FROM cross_signing_keys WHERE user_id = ANY($1)`,
    },
    [userIds],
  );
}

/** Signatures on keys of these users: those that they made themselves, and the viewer's. */
export function keySignatures(
  db: Queryable,
  userIds: readonly string[],
  viewer: string | undefined,
): Promise<KeySignature[]> {
  return db.query(
    {
      name: 'keys-signatures',
      text: `SELECT user_id AS "userId", target, signer, key_id AS "keyId", signature FROM key_signatures
             WHERE user_id = ANY($1) AND (signer = user_id OR signer = $2)`,
    },
    [userIds, viewer ?? null],
  );
}

/** The key with those signatures that are on `target`; only by `signer` when given. */
export function addSignatures(
  key: JsonObject,
  target: string,
  signatures: readonly KeySignature[],
  signer?: string,
): JsonObject {
  let signed = key;
  for (const entry of signatures)
    if (entry.target === target && (signer === undefined || entry.signer === signer))
      signed = withSignature(signed, entry.signer, entry.keyId, entry.signature);
  return signed;
}

function groupBy<R extends { userId: string }>(rows: readonly R[]): Map<string, R[]> {
  return Map.groupBy(rows, ({ userId }) => userId);
}
