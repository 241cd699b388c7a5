import type { Cluster } from '@trellis/cluster/cluster.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Queryable } from '@trellis/storage/database.ts';

/** Transactions of a device that are remembered, newest first. */
const PER_DEVICE = 500;
/** Transactions older than this are forgotten; clients retry within minutes. In milliseconds. */
const MAX_AGE = 2 * 24 * 3600_000;

type Sent = RecentlyUsed<string, string>;

interface Sending {
  readonly deviceId: string;
  readonly device: string;
  readonly key: string;
  readonly transaction: string;
  /** What the device has sent, as it was known when this began. */
  readonly loading: Promise<Sent>;
  readonly sent: Sent;
}

/**
 * Idempotence of sending: the same transaction id of the same device gives the same event, also after a restart, and
 * also while the first request is still under way. What a device sent before is read once; then memory knows.
 *
 * With several processes what is scoped to a room is asked of the room's home, and so of one process at a time.
 */
export class Transactions {
  readonly #db: Queryable;
  readonly #devices = new RecentlyUsed<string, Promise<Sent>>(10_000);
  readonly #underWay = new Map<string, Promise<string>>();

  constructor(db: Queryable, cluster?: Pick<Cluster, 'onHandover' | 'onGap'>) {
    this.#db = db;
    // What has been sent at the home before is in the database by now.
    cluster?.onHandover({ take: () => this.#devices.clear() });
    cluster?.onGap(() => this.#devices.clear());
  }

  /**
   * Runs `send` unless this transaction was sent before; gives the id of its event.
   *
   * @param key the transaction id with the endpoint that it is scoped to: room, event type and id
   */
  async once(
    requester: { userId: string; deviceId: string | undefined; tokenId: string },
    key: string,
    send: (transaction: { deviceId: string }) => Promise<string>,
  ): Promise<string> {
    const deviceId = requester.deviceId ?? `token:${requester.tokenId}`;
    const device = `${requester.userId} ${deviceId}`;
    const transaction = `${device} ${key}`;
    const loading = this.#sentBy(requester.userId, deviceId, device);
    const sent = await loading;
    const earlier = sent.get(key) ?? this.#underWay.get(transaction);
    if (earlier !== undefined) return earlier;
    const sending = this.#send(send, { deviceId, device, key, transaction, loading, sent });
    this.#underWay.set(transaction, sending);
    return sending;
  }

  /** A failed transaction may be tried again with the same id. */
  async #send(
    send: (transaction: { deviceId: string }) => Promise<string>,
    { deviceId, device, key, transaction, loading, sent }: Sending,
  ): Promise<string> {
    try {
      const eventId = await send({ deviceId });
      const current = this.#devices.peek(device);
      // Others may have taken over meanwhile, and given it back.
      if (current === loading) sent.set(key, eventId);
      else (await current?.catch(() => undefined))?.set(key, eventId);
      return eventId;
    } finally {
      this.#underWay.delete(transaction);
    }
  }

  #sentBy(userId: string, deviceId: string, device: string): Promise<Sent> {
    let sent = this.#devices.get(device);
    if (!sent) {
      const loading = this.#load(userId, deviceId);
      sent = loading;
      this.#devices.set(device, loading);
      loading.catch(() => {
        if (this.#devices.peek(device) === loading) this.#devices.delete(device);
      });
    }
    return sent;
  }

  async #load(userId: string, deviceId: string): Promise<Sent> {
    const rows = await this.#db.query<{ roomId: string; type: string; txnId: string; eventId: string }>(
      {
        name: 'transactions-of-device',
        text: `SELECT r.room_id AS "roomId", e.type, e.txn_id AS "txnId", e.event_id AS "eventId"
               FROM events e JOIN rooms r ON r.nid = e.room
               WHERE e.sender = $1 AND e.txn_device = $2 AND e.txn_id IS NOT NULL AND e.origin_server_ts > $3
               ORDER BY e.pos DESC LIMIT $4`,
      },
      [userId, deviceId, Date.now() - MAX_AGE, PER_DEVICE],
    );
    const sent: Sent = new RecentlyUsed(PER_DEVICE);
    for (const row of rows.reverse()) sent.set(`${row.roomId} ${row.type} ${row.txnId}`, row.eventId);
    return sent;
  }
}
