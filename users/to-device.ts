import { Buffer } from 'node:buffer';
import { hash, randomBytes } from 'node:crypto';
import { tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import { parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { Stream, ToDeviceChange } from '@trellis/storage/streams.ts';
import type { Devices } from './devices.ts';
import { isName, isObject } from './e2ee/key-json.ts';
import { Inboxes } from './inboxes.ts';

/** Delivers to other servers. Implemented by `federation/`. */
export interface RemoteDeviceMessages {
  /** Stores what is to be delivered, in the caller's transaction. */
  store(
    tx: Queryable,
    edus: ReadonlyArray<{ destination: string; eduType: string; content: JsonObject }>,
  ): Promise<void>;
  /** To be called after the commit. */
  wake(destinations: Iterable<string>): void;
}

export interface ToDeviceDeps {
  readonly db: Database;
  readonly stream: Stream<ToDeviceChange>;
  readonly serverName: string;
  readonly remote: RemoteDeviceMessages;
  readonly devices: Pick<Devices, 'onDeviceDeleted'>;
}

/** User id to device id, or `*` for all devices, to content. */
export type DeviceMessages = Readonly<Record<string, Readonly<Record<string, JsonObject>>>>;

interface Recipient {
  readonly userId: string;
  readonly deviceId: string;
  readonly content: JsonObject;
}

/** Devices that one request or EDU can be for, each `*` counted once. */
const MAX_RECIPIENTS = 10_000;
/** An EDU holds messages up to this many bytes: servers drop larger ones. */
const MAX_EDU_BYTES = 50_000;
const MAX_MESSAGE_ID_CODEPOINTS = 32;
/** How long a transaction or message is known to be taken in, in milliseconds. */
const REMEMBERED_MS = 14 * 24 * 3600_000;

/** Send-to-device messages: stored until the device has them, each delivered once. */
export class ToDevice {
  readonly #deps: ToDeviceDeps;
  readonly #inboxes: Inboxes;

  constructor(deps: ToDeviceDeps) {
    this.#deps = deps;
    this.#inboxes = new Inboxes(deps.db, deps.stream);
    deps.devices.onDeviceDeleted(async (tx, userId, deviceIds) => {
      for (const table of ['to_device_messages', 'to_device_sent'])
        await tx.query(`DELETE FROM ${table} WHERE user_id = $1 AND device_id = ANY($2)`, [
          userId,
          deviceIds,
        ]);
      return () => {
        for (const deviceId of deviceIds) this.#inboxes.forget(userId, deviceId);
      };
    });
  }

  /** A local user sends. The same transaction of the same device sends nothing more. */
  async send(
    sender: { userId: string; deviceId: string },
    type: string,
    txnId: string,
    messages: DeviceMessages,
  ): Promise<void> {
    const { serverName, remote } = this.#deps;
    const recipients = recipientsOf(messages);
    const here = recipients.filter(({ userId }) => serverNameOf(userId) === serverName);
    const elsewhere = recipients.filter(({ userId }) => serverNameOf(userId) !== serverName);
    const edus = directToDeviceEdus(sender.userId, type, elsewhere);
    const sent = await this.#write(here, { sender: sender.userId, type }, async (tx) => {
      const fresh = await tx.query(
        `INSERT INTO to_device_sent VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING 1`,
        [sender.userId, sender.deviceId, hash('sha256', JSON.stringify([type, txnId])), Date.now()],
      );
      if (fresh.length === 0) return false;
      if (edus.length > 0) await remote.store(tx, edus);
      return true;
    });
    if (sent && edus.length > 0) remote.wake(new Set(edus.map(({ destination }) => destination)));
  }

  /** `m.direct_to_device`: the same message of the same server is taken in once. */
  async receive(origin: string, edu: JsonObject): Promise<void> {
    const { sender, type, message_id: messageId, messages } = edu;
    if (!isName(sender) || serverNameOf(sender) !== origin || !parseUserId(sender)) return;
    if (!isName(type) || !isName(messageId) || [...messageId].length > MAX_MESSAGE_ID_CODEPOINTS) return;
    const recipients = receivedMessages(messages, this.#deps.serverName);
    if (recipients === undefined) return;
    await this.#write(recipients, { sender, type }, async (tx) => {
      const fresh = await tx.query(
        'INSERT INTO to_device_received VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING 1',
        [origin, messageId, Date.now()],
      );
      return fresh.length > 0;
    });
  }

  /** Messages for the device at positions (from, to], at the most `limit`. */
  pending(userId: string, deviceId: string, from: number, to: number, limit: number) {
    return this.#inboxes.pending(userId, deviceId, from, to, limit);
  }

  /** The device has all messages up to this position. */
  received(userId: string, deviceId: string, position: number): Promise<void> {
    return this.#inboxes.received(userId, deviceId, position);
  }

  /** Forgets old transactions. To be called every now and then. */
  async prune(): Promise<void> {
    for (const table of ['to_device_sent', 'to_device_received'])
      await this.#deps.db.query(`DELETE FROM ${table} WHERE ts < $1`, [Date.now() - REMEMBERED_MS]);
  }

  /** Stores messages for those of the devices that there are, unless `isFresh` says that it was done before. */
  async #write(
    recipients: readonly Recipient[],
    event: { sender: string; type: string },
    isFresh: (tx: Queryable) => Promise<boolean>,
  ): Promise<boolean> {
    const { db, stream } = this.#deps;
    const position = await stream.reserve();
    const guard = stream.guard();
    let changes: ToDeviceChange[] = [];
    try {
      return await db.transaction(async (tx) => {
        await guard(tx);
        if (!(await isFresh(tx))) return false;
        if (recipients.length > 0) changes = await insertMessages(tx, position, recipients, event);
        return true;
      });
    } catch (error) {
      changes = [];
      throw error;
    } finally {
      await stream.conclude(position, changes);
    }
  }
}

