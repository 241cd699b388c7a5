import type { Cluster } from '@trellis/cluster/cluster.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { DeviceListChanges } from '../device-lists.ts';
import { KeyedLock } from '../keyed-lock.ts';
import { lockName } from '../locked-write.ts';
import { isName, sameJson } from './key-json.ts';
import type { UserKeys } from './local-keys.ts';
import {
  crossSigningKey,
  listState,
  parseDevice,
  parseUserDevices,
  type RemoteList,
  readLists,
  replaceList,
  sameList,
} from './remote-devices.ts';

/** Asks other servers for keys. Implemented by `federation/`. */
export interface RemoteKeyServers {
  /** The answer to `/user/devices`; `undefined` when the server answers with an error. Throws when it does not answer. */
  userDevices(server: string, userId: string): Promise<JsonObject | undefined>;
  queryKeys(server: string, deviceKeys: Record<string, string[]>, timeoutMs: number): Promise<JsonObject>;
  claimKeys(
    server: string,
    oneTimeKeys: Record<string, Record<string, string>>,
    timeoutMs: number,
  ): Promise<JsonObject>;
}

export interface RemoteDeviceListsDeps {
  readonly db: Database;
  readonly lists: DeviceListChanges;
  readonly servers: RemoteKeyServers;
  /** Whether the user is in a room together with anyone of this server: only then do updates come. */
  readonly sharesRoom: (userId: string) => Promise<boolean>;
  /** An update came for a user who does not, or of whom it is not known yet. */
  /** Where there may be other processes: the copy of a user is then kept by one of them. */
  readonly cluster?: Cluster | undefined;
  readonly onUnplaced?: (server: string, userId: string) => Promise<void>;
}

/** Updates that a copy remembers to be made of. */
const MAX_STREAM_IDS = 50;
const MAX_PREV_IDS = 100;
/** Times a list is asked for anew because updates came meanwhile. */
const MAX_ROUNDS = 3;
/** Lists asked for at a time when nobody waits for them. */
const PARALLEL_RESYNCS = 5;
const MAX_WAITING = 10_000;

interface Fetching {
  readonly result: Promise<RemoteList | undefined>;
  /** An update came after the list was asked for: it may or may not be in the answer. */
  overtaken: boolean;
}

/**
 * Copies of the device lists of other servers' users (Server-Server API, "Device Management"). A copy begins with the
 * first question for it and is kept up to date by `m.device_list_update`; where one of these is missing the whole
 * list is asked for again. All that changes the copy of a user runs one after the other.
 */
export class RemoteDeviceLists {
  readonly #deps: RemoteDeviceListsDeps;
  readonly #locks = new KeyedLock();
  readonly #fetching = new Map<string, Fetching>();
  /** Users to ask for, and whether clients must be told also when that fails. */
  readonly #waiting = new Map<string, boolean>();
  #resyncing = 0;
  /** Users whose list has changed, as their server says: clients are told even if it looks the same. */
  readonly #toTell = new Set<string>();

