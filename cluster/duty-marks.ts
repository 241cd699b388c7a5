import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { Cluster } from './cluster.ts';

/** Positions in the streams of events and of device lists. */
export interface Marks {
  readonly events: number;
  readonly lists: number;
}

/** What this process did was taken up by others meanwhile: it must not store anything about it any more. */
export class TakenUpError extends Error {}

/** Old hand-overs are of no use to anybody. */
const HANDOVER_KEPT_MS = 3_600_000;
const RETRY_MS = 1_000;
/** Held by all who write hand-overs, and by one who reads them alone. */
const LOCK = 0x64757479;
const DEAD = `NOT EXISTS (SELECT FROM cluster_members c WHERE c.id = m.member)`;

/**
 * For work that follows streams and is shared out by keys: the positions up to which this process has done or written
 * down what is its own, and those from which on it looks for what it takes over.
 *
 * 1. Each process stores its own positions, now and then (`save`).
 * 2. Who gives keys up writes down all about them, and from where on others have to look (`release`).
 * 3. Who gains keys looks from there on, and from where the dead had got to (`adopt`), and does not store a later
 *    position until it has looked.
 *
 * Whoever dies in between has stored what the next one needs. Too early a position does no harm but repeated work.
 */
export class DutyMarks {
  readonly #db: Database;
  readonly #cluster: Cluster;
  readonly #duty: string;
  /** One at a time, so that a position that was read later is stored later. */
  #queue: Promise<unknown> = Promise.resolve();
  /** Of hand-overs; `undefined` before the first `adopt`. */
  #seen: number | undefined;
  /** Hand-overs up to here were for those who were there before. */
  #before = 0;
  #stored: Marks | undefined;
  #closed = false;

  constructor(db: Database, cluster: Cluster, duty: string) {
    this.#db = db;
    this.#cluster = cluster;
    this.#duty = duty;
  }

  /** As they stand in the database. */
  get stored(): Marks | undefined {
    return this.#stored;
  }

  /** To be called before this process can have any duties. */
  async prepare(): Promise<void> {
    const [row] = await this.#db.query<{ last: number }>(
      'SELECT coalesce(max(id), 0) AS last FROM duty_handovers WHERE duty = $1',
      [this.#duty],
    );
    this.#before = row!.last;
  }

