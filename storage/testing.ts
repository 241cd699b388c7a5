import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Database } from './database.ts';
import { startEmbeddedPostgres } from './embedded-postgres.ts';
import { migrate } from './migrate.ts';

/** A PostgreSQL of the test's own with a migrated database. Not durable: it is thrown away by `close`. */
export async function testDatabase(): Promise<{ db: Database; close(): Promise<void> }> {
  const dir = await mkdtemp(join(tmpdir(), 'trellis-test-'));
  // PostgreSQL runs as another user when the tests run as root.
  await chmod(dir, 0o755);
  const server = await startEmbeddedPostgres(join(dir, 'data'), false);
  const db = new Database(server.connection);
  await migrate(db);
  return {
    db,
    async close() {
      await db.close();
      await server.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}
