import type { Queryable } from '@trellis/storage/database.ts';
import type { IdAllocator } from '@trellis/storage/id-allocator.ts';

/** What a user reported: a room, or an event of one. */
export interface Report {
  readonly reporter: string;
  readonly roomId: string;
  readonly eventId?: string;
  readonly reason: string;
  readonly score?: number;
}

/** Reports to the server's administrators (spec: "Reporting Content"). */
export class Reports {
  readonly #db: Queryable;
  readonly #ids: IdAllocator;

  constructor(db: Queryable, ids: IdAllocator) {
    this.#db = db;
    this.#ids = ids;
  }

  async add(report: Report): Promise<void> {
    await this.#db.query(
      `INSERT INTO content_reports (id, reported_ts, reporter, room_id, event_id, reason, score)
       VALUES ($1, $2, $3, $4, $5, $6, $7)`,
      [
        this.#ids.next(),
        Date.now(),
        report.reporter,
        report.roomId,
        report.eventId ?? null,
        report.reason.replaceAll('\0', '\u2400'),
        report.score ?? null,
      ],
    );
  }
}
