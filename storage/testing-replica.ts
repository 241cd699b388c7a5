/** A PostgreSQL with a streaming replica, for tests of what happens when the first of them is lost. */
import { execFile } from 'node:child_process';
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import pg from 'pg';
import { type EmbeddedPostgres, startEmbeddedPostgres } from './embedded-postgres.ts';

const run = promisify(execFile);

/** The replica's name to the primary. */
const REPLICA = 'trellis_replica';
const SETTINGS = {
  // Kept also where nothing needs to be safe from power cuts: a commit waits for the replica by it.
  synchronous_commit: 'on',
  wal_retrieve_retry_interval: '100ms',
};

export interface ReplicatedPostgres {
  /** Both hosts, for whoever wants the primary. */
  readonly url: string;
  readonly primaryUrl: string;
  readonly replicaUrl: string;
  /** Kills the primary's processes, all at once, as a power cut does. */
  killPrimary(): Promise<void>;
  /** Stops the primary's processes where they are, as a machine does that hangs; they go on with `thaw`. */
  freezePrimary(): Promise<void>;
  thawPrimary(): Promise<void>;
  /** Makes the replica the primary. Resolves when it takes writes. */
  promote(): Promise<void>;
  close(): Promise<void>;
}

/**
 * @param options.synchronous whether a commit waits until the replica has it, so that nothing acknowledged is lost
 * @param options.connections how many each is to bear
 * @param options.folder where a folder for them is made
 */
export async function startReplicated({
  synchronous = true,
  connections = 100,
  folder = tmpdir(),
} = {}): Promise<ReplicatedPostgres> {
  const dir = await mkdtemp(join(folder, 'trellis-replicated-'));
  await chmod(dir, 0o755);
  const folders = { primary: join(dir, 'primary'), replica: join(dir, 'replica') };
  const primary = await startEmbeddedPostgres(folders.primary, false, connections, SETTINGS);
  let replica: EmbeddedPostgres;
  try {
    await copyData(primary, folders.primary, folders.replica);
    replica = await startEmbeddedPostgres(folders.replica, false, connections, SETTINGS);
    if (synchronous) await waitForReplica(primary);
  } catch (error) {
    await primary.stop();
    await rm(dir, { recursive: true, force: true });
    throw error;
  }
  const hosts = [primary, replica].map(({ connection }) => connection.host!);
  const urlOf = (host: string) => `postgresql://trellis@/postgres?host=${host}`;
  let frozen: number[] = [];
  let isDead = false;
  const kill = async (signal: NodeJS.Signals) => {
    const pids = await processesOf(folders.primary);
    for (const pid of pids) send(pid, signal);
    return pids;
  };
  return {
    url: `${urlOf(hosts.join(','))}&target_session_attrs=read-write`,
    primaryUrl: urlOf(hosts[0]!),
    replicaUrl: urlOf(hosts[1]!),
    async killPrimary() {
      isDead = true;
      await kill('SIGKILL');
      await primary.died;
    },
    async freezePrimary() {
      frozen = await kill('SIGSTOP');
    },
    async thawPrimary() {
      for (const pid of frozen) send(pid, 'SIGCONT');
    },
    promote: () => promote(replica),
    async close() {
      for (const pid of frozen) send(pid, 'SIGCONT');
      await replica.stop();
      // A commit that still waits for the replica would keep it from stopping in good order.
      if (!isDead) await kill('SIGKILL');
      await primary.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** As pg_basebackup does, which is not among the programs that come along. */
async function copyData(primary: EmbeddedPostgres, from: string, to: string): Promise<void> {
  const client = await connect(primary);
  try {
    await client.query(`SELECT pg_create_physical_replication_slot('${REPLICA}', true)`);
    await client.query(`SELECT pg_backup_start('copy', fast => true)`);
    const skipped = /^(postmaster\.(pid|opts)|pg_wal|pg_replslot)$/;
    await mkdir(to);
    const entries = (await readdir(from)).filter((name) => !skipped.test(name));
    await run('cp', ['-a', ...entries.map((name) => join(from, name)), to]);
    const { rows } = await client.query<{ labelfile: string }>(
      'SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)',
    );
    await writeFile(join(to, 'backup_label'), rows[0]!.labelfile);
    for (const folder of ['pg_wal', 'pg_wal/archive_status', 'pg_replslot']) await mkdir(join(to, folder));
    await writeFile(join(to, 'standby.signal'), '');
    const { host, user } = primary.connection;
    const settings = `primary_conninfo = 'host=${host} user=${user} application_name=${REPLICA}'
primary_slot_name = '${REPLICA}'
`;
    await writeFile(join(to, 'postgresql.auto.conf'), settings, { flag: 'a' });
    const { uid, gid } = await lstat(from);
    if (process.getuid?.() === 0) await run('chown', ['-R', `${uid}:${gid}`, to]);
  } finally {
    await client.end();
  }
}

/** From here on a commit is acknowledged when the replica has it. */
async function waitForReplica(primary: EmbeddedPostgres): Promise<void> {
  const client = await connect(primary);
  try {
    await client.query(`ALTER SYSTEM SET synchronous_standby_names = '${REPLICA}'`);
    await client.query('SELECT pg_reload_conf()');
    await until(async () => {
      const { rows } = await client.query(`SELECT FROM pg_stat_replication WHERE sync_state = 'sync'`);
      return rows.length > 0;
    });
  } finally {
    await client.end();
  }
}

async function promote(replica: EmbeddedPostgres): Promise<void> {
  const client = await connect(replica);
  try {
    await client.query('SELECT pg_promote(wait => true)');
    await until(async () => !(await client.query('SELECT pg_is_in_recovery() AS yes')).rows[0].yes);
  } finally {
    await client.end();
  }
}

/** The postmaster and its children. */
async function processesOf(folder: string): Promise<number[]> {
  const postmaster = Number((await readFile(join(folder, 'postmaster.pid'), 'utf8')).split('\n')[0]);
  const children = await readFile(`/proc/${postmaster}/task/${postmaster}/children`, 'utf8');
  return [postmaster, ...children.split(' ').filter(Boolean).map(Number)];
}

function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It has ended meanwhile.
  }
}

async function connect(server: EmbeddedPostgres): Promise<pg.Client> {
  const client = new pg.Client(server.connection);
  await client.connect();
  return client;
}

async function until(check: () => Promise<boolean>): Promise<void> {
  for (const end = Date.now() + 30_000; !(await check()); await sleep(20))
    if (Date.now() > end) throw new Error('PostgreSQL is not where the test wants it');
}
