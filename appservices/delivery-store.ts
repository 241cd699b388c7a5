import type { Database } from '@trellis/storage/database.ts';

/** Positions in the streams up to which a service has everything. */
export interface Positions {
  readonly events: number;
  readonly toDevice: number;
  readonly deviceLists: number;
}

/** A transaction as it is kept until the service has it. */
export interface StoredTransaction {
  readonly id: string;
  readonly eventNids: readonly number[];
  /** All of its body but the events: a JSON object. */
  readonly more: string;
}

export interface StoredDelivery {
  /** After the transaction. */
  readonly positions: Positions;
  readonly transaction: StoredTransaction | undefined;
}

interface Row extends Positions {
  readonly txnId: string | null;
  readonly eventNids: Array<number | string>;
  readonly more: string;
}

/** Another process delivers to the service by now, or it is registered no longer. */
export class TakenOverError extends Error {}

/** The table of how far each application service is. */
export class DeliveryStore {
  readonly #db: Database;
  readonly #self: string;

  /** @param self the process that this is */
  constructor(db: Database, self: string) {
    this.#db = db;
    this.#self = self;
  }

  /** It is for this process from now on to deliver. @param now where a service that is new begins */
  async claim(id: string, now: Positions): Promise<StoredDelivery> {
    const [row] = await this.#db.query<Row>(
      `INSERT INTO appservice_deliveries (id, events_pos, to_device_pos, device_lists_pos, owner)
       VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE SET owner = excluded.owner
       RETURNING events_pos AS events, to_device_pos AS "toDevice", device_lists_pos AS "deviceLists",
                 txn_id AS "txnId", txn_events AS "eventNids", txn_more AS more`,
      [id, now.events, now.toDevice, now.deviceLists, this.#self],
    );
    const { events, toDevice, deviceLists, txnId, eventNids, more } = row!;
    return {
      positions: { events, toDevice, deviceLists },
      transaction: txnId === null ? undefined : { id: txnId, eventNids: eventNids.map(Number), more },
    };
  }

  /** A service that is new begins here, whoever will deliver to it. */
  async begin(id: string, now: Positions): Promise<void> {
    await this.#db.query(
      `INSERT INTO appservice_deliveries (id, events_pos, to_device_pos, device_lists_pos)
       VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
      [id, now.events, now.toDevice, now.deviceLists],
    );
  }

  /**
   * With a transaction, it has begun; without one, what had begun is over.
   *
   * @throws TakenOverError
   */
  async save(id: string, positions: Positions, transaction?: StoredTransaction): Promise<void> {
    const saved = await this.#db.query(
      {
        name: 'appservice-save',
        text: `UPDATE appservice_deliveries SET events_pos = $2, to_device_pos = $3, device_lists_pos = $4,
                 txn_id = $5, txn_events = $6, txn_more = $7
               WHERE id = $1 AND owner = $8 RETURNING 1`,
      },
      [
        id,
        positions.events,
        positions.toDevice,
        positions.deviceLists,
        transaction?.id ?? null,
        transaction?.eventNids ?? [],
        transaction?.more ?? '{}',
        this.#self,
      ],
    );
    if (saved.length === 0) throw new TakenOverError(`others deliver to ${id}`);
  }

  /**
   * A service that is registered no longer, or told of nothing any more, begins anew if it ever comes back.
   *
   * @param told ids of those known here that are told
   * @param untold ids of the others
   */
  async keepOnly(told: readonly string[], untold: readonly string[]): Promise<void> {
    await this.#db.query(
      `DELETE FROM appservice_deliveries d WHERE NOT id = ANY($1)
         AND (id = ANY($2) OR NOT EXISTS (SELECT FROM appservice_registrations r WHERE r.id = d.id))`,
      [told, untold],
    );
  }
}