/** A message to one device goes before one to `*`. The devices' rows are held, so that no deletion overtakes it. */
async function insertMessages(
  tx: Queryable,
  position: number,
  recipients: readonly Recipient[],
  { sender, type }: { sender: string; type: string },
): Promise<ToDeviceChange[]> {
  return tx.query<ToDeviceChange>(
    {
      name: 'to-device-insert',
      text: `INSERT INTO to_device_messages (user_id, device_id, pos, json)
             SELECT d.user_id, d.device_id, $1, w.json
             FROM unnest($2::text[], $3::text[], $4::text[]) AS w (user_id, device_id, json)
             JOIN devices d ON d.user_id = w.user_id AND (w.device_id = '*' OR d.device_id = w.device_id)
             ORDER BY w.device_id = '*' FOR KEY SHARE OF d
             ON CONFLICT DO NOTHING RETURNING user_id AS "userId", device_id AS "deviceId"`,
    },
    [
      position,
      recipients.map(({ userId }) => userId),
      recipients.map(({ deviceId }) => deviceId),
      recipients.map(({ content }) => JSON.stringify({ type, sender, content })),
    ],
  );
}

/** Those that can exist at all. */
function recipientsOf(messages: DeviceMessages): Recipient[] {
  const recipients: Recipient[] = [];
  for (const [userId, devices] of Object.entries(messages)) {
    if (!parseUserId(userId)) continue;
    for (const [deviceId, content] of Object.entries(devices))
      if (isName(deviceId)) recipients.push({ userId, deviceId, content });
  }
  if (recipients.length > MAX_RECIPIENTS)
    throw tooLarge(`At the most ${MAX_RECIPIENTS} devices can be sent to`);
  return recipients;
}

/** What is for users of this server; `undefined` when the EDU is not what it should be. */
function receivedMessages(messages: JsonValue | undefined, serverName: string): Recipient[] | undefined {
  if (!isObject(messages)) return undefined;
  const recipients: Recipient[] = [];
  for (const [userId, devices] of Object.entries(messages)) {
    if (!isObject(devices)) return undefined;
    if (!isName(userId) || serverNameOf(userId) !== serverName) continue;
    for (const [deviceId, content] of Object.entries(devices))
      if (isName(deviceId) && isObject(content)) recipients.push({ userId, deviceId, content });
  }
  return recipients.length <= MAX_RECIPIENTS ? recipients : undefined;
}

function directToDeviceEdus(sender: string, type: string, recipients: readonly Recipient[]) {
  const edus: Array<{ destination: string; eduType: string; content: JsonObject }> = [];
  for (const [destination, ofServer] of Map.groupBy(recipients, ({ userId }) => serverNameOf(userId)))
    for (const portion of portions(ofServer)) {
      const messages = Object.fromEntries(
        [...Map.groupBy(portion, ({ userId }) => userId)].map(([userId, devices]) => [
          userId,
          Object.fromEntries(devices.map(({ deviceId, content }) => [deviceId, content])),
        ]),
      );
      const message_id = randomBytes(12).toString('base64url');
      edus.push({
        destination,
        eduType: 'm.direct_to_device',
        content: { sender, type, message_id, messages },
      });
    }
  return edus;
}

function portions(recipients: readonly Recipient[]): Recipient[][] {
  const all: Recipient[][] = [];
  let size = Number.POSITIVE_INFINITY;
  for (const recipient of recipients) {
    const bytes = Buffer.byteLength(JSON.stringify(recipient));
    if (size + bytes > MAX_EDU_BYTES) {
      all.push([]);
      size = 0;
    }
    all.at(-1)!.push(recipient);
    size += bytes;
  }
  return all;
}
