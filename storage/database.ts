import pg from 'pg';
import { ConnectionWatch } from './connection-watch.ts';
import { DatabaseHosts, type HostClient } from './database-hosts.ts';
import { isAnswer, stores, untilSettled } from './doubt.ts';
import { DatabaseAwayError, saysAway } from './unavailable.ts';

// int8 as a JavaScript number: positions, numeric ids and timestamps all stay below 2^53.
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

export type Row = Record<string, unknown>;
export type Sql = string | { name: string; text: string };

/** Something that runs SQL: the pool, or one connection inside a transaction. */
export interface Queryable {
  /** Runs one statement. Statements with a `name` are prepared once a connection. */
  query<R extends object = Row>(sql: Sql, params?: unknown[]): Promise<R[]>;
}

export interface DatabaseOptions extends pg.PoolConfig {
  /** False where a pooler on the way to PostgreSQL cannot have statements prepared. */
  readonly preparedStatements?: boolean;
  /** Any server will do, not only a primary: to read from. */
  readonly readOnly?: boolean;
  /** How long a statement may take before a look at whether its server is there at all, in milliseconds. */
  readonly patienceMs?: number;
}

const MAX_CONNECTIONS = 10;
/** Not closed when they are idle: after a quiet time, the first request would have to wait for new ones. */
const KEPT_CONNECTIONS = 4;

type Lent = HostClient & pg.PoolClient;

/**
 * PostgreSQL through a bounded pool. SQL is written by hand beside the table it belongs to.
 *
 * The connection URL may name several hosts: connections lead to the one that is the primary, and when it fails to the
 * next one that is. What was under way then fails with `DatabaseAwayError`, but for reads, which are tried once more.
 */
export class Database implements Queryable {
  readonly pool: pg.Pool;
  readonly #hosts: DatabaseHosts;
  readonly #isPrepared: boolean;
  readonly #readOnly: boolean;
  readonly #clients = new Set<HostClient>();
  readonly #watch: ConnectionWatch;
  readonly #doubtListeners: Array<() => void> = [];
  readonly #awayListeners: Array<(error: DatabaseAwayError | undefined) => void> = [];
  #serving = 0;
  #isAway = false;
  #closed = false;

