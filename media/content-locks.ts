import type { Database, Queryable } from '@trellis/storage/database.ts';
import { Turns } from './turns.ts';

/** Each holds a connection to the database while the store works, which may be far away and slow. */
const AT_A_TIME = 2;
const MAX_WAITING = 1000;

/** Keeps naming and erasing of the same content apart. */
export class ContentLocks {
  readonly #db: Database;
  readonly #turns = new Turns(AT_A_TIME, MAX_WAITING, 'Too much media is being stored');

  constructor(db: Database) {
    this.#db = db;
  }

  /** Runs `work` while no one else names or erases the content. */
  run<T>(sha256: Buffer, work: (tx: Queryable) => Promise<T>): Promise<T> {
    return this.#turns.run(() =>
      this.#db.transaction(async (tx) => {
        await tx.query('SELECT pg_advisory_xact_lock($1)', [sha256.readBigInt64BE(0).toString()]);
        return work(tx);
      }),
    );
  }
}