  /** @param write what is stored together with the positions, which are to be right at that moment */
  save(positions: () => Marks, write: (tx: Queryable) => Promise<void> = async () => {}): Promise<Marks> {
    return this.#exclusive(async () => {
      if (this.#seen === undefined)
        throw new Error('nothing may be stored before it is known what there was');
      const marks = positions();
      await this.#db.transaction(async (tx) => {
        await this.#store(tx, marks);
        await write(tx);
      });
      this.#stored = marks;
      return marks;
    });
  }

  /** The same, and whoever takes over is told to look from `from` on. */
  release(
    positions: () => Marks,
    from: () => Marks,
    write: (tx: Queryable) => Promise<void> = async () => {},
  ): Promise<void> {
    return this.#exclusive(async () => {
      // Before the first `adopt` there is nothing to give up.
      if (this.#seen === undefined) return;
      const marks = positions();
      const { events, lists } = from();
      await this.#db.transaction(async (tx) => {
        // In this order, as `adopt` has it: its lock first.
        await tx.query(
          'INSERT INTO duty_handovers (duty, events_pos, lists_pos, ts) VALUES ($1, $2, $3, $4)',
          [this.#duty, events, lists, Date.now()],
        );
        await this.#store(tx, marks);
        await write(tx);
      });
    });
  }

  /**
   * From where on what was others' is to be looked for. Tries until it succeeds.
   *
   * @param now the positions that hold without that
   * @param found called before anything else is stored; `undefined`: nobody has left anything
   * @param failed called when it is to be tried again
   */
  adopt(
    now: () => Marks,
    found: (from: Marks | undefined) => void,
    failed: (error: unknown) => void = () => {},
  ): Promise<void> {
    return this.#exclusive(async () => {
      for (;;) {
        try {
          const { from, seen } = await this.#db.transaction((tx) => this.#adopt(tx, now()));
          this.#seen = seen;
          found(from);
          return;
        } catch (error) {
          if (this.#closed) throw error;
          failed(error);
          await new Promise((wake) => setTimeout(wake, RETRY_MS).unref());
        }
      }
    });
  }

  /** Whether somebody has died whose work nobody has taken up. */
  async hasOrphans(): Promise<boolean> {
    if (!this.#cluster.shared) return false;
    const rows = await this.#db.query(
      { name: 'duty-orphans', text: `SELECT 1 FROM duty_marks m WHERE duty = $1 AND ${DEAD} LIMIT 1` },
      [this.#duty],
    );
    return rows.length > 0;
  }

  /** This process has given up everything, to others if there are any. */
  async forget(): Promise<void> {
    await this.#exclusive(() =>
      this.#db.query(
        `DELETE FROM duty_marks d WHERE duty = $1 AND member = $2
           AND EXISTS (SELECT FROM duty_marks m WHERE duty = $1 AND member <> $2 AND NOT ${DEAD})`,
        [this.#duty, this.#cluster.self],
      ),
    );
  }

  close(): void {
    this.#closed = true;
  }

  #exclusive<T>(task: () => Promise<T>): Promise<T> {
    const run = this.#queue.then(task);
    this.#queue = run.catch(() => {});
    return run;
  }

  /** Whose row is gone was declared dead, and others have taken over. */
  async #store(tx: Queryable, { events, lists }: Marks): Promise<void> {
    const stored = await tx.query(
      {
        name: 'duty-marks-store',
        text: `UPDATE duty_marks SET events_pos = $3, lists_pos = $4, seen = $5
               WHERE duty = $1 AND member = $2 RETURNING 1`,
      },
      [this.#duty, this.#cluster.self, events, lists, this.#seen],
    );
    if (stored.length === 0) throw new TakenUpError(`${this.#duty}: others have taken over`);
  }

  async #adopt(tx: Queryable, now: Marks): Promise<{ from: Marks | undefined; seen: number }> {
    const { self, shared } = this.#cluster;
    const isFirst = this.#seen === undefined;
    // So that nobody's hand-over with a lower id is committed after this has looked.
    await tx.query('SELECT pg_advisory_xact_lock($1)', [LOCK]);
    if (isFirst && !shared) {
      const [row] = await tx.query<{ last: number }>(
        'SELECT coalesce(max(id), 0) AS last FROM duty_handovers',
      );
      this.#before = row!.last;
    }
    // A process that is alone finds nobody alive, itself of the last time included.
    await tx.query(
      `WITH dead AS (DELETE FROM duty_marks m WHERE duty = $1 AND ${shared ? DEAD : '$3'} RETURNING *)
       INSERT INTO duty_handovers (duty, events_pos, lists_pos, ts)
       SELECT $1, least(d.events_pos, min(h.events_pos)), least(d.lists_pos, min(h.lists_pos)), $2
       FROM dead d LEFT JOIN duty_handovers h ON h.duty = $1 AND h.id > d.seen
       GROUP BY d.member, d.events_pos, d.lists_pos`,
      shared ? [this.#duty, Date.now()] : [this.#duty, Date.now(), isFirst],
    );
    const [left] = await tx.query<{ events: number | null; lists: number | null; last: number | null }>(
      `SELECT min(events_pos) FILTER (WHERE id > $2) AS events, min(lists_pos) FILTER (WHERE id > $2) AS lists,
              max(id) AS last
       FROM duty_handovers WHERE duty = $1`,
      [this.#duty, this.#seen ?? this.#before],
    );
    const from = left?.events == null ? undefined : { events: left.events, lists: left.lists ?? 0 };
    const seen = Math.max(left?.last ?? 0, this.#seen ?? 0);
    await tx.query(
      `INSERT INTO duty_marks AS m (duty, member, events_pos, lists_pos, seen) VALUES ($1, $2, $3, $4, $5)
       ON CONFLICT (duty, member) DO UPDATE SET events_pos = least(m.events_pos, excluded.events_pos),
         lists_pos = least(m.lists_pos, excluded.lists_pos), seen = excluded.seen`,
      [
        this.#duty,
        self,
        Math.min(now.events, from?.events ?? now.events),
        Math.min(now.lists, from?.lists ?? now.lists),
        seen,
      ],
    );
    await tx.query(
      `DELETE FROM duty_handovers WHERE duty = $1 AND ts < $2
         AND id <= (SELECT min(seen) FROM duty_marks WHERE duty = $1)`,
      [this.#duty, Date.now() - HANDOVER_KEPT_MS],
    );
    return { from, seen };
  }
}
