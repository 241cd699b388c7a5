import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Database, type Queryable } from '@trellis/storage/database.ts';
import { runningEmbeddedPostgres, startEmbeddedPostgres } from '@trellis/storage/embedded-postgres.ts';
import { migrate } from '@trellis/storage/migrate.ts';
import { Replicas } from '@trellis/storage/replicas.ts';
import { DatabaseAwayError } from '@trellis/storage/unavailable.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';

/** For commands, and for whoever looks into an embedded PostgreSQL. */
const SPARE_CONNECTIONS = 20;

/** How long a start waits for a primary, in milliseconds. */
const START_LIMIT = 60_000;

type Connection = ConstructorParameters<typeof Database>[0];

interface OpenDatabaseOptions {
  readonly beside?: boolean;
  readonly given?: Connection | undefined;
  readonly processes?: number;
}

export interface OpenDatabase {
  readonly db: Database;
  /** The replicas where there are some, else the same. */
  readonly history: Queryable;
  /** Names of the migrations that were applied now. */
  readonly migrated: readonly string[];
  /** Where it is: for other processes on this machine. */
  readonly connection: Connection;
  /** Why the embedded PostgreSQL ended by itself, once it has. */
  readonly died: Promise<string>;
  close(): Promise<void>;
}

/**
 * Connects to the configured PostgreSQL, or starts the embedded one; migrates; checks whose database it is.
 *
 * @param beside for a command: uses the embedded PostgreSQL of the running server, if one runs
 * @param given where another process of this server has found or started it
 * @param processes how many will connect to an embedded one that is started
 */
export async function openDatabase(
  config: Config,
  { beside = false, given, processes = 1 }: OpenDatabaseOptions = {},
): Promise<OpenDatabase> {
  const { url, connections, prepared_statements: preparedStatements } = config.database;
  const common = { max: connections, preparedStatements };
  const folder = join(config.data_dir, 'postgres');
  const running = given ?? (beside && url === undefined ? await runningEmbeddedPostgres(folder) : undefined);
  const embedded =
    url === undefined && !running
      ? await startEmbeddedPostgres(folder, true, Math.max(100, processes * connections + SPARE_CONNECTIONS))
      : undefined;
  const connection = running ?? embedded?.connection ?? { connectionString: url };
  const db = connectTo({ ...connection, ...common });
  const replicas = config.database.replicas.map((connectionString) =>
    connectTo({ connectionString, ...common, readOnly: true }),
  );
  const history = replicas.length > 0 ? new Replicas(db, replicas) : undefined;
  const close = async () => {
    await history?.close();
    await db.close();
    await embedded?.stop();
  };
  try {
    const patience = given !== undefined || db.hostCount > 1 ? START_LIMIT : 0;
    const migrated = await onceThere(() => migrate(db), patience);
    await claim(db, config.server_name);
    return {
      db,
      history: history ?? db,
      migrated,
      connection,
      died: embedded?.died ?? new Promise(() => {}),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Where there are several servers, one of them may be about to become the primary. */
async function onceThere<T>(work: () => Promise<T>, patience: number): Promise<T> {
  for (const end = Date.now() + patience; ; await sleep(500))
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof DatabaseAwayError)) throw error;
      if (Date.now() > end)
        throw new ConfigError(
          `database.url: the database cannot be reached: ${(error.cause as Error).message}`,
        );
    }
}

function connectTo(options: Connection): Database {
  try {
    return new Database(options);
  } catch (error) {
    throw new ConfigError(`database.url: ${(error as Error).message}`);
  }
}

/** A database belongs to one server name for ever: every event in it is signed in that name. */
async function claim(db: Database, serverName: string): Promise<void> {
  await db.query('INSERT INTO installation (server_name) VALUES ($1) ON CONFLICT DO NOTHING', [serverName]);
  const [row] = await db.query<{ server_name: string }>('SELECT server_name FROM installation');
  if (row?.server_name !== serverName)
    throw new ConfigError(
      `this database belongs to the server ${row?.server_name}, but server_name is ${serverName}: ` +
        'set server_name back, or use another database (database.url, or another data_dir)',
    );
}
