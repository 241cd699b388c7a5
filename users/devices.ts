import { Buffer } from 'node:buffer';
import { invalidParam } from '@trellis/protocol/errors.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import { randomLetters } from './secret-tokens.ts';

export interface Device {
  readonly deviceId: string;
  readonly displayName: string | null;
  readonly lastSeenTs: number | null;
  readonly lastSeenIp: string | null;
  readonly lastSeenUserAgent: string | null;
}

export interface LastSeen {
  readonly ts: number;
  readonly ip: string;
  readonly userAgent: string | undefined;
}

/** Tells other users and servers that a user's devices changed. Implemented by the keeper of device lists. */
export interface DeviceLists {
  changed(userId: string, deviceIds: readonly string[]): Promise<void>;
}

/**
 * Called in the transaction that deletes devices, so that what belongs to them goes with them. A function that it
 * returns is called after the commit, before the deletion is answered: for caches, and for what is written elsewhere.
 */
export type DeviceDeletionListener = (
  tx: Queryable,
  userId: string,
  deviceIds: readonly string[],
) => Promise<undefined | (() => unknown)>;

export interface DevicesDeps {
  readonly db: Database;
  readonly deviceLists: DeviceLists;
  readonly flushIntervalMs?: number;
}

const MAX_NAME_BYTES = 400;
const MAX_ID_BYTES = 255;
const MAX_USER_AGENT = 400;
/** Devices whose last use may wait to be written; with more they are written at once. */
const MAX_UNWRITTEN = 10_000;

const COLUMNS = `device_id AS "deviceId", display_name AS "displayName", last_seen_ts AS "lastSeenTs",
  last_seen_ip AS "lastSeenIp", last_seen_user_agent AS "lastSeenUserAgent"`;

/** The devices of local users, from log-in to deletion, and when they were last seen. */
export class Devices {
  readonly #db: Database;
  readonly #deviceLists: DeviceLists;
  readonly #deleting: DeviceDeletionListener[] = [];
  #unwritten = new Map<string, { userId: string; deviceId: string; seen: LastSeen }>();
  #flushing: Promise<void> = Promise.resolve();
  readonly #timer: NodeJS.Timeout;

  constructor({ db, deviceLists, flushIntervalMs = 60_000 }: DevicesDeps) {
    this.#db = db;
    this.#deviceLists = deviceLists;
    this.#timer = setInterval(() => this.flush().catch(() => {}), flushIntervalMs).unref();
  }

  onDeviceDeleted(listener: DeviceDeletionListener): void {
    this.#deleting.push(listener);
  }

  async list(userId: string): Promise<Device[]> {
    const sql = `SELECT ${COLUMNS} FROM devices WHERE user_id = $1 ORDER BY created_ts, device_id`;
    return (await this.#db.query<Device>(sql, [userId])).map((device) => this.#withLastSeen(userId, device));
  }

  async get(userId: string, deviceId: string): Promise<Device | undefined> {
    if (!isDeviceId(deviceId)) return undefined;
    const rows = await this.#db.query<Device>(
      { name: 'device', text: `SELECT ${COLUMNS} FROM devices WHERE user_id = $1 AND device_id = $2` },
      [userId, deviceId],
    );
    return rows[0] && this.#withLastSeen(userId, rows[0]);
  }

  /**
   * Makes the device in the caller's transaction unless there is one of that id, whose name then stays; either way
   * its row is locked. Who makes a device calls `announce` after the commit.
   *
   * @returns whether it is new
   */
  async ensure(
    tx: Queryable,
    userId: string,
    deviceId: string,
    displayName: string | undefined,
  ): Promise<boolean> {
    const now = Date.now();
    const rows = await tx.query<{ createdTs: number }>(
      `INSERT INTO devices (user_id, device_id, display_name, created_ts) VALUES ($1, $2, $3, $4)
       ON CONFLICT (user_id, device_id) DO UPDATE SET display_name = devices.display_name
       RETURNING created_ts AS "createdTs"`,
      [userId, deviceId, displayName === undefined ? null : checkedName(displayName), now],
    );
    return rows[0]!.createdTs === now;
  }

  /** @returns whether it is new */
  async create(userId: string, deviceId: string, displayName: string | undefined): Promise<boolean> {
    const isNew = await this.ensure(this.#db, userId, checkedDeviceId(deviceId), displayName);
    if (isNew) await this.announce(userId, [deviceId]);
    return isNew;
  }

  /** @returns whether there is such a device */
  async rename(userId: string, deviceId: string, displayName: string): Promise<boolean> {
    if (!isDeviceId(deviceId)) return false;
    const rows = await this.#db.query(
      'UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2 RETURNING 1',
      [userId, deviceId, checkedName(displayName)],
    );
    if (rows.length > 0) await this.announce(userId, [deviceId]);
    return rows.length > 0;
  }

