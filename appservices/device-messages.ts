import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { Appservice } from './registry.ts';

/** A message as an application service gets it (MSC4203). */
export interface DeviceMessage {
  readonly type: string;
  readonly sender: string;
  readonly content: object;
  readonly to_user_id: string;
  readonly to_device_id: string;
}

const PORTION = 100;
/** Devices remembered to have messages; if there are more, all are looked through. */
const MAX_DEVICES = 10_000;

interface MessageRow {
  readonly userId: string;
  readonly deviceId: string;
  readonly pos: number;
  readonly json: string;
}

/** Send-to-device messages for the devices of one application service's users. */
export class DeviceMessages {
  readonly #db: Database;
  readonly #service: Appservice;
  /** JSON of user id and device id; `undefined` while it is not known which devices have messages. */
  #devices: Set<string> | undefined;

  constructor(db: Database, service: Appservice) {
    this.#db = db;
    this.#service = service;
  }

  /** There is a new message; whether that concerns the service. */
  note(userId: string, deviceId: string): boolean {
    if (!this.#service.isInterested(userId)) return false;
    if (this.#devices && this.#devices.size >= MAX_DEVICES) this.#devices = undefined;
    this.#devices?.add(JSON.stringify([userId, deviceId]));
    return true;
  }

  /** Anybody may have messages. */
  forget(): void {
    this.#devices = undefined;
  }

  /** Messages at positions (from, to], as many as go into one transaction; `upTo` is where they end. */
  async after(from: number, to: number): Promise<{ messages: DeviceMessage[]; upTo: number }> {
    let devices = this.#devices;
    // What is noted from here on is for the next time.
    this.#devices = new Set();
    let left = true;
    try {
      devices ??= await this.#withMessages(from);
      if (devices.size === 0) {
        left = false;
        return { messages: [], upTo: to };
      }
      const rows = await this.#read([...devices], from, to);
      left = rows.length >= PORTION;
      return { messages: rows.map(asMessage), upTo: left ? rows.at(-1)!.pos : to };
    } finally {
      if (left) this.#devices = devices && this.#devices && devices.union(this.#devices);
    }
  }

  #read(devices: readonly string[], from: number, to: number): Promise<MessageRow[]> {
    const keys = devices.map((key) => JSON.parse(key) as [string, string]);
    return this.#db.query<MessageRow>(
      {
        name: 'appservice-device-messages',
        // What was sent together has one position.
        text: `SELECT m.user_id AS "userId", m.device_id AS "deviceId", m.pos, m.json
               FROM unnest($1::text[], $2::text[]) AS d (user_id, device_id)
               JOIN to_device_messages m ON m.user_id = d.user_id AND m.device_id = d.device_id
               WHERE m.pos > $3 AND m.pos <= $4 ORDER BY m.pos FETCH FIRST ${PORTION} ROWS WITH TIES`,
      },
      [keys.map(([userId]) => userId), keys.map(([, deviceId]) => deviceId), from, to],
    );
  }

  async #withMessages(from: number): Promise<Set<string>> {
    const rows = await this.#db.query<{ userId: string; deviceId: string }>(
      'SELECT DISTINCT user_id AS "userId", device_id AS "deviceId" FROM to_device_messages WHERE pos > $1',
      [from],
    );
    const own = rows.filter(({ userId }) => this.#service.isInterested(userId));
    return new Set(own.map(({ userId, deviceId }) => JSON.stringify([userId, deviceId])));
  }
}

function asMessage({ userId, deviceId, json }: MessageRow): DeviceMessage {
  return {
    ...(decodeJson(json) as Pick<DeviceMessage, 'type' | 'sender' | 'content'>),
    to_user_id: userId,
    to_device_id: deviceId,
  };
}
