/**
 * The PostgreSQL that comes with Trellis, by itself: for tests in which several processes share one.
 *
 *   node storage/postgres-alone.ts FOLDER
 *
 * Prints its URL when it is ready, and ends when its standard input does. Not durable.
 */
import { mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { startEmbeddedPostgres } from './embedded-postgres.ts';

const folder = resolve(process.argv[2]!);
mkdirSync(folder, { recursive: true });
const postgres = await startEmbeddedPostgres(folder, false, 200);
const { host, user, database } = postgres.connection;
process.stdout.write(`postgres://${user}@/${database}?host=${host}\n`);
const end = () => void postgres.stop().then(() => process.exit(0));
process.stdin.resume().once('close', end);
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, end);
