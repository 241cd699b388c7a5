import type { JsonObject } from '@trellis/protocol/event.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { localKeys, type UserKeys } from './local-keys.ts';

export interface DeviceListEdu {
  readonly eduType: 'm.device_list_update' | 'm.signing_key_update';
  readonly content: JsonObject;
}

/** More changes of one user that a server missed are not told one by one: the gap makes it ask for the list. */
const MAX_EDUS = 100;

const SEEN_BY = '(servers IS NULL OR $2 = ANY(servers)) AND only_for IS NULL';

/**
 * Tells another server what changed of a local user's devices and keys (Server-Server API, "Device Management"). The
 * `stream_id` of an update is its position; `prev_id` the position of the one before that this server is told of.
 * Of several changes of a device only the last is told, with the device as it is now.
 */
export async function deviceListEdus(
  db: Queryable,
  userId: string,
  destination: string,
  from: number,
  to: number,
): Promise<DeviceListEdu[]> {
  const rows = await db.query<{ pos: number; deviceId: string | null }>(
    {
      name: 'device-list-edus',
      text: `SELECT pos, device_id AS "deviceId" FROM device_list_changes
             WHERE user_id = $1 AND pos > $3 AND pos <= $4 AND ${SEEN_BY} ORDER BY pos DESC LIMIT 1000`,
    },
    [userId, destination, from, to],
  );
  if (rows.length === 0) return [];
  const newest = new Map<string | null, number>();
  for (const { pos, deviceId } of rows) if (!newest.has(deviceId)) newest.set(deviceId, pos);
  const told = [...newest].reverse().slice(-MAX_EDUS);
  const left = newest.size > told.length || rows.length === 1000;
  let previous = left ? rows.at(-1)!.pos : await deviceListPosition(db, userId, destination, from);
  const keys = (await localKeys(db, [userId])).get(userId);
  return told.map(([deviceId, pos]) => {
    if (deviceId === null)
      return { eduType: 'm.signing_key_update', content: signingKeyUpdate(userId, keys) };
    const content = {
      ...device(userId, deviceId, keys),
      stream_id: pos,
      prev_id: previous === undefined ? [] : [previous],
    };
    previous = pos;
    return { eduType: 'm.device_list_update', content };
  });
}

/** The `stream_id` that a server has of a user's list when it knows everything up to `until`. */
export async function deviceListPosition(
  db: Queryable,
  userId: string,
  destination: string,
  until: number = Number.MAX_SAFE_INTEGER,
): Promise<number | undefined> {
  const [row] = await db.query<{ pos: number }>(
    {
      name: 'device-list-position',
      text: `SELECT pos FROM device_list_changes
             WHERE user_id = $1 AND pos <= $3 AND device_id IS NOT NULL AND ${SEEN_BY} ORDER BY pos DESC LIMIT 1`,
    },
    [userId, destination, until],
  );
  return row?.pos;
}

function device(userId: string, deviceId: string, keys: UserKeys | undefined): JsonObject {
  const found = keys?.devices.get(deviceId);
  return {
    user_id: userId,
    device_id: deviceId,
    ...(found ? {} : { deleted: true }),
    ...(found?.displayName ? { device_display_name: found.displayName } : {}),
    ...(found?.keys ? { keys: found.keys } : {}),
  };
}

function signingKeyUpdate(userId: string, keys: UserKeys | undefined): JsonObject {
  return {
    user_id: userId,
    ...(keys?.masterKey ? { master_key: keys.masterKey } : {}),
    ...(keys?.selfSigningKey ? { self_signing_key: keys.selfSigningKey } : {}),
  };
}
