import { join } from 'node:path';
import { Database } from '@trellis/storage/database.ts';
import { runningEmbeddedPostgres, startEmbeddedPostgres } from '@trellis/storage/embedded-postgres.ts';
import { migrate } from '@trellis/storage/migrate.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';

export interface OpenDatabase {
  readonly db: Database;
  /** Names of the migrations that were applied now. */
  readonly migrated: readonly string[];
  /** Why the embedded PostgreSQL ended by itself, once it has. */
  readonly died: Promise<string>;
  close(): Promise<void>;
}

/**
 * Connects to the configured PostgreSQL, or starts the embedded one; migrates; checks whose database it is.
 *
 * @param beside for a command: uses the embedded PostgreSQL of the running server, if one runs
 */
export async function openDatabase(config: Config, { beside = false } = {}): Promise<OpenDatabase> {
  const { url, connections } = config.database;
  const folder = join(config.data_dir, 'postgres');
  const running = beside && url === undefined ? await runningEmbeddedPostgres(folder) : undefined;
  const embedded = url === undefined && !running ? await startEmbeddedPostgres(folder) : undefined;
  const db = new Database({
    ...(running ?? embedded?.connection ?? { connectionString: url }),
    max: connections,
  });
  const close = async () => {
    await db.close();
    await embedded?.stop();
  };
  try {
    const migrated = await migrate(db);
    await claim(db, config.server_name);
    return { db, migrated, died: embedded?.died ?? new Promise(() => {}), close };
  } catch (error) {
    await close();
    throw error;
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
