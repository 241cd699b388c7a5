import type { Cluster } from '@trellis/cluster/cluster.ts';
import { invalidParam, MatrixError, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { DeviceListChanges } from '../device-lists.ts';
import type { Devices } from '../devices.ts';
import { ReadThroughCache } from '../read-through-cache.ts';
import { isOfSize, sameJson } from './key-json.ts';
import {
  claimKeys,
  type KeyCounts,
  type KeyGiven,
  type KeyWanted,
  readKeyCounts,
  storeFallbackKeys,
  storeOneTimeKeys,
} from './one-time-keys.ts';

export interface KeyUpload {
  readonly deviceKeys?: JsonObject;
  readonly oneTimeKeys?: Readonly<Record<string, JsonValue>>;
  readonly fallbackKeys?: Readonly<Record<string, JsonValue>>;
}

const MAX_CACHED_COUNTS = 50_000;

/** The keys that local users' devices publish. */
export class DeviceKeys {
  readonly #db: Database;
  readonly #lists: DeviceListChanges;
  readonly #counts: ReadThroughCache<KeyCounts>;

  constructor(
    db: Database,
    lists: DeviceListChanges,
    devices: Pick<Devices, 'onDeviceDeleted'>,
    cluster?: Cluster,
  ) {
    this.#db = db;
    this.#lists = lists;
    const read = (key: string) => {
      const [userId, deviceId] = JSON.parse(key) as [string, string];
      return readKeyCounts(db, userId, deviceId);
    };
    this.#counts = new ReadThroughCache(MAX_CACHED_COUNTS, read, { cluster, name: 'key-counts' });
    devices.onDeviceDeleted(async (tx, userId, deviceIds) => {
      for (const table of ['device_keys', 'one_time_keys', 'fallback_keys'])
        await tx.query(`DELETE FROM ${table} WHERE user_id = $1 AND device_id = ANY($2)`, [
          userId,
          deviceIds,
        ]);
      await tx.query(
        `DELETE FROM key_signatures
         WHERE user_id = $1 AND signer = $1 AND (target = ANY($2) OR key_id = ANY($3))`,
        [userId, deviceIds, deviceIds.map((id) => `ed25519:${id}`)],
      );
      await lists.noteDeleted(tx, userId, deviceIds);
      return () => this.#counts.forget(...deviceIds.map((id) => countsKey(userId, id)));
    });
  }

  /** Stores all of an upload or nothing of it. */
  async upload(userId: string, deviceId: string, keys: KeyUpload): Promise<KeyCounts> {
    const { deviceKeys, oneTimeKeys = {}, fallbackKeys = {} } = keys;
    if (deviceKeys && (deviceKeys.user_id !== userId || deviceKeys.device_id !== deviceId))
      throw invalidParam('The keys are not those of the device that uploads them');
    const { unsigned: _, ...identity } = deviceKeys ?? {};
    if (!isOfSize(identity)) throw tooLarge('The keys are too large');
    await this.#lists.record(async (tx, announce) => {
      const device = await tx.query(
        'SELECT 1 FROM devices WHERE user_id = $1 AND device_id = $2 FOR NO KEY UPDATE',
        [userId, deviceId],
      );
      if (device.length === 0) throw new MatrixError(400, 'M_UNKNOWN_DEVICE', 'There is no such device');
      await storeOneTimeKeys(tx, userId, deviceId, oneTimeKeys);
      await storeFallbackKeys(tx, userId, deviceId, fallbackKeys);
      if (!deviceKeys) return;
      const [old] = await tx.query<{ json: string }>(
        'SELECT json FROM device_keys WHERE user_id = $1 AND device_id = $2',
        [userId, deviceId],
      );
      if (old && sameJson(decodeJson(old.json) as JsonObject, identity)) return;
      await tx.query(
        `INSERT INTO device_keys VALUES ($1, $2, $3)
         ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json`,
        [userId, deviceId, JSON.stringify(identity)],
      );
      announce({ userId, deviceId });
    });
    await this.#counts.forget(countsKey(userId, deviceId));
    return this.counts(userId, deviceId);
  }

  /** What a sync says of the keys that are left; from memory unless they changed. */
  async counts(userId: string, deviceId: string): Promise<KeyCounts> {
    return (await this.#counts.get(countsKey(userId, deviceId)))!;
  }

  async claim(wanted: readonly KeyWanted[]): Promise<KeyGiven[]> {
    const given = await claimKeys(this.#db, wanted);
    await this.#counts.forget(...given.map(({ userId, deviceId }) => countsKey(userId, deviceId)));
    return given;
  }
}

function countsKey(userId: string, deviceId: string): string {
  return JSON.stringify([userId, deviceId]);
}