  constructor({ preparedStatements = true, readOnly = false, patienceMs, ...options }: DatabaseOptions) {
    this.#hosts = new DatabaseHosts(options);
    const { max = MAX_CONNECTIONS } = options;
    this.pool = new pg.Pool({
      ...options,
      max,
      min: Math.min(KEPT_CONNECTIONS, max),
      Client: this.#hosts.Client,
    });
    this.#isPrepared = preparedStatements;
    this.#readOnly = readOnly;
    this.#watch = new ConnectionWatch(this.#clients, this.#hosts, patienceMs);
    this.pool.on('connect', (client) => this.#clients.add(client as unknown as HostClient));
    this.pool.on('remove', (client) => this.#clients.delete(client as unknown as HostClient));
    // An idle connection that breaks (server restart) must not end the process; the next query says so itself.
    this.pool.on('error', () => {});
  }

  async query<R extends object = Row>(sql: Sql, params: unknown[] = []): Promise<R[]> {
    for (let attempt = 1; ; attempt++) {
      const client = await this.#connect();
      let broken = false;
      try {
        return await this.#run<R>(client, sql, params);
      } catch (error) {
        broken = isBroken(client, error);
        if (!broken) throw error;
        if (attempt > 1 || stores(sql)) throw this.#lost(client, error, stores(sql));
      } finally {
        client.release(broken);
      }
    }
  }

  /**
   * Runs `work` in one transaction: committed when it resolves, rolled back when it throws. `DatabaseAwayError` that is
   * in doubt: the connection was lost while committing.
   */
  async transaction<T>(work: (tx: Queryable) => Promise<T>): Promise<T> {
    const client = await this.#connect();
    let broken = false;
    let committing = false;
    try {
      await this.#run(client, 'BEGIN', []);
      const result = await work({ query: (sql, params = []) => this.#run(client, sql, params) });
      committing = true;
      await this.#run(client, 'COMMIT', []);
      return result;
    } catch (error) {
      broken = isBroken(client, error);
      if (broken) throw this.#lost(client, error, committing);
      await client.query('ROLLBACK').catch(() => {
        broken = true;
      });
      throw error;
    } finally {
      client.release(broken);
    }
  }

  /**
   * Waits until the database can be reached and what was lost in doubt is over: from then on it is there, or never
   * will be.
   */
  settled(lost: DatabaseAwayError): Promise<void> {
    const isLive = [...this.#clients].some(({ processID }) => processID === lost.backend);
    return untilSettled(this, {
      session: this.#hosts.applicationName,
      backend: isLive ? undefined : lost.backend,
      isClosed: () => this.#closed,
    });
  }

  get hostCount(): number {
    return this.#hosts.count;
  }

  /** Which of the hosts was found to be the primary last. */
  get serving(): number {
    return this.#serving;
  }

  /** Called when something may have been stored that its writer knows nothing of: caches of it are to be forgotten. */
  onDoubt(listener: () => void): void {
    this.#doubtListeners.push(listener);
  }

  /** Called with the reason when the database cannot be reached any more, without one when it can again. */
  onAway(listener: (error: DatabaseAwayError | undefined) => void): void {
    this.#awayListeners.push(listener);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#watch.close();
    await this.pool.end();
  }

  /** A connection to the primary. */
  async #connect(): Promise<Lent> {
    for (let attempt = 1; ; attempt++) {
      const host = this.#hosts.current;
      try {
        const client = (await this.pool.connect()) as unknown as Lent;
        if (client.approved || (await this.#approve(client))) {
          if (this.#isAway) this.#setAway(undefined);
          return client;
        }
      } catch (error) {
        if (!saysAway(error)) throw error;
        this.#hosts.passOver(host);
        if (attempt >= 2 * this.#hosts.count) throw this.#setAway(new DatabaseAwayError(error));
        continue;
      }
      if (attempt >= 2 * this.#hosts.count)
        throw this.#setAway(new DatabaseAwayError(new Error('none of the hosts is a primary')));
    }
  }

  /** Looks at a new connection; one to a server of the wrong kind is given back. */
  async #approve(client: Lent): Promise<boolean> {
    let isWrong: boolean;
    try {
      isWrong = !this.#readOnly && (await this.#isStandby(client));
    } catch (error) {
      client.release(true);
      throw error;
    }
    if (isWrong) {
      client.release(true);
      this.#hosts.passOver(client.hostIndex);
      return false;
    }
    client.approved = true;
    if (client.hostIndex !== this.#serving) {
      this.#serving = client.hostIndex;
      // What the former primary still says, if it lives, is nothing to go by any more.
      for (const other of this.#clients) if (other.hostIndex !== client.hostIndex) other.cut();
    }
    return true;
  }

  async #isStandby(client: Lent): Promise<boolean> {
    if (client.isStandby !== undefined || this.#hosts.count === 1) return client.isStandby ?? false;
    const [row] = await this.#run<{ standby: boolean }>(client, 'SELECT pg_is_in_recovery() AS standby', []);
    return row!.standby;
  }

  async #run<R extends object>(client: HostClient, sql: Sql, params: unknown[]): Promise<R[]> {
    const config =
      typeof sql === 'string' || !this.#isPrepared
        ? { text: typeof sql === 'string' ? sql : sql.text, values: params }
        : { ...sql, values: params };
    client.underWay++;
    client.busySince ??= Date.now();
    try {
      return (await client.query(config)).rows as R[];
    } catch (error) {
      if (MISSING_STATEMENT.has((error as { code?: string }).code ?? ''))
        (error as Error).message += ': a pooler on the way needs database.prepared_statements: false';
      throw error;
    } finally {
      client.busySince = --client.underWay > 0 ? Date.now() : undefined;
    }
  }

  #lost(client: HostClient, cause: unknown, mayBeStored: boolean): DatabaseAwayError {
    const inDoubt = mayBeStored && !isAnswer(cause);
    const lost = new DatabaseAwayError(cause, inDoubt, client.processID ?? undefined);
    if (inDoubt)
      this.settled(lost).then(
        () => {
          for (const listener of this.#doubtListeners) listener();
        },
        () => {},
      );
    return lost;
  }

  #setAway(error: DatabaseAwayError): DatabaseAwayError;
  #setAway(error: undefined): undefined;
  #setAway(error: DatabaseAwayError | undefined): DatabaseAwayError | undefined {
    if (this.#isAway !== (error !== undefined)) {
      this.#isAway = error !== undefined;
      for (const listener of this.#awayListeners) listener(error);
    }
    return error;
  }
}

/** SQLSTATEs of a prepared statement that is not there, or is there already: another session was got than before. */
const MISSING_STATEMENT = new Set(['26000', '42P05']);

/** Whether an error ended the connection. */
function isBroken(client: HostClient, error: unknown): boolean {
  return client.isLost || saysAway(error);
}
