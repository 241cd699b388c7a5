import { setTimeout as sleep } from 'node:timers/promises';
import type { Database, Queryable, Sql } from './database.ts';

/** How long a replica is waited for that is behind, and between looks at it, in milliseconds. */
const WAIT = 100;
const LOOK = 4;
/** How long one is left alone that was too far behind; that could not be reached, or that another primary was found beside. */
const REST_BEHIND = 1_000;
const REST_AWAY = 10_000;

/** Of a statement in the log of the primary, as a number: they stay below 2^53. */
type Place = number;

// What others see of a commit is on the disk. What is not yet there is no commit, and may stay so for a while; unless the
// administrator has commits be seen before.
const PRIMARY_PLACE = `
  SELECT (CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()
          ELSE pg_current_wal_flush_lsn() END - '0/0')::bigint AS place`;

class Replica {
  readonly db: Database;
  restsUntil = 0;
  /** How far it was when it was asked last. It only goes on from there. */
  replayed: Place = 0;
  #looking: Promise<void> | undefined;

  constructor(db: Database) {
    this.db = db;
  }

  get isResting(): boolean {
    return Date.now() < this.restsUntil;
  }

  rest(ms: number): void {
    this.restsUntil = Date.now() + ms;
  }

  async reaches(place: Place): Promise<boolean> {
    for (const end = Date.now() + WAIT; this.replayed < place; ) {
      this.#looking ??= this.#look().finally(() => {
        this.#looking = undefined;
      });
      await this.#looking;
      if (this.replayed >= place) break;
      if (Date.now() > end || this.isResting) return false;
      await sleep(LOOK);
    }
    return true;
  }

  async #look(): Promise<void> {
    // A replica that has been promoted follows nobody.
    const [row] = await this.db.query<{ place: Place | null }>({
      name: 'replica-place',
      text: `SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0' END::bigint AS place`,
    });
    this.replayed = row!.place ?? 0;
  }
}

/**
 * Reads at streaming replicas, and never behind what was committed at the primary when it was asked: the place of the
 * primary's log is asked for first, and the statement is run at a replica that has come as far. One that does not
 * within a moment is left alone for a while, and the primary is read from.
 *
 * For heavy reads: a look-up by a key costs less than finding out where it may be done.
 */
export class Replicas implements Queryable {
  readonly #primary: Database;
  readonly #replicas: readonly Replica[];
  #serving: number;
  #turn = 0;
  #place: Promise<Place> | undefined;

  constructor(primary: Database, replicas: readonly Database[]) {
    this.#primary = primary;
    this.#replicas = replicas.map((db) => new Replica(db));
    this.#serving = primary.serving;
  }

  async query<R extends object>(sql: Sql, params: unknown[] = []): Promise<R[]> {
    const replica = await this.#upToDate();
    if (replica)
      try {
        return await replica.db.query<R>(sql, params);
      } catch {
        // It is away, or had to give up as what it read was cleared away at the primary.
        replica.rest(REST_BEHIND);
      }
    return this.#primary.query<R>(sql, params);
  }

  async close(): Promise<void> {
    await Promise.all(this.#replicas.map(({ db }) => db.close()));
  }

  async #upToDate(): Promise<Replica | undefined> {
    if (this.#replicas.every(({ isResting }) => isResting)) return undefined;
    const place = await this.#currentPlace();
    if (this.#primary.serving !== this.#serving) {
      this.#serving = this.#primary.serving;
      // Each has to come over to the new primary, and one that had been ahead of that has what is gone.
      for (const replica of this.#replicas) {
        replica.replayed = 0;
        replica.rest(REST_AWAY);
      }
    }
    const awake = this.#replicas.filter(({ isResting }) => !isResting);
    const replica = awake.find(({ replayed }) => replayed >= place) ?? awake[this.#turn++ % awake.length];
    try {
      if (!replica || (await replica.reaches(place))) return replica;
      if (!replica.isResting) replica.rest(REST_BEHIND);
    } catch {
      replica!.rest(REST_AWAY);
    }
    return undefined;
  }

  /** Where the primary's log is now: asked once for all who want to know in the same turn of the event loop. */
  #currentPlace(): Promise<Place> {
    this.#place ??= Promise.resolve().then(async () => {
      this.#place = undefined;
      const [row] = await this.#primary.query<{ place: Place }>({
        name: 'primary-place',
        text: PRIMARY_PLACE,
      });
      return row!.place;
    });
    return this.#place;
  }
}
