import { invalidParam, MatrixError, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonValue } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { isName, isObject, isOfSize, sameJson } from './key-json.ts';

/** Unclaimed keys that a device may have of an algorithm. */
const MAX_KEYS = 1000;
/** How long claimed keys are remembered, in milliseconds: as long as a client may go on sending an upload again. */
const CLAIMED_MS = 14 * 24 * 3600_000;

export interface KeyCounts {
  readonly oneTimeKeys: Record<string, number>;
  readonly unusedFallbackTypes: string[];
}

export interface KeyWanted {
  readonly userId: string;
  readonly deviceId: string;
  readonly algorithm: string;
}

export interface KeyGiven extends KeyWanted {
  readonly keyId: string;
  readonly json: string;
}

interface NamedKey {
  readonly algorithm: string;
  readonly keyId: string;
  readonly value: JsonValue;
}

/**
 * Takes in one-time keys of a device, whose row the caller has locked. The same key again is no error, also when it
 * has been claimed meanwhile: it is not given out twice. Another key under the name of an unclaimed one is refused.
 */
export async function storeOneTimeKeys(
  tx: Queryable,
  userId: string,
  deviceId: string,
  keys: Readonly<Record<string, JsonValue>>,
): Promise<void> {
  const given = namedKeys(keys);
  if (given.length === 0) return;
  if (given.length > MAX_KEYS) throw tooLarge(`At the most ${MAX_KEYS} one-time keys can be uploaded`);
  await tx.query('DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND claimed_ts < $3', [
    userId,
    deviceId,
    Date.now() - CLAIMED_MS,
  ]);
  const known = await tx.query<{ name: string; upload: number; claimed: boolean; json: string }>(
    `SELECT algorithm || ':' || key_id AS name, upload, claimed_ts IS NOT NULL AS claimed, json
     FROM one_time_keys WHERE user_id = $1 AND device_id = $2`,
    [userId, deviceId],
  );
  const byName = new Map(known.map((row) => [row.name, row]));
  const fresh = given.filter(({ algorithm, keyId, value }) => {
    const name = `${algorithm}:${keyId}`;
    const old = byName.get(name);
    if (!old) return true;
    if (isSameKey(decodeJson(old.json) as JsonValue, value)) return false;
    if (!old.claimed) throw alreadyExists(name, old.json, value);
    return true;
  });
  const unclaimed = known.filter(({ claimed }) => !claimed).length;
  if (unclaimed + fresh.length > MAX_KEYS) throw tooLarge(`A device can have ${MAX_KEYS} one-time keys`);
  const upload = known.reduce((highest, row) => Math.max(highest, row.upload), 0) + 1;
  await tx.query(
    `INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, upload, json)
     SELECT $1, $2, algorithm, key_id, $3, json
     FROM unnest($4::text[], $5::text[], $6::text[]) AS k (algorithm, key_id, json)
     ON CONFLICT (user_id, device_id, algorithm, key_id)
       DO UPDATE SET upload = excluded.upload, json = excluded.json, claimed_ts = NULL`,
    [
      userId,
      deviceId,
      upload,
      fresh.map(({ algorithm }) => algorithm),
      fresh.map(({ keyId }) => keyId),
      fresh.map(({ value }) => JSON.stringify(value)),
    ],
  );
}

/** One fallback key for each algorithm; the same key again stays used if it was. */
export async function storeFallbackKeys(
  tx: Queryable,
  userId: string,
  deviceId: string,
  keys: Readonly<Record<string, JsonValue>>,
): Promise<void> {
  const given = namedKeys(keys);
  if (new Set(given.map(({ algorithm }) => algorithm)).size < given.length)
    throw invalidParam('There can be one fallback key for each algorithm');
  for (const { algorithm, keyId, value } of given)
    await tx.query(
      `INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, json) VALUES ($1, $2, $3, $4, $5)
       ON CONFLICT (user_id, device_id, algorithm)
         DO UPDATE SET key_id = excluded.key_id, json = excluded.json, used = false
         WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.json <> excluded.json`,
      [userId, deviceId, algorithm, keyId, JSON.stringify(value)],
    );
}

export async function readKeyCounts(db: Queryable, userId: string, deviceId: string): Promise<KeyCounts> {
  const [counts, fallback] = [
    await db.query<{ algorithm: string; count: number }>(
      {
        name: 'one-time-key-counts',
        text: `SELECT algorithm, count(*) AS count FROM one_time_keys
               WHERE user_id = $1 AND device_id = $2 AND claimed_ts IS NULL GROUP BY algorithm`,
      },
      [userId, deviceId],
    ),
    await db.query<{ algorithm: string }>(
      {
        name: 'fallback-keys-unused',
        text: 'SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used',
      },
      [userId, deviceId],
    ),
  ];
  return {
    // Clients take a missing count for an unknown one, so that of the algorithm in use is always there.
    oneTimeKeys: {
      signed_curve25519: 0,
      ...Object.fromEntries(counts.map(({ algorithm, count }) => [algorithm, count])),
    },
    unusedFallbackTypes: fallback.map(({ algorithm }) => algorithm),
  };
}

