import { alone, type Cluster, type Json } from '@trellis/cluster/cluster.ts';
import type { Queryable } from '@trellis/storage/database.ts';

export interface BackoffState {
  failingSince: number;
  failures: number;
  /** No request is made before this. */
  retryAfter: number;
}

const FIRST_INTERVAL = 1_000;
/** Each interval is that much longer: a server that was down for a while is tried again within half of that while. */
const GROWTH = 1.5;
const LONGEST_INTERVAL = 24 * 3_600_000;
/** What failed before a restart is tried again within this: it may have been our side that was cut off. */
const LONGEST_AFTER_RESTART = 5 * 60_000;
/** Destinations remembered as failing; beyond it the oldest are forgotten and simply tried again. */
const MAX_ENTRIES = 100_000;
const TOPIC = 'federation/backoff';

/**
 * Which destinations are not worth a request now: from a second after a first failure to a day, over restarts.
 * A destination that answers, or that talks to us, is forgotten, so the usual case costs one look in a map. All
 * processes know the same: each tells the others.
 */
export class Backoff {
  readonly #db: Queryable;
  readonly #clock: () => number;
  readonly #failing = new Map<string, BackoffState>();
  readonly #listeners: Array<(destination: string) => void> = [];
  /** Destinations that have recovered and whose rows are about to go. */
  readonly #forgetting = new Set<string>();
  /** For each reading of rows that is under way, destinations that have recovered: their rows may be older. */
  readonly #rereads = new Set<Set<string>>();
  readonly #cluster: Cluster;

  constructor(db: Queryable, clock: () => number = Date.now, cluster = alone()) {
    this.#db = db;
    this.#clock = clock;
    this.#cluster = cluster;
    cluster.onAnnounce(TOPIC, ([destination, state]: readonly [string, BackoffState | null]) => {
      if (state) this.#failing.set(destination, state);
      else this.#recovered(destination);
    });
    cluster.onGap(() => void this.#reread());
  }

  /** Reads what was failing when the process ended. */
  async load(): Promise<void> {
    const now = this.#clock();
    for (const row of await this.#rows()) {
      const state = stateOf(row);
      state.retryAfter = Math.min(state.retryAfter, Math.round(now + Math.random() * LONGEST_AFTER_RESTART));
      this.#failing.set(row.destination, state);
    }
  }

  /** The state of a destination that is failing. */
  get(destination: string): BackoffState | undefined {
    return this.#failing.get(destination);
  }

  /** When the destination may be tried again, `undefined` when it may be now. */
  waitUntil(destination: string): number | undefined {
    const state = this.#failing.get(destination);
    return state && state.retryAfter > this.#clock() ? state.retryAfter : undefined;
  }

  /** Hears of destinations that were failing and answer again. */
  onRecovered(listener: (destination: string) => void): void {
    this.#listeners.push(listener);
  }

  /** @param startedAt when the request began: requests that fail together count as one failure */
  async failed(destination: string, startedAt: number): Promise<void> {
    const now = this.#clock();
    const before = this.#failing.get(destination);
    if (before && before.retryAfter > startedAt) return;
    const failures = (before?.failures ?? 0) + 1;
    const interval = Math.min(FIRST_INTERVAL * GROWTH ** Math.min(failures - 1, 100), LONGEST_INTERVAL);
    const state: BackoffState = {
      failingSince: before?.failingSince ?? now,
      failures,
      // Spread by a fifth, so that what failed together is not tried together for ever.
      retryAfter: Math.round(now + interval * (0.9 + Math.random() * 0.2)),
    };
    if (!before && this.#failing.size >= MAX_ENTRIES) await this.#evictOldest();
    this.#failing.set(destination, state);
    this.#tell([destination, { ...state }]);
    await this.#db.query(
      `INSERT INTO federation_backoff (destination, failing_since_ts, failures, retry_after_ts)
       VALUES ($1, $2, $3, $4)
       ON CONFLICT (destination) DO UPDATE
       SET failures = excluded.failures, retry_after_ts = excluded.retry_after_ts`,
      [destination, state.failingSince, state.failures, state.retryAfter],
    );
  }

  /** The destination answered us, or made a request that it signed. */
  async reachable(destination: string): Promise<void> {
    if (!this.#recovered(destination)) return;
    this.#forgetting.add(destination);
    try {
      await this.#db.query('DELETE FROM federation_backoff WHERE destination = $1', [destination]);
    } finally {
      this.#forgetting.delete(destination);
      // Whoever has read the row until now hears of it afterwards.
      this.#tell([destination, null]);
    }
  }

  #recovered(destination: string): boolean {
    for (const recovered of this.#rereads) recovered.add(destination);
    if (!this.#failing.delete(destination)) return false;
    for (const listener of this.#listeners) listener(destination);
    return true;
  }

  /** Whoever does not hear of it tries for itself. */
  #tell(news: Json): void {
    if (this.#cluster.shared) this.#cluster.announce(TOPIC, news).catch(() => {});
  }

  /** What others told may have been missed. */
  async #reread(): Promise<void> {
    const before = [...this.#failing.keys()];
    const recovered = new Set(this.#forgetting);
    this.#rereads.add(recovered);
    try {
      const rows = await this.#rows();
      const failing = new Set(rows.map(({ destination }) => destination));
      for (const destination of before) if (!failing.has(destination)) this.#recovered(destination);
      for (const row of rows)
        if (!recovered.has(row.destination)) this.#failing.set(row.destination, stateOf(row));
    } catch {
      // It is found out anew.
    } finally {
      this.#rereads.delete(recovered);
    }
  }

  #rows(): Promise<BackoffRow[]> {
    return this.#db.query<BackoffRow>(
      'SELECT * FROM federation_backoff ORDER BY retry_after_ts DESC LIMIT $1',
      [MAX_ENTRIES],
    );
  }

  async #evictOldest(): Promise<void> {
    const oldest = this.#failing.keys().next().value;
    if (oldest === undefined) return;
    this.#failing.delete(oldest);
    await this.#db.query('DELETE FROM federation_backoff WHERE destination = $1', [oldest]);
  }
}

interface BackoffRow {
  readonly destination: string;
  readonly failing_since_ts: number;
  readonly failures: number;
  readonly retry_after_ts: number;
}

function stateOf({ failing_since_ts, failures, retry_after_ts }: BackoffRow): BackoffState {
  return { failingSince: failing_since_ts, failures, retryAfter: retry_after_ts };
}
