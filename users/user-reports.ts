import type { Queryable } from '@trellis/storage/database.ts';

export interface UserReport {
  readonly id: number;
  readonly receivedTs: number;
  readonly reporter: string;
  readonly userId: string;
  readonly reason: string;
}

const MAX_REASON = 4000;

/** What users said of others, for the administrators (spec: "Reporting content"). */
export class UserReports {
  readonly #db: Queryable;

  constructor(db: Queryable) {
    this.#db = db;
  }

  async add(reporter: string, userId: string, reason: string): Promise<void> {
    await this.#db.query(
      'INSERT INTO user_reports (received_ts, reporter, user_id, reason) VALUES ($1, $2, $3, $4)',
      [Date.now(), reporter, userId, reason.slice(0, MAX_REASON).replaceAll('\0', '').toWellFormed()],
    );
  }

  /** The newest first. */
  async list(before: number | undefined, limit: number): Promise<UserReport[]> {
    return this.#db.query<UserReport>(
      `SELECT id, received_ts AS "receivedTs", reporter, user_id AS "userId", reason FROM user_reports
       WHERE id < coalesce($1, 9223372036854775807) ORDER BY id DESC LIMIT $2`,
      [before ?? null, limit],
    );
  }
}
