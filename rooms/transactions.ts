import type { Queryable } from '@trellis/storage/database.ts';
import { LRUCache } from 'lru-cache';

/** Transactions of a device that are remembered, newest first. */
const PER_DEVICE = 500;
/** Transactions older than this are forgotten; clients retry within minutes. In milliseconds. */
const MAX_AGE = 2 * 24 * 3600_000;

type Sent = LRUCache<string, Promise<string>>;

/**
 * Idempotence of sending: the same transaction id of the same device gives the same event, also after a restart, and
 * also while the first request is still under way. What a device sent before is read once; then memory knows.
 */
export class Transactions {
  readonly #db: Queryable;
  readonly #devices = new LRUCache<string, Promise<Sent>>({ max: 10_000 });

  constructor(db: Queryable) {
    this.#db = db;
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
    const sent = await this.#sentBy(requester.userId, deviceId);
    const earlier = sent.get(key);
    if (earlier) return earlier;
    const sending = send({ deviceId });
    sent.set(key, sending);
    // A failed transaction may be tried again with the same id.
    sending.catch(() => {
      if (sent.peek(key) === sending) sent.delete(key);
    });
    return sending;
  }

  #sentBy(userId: string, deviceId: string): Promise<Sent> {
    const key = `${userId} ${deviceId}`;
    let sent = this.#devices.get(key);
    if (!sent) {
      sent = this.#load(userId, deviceId);
      this.#devices.set(key, sent);
      sent.catch(() => this.#devices.delete(key));
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
               ORDER BY e.nid DESC LIMIT $4`,
      },
      [userId, deviceId, Date.now() - MAX_AGE, PER_DEVICE],
    );
    const sent: Sent = new LRUCache({ max: PER_DEVICE });
    for (const row of rows.reverse())
      sent.set(`${row.roomId} ${row.type} ${row.txnId}`, Promise.resolve(row.eventId));
    return sent;
  }
}
