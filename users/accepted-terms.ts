import type { Queryable } from '@trellis/storage/database.ts';

/** The documents that this server has those who register accept, and who accepted which version of them. */
export class AcceptedTerms {
  readonly #db: Queryable;
  readonly #versions: ReadonlyMap<string, string>;

  /** @param versions of the documents, by their names */
  constructor(db: Queryable, versions: ReadonlyMap<string, string>) {
    this.#db = db;
    this.#versions = versions;
  }

  /** All of them, as they are now. */
  async accept(userId: string): Promise<void> {
    await this.#db.query(
      `INSERT INTO accepted_terms (user_id, policy, version, accepted_ts)
       SELECT $1, policy, version, $4 FROM unnest($2::text[], $3::text[]) AS n (policy, version)
       ON CONFLICT DO NOTHING`,
      [userId, [...this.#versions.keys()], [...this.#versions.values()], Date.now()],
    );
  }
}
