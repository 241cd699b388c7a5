import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import pg from 'pg';
import { postgresPrograms } from './postgres-programs.ts';

/** PostgreSQL refuses to run as root: then it runs as `nobody`. */
const NOBODY = 65534;
/** How long a PostgreSQL that was left behind may take to end, in milliseconds. */
const STOP_LIMIT = 30_000;
/** Starts that are tried while the files of one that was killed are still held. */
const START_ATTEMPTS = 20;

/** The data folder, as PostgreSQL is told it: see `here`. */
const HERE = '/proc/self/cwd';
const SOCKET_DIR = 'trellis-pg-';

/**
 * PostgreSQL is in a session of its own, out of reach of the terminal's Ctrl-C, which it would take for an order to
 * end before Trellis has stored everything. So a shell watches the pipe to Trellis beside it: when that closes,
 * however Trellis ended, PostgreSQL is to end too, and its folder of sockets to go.
 */
const WATCHED = `
exec 3<&0
(
  read -r _ <&3
  kill -INT $$
  for second in 1 2 3 4 5 6 7 8 9; do kill -0 $$ || break; sleep 1; done
  rmdir "$0"
) >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
`;

const DATABASE = { user: 'trellis', database: 'postgres' };

export interface EmbeddedPostgres {
  readonly connection: pg.PoolConfig;
  /** Its last words, when it ends without having been stopped. */
  readonly died: Promise<string>;
  stop(): Promise<void>;
}

/** Where the programs lie, and as whom and where they run. */
interface Runtime {
  readonly native: string;
  readonly dataDir: string;
  readonly options: { env: NodeJS.ProcessEnv; cwd: string; uid?: number; gid?: number };
}

/**
 * Starts the PostgreSQL that comes with Trellis on a folder of its own, reachable by a Unix socket only. One that a
 * killed Trellis left running on the folder is stopped first; what it had committed is there.
 *
 * @param durable false for tests that need no safety from power cuts
 * @param connections how many it is to bear
 * @param more further settings of PostgreSQL, for tests
 */
export async function startEmbeddedPostgres(
  dataDir: string,
  durable = true,
  connections = 100,
  more: Readonly<Record<string, string>> = {},
): Promise<EmbeddedPostgres> {
  const runtime = await prepare(resolve(dataDir));
  await stopLeftover(runtime.dataDir);
  if (!(await readdir(runtime.dataDir)).includes('PG_VERSION')) initialise(runtime);
  for (let attempt = 1; ; attempt++) {
    try {
      return await start(runtime, durable, { max_connections: String(connections), ...more });
    } catch (error) {
      // Processes of one that was killed a moment ago may still be ending.
      if (attempt === START_ATTEMPTS || !/lock file|shared memory/.test(String(error))) throw error;
      await new Promise((wake) => setTimeout(wake, 100));
    }
  }
}

/** Connects to the embedded PostgreSQL of a running server, if it runs: for commands beside it. */
export async function runningEmbeddedPostgres(dataDir: string): Promise<pg.PoolConfig | undefined> {
  const file = await readFile(join(dataDir, 'postmaster.pid'), 'utf8').catch(() => '');
  const [pid, , , , socketDir] = file.split('\n');
  if (!socketDir || !(await isPostgres(Number(pid)))) return undefined;
  return { host: socketDir, ...DATABASE };
}

