import type { Pdu } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from './database.ts';

export interface StagedPdu {
  readonly id: number;
  readonly origin: string;
  readonly roomId: string;
  readonly pdu: Pdu;
}

/** PDUs that were acknowledged but have not been worked off. */
export class StagedPdus {
  readonly #db: Queryable;

  constructor(db: Queryable) {
    this.#db = db;
  }

  async add(pdus: readonly StagedPdu[]): Promise<void> {
    await this.#db.query(
      {
        name: 'staged-insert',
        text: `INSERT INTO staged_pdus (id, origin, room_id, json)
               SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[])`,
      },
      [
        pdus.map(({ id }) => id),
        pdus.map(({ origin }) => origin),
        pdus.map(({ roomId }) => roomId),
        pdus.map(({ pdu }) => JSON.stringify(pdu)),
      ],
    );
  }

  async remove(ids: readonly number[]): Promise<void> {
    await this.#db.query(
      { name: 'staged-delete', text: 'DELETE FROM staged_pdus WHERE id = ANY($1::bigint[])' },
      [ids],
    );
  }

  /** Those after `id`, in the order in which they came. */
  async after(id: number, limit: number): Promise<StagedPdu[]> {
    const rows = await this.#db.query<{ id: number; origin: string; roomId: string; json: string }>(
      {
        name: 'staged-after',
        text: `SELECT id, origin, room_id AS "roomId", json FROM staged_pdus WHERE id > $1 ORDER BY id LIMIT $2`,
      },
      [id, limit],
    );
    return rows.map(({ json, ...row }) => ({ ...row, pdu: decodeJson(json) as Pdu }));
  }
}
