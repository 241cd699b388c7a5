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

/** The table of how far each application service is. */
export class DeliveryStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  async load(id: string): Promise<StoredDelivery | undefined> {
    const [row] = await this.#db.query<Row>(
      `SELECT events_pos AS events, to_device_pos AS "toDevice", device_lists_pos AS "deviceLists",
              txn_id AS "txnId", txn_events AS "eventNids", txn_more AS more
       FROM appservice_deliveries WHERE id = $1`,
      [id],
    );
    if (!row) return undefined;
    const { events, toDevice, deviceLists, txnId, eventNids, more } = row;
    return {
      positions: { events, toDevice, deviceLists },
      transaction: txnId === null ? undefined : { id: txnId, eventNids: eventNids.map(Number), more },
    };
  }

  /** With a transaction, it has begun; without one, what had begun is over. */
  async save(id: string, positions: Positions, transaction?: StoredTransaction): Promise<void> {
    await this.#db.query(
      {
        name: 'appservice-save',
        text: `INSERT INTO appservice_deliveries
                 (id, events_pos, to_device_pos, device_lists_pos, txn_id, txn_events, txn_more)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT (id) DO UPDATE SET events_pos = excluded.events_pos,
                 to_device_pos = excluded.to_device_pos, device_lists_pos = excluded.device_lists_pos,
                 txn_id = excluded.txn_id, txn_events = excluded.txn_events, txn_more = excluded.txn_more`,
      },
      [
        id,
        positions.events,
        positions.toDevice,
        positions.deviceLists,
        transaction?.id ?? null,
        transaction?.eventNids ?? [],
        transaction?.more ?? '{}',
      ],
    );
  }

  /** A service that is registered no longer begins anew if it ever comes back. */
  async keepOnly(ids: readonly string[]): Promise<void> {
    await this.#db.query('DELETE FROM appservice_deliveries WHERE NOT id = ANY($1)', [ids]);
  }
}
