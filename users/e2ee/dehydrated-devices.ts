import { Buffer } from 'node:buffer';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { invalidParam, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database } from '@trellis/storage/database.ts';
import { checkedDeviceId, type Devices } from '../devices.ts';
import { KeyedQueue } from '../keyed-queue.ts';
import type { DeviceKeys, KeyUpload } from './device-keys.ts';

export interface DehydratedDevice {
  readonly deviceId: string;
  /** What a client needs to use the device, encrypted by the one that made it. */
  readonly data: JsonObject;
}

export interface DehydratedDevicesDeps {
  readonly db: Database;
  readonly devices: Devices;
  readonly deviceKeys: DeviceKeys;
  /** Where there may be other processes. */
  readonly cluster?: Cluster | undefined;
}

interface SetArgs {
  readonly device: DehydratedDevice;
  readonly keys: KeyUpload;
  readonly displayName?: string;
}

const MAX_DATA_BYTES = 256 * 1024;

/**
 * Devices that their users have put by: they get room keys while no other device is there, for the next log-in to
 * read (MSC3814). One for each user, without an access token.
 */
export class DehydratedDevices {
  readonly #deps: DehydratedDevicesDeps;
  readonly #queue = new KeyedQueue();

  constructor(deps: DehydratedDevicesDeps) {
    this.#deps = deps;
    const { cluster } = deps;
    cluster?.serve('dehydrated.set', async ({ device, keys, displayName }: SetArgs, userId) => {
      await this.#set(userId, device, keys, displayName);
      return null;
    });
    cluster?.serve('dehydrated.delete', async (_none, userId) => (await this.#delete(userId)) ?? null);
    deps.devices.onDeviceDeleted(async (tx, userId, deviceIds) => {
      await tx.query('DELETE FROM dehydrated_devices WHERE user_id = $1 AND device_id = ANY($2)', [
        userId,
        deviceIds,
      ]);
      return undefined;
    });
  }

  async get(userId: string): Promise<DehydratedDevice | undefined> {
    const [row] = await this.#deps.db.query<{ deviceId: string; data: string }>(
      {
        name: 'dehydrated-device',
        text: 'SELECT device_id AS "deviceId", data FROM dehydrated_devices WHERE user_id = $1',
      },
      [userId],
    );
    return row && { deviceId: row.deviceId, data: decodeJson(row.data) as JsonObject };
  }

  /**
   * Puts a device by, in the place of the one before.
   *
   * @throws M_INVALID_PARAM when it is a device that is in use, M_TOO_LARGE
   */
  async set(
    userId: string,
    { deviceId, data }: DehydratedDevice,
    keys: KeyUpload,
    displayName: string | undefined,
  ): Promise<void> {
    const { cluster } = this.#deps;
    checkedDeviceId(deviceId);
    const json = JSON.stringify(data);
    if (Buffer.byteLength(json) > MAX_DATA_BYTES) throw tooLarge('The device is too large');
    const device = { deviceId, data };
    if (!cluster?.shared) return this.#set(userId, device, keys, displayName);
    await cluster.call('user', userId, 'dehydrated.set', { device, keys, displayName } as never);
  }

  /** One process does it for a user, one change after the other. */
  async #set(
    userId: string,
    { deviceId, data }: DehydratedDevice,
    keys: KeyUpload,
    displayName: string | undefined,
  ): Promise<void> {
    const { db, devices, deviceKeys } = this.#deps;
    await this.#queue.run(userId, async () => {
      const before = await this.get(userId);
      if (before?.deviceId !== deviceId && (await devices.get(userId, deviceId)))
        throw invalidParam('There is a device of that id');
      // Its old keys must not be mistaken for those of the new one.
      if (before?.deviceId === deviceId) await devices.delete(userId, [deviceId]);
      await devices.ensure(db, userId, deviceId, displayName);
      try {
        await deviceKeys.upload(userId, deviceId, keys);
        await db.query(
          `INSERT INTO dehydrated_devices (user_id, device_id, data) VALUES ($1, $2, $3)
           ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id, data = excluded.data`,
          [userId, deviceId, JSON.stringify(data)],
        );
      } catch (error) {
        await devices.delete(userId, [deviceId]);
        throw error;
      }
      await devices.announce(userId, [deviceId]);
      if (before && before.deviceId !== deviceId) await devices.delete(userId, [before.deviceId]);
    });
  }

  /** @returns the id of the device that there was */
  async delete(userId: string): Promise<string | undefined> {
    const { cluster } = this.#deps;
    if (!cluster?.shared) return this.#delete(userId);
    return (await cluster.call<string | null>('user', userId, 'dehydrated.delete', null)) ?? undefined;
  }

  #delete(userId: string): Promise<string | undefined> {
    return this.#queue.run(userId, async () => {
      const device = await this.get(userId);
      if (device) await this.#deps.devices.delete(userId, [device.deviceId]);
      return device?.deviceId;
    });
  }
}
