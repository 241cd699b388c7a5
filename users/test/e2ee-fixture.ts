import type { Database } from '@trellis/storage/database.ts';
import { type DeviceListChange, Stream, type ToDeviceChange } from '@trellis/storage/streams.ts';
import { DeviceListChanges } from '../device-lists.ts';
import { Devices } from '../devices.ts';
import { DeviceKeys } from '../e2ee/device-keys.ts';

export const HERE = 'here.example';

/** The services of end-to-end encryption on a database; `listChanges` are those that the stream has announced. */
export function e2eeFixture(db: Database) {
  const stream = new Stream<DeviceListChange>('deviceLists', 0);
  const lists = new DeviceListChanges({ db, stream, serverName: HERE });
  const devices = new Devices({ db, deviceLists: lists });
  const listChanges: DeviceListChange[] = [];
  stream.subscribe((_pos, change) => listChanges.push(change));
  return {
    db,
    stream,
    lists,
    devices,
    listChanges,
    deviceKeys: new DeviceKeys(db, lists, devices),
    toDeviceStream: new Stream<ToDeviceChange>('toDevice', 0),
    /** A local user with these devices. */
    async user(name: string, ...deviceIds: string[]): Promise<string> {
      const userId = `@${name}:${HERE}`;
      await db.query('INSERT INTO accounts (user_id, created_ts) VALUES ($1, 0)', [userId]);
      for (const deviceId of deviceIds) await devices.create(userId, deviceId, undefined);
      return userId;
    },
  };
}

/** Counts the statements that run on a database. */
export function countQueries(db: Database): () => number {
  let count = 0;
  const query = db.query.bind(db);
  db.query = (sql, params) => {
    count++;
    return query(sql, params);
  };
  return () => count;
}

export function deviceKeysOf(userId: string, deviceId: string, key = 'key') {
  return {
    user_id: userId,
    device_id: deviceId,
    algorithms: ['m.megolm.v1.aes-sha2'],
    keys: { [`ed25519:${deviceId}`]: key },
    signatures: {},
  };
}