/**
 * Gives out a key for each device that is asked for and has one: the oldest upload's first, a fallback key when there
 * is no other. Whoever claims at the same time passes over the keys that this call has locked, so no key is given
 * twice; one that was given and then lost by a crash is not given again.
 */
export async function claimKeys(db: Queryable, wanted: readonly KeyWanted[]): Promise<KeyGiven[]> {
  const columns = (keys: readonly KeyWanted[]) => [
    keys.map(({ userId }) => userId),
    keys.map(({ deviceId }) => deviceId),
    keys.map(({ algorithm }) => algorithm),
  ];
  const given = await db.query<KeyGiven>(
    {
      name: 'one-time-keys-claim',
      text: `WITH picked AS MATERIALIZED (
               SELECT k.user_id, k.device_id, k.algorithm, k.key_id
               FROM unnest($1::text[], $2::text[], $3::text[]) AS w (user_id, device_id, algorithm)
               CROSS JOIN LATERAL (
                 SELECT user_id, device_id, algorithm, key_id FROM one_time_keys o
                 WHERE o.user_id = w.user_id AND o.device_id = w.device_id AND o.algorithm = w.algorithm
                   AND claimed_ts IS NULL
                 ORDER BY upload LIMIT 1 FOR UPDATE SKIP LOCKED) k)
             UPDATE one_time_keys o SET claimed_ts = $4 FROM picked p
             WHERE o.user_id = p.user_id AND o.device_id = p.device_id AND o.algorithm = p.algorithm
               AND o.key_id = p.key_id AND o.claimed_ts IS NULL
             RETURNING o.user_id AS "userId", o.device_id AS "deviceId", o.algorithm, o.key_id AS "keyId", o.json`,
    },
    [...columns(wanted), Date.now()],
  );
  const served = new Set(given.map(nameOf));
  const missing = wanted.filter((key) => !served.has(nameOf(key)));
  if (missing.length === 0) return given;
  const fallback = await db.query<KeyGiven>(
    {
      name: 'fallback-keys-claim',
      text: `SELECT f.user_id AS "userId", f.device_id AS "deviceId", f.algorithm, f.key_id AS "keyId", f.json
             FROM fallback_keys f JOIN unnest($1::text[], $2::text[], $3::text[]) AS w (user_id, device_id, algorithm)
               USING (user_id, device_id, algorithm)`,
    },
    columns(missing),
  );
  if (fallback.length > 0)
    await db.query(
      {
        name: 'fallback-keys-used',
        text: `UPDATE fallback_keys f SET used = true
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w (user_id, device_id, algorithm, key_id)
               WHERE f.user_id = w.user_id AND f.device_id = w.device_id AND f.algorithm = w.algorithm
                 AND f.key_id = w.key_id AND NOT f.used`,
      },
      [...columns(fallback), fallback.map(({ keyId }) => keyId)],
    );
  return [...given, ...fallback];
}

function nameOf({ userId, deviceId, algorithm }: KeyWanted): string {
  return JSON.stringify([userId, deviceId, algorithm]);
}

function namedKeys(keys: Readonly<Record<string, JsonValue>>): NamedKey[] {
  return Object.entries(keys).map(([name, value]) => {
    const colon = name.indexOf(':');
    const [algorithm, keyId] = [name.slice(0, colon), name.slice(colon + 1)];
    if (colon < 0 || !isName(algorithm) || !isName(keyId))
      throw invalidParam('Keys are named ALGORITHM:KEY_ID');
    if (!isOfSize(value)) throw tooLarge('A key is too large');
    return { algorithm, keyId, value };
  });
}

/** A key that was signed anew is the same key. */
function isSameKey(a: JsonValue, b: JsonValue): boolean {
  if (!isObject(a) || !isObject(b)) return sameJson(a, b);
  return sameJson({ ...a, signatures: {} }, { ...b, signatures: {} });
}

/** Worded as clients look for it. */
function alreadyExists(name: string, old: string, value: JsonValue): MatrixError {
  const error = `One time key ${name} already exists. Old key: ${old}; new key: ${JSON.stringify(value)}`;
  return new MatrixError(400, 'M_UNKNOWN', error);
}
