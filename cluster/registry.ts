import type { Queryable } from '@trellis/storage/database.ts';
import { ROLES, type Role } from './cluster.ts';
import type { Member } from './rendezvous.ts';

/** How long the coordinator's lease holds without being renewed, in milliseconds. */
export const LEASE_MS = 2_000;

export interface RegisteredMember extends Member {
  readonly ready: boolean;
}

export interface Lease {
  readonly term: number;
  readonly holder: string;
  /** By the database's clock. */
  readonly expired: boolean;
  /** Whether the member that asks is still one. */
  readonly present: boolean;
}

/**
 * Members and the coordinator's lease as PostgreSQL has them: the last word on both. A member's row is its right to
 * commit events (every commit holds it, storage/event-writer.ts), so that deleting the row waits for commits under way
 * and shuts out all later ones.
 */
export class Registry {
  readonly #db: Queryable;

  constructor(db: Queryable) {
    this.#db = db;
  }

  async register({ id, roles, address }: Member): Promise<void> {
    await this.#db.query(
      'INSERT INTO cluster_members (id, term, roles, address, started_ts) VALUES ($1, 0, $2, $3, $4)',
      [id, roles.join(' '), address, Date.now()],
    );
  }

  async setReady(id: string): Promise<void> {
    await this.#db.query('UPDATE cluster_members SET ready = true WHERE id = $1', [id]);
  }

  async members(): Promise<RegisteredMember[]> {
    const rows = await this.#db.query<{ id: string; roles: string; address: string; ready: boolean }>(
      'SELECT id, roles, address, ready FROM cluster_members ORDER BY started_ts, id',
    );
    return rows.map(({ id, roles, address, ready }) => ({
      id,
      address,
      ready,
      roles: ROLES.filter((role): role is Role => roles.split(' ').includes(role)),
    }));
  }

  /** @param id of the member that asks */
  async lease(id: string): Promise<Lease> {
    const [row] = await this.#db.query<Lease>(
      {
        name: 'cluster-lease',
        text: `SELECT term, holder, until < clock_timestamp() AS expired,
                      EXISTS (SELECT FROM cluster_members WHERE id = $1) AS present
               FROM cluster_coordinator`,
      },
      [id],
    );
    return row!;
  }

  /** Takes an expired lease. @returns the new term; `undefined` when another was faster, or the lease holds */
  async takeLease(id: string): Promise<number | undefined> {
    const [row] = await this.#db.query<{ term: number }>(
      `UPDATE cluster_coordinator SET term = term + 1, holder = $1,
              until = clock_timestamp() + $2 * interval '1 millisecond'
       WHERE until < clock_timestamp() AND EXISTS (SELECT FROM cluster_members WHERE id = $1) RETURNING term`,
      [id, LEASE_MS],
    );
    return row?.term;
  }

  /** @returns whether the lease is still held */
  async renewLease(id: string, term: number): Promise<boolean> {
    const rows = await this.#db.query(
      {
        name: 'cluster-renew',
        text: `UPDATE cluster_coordinator SET until = clock_timestamp() + $3 * interval '1 millisecond'
               WHERE holder = $1 AND term = $2 RETURNING term`,
      },
      [id, term, LEASE_MS],
    );
    return rows.length > 0;
  }

  /** So that the next one need not wait for its end. */
  async giveUpLease(id: string, term: number): Promise<void> {
    await this.#db.query(
      `UPDATE cluster_coordinator SET until = '-infinity' WHERE holder = $1 AND term = $2`,
      [id, term],
    );
  }

  /** From here on no commit of an earlier term can succeed, of whatever member. */
  async beginTerm(term: number): Promise<void> {
    await this.#db.query('UPDATE cluster_members SET term = $1 WHERE term < $1', [term]);
  }

  /** @returns whether the member is there: who was shut out is not taken in again */
  async admit(id: string, term: number): Promise<boolean> {
    const rows = await this.#db.query('UPDATE cluster_members SET term = $2 WHERE id = $1 RETURNING id', [
      id,
      term,
    ]);
    return rows.length > 0;
  }

  /** Once this returns the member cannot commit any more; what it had committed is visible. */
  async remove(id: string): Promise<void> {
    await this.#db.query('DELETE FROM cluster_members WHERE id = $1', [id]);
  }
}
