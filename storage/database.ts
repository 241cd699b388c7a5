import pg from 'pg';

// int8 as a JavaScript number: positions, numeric ids and timestamps all stay below 2^53.
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

export type Row = Record<string, unknown>;

/** Something that runs SQL: the pool, or one connection inside a transaction. */
export interface Queryable {
  /** Runs one statement. Statements with a `name` are prepared once a connection. */
  query<R extends object = Row>(
    sql: string | { name: string; text: string },
    params?: unknown[],
  ): Promise<R[]>;
}

/** PostgreSQL through a bounded pool. SQL is written by hand beside the table it belongs to. */
export class Database implements Queryable {
  readonly pool: pg.Pool;

  constructor(options: pg.PoolConfig) {
    this.pool = new pg.Pool({ max: 10, ...options });
    // An idle connection that breaks (server restart) must not end the process; the next query says so itself.
    this.pool.on('error', () => {});
  }

  async query<R extends object = Row>(
    sql: string | { name: string; text: string },
    params: unknown[] = [],
  ): Promise<R[]> {
    return run<R>(this.pool, sql, params);
  }

  /** Runs `work` in one transaction: committed when it resolves, rolled back when it throws. */
  async transaction<T>(work: (tx: Queryable) => Promise<T>): Promise<T> {
    const client = await this.pool.connect();
    let broken: Error | undefined;
    try {
      await client.query('BEGIN');
      const result = await work({ query: (sql, params = []) => run(client, sql, params) });
      await client.query('COMMIT');
      return result;
    } catch (error) {
      await client.query('ROLLBACK').catch((rollbackError: Error) => {
        broken = rollbackError;
      });
      throw error;
    } finally {
      client.release(broken);
    }
  }

  async close(): Promise<void> {
    await this.pool.end();
  }
}

async function run<R extends object>(
  target: pg.Pool | pg.PoolClient,
  sql: string | { name: string; text: string },
  params: unknown[],
): Promise<R[]> {
  const config = typeof sql === 'string' ? { text: sql, values: params } : { ...sql, values: params };
  const result = await target.query(config);
  return result.rows as R[];
}