async function start(
  runtime: Runtime,
  durable: boolean,
  more: Readonly<Record<string, string>>,
): Promise<EmbeddedPostgres> {
  const socketDir = await mkdtemp(join(tmpdir(), SOCKET_DIR));
  if (runtime.options.uid !== undefined) await chown(socketDir, NOBODY, NOBODY);
  const settings: Record<string, string> = {
    listen_addresses: '',
    unix_socket_directories: socketDir,
    jit: 'off',
    shared_buffers: '128MB',
    max_wal_size: '1GB',
  };
  if (!durable) Object.assign(settings, { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' });
  Object.assign(settings, more);
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const server = spawnWatched(socketDir, runtime, [
    join(runtime.native, 'bin', 'postgres'),
    '-D',
    HERE,
    ...args,
  ]);
  const connection = { host: socketDir, ...DATABASE };
  let log = '';
  server.stderr?.setEncoding('utf8').on('data', (text: string) => {
    log = (log + text).slice(-4000);
  });
  const ended = new Promise<void>((done) => server.once('exit', () => done()));
  let stopping = false;
  try {
    await untilReady(server, connection, () => log);
  } catch (error) {
    server.kill('SIGKILL');
    server.stdin?.destroy();
    await rm(socketDir, { recursive: true, force: true });
    throw error;
  }
  return {
    connection,
    died: new Promise((tell) => void ended.then(() => stopping || tell(log))),
    async stop() {
      stopping = true;
      server.kill('SIGINT');
      await ended;
      server.stdin?.destroy();
      await rm(socketDir, { recursive: true, force: true });
    },
  };
}

function spawnWatched(socketDir: string, runtime: Runtime, command: readonly string[]): ChildProcess {
  const [program, ...args] = command.map((arg) => here(arg, runtime));
  if (process.platform === 'win32')
    return spawn(program!, args, { ...runtime.options, stdio: ['ignore', 'ignore', 'pipe'] });
  return spawn('/bin/sh', ['-c', WATCHED, socketDir, program!, ...args], {
    ...runtime.options,
    detached: true,
    stdio: ['pipe', 'ignore', 'pipe'],
  });
}

async function prepare(dataDir: string): Promise<Runtime> {
  const asRoot = process.getuid?.() === 0;
  const native = await postgresPrograms(asRoot);
  await mkdir(dataDir, { recursive: true });
  if (asRoot) await chown(dataDir, NOBODY, NOBODY);
  await chmod(dataDir, 0o700);
  const options = {
    env: { ...process.env, LD_LIBRARY_PATH: join(native, 'lib') },
    cwd: dataDir,
    ...(asRoot ? { uid: NOBODY, gid: NOBODY } : {}),
  };
  return { native, dataDir, options };
}

/**
 * The data folder as PostgreSQL is told it. On Linux it is entered before giving up root's rights, so that it may lie
 * below folders that `nobody` can't pass, such as /root.
 */
function here(arg: string, { dataDir }: Runtime): string {
  return arg === HERE && process.platform !== 'linux' ? dataDir : arg;
}

function initialise(runtime: Runtime): void {
  const args = ['-D', HERE, '-U', 'trellis', '-A', 'trust', '-E', 'UTF8', '--no-sync'];
  const locale = ['--locale-provider=builtin', '--locale=C.UTF-8'];
  const made = spawnSync(
    join(runtime.native, 'bin', 'initdb'),
    [...args, ...locale].map((arg) => here(arg, runtime)),
    { ...runtime.options, encoding: 'utf8' },
  );
  if (made.status !== 0)
    throw new Error(`initdb failed in ${runtime.dataDir}: ${made.stderr || made.error?.message}`);
}

/** Ends a PostgreSQL that a killed Trellis left running on the folder, or clears up after one that was killed. */
async function stopLeftover(dataDir: string): Promise<void> {
  const file = await readFile(join(dataDir, 'postmaster.pid'), 'utf8').catch(() => '');
  const [pidLine, , , , socketDir = ''] = file.split('\n');
  const pid = Number(pidLine);
  if (basename(socketDir).startsWith(SOCKET_DIR) && !(await isPostgres(pid)))
    await rm(socketDir, { recursive: true, force: true });
  if (!Number.isInteger(pid) || pid <= 0 || !(await isPostgres(pid))) return;
  // Fast shutdown: ends its connections, writes a checkpoint.
  process.kill(pid, 'SIGINT');
  for (const end = Date.now() + STOP_LIMIT; Date.now() < end; ) {
    if (!isAlive(pid)) return;
    await new Promise((wake) => setTimeout(wake, 20));
  }
  throw new Error(`a PostgreSQL with process id ${pid} runs on ${dataDir} and does not stop: end it by hand`);
}

/** Process ids are used again: whether this one is a PostgreSQL. Where that can't be seen, its own lock decides. */
async function isPostgres(pid: number): Promise<boolean> {
  if (!isAlive(pid)) return false;
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return command.split('\0')[0]!.endsWith('postgres');
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

async function untilReady(server: ChildProcess, connection: pg.PoolConfig, log: () => string): Promise<void> {
  let failure: Error | undefined;
  server.once('error', (error) => {
    failure = error;
  });
  // Replaying the log of a large database after a crash takes its time: as long as it works, it is waited for.
  for (;;) {
    if (failure) throw failure;
    if (server.exitCode !== null || server.signalCode !== null)
      throw new Error(`PostgreSQL ended at once:\n${log()}`);
    const client = new pg.Client(connection);
    try {
      await client.connect();
      await client.end();
      return;
    } catch {
      await new Promise((wake) => setTimeout(wake, 20));
    }
  }
}