  constructor(deps: RemoteDeviceListsDeps) {
    this.#deps = deps;
    const { cluster } = deps;
    if (!cluster?.shared) return;
    cluster.serve('device-lists.fetch', async (_none, userId) => encoded(await this.fetch(userId)) as never, {
      drained: false,
    });
    cluster.serve('device-lists.update', async ({ origin, content }: Update) => {
      await this.deviceListUpdate(origin, content);
      return null;
    });
    cluster.serve('device-lists.signing-keys', async ({ origin, content }: Update) => {
      await this.signingKeyUpdate(origin, content);
      return null;
    });
    cluster.onHandover({
      release: (lost) => {
        for (const userId of this.#waiting.keys()) if (lost('user', userId)) this.#waiting.delete(userId);
        for (const userId of this.#toTell) if (lost('user', userId)) this.#toTell.delete(userId);
      },
      take: () => void this.#resumeStale().catch(() => {}),
    });
  }

  /** The users among these whose copies are up to date, and those who can be copied. */
  async lookUp(userIds: readonly string[]): Promise<{ found: Map<string, UserKeys>; copyable: string[] }> {
    const shares = await Promise.all(userIds.map((userId) => this.#deps.sharesRoom(userId)));
    const shared = userIds.filter((_userId, i) => shares[i]);
    const found = await readLists(this.#deps.db, shared);
    return { found, copyable: shared.filter((userId) => !found.has(userId)) };
  }

  /**
   * Asks the user's server for the list and keeps it. `undefined` when the server has none to give.
   *
   * @throws when the server does not answer
   */
  fetch(userId: string): Promise<RemoteList | undefined> {
    const elsewhere = this.#keptElsewhere(userId);
    if (elsewhere) return elsewhere.call<never>('user', userId, 'device-lists.fetch', null).then(decoded);
    const running = this.#fetching.get(userId);
    if (running) return running.result;
    const fetching = { overtaken: false } as { -readonly [K in keyof Fetching]: Fetching[K] };
    fetching.result = this.#fetch(userId, fetching).finally(async () => {
      if (this.#fetching.get(userId) !== fetching) return;
      this.#fetching.delete(userId);
      // It failed, and an update was left for it to bring.
      if (fetching.overtaken) await this.#announce(userId);
    });
    this.#fetching.set(userId, fetching);
    return fetching.result;
  }

  /** `m.device_list_update` */
  async deviceListUpdate(origin: string, content: JsonObject): Promise<void> {
    const { user_id: userId, device_id: deviceId, stream_id: streamId, prev_id: prev = [] } = content;
    if (!this.#isOf(origin, userId) || !isName(deviceId) || !Number.isSafeInteger(streamId)) return;
    const elsewhere = this.#keptElsewhere(userId);
    if (elsewhere)
      return void (await elsewhere.call('user', userId, 'device-lists.update', { origin, content } as never));
    if (!Array.isArray(prev) || prev.length > MAX_PREV_IDS || !prev.every(Number.isSafeInteger)) return;
    if (!(await this.#deps.sharesRoom(userId))) return this.#deps.onUnplaced?.(origin, userId);
    const device = content.deleted === true ? undefined : parseDevice(userId, deviceId, content);
    await this.#locks.run(userId, async () => {
      const state = await listState(this.#deps.db, userId);
      if (this.#overtakes(userId)) return;
      if (!state) {
        // Nobody has asked since they share a room: there is nothing to keep up to date.
        if (!device || device.keys) await this.#announce(userId);
        return;
      }
      if (state.streamIds.includes(streamId as number)) return;
      const follows = prev.length > 0 && prev.every((id) => state.streamIds.includes(id as number));
      if (state.stale || !follows) return this.#resyncLater(userId);
      await this.#change(userId, (list) => {
        if (device) list.devices.set(deviceId, device);
        else list.devices.delete(deviceId);
        return { ...list, streamIds: [...list.streamIds, streamId as number].slice(-MAX_STREAM_IDS) };
      });
    });
  }

  /** `m.signing_key_update` */
  async signingKeyUpdate(origin: string, content: JsonObject): Promise<void> {
    const { user_id: userId } = content;
    if (!this.#isOf(origin, userId)) return;
    const elsewhere = this.#keptElsewhere(userId);
    if (elsewhere)
      return void (await elsewhere.call('user', userId, 'device-lists.signing-keys', {
        origin,
        content,
      } as never));
    if (!(await this.#deps.sharesRoom(userId))) return this.#deps.onUnplaced?.(origin, userId);
    const masterKey = crossSigningKey(content.master_key, userId, 'master');
    const selfSigningKey = crossSigningKey(content.self_signing_key, userId, 'self_signing');
    await this.#locks.run(userId, async () => {
      const state = await listState(this.#deps.db, userId);
      if (this.#overtakes(userId)) return;
      if (!state) return this.#announce(userId);
      if (state.stale) return this.#resyncLater(userId);
      await this.#change(userId, (list) => ({
        ...list,
        masterKey: masterKey ?? list.masterKey,
        selfSigningKey:
          selfSigningKey ?? (isNewKey(masterKey, list.masterKey) ? undefined : list.selfSigningKey),
      }));
    });
  }

  /** Drops the copies of those who no longer share a room: no updates come for them. */
  async dropUnshared(all: readonly string[]): Promise<void> {
    const userIds = all.filter((userId) => !this.#keptElsewhere(userId));
    if (userIds.length === 0) return;
    const copied = await this.#deps.db.query<{ userId: string }>(
      'SELECT user_id AS "userId" FROM remote_device_lists WHERE user_id = ANY($1)',
      [userIds],
    );
    for (const { userId } of copied)
      await this.#locks.run(userId, async () => {
        if (await this.#deps.sharesRoom(userId)) return;
        await this.#deps.db.transaction(async (tx) => {
          await tx.query('DELETE FROM remote_device_lists WHERE user_id = $1', [userId]);
          await tx.query('DELETE FROM remote_devices WHERE user_id = $1', [userId]);
        });
      });
  }

  /** Drops what was not dropped when the last run ended, and tries again what could not be asked for. */
  async tidy(): Promise<void> {
    const { db } = this.#deps;
    for (let after = ''; ; ) {
      const rows = await db.query<{ userId: string; stale: boolean }>(
        'SELECT user_id AS "userId", stale FROM remote_device_lists WHERE user_id > $1 ORDER BY user_id LIMIT 500',
        [after],
      );
      if (rows.length === 0) return;
      await this.dropUnshared(rows.map(({ userId }) => userId));
      for (const { userId, stale } of rows)
        if (stale && !this.#keptElsewhere(userId)) this.#enqueue(userId, false);
      after = rows.at(-1)!.userId;
    }
  }

  /** What was left to be asked for by the process that these users were kept by. */
  async #resumeStale(): Promise<void> {
    const rows = await this.#deps.db.query<{ userId: string }>(
      'SELECT user_id AS "userId" FROM remote_device_lists WHERE stale LIMIT $1',
      [MAX_WAITING],
    );
    for (const { userId } of rows) if (!this.#keptElsewhere(userId)) this.#enqueue(userId, true);
  }

  #keptElsewhere(userId: string): Cluster | undefined {
    const { cluster } = this.#deps;
    return cluster?.shared && !cluster.owns('user', userId) ? cluster : undefined;
  }

  #isOf(origin: string, userId: unknown): userId is string {
    return isName(userId as string) && serverNameOf(userId as string) === origin;
  }

