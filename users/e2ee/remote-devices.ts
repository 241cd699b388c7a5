import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import {
  type CrossSigningUsage,
  isCrossSigningKey,
  isDeviceKeys,
  isName,
  isObject,
  sameJson,
} from './key-json.ts';
import type { UserKeys } from './local-keys.ts';

/** Devices that a user of another server can have here; a list with more is refused. */
const MAX_DEVICES = 2000;
const MAX_DISPLAY_NAME = 400;

/** The copy of another server's user, and which of the server's updates it is made of. */
export interface RemoteList extends UserKeys {
  readonly streamIds: readonly number[];
}

interface ListRow {
  userId: string;
  streamIds: string[];
  stale: boolean;
  masterKey: string | null;
  selfSigningKey: string | null;
}

/** How a copy stands: `undefined` when there is none. */
export async function listState(
  db: Queryable,
  userId: string,
): Promise<{ streamIds: number[]; stale: boolean } | undefined> {
  const [row] = await db.query<Pick<ListRow, 'streamIds' | 'stale'>>(
    {
      name: 'remote-list-state',
      text: 'SELECT stream_ids AS "streamIds", stale FROM remote_device_lists WHERE user_id = $1',
    },
    [userId],
  );
  return row && { streamIds: row.streamIds.map(Number), stale: row.stale };
}

/** The copies of these users; those that miss an update only when `stale` is asked for too. */
export async function readLists(
  db: Queryable,
  userIds: readonly string[],
  { stale = false } = {},
): Promise<Map<string, RemoteList>> {
  if (userIds.length === 0) return new Map();
  const rows = await db.query<ListRow>(
    {
      name: 'remote-lists',
      text: `SELECT user_id AS "userId", stream_ids AS "streamIds", stale, master_key AS "masterKey",
                    self_signing_key AS "selfSigningKey"
             FROM remote_device_lists WHERE user_id = ANY($1)`,
    },
    [userIds],
  );
  const lists = new Map<string, RemoteList>();
  for (const row of rows) {
    if (row.stale && !stale) continue;
    const masterKey = parsed(row.masterKey);
    const selfSigningKey = parsed(row.selfSigningKey);
    lists.set(row.userId, {
      streamIds: row.streamIds.map(Number),
      devices: new Map(),
      masterKey,
      selfSigningKey,
    });
  }
  if (lists.size === 0) return lists;
  const devices = await db.query<{
    userId: string;
    deviceId: string;
    displayName: string | null;
    keys: string | null;
  }>(
    {
      name: 'remote-devices',
      text: `SELECT user_id AS "userId", device_id AS "deviceId", display_name AS "displayName", keys
             FROM remote_devices WHERE user_id = ANY($1)`,
    },
    [[...lists.keys()]],
  );
  for (const { userId, deviceId, displayName, keys } of devices)
    lists.get(userId)?.devices.set(deviceId, { displayName, keys: parsed(keys) });
  return lists;
}

/** Takes the place of the copy that there was. */
export async function replaceList(
  tx: Queryable,
  userId: string,
  list: RemoteList,
  stale: boolean,
): Promise<void> {
  await tx.query(
    `INSERT INTO remote_device_lists (user_id, stream_ids, stale, master_key, self_signing_key)
     VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (user_id) DO UPDATE SET stream_ids = excluded.stream_ids, stale = excluded.stale,
       master_key = excluded.master_key, self_signing_key = excluded.self_signing_key`,
    [userId, list.streamIds, stale, text(list.masterKey), text(list.selfSigningKey)],
  );
  await tx.query('DELETE FROM remote_devices WHERE user_id = $1', [userId]);
  const devices = [...list.devices];
  await tx.query(
    `INSERT INTO remote_devices (user_id, device_id, display_name, keys)
     SELECT $1, device_id, display_name, keys FROM unnest($2::text[], $3::text[], $4::text[])
       AS d (device_id, display_name, keys)`,
    [
      userId,
      devices.map(([deviceId]) => deviceId),
      devices.map(([, { displayName }]) => displayName),
      devices.map(([, { keys }]) => text(keys)),
    ],
  );
}

