/**
 * What it costs to number a change and to tell all processes of it, without anything else: N processes write to one
 * stream at the same time, and store nothing.
 *
 *   node bench/announcements.ts [PROCESSES] [SECONDS] [WRITERS IN EACH] [BYTES]
 */
import { fork } from 'node:child_process';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SocketBus } from '@trellis/cluster/bus-sockets.ts';
import { ROLES } from '@trellis/cluster/cluster.ts';
import { joinCluster, memberId } from '@trellis/cluster/member.ts';
import { Database } from '@trellis/storage/database.ts';
import { startEmbeddedPostgres } from '@trellis/storage/embedded-postgres.ts';
import { migrate } from '@trellis/storage/migrate.ts';
import { Stream } from '@trellis/storage/streams.ts';

interface Outcome {
  readonly member: string;
  readonly writes: number;
  readonly cpuMs: number;
  readonly latencyMs: number;
  readonly coordinates: boolean;
}

const [processes = 4, seconds = 5, writers = 16, bytes = 1000] = process.argv.slice(2).map(Number);
const log = { info: console.error, warn: console.error, error: console.error };

if (process.send)
  process.once('message', (parts) => void work(parts as { connection: object; folder: string }));
else await lead();

async function lead(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'trellis-bench-'));
  const postgres = await startEmbeddedPostgres(join(folder, 'db'), false);
  const db = new Database(postgres.connection);
  await migrate(db);
  const children = Array.from({ length: processes }, () => fork(import.meta.filename, process.argv.slice(2)));
  const outcomes = Promise.all(
    children.map(
      (child) => new Promise<Outcome>((done) => child.once('message', (outcome) => done(outcome as Outcome))),
    ),
  );
  for (const child of children) child.send({ connection: postgres.connection, folder });
  const all = await outcomes;
  const writes = all.reduce((sum, each) => sum + each.writes, 0);
  const cpu = all.reduce((sum, each) => sum + each.cpuMs, 0);
  console.log(`${processes} processes, ${writers} writers in each, ${bytes} bytes a change`);
  console.log(
    `${Math.round(writes / seconds)} changes/s, ${((1000 * cpu) / writes).toFixed(1)} µs of CPU a change in all`,
  );
  for (const each of all)
    console.log(
      `  ${each.coordinates ? 'coordinator' : 'member     '} ${Math.round(each.writes / seconds)} changes/s, ` +
        `${((1000 * each.cpuMs) / writes).toFixed(1)} µs of CPU a change of anybody, ${each.latencyMs.toFixed(2)} ms a change`,
    );
  for (const child of children) child.kill();
  await db.close();
  await postgres.stop();
}

async function work({ connection, folder }: { connection: object; folder: string }): Promise<void> {
  const db = new Database(connection);
  const member = await joinCluster({
    bus: new SocketBus({ self: memberId(), secret: 'bench', folder: join(folder, 'run') }),
    db,
    roles: ROLES,
    log,
    starts: async () => new Map([['bench', 0]]),
  });
  const stream = new Stream<string>('bench', member.position('bench'), { sequencer: member.sequencer });
  member.attach(stream);
  let heard = 0;
  stream.subscribe(() => heard++);
  await member.ready();
  await new Promise((later) => setTimeout(later, 1_500));
  const text = 'x'.repeat(bytes);
  const end = performance.now() + seconds * 1000;
  const before = process.cpuUsage();
  let writes = 0;
  let waited = 0;
  await Promise.all(
    Array.from({ length: writers }, async () => {
      while (performance.now() < end) {
        const begun = performance.now();
        await stream.write([text], async () => {});
        waited += performance.now() - begun;
        writes++;
      }
    }),
  );
  const { user, system } = process.cpuUsage(before);
  const [row] = await db.query<{ holder: string }>('SELECT holder FROM cluster_coordinator');
  const coordinates = row?.holder === member.self;
  const cpuMs = (user + system) / 1000;
  process.send!({
    member: member.self,
    writes,
    cpuMs,
    latencyMs: waited / writes,
    coordinates,
  } satisfies Outcome);
}