  /** Whether the list is being asked for now: then it is asked for again, instead of guessing what it holds. */
  #overtakes(userId: string): boolean {
    const fetching = this.#fetching.get(userId);
    if (fetching) fetching.overtaken = true;
    return fetching !== undefined;
  }

  async #fetch(userId: string, fetching: { overtaken: boolean }): Promise<RemoteList | undefined> {
    for (let round = 1; ; round++) {
      fetching.overtaken = false;
      const answer = await this.#deps.servers.userDevices(serverNameOf(userId), userId);
      const list = answer && parseUserDevices(userId, answer);
      if (!list) return undefined;
      const stored = await this.#locks.run(userId, async () => {
        if (fetching.overtaken && round < MAX_ROUNDS) return false;
        if (await this.#deps.sharesRoom(userId)) await this.#replace(userId, list, fetching.overtaken);
        this.#fetching.delete(userId);
        return true;
      });
      if (stored) return list;
    }
  }

  async #replace(userId: string, list: RemoteList, stale: boolean): Promise<void> {
    await this.#deps.lists.record(async (tx, announce) => {
      if (this.#deps.cluster?.shared) await lockName(tx, `devices ${userId}`);
      const old = (await readLists(tx, [userId], { stale: true })).get(userId);
      await replaceList(tx, userId, list, stale);
      const isTold = this.#toTell.delete(userId);
      if (old && (isTold || !sameList(old, list))) announce({ userId });
    });
  }

  async #change(userId: string, change: (list: RemoteList) => RemoteList): Promise<void> {
    await this.#deps.lists.record(async (tx, announce) => {
      if (this.#deps.cluster?.shared) await lockName(tx, `devices ${userId}`);
      const old = (await readLists(tx, [userId])).get(userId);
      if (!old) return;
      const list = change({ ...old, devices: new Map(old.devices) });
      await replaceList(tx, userId, list, false);
      if (!sameList(old, list)) announce({ userId });
    });
  }

  async #announce(userId: string): Promise<void> {
    await this.#deps.lists.record(async (_tx, announce) => announce({ userId }));
  }

  async #resyncLater(userId: string): Promise<void> {
    await this.#deps.db.query('UPDATE remote_device_lists SET stale = true WHERE user_id = $1', [userId]);
    if (this.#toTell.size < MAX_WAITING) this.#toTell.add(userId);
    this.#enqueue(userId, true);
  }

  #enqueue(userId: string, changed: boolean): void {
    // Beyond the bound a list stays stale: it is asked for when a client wants it, or by `tidy`.
    if (this.#waiting.size < MAX_WAITING) this.#waiting.set(userId, changed);
    this.#work();
  }

  #work(): void {
    for (const [userId, changed] of this.#waiting) {
      if (this.#resyncing >= PARALLEL_RESYNCS) return;
      this.#waiting.delete(userId);
      this.#resyncing++;
      this.#resync(userId, changed).finally(() => {
        this.#resyncing--;
        this.#work();
      });
    }
  }

  async #resync(userId: string, changed: boolean): Promise<void> {
    const list = await this.fetch(userId).catch(() => undefined);
    if (list || !changed) return;
    // Clients that ask now make another attempt.
    this.#toTell.delete(userId);
    await this.#announce(userId).catch(() => {});
  }
}

interface Update {
  readonly origin: string;
  readonly content: JsonObject;
}

function encoded(list: RemoteList | undefined): unknown {
  return list ? { ...list, devices: [...list.devices] } : null;
}

function decoded(
  list: (Omit<RemoteList, 'devices'> & { devices: Array<[string, DeviceOfList]> }) | null,
): RemoteList | undefined {
  if (!list) return undefined;
  const devices = list.devices.map(([id, { displayName, keys }]): [string, DeviceOfList] => [
    id,
    { displayName, keys },
  ]);
  return { ...list, devices: new Map(devices) };
}

type DeviceOfList = { displayName: string | null; keys: JsonObject | undefined };

function isNewKey(key: JsonObject | undefined, old: JsonObject | undefined): boolean {
  return key !== undefined && !sameJson(key.keys, old?.keys);
}