/** Whether two copies show a client the same: devices without keys are nothing to it. */
export function sameList(a: UserKeys, b: UserKeys): boolean {
  if (!sameJson(a.masterKey, b.masterKey) || !sameJson(a.selfSigningKey, b.selfSigningKey)) return false;
  const visible = ({ devices }: UserKeys) => [...devices].filter(([, { keys }]) => keys !== undefined);
  const [ofA, ofB] = [visible(a), new Map(visible(b))];
  if (ofA.length !== ofB.size) return false;
  return ofA.every(([deviceId, { keys, displayName }]) => {
    const other = ofB.get(deviceId);
    return other !== undefined && other.displayName === displayName && sameJson(other.keys, keys);
  });
}

/** The answer to `/user/devices`; `undefined` when it is none. What is malformed in it is left out. */
export function parseUserDevices(userId: string, answer: JsonObject): RemoteList | undefined {
  const { stream_id: streamId, devices } = answer;
  if (!Number.isSafeInteger(streamId) || !Array.isArray(devices) || devices.length > MAX_DEVICES)
    return undefined;
  const list: RemoteList = {
    streamIds: [streamId as number],
    devices: new Map(),
    masterKey: crossSigningKey(answer.master_key, userId, 'master'),
    selfSigningKey: crossSigningKey(answer.self_signing_key, userId, 'self_signing'),
  };
  for (const device of devices) {
    if (!isObject(device) || !isName(device.device_id)) continue;
    list.devices.set(device.device_id, parseDevice(userId, device.device_id, device));
  }
  return list;
}

/** A device as `/user/devices` and `m.device_list_update` show it. */
export function parseDevice(
  userId: string,
  deviceId: string,
  { keys, device_display_name: name }: JsonObject,
): { displayName: string | null; keys: JsonObject | undefined } {
  if (!isDeviceKeys(keys, userId, deviceId)) return { displayName: displayName(name), keys: undefined };
  const { unsigned: _, ...identity } = keys;
  return { displayName: displayName(name), keys: identity };
}

/** The answer to `/user/keys/query` for one user. */
export function parseKeyQuery(userId: string, answer: JsonObject): UserKeys | undefined {
  const of = (name: string) => {
    const users = answer[name];
    return isObject(users) && Object.hasOwn(users, userId) ? users[userId] : undefined;
  };
  const deviceKeys = of('device_keys');
  const masterKey = crossSigningKey(of('master_keys'), userId, 'master');
  const selfSigningKey = crossSigningKey(of('self_signing_keys'), userId, 'self_signing');
  if (!isObject(deviceKeys) && !masterKey) return undefined;
  const devices: UserKeys['devices'] = new Map();
  for (const [deviceId, keys] of Object.entries(isObject(deviceKeys) ? deviceKeys : {}).slice(
    0,
    MAX_DEVICES,
  )) {
    if (!isObject(keys)) continue;
    const name = isObject(keys.unsigned) ? keys.unsigned.device_display_name : undefined;
    devices.set(deviceId, parseDevice(userId, deviceId, { keys, device_display_name: name ?? null }));
  }
  return { devices, masterKey, selfSigningKey };
}

export function crossSigningKey(
  key: JsonValue | undefined,
  userId: string,
  usage: CrossSigningUsage,
): JsonObject | undefined {
  return isCrossSigningKey(key, userId, usage) ? key : undefined;
}

function displayName(name: JsonValue | undefined): string | null {
  return typeof name === 'string'
    ? name.slice(0, MAX_DISPLAY_NAME).replaceAll('\0', '').toWellFormed()
    : null;
}

function parsed(json: string | null): JsonObject | undefined {
  return json === null ? undefined : (decodeJson(json) as JsonObject);
}

function text(json: JsonObject | undefined): string | null {
  return json === undefined ? null : JSON.stringify(json);
}
