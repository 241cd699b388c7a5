import type { JsonObject, Pdu } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

const MAX_CHANGES = 1000;

/**
 * Events as they were before their redaction, kept for a while so that moderators can look at what was taken away
 * (MSC2815). Only where the configuration asks for it.
 */
export class RedactedOriginals {
  readonly #db: Queryable;
  readonly keepMs: number;

  constructor(db: Queryable, keepMs: number) {
    this.#db = db;
    this.keepMs = keepMs;
  }

  /** Keeps the event, in the transaction that redacts it. */
  async keep(tx: Queryable, event: StoredEvent): Promise<void> {
    await tx.query('INSERT INTO redacted_originals VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING', [
      event.eventId,
      event.sender,
      event.json,
      Date.now() + this.keepMs,
    ]);
  }

  /** The content that a redaction took away, as long as it is kept. */
  async content(eventId: string): Promise<JsonObject | undefined> {
    const [row] = await this.#db.query<{ json: string }>(
      'SELECT json FROM redacted_originals WHERE event_id = $1 AND expires_ts > $2',
      [eventId, Date.now()],
    );
    return row && ((decodeJson(row.json) as Pdu).content as JsonObject);
  }

  async removeExpired(): Promise<void> {
    await this.#db.query(
      `DELETE FROM redacted_originals WHERE event_id IN (
         SELECT event_id FROM redacted_originals WHERE expires_ts <= $1 LIMIT $2)`,
      [Date.now(), MAX_CHANGES],
    );
  }

  /** For accounts that go: nothing that they took back is kept. */
  async erase(sender: string): Promise<void> {
    await this.#db.query('DELETE FROM redacted_originals WHERE sender = $1', [sender]);
  }
}
