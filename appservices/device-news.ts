import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Interest } from './interest.ts';
import type { Appservice } from './registry.ts';

/** What a device has left of its keys, as syncs tell it. */
export type KeyCounts = (
  userId: string,
  deviceId: string,
) => Promise<{ readonly oneTimeKeys: object; readonly unusedFallbackTypes: readonly string[] }>;

export interface DeviceLists {
  readonly changed: string[];
  readonly left: string[];
}

interface Device {
  readonly userId: string;
  readonly deviceId: string;
}

type ByDevice<V> = Record<string, Record<string, V>>;

export interface KeysLeft {
  readonly oneTimeKeys: ByDevice<object>;
  readonly unusedFallbackTypes: ByDevice<readonly string[]>;
}

const PORTION = 500;
/** Users named because one of the service's began to share a room with them. */
const MAX_NEW_IN_ROOM = 1_000;
/** Devices of one service whose keys are counted. */
const MAX_DEVICES = 1_000;

/** What a service that encrypts has to know of devices and keys (MSC3202). */
export class DeviceNews {
  readonly #db: Database;
  readonly #service: Appservice;
  readonly #interest: Interest;
  readonly #rooms: Rooms;
  readonly #keyCounts: KeyCounts;
  #listsMoved = true;
  /** Devices of the service's users that have keys; `undefined` when that may have changed. */
  #devices: Promise<Device[]> | undefined;
  /** What was last said of each device. */
  readonly #told = new Map<string, string>();

  constructor(
    service: Appservice,
    parts: { db: Database; interest: Interest; rooms: Rooms; keyCounts: KeyCounts },
  ) {
    this.#service = service;
    this.#db = parts.db;
    this.#interest = parts.interest;
    this.#rooms = parts.rooms;
    this.#keyCounts = parts.keyCounts;
  }

  /** The devices or keys of a user changed. */
  note(userId: string): void {
    this.#listsMoved = true;
    if (this.#service.isInterested(userId)) this.#devices = undefined;
  }

  /** Anybody's devices or keys may have changed. */
  forget(): void {
    this.#listsMoved = true;
    this.#devices = undefined;
  }

  /** Users of interest whose devices changed at positions (from, to]. */
  async changed(from: number, to: number): Promise<{ users: string[]; upTo: number }> {
    if (!this.#listsMoved) return { users: [], upTo: to };
    // What changes from here on is for the next time.
    this.#listsMoved = false;
    const rows = await this.#changes(from, to).catch((error) => {
      this.#listsMoved = true;
      throw error;
    });
    const users: string[] = [];
    for (const userId of new Set(rows.map(({ userId }) => userId)))
      if (await this.#interest.inUser(userId)) users.push(userId);
    if (rows.length < PORTION) return { users, upTo: to };
    this.#listsMoved = true;
    return { users, upTo: rows.at(-1)!.pos };
  }

  #changes(from: number, to: number): Promise<Array<{ pos: number; userId: string }>> {
    return this.#db.query(
      {
        name: 'appservice-device-lists',
        text: `SELECT pos, user_id AS "userId" FROM device_list_changes
               WHERE pos > $1 AND pos <= $2 AND servers IS NULL AND only_for IS NULL ORDER BY pos LIMIT ${PORTION}`,
      },
      [from, to],
    );
  }

  /** Adds those who, by these events, begin or cease to share a room with the service's users. */
  async addMembers(events: readonly StoredEvent[], lists: { changed: Set<string>; left: Set<string> }) {
    for (const { type, stateKey, roomId, content, replaces } of events) {
      if (type !== 'm.room.member') continue;
      const [before, after] = [replaces?.content.membership === 'join', content.membership === 'join'];
      if (before === after) continue;
      const userId = stateKey!;
      if (this.#service.isInterested(userId)) {
        if (after) for (const other of await this.#newToService(roomId)) lists.changed.add(other);
      } else if (await this.#interest.inUser(userId)) {
        if (after) lists.changed.add(userId);
      } else lists.left.add(userId);
    }
    for (const userId of lists.changed) lists.left.delete(userId);
  }

  /** What devices of the service have left, where that is another than was last said; to be confirmed by `told`. */
  async keysLeft(): Promise<{ keys: KeysLeft | undefined; told: () => void }> {
    const keys: KeysLeft = { oneTimeKeys: {}, unusedFallbackTypes: {} };
    const said = new Map<string, string>();
    for (const { userId, deviceId } of await this.#ownDevices()) {
      const { oneTimeKeys, unusedFallbackTypes } = await this.#keyCounts(userId, deviceId);
      const key = JSON.stringify([userId, deviceId]);
      const news = JSON.stringify([oneTimeKeys, unusedFallbackTypes]);
      if (this.#told.get(key) === news) continue;
      said.set(key, news);
      keys.oneTimeKeys[userId] = { ...keys.oneTimeKeys[userId], [deviceId]: oneTimeKeys };
      keys.unusedFallbackTypes[userId] = {
        ...keys.unusedFallbackTypes[userId],
        [deviceId]: unusedFallbackTypes,
      };
    }
    return {
      keys: said.size > 0 ? keys : undefined,
      told: () => {
        for (const [key, news] of said) this.#told.set(key, news);
      },
    };
  }

  /** Members of a room that the first of the service's users has joined. */
  async #newToService(roomId: string): Promise<string[]> {
    const room = await this.#rooms.get(roomId);
    if (!room) return [];
    const own = [...room.joinedHere].filter((userId) => this.#service.isInterested(userId));
    if (own.length > 1) return [];
    const others: string[] = [];
    for (const [userId, { membership }] of room.members()) {
      if (membership !== 'join' || userId === own[0]) continue;
      others.push(userId);
      if (others.length === MAX_NEW_IN_ROOM) break;
    }
    return others;
  }

  #ownDevices(): Promise<Device[]> {
    if (this.#devices) return this.#devices;
    const reading = this.#readDevices();
    this.#devices = reading;
    reading.catch(() => {
      if (this.#devices === reading) this.#devices = undefined;
    });
    return reading;
  }

  async #readDevices(): Promise<Device[]> {
    const devices = await this.#db.query<Device>(
      `SELECT k.user_id AS "userId", k.device_id AS "deviceId"
       FROM device_keys k JOIN accounts a ON a.user_id = k.user_id
       WHERE a.appservice_id = $1 ORDER BY k.user_id, k.device_id LIMIT ${MAX_DEVICES}`,
      [this.#service.id],
    );
    const known = new Set(devices.map(({ userId, deviceId }) => JSON.stringify([userId, deviceId])));
    for (const key of this.#told.keys()) if (!known.has(key)) this.#told.delete(key);
    return devices;
  }
}
