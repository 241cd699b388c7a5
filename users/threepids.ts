import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { canonicalAddress, type Threepid } from './threepid-address.ts';

const MAX_OF_USER = 50;

/** E-mail addresses and phone numbers of accounts: what was confirmed, and is not another's. */
export class Threepids {
  readonly #db: Queryable;
  readonly #removed: Array<(userId: string, threepid: { medium: string; address: string }) => Promise<void>> =
    [];

  constructor(db: Queryable) {
    this.#db = db;
  }

  /** Called when an identifier is no longer the user's. */
  onRemoved(
    listener: (userId: string, threepid: { medium: string; address: string }) => Promise<void>,
  ): void {
    this.#removed.push(listener);
  }

  of(userId: string): Promise<object[]> {
    return this.#db.query(
      `SELECT medium, address, validated_ts AS validated_at, added_ts AS added_at
       FROM account_threepids WHERE user_id = $1 ORDER BY medium, address`,
      [userId],
    );
  }

  /** @throws M_THREEPID_IN_USE when it is another account's */
  async add(
    userId: string,
    { medium, address, validatedTs }: Threepid & { validatedTs: number },
  ): Promise<void> {
    const [{ count } = { count: 0 }] = await this.#db.query<{ count: number }>(
      'SELECT count(*) AS count FROM account_threepids WHERE user_id = $1',
      [userId],
    );
    if (count >= MAX_OF_USER)
      throw new MatrixError(403, 'M_THREEPID_DENIED', `An account has at most ${MAX_OF_USER} addresses`);
    const rows = await this.#db.query(
      `INSERT INTO account_threepids (medium, address, user_id, validated_ts, added_ts) VALUES ($1, $2, $3, $4, $5)
       ON CONFLICT (medium, address) DO UPDATE SET validated_ts = EXCLUDED.validated_ts
         WHERE account_threepids.user_id = EXCLUDED.user_id RETURNING 1`,
      [medium, address, userId, validatedTs, Date.now()],
    );
    if (rows.length === 0) throw threepidInUse();
  }

  /** @throws M_THREEPID_IN_USE when one of them is an account's */
  async requireFree(threepids: readonly Threepid[]): Promise<void> {
    for (const { medium, address } of threepids) {
      const rows = await this.#db.query(
        'SELECT 1 FROM account_threepids WHERE medium = $1 AND address = $2',
        [medium, address],
      );
      if (rows.length > 0) throw threepidInUse();
    }
  }

  /** @returns whether it was theirs */
  async remove(userId: string, medium: string, address: string): Promise<boolean> {
    if (medium.includes('\0') || address.includes('\0')) return false;
    const rows = await this.#db.query<{ address: string }>(
      `DELETE FROM account_threepids WHERE user_id = $1 AND medium = $2 AND address = ANY($3) RETURNING address`,
      [userId, medium, [canonicalAddress(medium, address), address]],
    );
    for (const row of rows)
      for (const listener of this.#removed) await listener(userId, { medium, address: row.address });
    return rows.length > 0;
  }
}

function threepidInUse(): MatrixError {
  return new MatrixError(400, 'M_THREEPID_IN_USE', 'This address belongs to an account already');
}
