import type { Queryable } from '@trellis/storage/database.ts';
import { hashBytes, newSecret, secretHash } from './secret-tokens.ts';

/** Tokens that say who someone is for a short time, and open nothing else. Stored as hashes. */
export class ExpiringTokens {
  readonly #db: Queryable;
  readonly #table: string;
  readonly #prefix: string;
  readonly lifetimeMs: number;

  constructor(db: Queryable, options: { table: string; prefix: string; lifetimeMs: number }) {
    this.#db = db;
    this.#table = options.table;
    this.#prefix = options.prefix;
    this.lifetimeMs = options.lifetimeMs;
  }

  async issue(userId: string): Promise<string> {
    const token = newSecret(this.#prefix);
    await this.#db.query(`INSERT INTO ${this.#table} (token_hash, user_id, expires_ts) VALUES ($1, $2, $3)`, [
      hashBytes(secretHash(token)),
      userId,
      Date.now() + this.lifetimeMs,
    ]);
    return token;
  }

  /** Whose token this is. */
  async owner(token: string): Promise<string | undefined> {
    const rows = await this.#db.query<{ userId: string }>(
      `SELECT user_id AS "userId" FROM ${this.#table} WHERE token_hash = $1 AND expires_ts > $2`,
      [hashBytes(secretHash(token)), Date.now()],
    );
    return rows[0]?.userId;
  }

  /** Whose token this is; it is good for this once. */
  async take(token: string): Promise<string | undefined> {
    const rows = await this.#db.query<{ userId: string; expiresTs: number }>(
      `DELETE FROM ${this.#table} WHERE token_hash = $1 RETURNING user_id AS "userId", expires_ts AS "expiresTs"`,
      [hashBytes(secretHash(token))],
    );
    return rows[0] && rows[0].expiresTs > Date.now() ? rows[0].userId : undefined;
  }
}

/** `m.login.token` (spec: `POST /v1/login/get_token`, which recommends two minutes). */
export function createLoginTokens(db: Queryable, lifetimeMs = 120_000): ExpiringTokens {
  return new ExpiringTokens(db, { table: 'login_tokens', prefix: 'tlt', lifetimeMs });
}

/** Removes what has run out. To be called every now and then. */
export async function removeExpired(db: Queryable): Promise<void> {
  for (const table of ['login_tokens', 'openid_tokens', 'uia_sessions', 'threepid_sessions'])
    await db.query(`DELETE FROM ${table} WHERE expires_ts <= $1`, [Date.now()]);
}
