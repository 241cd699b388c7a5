/**
 * A PostgreSQL with a synchronous replica, by themselves: for tests in which several processes lose the first.
 *
 *   node storage/postgres-pair.ts FOLDER
 *
 * Prints the URL of both when they are ready. A line `fail-over` on its standard input kills the primary, promotes the
 * replica a moment later and is answered by `promoted`. Ends when its standard input does.
 */
import { mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { startReplicated } from './testing-replica.ts';

const folder = resolve(process.argv[2]!);
mkdirSync(folder, { recursive: true });
const servers = await startReplicated({ connections: 200, folder });
process.stdout.write(`${servers.url}\n`);

let isEnding = false;
async function end(): Promise<void> {
  if (isEnding) return;
  isEnding = true;
  await servers.close();
  process.exit(0);
}

const lines = createInterface({ input: process.stdin });
lines.on('line', async (line) => {
  if (line !== 'fail-over') return;
  await servers.killPrimary();
  await sleep(500 + Math.random() * 1000);
  await servers.promote();
  process.stdout.write('promoted\n');
});
lines.once('close', end);
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, end);
