import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { DeviceKeys } from './device-keys.ts';
import { isObject, isOfSize, publicKeyOf } from './key-json.ts';
import { addSignatures, keySignatures, localKeys, type UserKeys } from './local-keys.ts';
import type { KeyWanted } from './one-time-keys.ts';
import type { RemoteDeviceLists, RemoteKeyServers } from './remote-device-lists.ts';
import { parseKeyQuery } from './remote-devices.ts';

export interface KeysDeps {
  readonly db: Database;
  readonly serverName: string;
  readonly deviceKeys: DeviceKeys;
  readonly remoteLists: RemoteDeviceLists;
  readonly servers: RemoteKeyServers;
}

/** User id to the device ids that are wanted; an empty list for all. */
export type DevicesWanted = ReadonlyMap<string, readonly string[]>;

export interface KeysFound {
  readonly users: ReadonlyMap<string, UserKeys>;
  /** Servers that did not answer. */
  readonly failures: ReadonlySet<string>;
}

/** User id to device id to `algorithm:id` to the key. */
export type KeysClaimed = Map<string, Map<string, JsonObject>>;

/** Users of one server whose whole lists are asked for; the keys of more are asked for all at once, and not kept. */
const MAX_COPIES = 50;
const PARALLEL_COPIES = 5;
const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_TIMEOUT_MS = 60_000;

/** Keys of users of this server and of others, for local users (spec: `/keys/query`, `/keys/claim`). */
export class Keys {
  readonly #deps: KeysDeps;

  constructor(deps: KeysDeps) {
    this.#deps = deps;
  }

  async query(viewer: string, userIds: readonly string[], timeout?: number): Promise<KeysFound> {
    const { db, serverName } = this.#deps;
    const valid = userIds.filter((userId) => parseUserId(userId));
    const isLocal = (userId: string) => serverNameOf(userId) === serverName;
    const failures = new Set<string>();
    const remote = valid.filter((userId) => !isLocal(userId));
    const [local, others] = await Promise.all([
      localKeys(db, valid.filter(isLocal), viewer),
      this.#queryRemote(remote, timeoutOf(timeout), failures),
    ]);
    await this.#addOwnSignatures(others, viewer);
    return { users: new Map([...local, ...others]), failures };
  }

  /** The master key of any user, without signatures of others. */
  async masterKey(userId: string): Promise<JsonObject | undefined> {
    return (await this.query(userId, [userId])).users.get(userId)?.masterKey;
  }

  async claim(
    wanted: readonly KeyWanted[],
    timeout?: number,
  ): Promise<{ claimed: KeysClaimed; failures: ReadonlySet<string> }> {
    const { serverName, deviceKeys, servers } = this.#deps;
    const claimed: KeysClaimed = new Map();
    const failures = new Set<string>();
    const add = ({ userId, deviceId }: KeyWanted, name: string, key: JsonValue) => {
      const devices = claimed.get(userId) ?? new Map<string, JsonObject>();
      claimed.set(userId, devices.set(deviceId, Object.fromEntries([[name, key]])));
    };
    const byServer = Map.groupBy(wanted, ({ userId }) => serverNameOf(userId));
    const tasks = [...byServer].map(async ([server, keys]) => {
      if (server === serverName) {
        for (const given of await deviceKeys.claim(keys))
          add(given, `${given.algorithm}:${given.keyId}`, decodeJson(given.json) as JsonValue);
        return;
      }
      const answer = await servers
        .claimKeys(server, claimBody(keys), timeoutOf(timeout))
        .catch(() => undefined);
      if (!answer) failures.add(server);
      else for (const key of keys) takeClaimed(answer, key, add);
    });
    await Promise.all(tasks);
    return { claimed, failures };
  }