  async delete(userId: string, deviceIds: readonly string[]): Promise<void> {
    const ids = deviceIds.filter(isDeviceId);
    if (ids.length > 0) await this.#delete(userId, 'AND device_id = ANY($2)', ids);
  }

  /** @param except the device that stays */
  async deleteAll(userId: string, except?: string): Promise<void> {
    await this.#delete(userId, 'AND device_id IS DISTINCT FROM $2', except ?? null);
  }

  async announce(userId: string, deviceIds: readonly string[]): Promise<void> {
    await this.#deviceLists.changed(userId, deviceIds);
  }

  /** Notes that the device was used. Written later, many at once. */
  seen(userId: string, deviceId: string, ip: string, userAgent: string | undefined): void {
    const seen = { ts: Date.now(), ip, userAgent: userAgent?.slice(0, MAX_USER_AGENT) };
    this.#unwritten.set(unwrittenKey(userId, deviceId), { userId, deviceId, seen });
    if (this.#unwritten.size >= MAX_UNWRITTEN) this.flush().catch(() => {});
  }

  /** Writes when devices were last seen. */
  flush(): Promise<void> {
    this.#flushing = this.#flushing.catch(() => {}).then(() => this.#writeLastSeen());
    return this.#flushing;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.flush();
  }

  async #delete(userId: string, which: string, param: unknown): Promise<void> {
    const afterwards: Array<() => unknown> = [];
    const deleted = await this.#db.transaction(async (tx) => {
      const sql = `DELETE FROM devices WHERE user_id = $1 ${which} RETURNING device_id AS id`;
      const ids = (await tx.query<{ id: string }>(sql, [userId, param])).map(({ id }) => id);
      if (ids.length === 0) return ids;
      for (const listener of this.#deleting) afterwards.push((await listener(tx, userId, ids)) ?? (() => {}));
      return ids;
    });
    if (deleted.length === 0) return;
    for (const deviceId of deleted) this.#unwritten.delete(unwrittenKey(userId, deviceId));
    for (const run of afterwards) await run();
    await this.announce(userId, deleted);
  }

  async #writeLastSeen(): Promise<void> {
    const rows = [...this.#unwritten.values()];
    if (rows.length === 0) return;
    this.#unwritten = new Map();
    await this.#db.query(
      `UPDATE devices d SET last_seen_ts = s.ts, last_seen_ip = s.ip, last_seen_user_agent = s.user_agent
       FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[])
         AS s (user_id, device_id, ts, ip, user_agent)
       WHERE d.user_id = s.user_id AND d.device_id = s.device_id AND s.ts >= coalesce(d.last_seen_ts, 0)`,
      [
        rows.map(({ userId }) => userId),
        rows.map(({ deviceId }) => deviceId),
        rows.map(({ seen }) => seen.ts),
        rows.map(({ seen }) => seen.ip),
        rows.map(({ seen }) => seen.userAgent ?? null),
      ],
    );
  }

  #withLastSeen(userId: string, device: Device): Device {
    const newer = this.#unwritten.get(unwrittenKey(userId, device.deviceId))?.seen;
    if (!newer) return device;
    const { ts: lastSeenTs, ip: lastSeenIp, userAgent } = newer;
    return { ...device, lastSeenTs, lastSeenIp, lastSeenUserAgent: userAgent ?? null };
  }
}

export function newDeviceId(): string {
  return randomLetters(10);
}

/** @throws M_INVALID_PARAM */
export function checkedDeviceId(deviceId: string): string {
  if (!isDeviceId(deviceId)) throw invalidParam('This is no device id');
  return deviceId;
}

function isDeviceId(deviceId: string): boolean {
  return (
    deviceId !== '' &&
    Buffer.byteLength(deviceId) <= MAX_ID_BYTES &&
    !deviceId.includes('\0') &&
    deviceId.isWellFormed()
  );
}

function checkedName(name: string): string {
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    throw invalidParam(`Device names have at most ${MAX_NAME_BYTES} bytes`);
  return name.replaceAll('\0', '').toWellFormed();
}

function unwrittenKey(userId: string, deviceId: string): string {
  return `${userId}\0${deviceId}`;
}
