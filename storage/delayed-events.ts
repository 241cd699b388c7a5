import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database, Queryable } from './database.ts';

/** An event that is to be sent later. */
export interface DelayedEvent {
  readonly delayId: string;
  readonly userId: string;
  readonly roomId: string;
  readonly type: string;
  readonly stateKey?: string;
  readonly content: JsonObject;
  /** For how long it will be sticky once it is sent (MSC4354). */
  readonly stickyMs?: number | undefined;
  /** Milliseconds from `runningSince` on. */
  readonly delay: number;
  readonly runningSince: number;
}

interface DelayedRow {
  delayId: string;
  userId: string;
  event: string;
  delay: number;
  runningSince: number;
}

const COLUMNS = 'delay_id AS "delayId", user_id AS "userId", event, delay, running_since AS "runningSince"';

/** The table `delayed_events`. */
export class DelayedEventStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /**
   * @returns the id under which it is stored: an earlier one where the transaction has been here before; `undefined`,
   *   with nothing stored, when the user has `max` of them already
   */
  add(event: DelayedEvent, transactionHash: string | undefined, max: number): Promise<string | undefined> {
    const { delayId, userId, roomId, type, stateKey, content, stickyMs, delay, runningSince } = event;
    return this.#db.transaction(async (tx) => {
      // One request after the other of a user, whichever processes they come to.
      await tx.query("SELECT pg_advisory_xact_lock(hashtext('delayed_events'), hashtext($1))", [userId]);
      const [earlier] = await tx.query<{ delayId: string }>(
        'SELECT delay_id AS "delayId" FROM delayed_events WHERE user_id = $1 AND transaction_hash = $2',
        [userId, transactionHash ?? null],
      );
      if (earlier) return earlier.delayId;
      const rows = await tx.query(
        `INSERT INTO delayed_events (delay_id, user_id, transaction_hash, event, delay, running_since, due)
         SELECT $1, $2, $3, $4, $5, $6, $7 WHERE (SELECT count(*) FROM delayed_events WHERE user_id = $2) < $8
         RETURNING 1`,
        [
          delayId,
          userId,
          transactionHash ?? null,
          JSON.stringify({ roomId, type, stateKey, content, stickyMs }),
          delay,
          runningSince,
          runningSince + delay,
          max,
        ],
      );
      return rows.length > 0 ? delayId : undefined;
    });
  }

  async get(delayId: string): Promise<DelayedEvent | undefined> {
    const sql = `SELECT ${COLUMNS} FROM delayed_events WHERE delay_id = $1`;
    return (await this.#read(sql, [delayId]))[0];
  }

  async byTransaction(userId: string, transactionHash: string): Promise<DelayedEvent | undefined> {
    const sql = `SELECT ${COLUMNS} FROM delayed_events WHERE user_id = $1 AND transaction_hash = $2`;
    return (await this.#read(sql, [userId, transactionHash]))[0];
  }

  /** The user's, those that are due first before others. */
  ofUser(userId: string): Promise<DelayedEvent[]> {
    const sql = `SELECT ${COLUMNS} FROM delayed_events WHERE user_id = $1 ORDER BY due, delay_id`;
    return this.#read(sql, [userId]);
  }

  /** Those that are due in (after, upTo], in their order: after the one named last where more are due at the same time. */
  async due(
    range: { readonly after: number; readonly last?: string; readonly upTo?: number },
    limit: number,
  ): Promise<Array<DelayedEvent & { readonly due: number }>> {
    const rows = await this.#db.query<DelayedRow & { due: number }>(
      `SELECT ${COLUMNS}, due FROM delayed_events WHERE (due > $1 OR (due = $1 AND delay_id > $2)) AND due <= $3
       ORDER BY due, delay_id LIMIT $4`,
      [range.after, range.last ?? null, range.upTo ?? Number.MAX_SAFE_INTEGER, limit],
    );
    return rows.map(eventOf);
  }

  /** Its time begins anew. */
  async restart(delayId: string, now: number): Promise<boolean> {
    const rows = await this.#db.query(
      'UPDATE delayed_events SET running_since = $2, due = $2 + delay WHERE delay_id = $1 RETURNING 1',
      [delayId, now],
    );
    return rows.length > 0;
  }

  /** Tried again later, which its time as others see it does not tell. */
  async postpone(delayId: string, due: number): Promise<void> {
    await this.#db.query('UPDATE delayed_events SET due = $2 WHERE delay_id = $1', [delayId, due]);
  }

  async remove(delayId: string, tx: Queryable = this.#db): Promise<boolean> {
    const rows = await tx.query('DELETE FROM delayed_events WHERE delay_id = $1 RETURNING 1', [delayId]);
    return rows.length > 0;
  }

  async removeAll(userId: string): Promise<void> {
    await this.#db.query('DELETE FROM delayed_events WHERE user_id = $1', [userId]);
  }

  async #read(sql: string, params: unknown[]): Promise<DelayedEvent[]> {
    return (await this.#db.query<DelayedRow>(sql, params)).map(eventOf);
  }
}

function eventOf<Row extends DelayedRow>({ event, ...row }: Row): DelayedEvent & Omit<Row, 'event'> {
  return { ...row, ...(decodeJson(event) as Pick<DelayedEvent, 'roomId' | 'type' | 'content'>) };
}