  async #queryRemote(
    userIds: readonly string[],
    timeoutMs: number,
    failures: Set<string>,
  ): Promise<Map<string, UserKeys>> {
    if (userIds.length === 0) return new Map();
    const { found, copyable } = await this.#deps.remoteLists.lookUp(userIds);
    const copies = new Set(copyable);
    const missing = userIds.filter((userId) => !found.has(userId));
    const byServer = Map.groupBy(missing, serverNameOf);
    const tasks = [...byServer].map(async ([server, users]) => {
      const toCopy = users.filter((userId) => copies.has(userId)).slice(0, MAX_COPIES);
      const asked = this.#askServer(server, users, toCopy, timeoutMs, found);
      if (!(await within(asked, timeoutMs))) failures.add(server);
    });
    await Promise.all(tasks);
    return found;
  }

  async #askServer(
    server: string,
    users: readonly string[],
    toCopy: readonly string[],
    timeoutMs: number,
    found: Map<string, UserKeys>,
  ): Promise<void> {
    const { remoteLists, servers } = this.#deps;
    const todo = [...toCopy];
    const copy = async () => {
      for (let userId = todo.pop(); userId !== undefined; userId = todo.pop()) {
        const list = await remoteLists.fetch(userId);
        if (list) found.set(userId, list);
      }
    };
    await Promise.all(Array.from({ length: PARALLEL_COPIES }, copy));
    const rest = users.filter((userId) => !found.has(userId));
    if (rest.length === 0) return;
    const wanted = Object.fromEntries(rest.map((userId) => [userId, []]));
    const answer = await servers.queryKeys(server, wanted, timeoutMs);
    for (const userId of rest) {
      const keys = parseKeyQuery(userId, answer);
      if (keys) found.set(userId, keys);
    }
  }

  /** What the viewer has signed of others is kept here, whatever the others' server shows. */
  async #addOwnSignatures(users: Map<string, UserKeys>, viewer: string): Promise<void> {
    const masters = [...users].filter(([, { masterKey }]) => masterKey);
    if (masters.length === 0) return;
    const ids = masters.map(([userId]) => userId);
    const byUser = Map.groupBy(await keySignatures(this.#deps.db, ids, viewer), ({ userId }) => userId);
    for (const [userId, keys] of masters) {
      const signatures = byUser.get(userId);
      if (!signatures) continue;
      const masterKey = addSignatures(keys.masterKey!, publicKeyOf(keys.masterKey!)!, signatures, viewer);
      users.set(userId, { ...keys, masterKey });
    }
  }
}

function claimBody(keys: readonly KeyWanted[]): Record<string, Record<string, string>> {
  const byUser = Map.groupBy(keys, ({ userId }) => userId);
  return Object.fromEntries(
    [...byUser].map(([userId, devices]) => [
      userId,
      Object.fromEntries(devices.map(({ deviceId, algorithm }) => [deviceId, algorithm])),
    ]),
  );
}

/** Takes from an answer the one key that was asked for. */
function takeClaimed(
  { one_time_keys: users }: JsonObject,
  wanted: KeyWanted,
  add: (wanted: KeyWanted, name: string, key: JsonValue) => void,
): void {
  const devices = isObject(users) && Object.hasOwn(users, wanted.userId) ? users[wanted.userId] : undefined;
  const keys =
    isObject(devices) && Object.hasOwn(devices, wanted.deviceId) ? devices[wanted.deviceId] : undefined;
  if (!isObject(keys)) return;
  const entry = Object.entries(keys).find(([name]) => name.startsWith(`${wanted.algorithm}:`));
  if (entry && isOfSize(entry[1])) add(wanted, ...entry);
}

function timeoutOf(timeout: number | undefined): number {
  return Math.min(Math.max(timeout ?? DEFAULT_TIMEOUT_MS, 0), MAX_TIMEOUT_MS);
}

/** Whether the work is done in time; it goes on when not. */
async function within(work: Promise<void>, timeoutMs: number): Promise<boolean> {
  const { promise: late, resolve } = Promise.withResolvers<false>();
  const timer = setTimeout(() => resolve(false), timeoutMs);
  try {
    return await Promise.race([
      work.then(
        () => true,
        () => false,
      ),
      late,
    ]);
  } finally {
    clearTimeout(timer);
  }
}
