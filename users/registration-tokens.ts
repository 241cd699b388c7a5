import { invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { randomLetters } from './secret-tokens.ts';

export interface RegistrationToken {
  readonly token: string;
  /** `null`: any number. */
  readonly usesAllowed: number | null;
  readonly used: number;
  readonly expiresTs: number | null;
}

const COLUMNS = 'token, uses_allowed AS "usesAllowed", used, expires_ts AS "expiresTs"';
const USABLE = '(uses_allowed IS NULL OR used < uses_allowed) AND (expires_ts IS NULL OR expires_ts > $2)';

/** The grammar of opaque identifiers with a limit of its own (spec: "Token-authenticated registration"). */
function isToken(token: string): boolean {
  return /^[0-9A-Za-z._~-]{1,64}$/.test(token);
}

/** Tokens that administrators hand out, so that only those who have one can register. */
export class RegistrationTokens {
  readonly #db: Queryable;

  constructor(db: Queryable) {
    this.#db = db;
  }

  /** @throws M_INVALID_PARAM when the token is malformed or there already */
  async create(
    options: { token?: string; usesAllowed?: number; expiresTs?: number } = {},
  ): Promise<RegistrationToken> {
    const token = options.token ?? randomLetters(16, 'abcdefghjkmnpqrstuvwxyz23456789');
    if (!isToken(token)) throw invalidParam('Registration tokens are 1 to 64 of A-Z, a-z, 0-9, and ._~-');
    const rows = await this.#db.query<RegistrationToken>(
      `INSERT INTO registration_tokens (token, uses_allowed, expires_ts, created_ts) VALUES ($1, $2, $3, $4)
       ON CONFLICT DO NOTHING RETURNING ${COLUMNS}`,
      [token, options.usesAllowed ?? null, options.expiresTs ?? null, Date.now()],
    );
    if (!rows[0]) throw invalidParam('This registration token exists already');
    return rows[0];
  }

  async list(limit = 1000): Promise<RegistrationToken[]> {
    return this.#db.query(`SELECT ${COLUMNS} FROM registration_tokens ORDER BY created_ts DESC LIMIT $1`, [
      limit,
    ]);
  }

  async delete(token: string): Promise<boolean> {
    const rows = await this.#db.query('DELETE FROM registration_tokens WHERE token = $1 RETURNING 1', [
      token,
    ]);
    return rows.length > 0;
  }

  async isValid(token: string): Promise<boolean> {
    if (!isToken(token)) return false;
    const sql = `SELECT 1 FROM registration_tokens WHERE token = $1 AND ${USABLE}`;
    return (await this.#db.query(sql, [token, Date.now()])).length > 0;
  }

  /** Takes one use of the token for `work`, and gives it back when that fails. */
  async use<T>(token: string, work: () => Promise<T>): Promise<T> {
    const rows = await this.#db.query(
      `UPDATE registration_tokens SET used = used + 1 WHERE token = $1 AND ${USABLE} RETURNING 1`,
      [token, Date.now()],
    );
    if (rows.length === 0) throw new MatrixError(403, 'M_FORBIDDEN', 'The registration token is used up');
    try {
      return await work();
    } catch (error) {
      await this.#db.query('UPDATE registration_tokens SET used = used - 1 WHERE token = $1', [token]);
      throw error;
    }
  }
}
