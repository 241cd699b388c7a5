import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, chmodSync, chownSync, constants, mkdirSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Database } from '@trellis/storage/database.ts';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '@trellis/storage/embedded-postgres.ts';
import pino from 'pino';
import { readConfig } from '../config/load.ts';
import { startServer } from '../server.ts';
import { freePort } from './place.ts';

const NOBODY = 65534;
const PORT = 6432;
/** Connections to PostgreSQL, fewer than there are to pgbouncer: sessions are mixed. */
const SERVER_CONNECTIONS = 3;

/** TRELLIS_PGBOUNCER names the program, else it is looked for. */
const program = process.env.TRELLIS_PGBOUNCER ?? find('pgbouncer');

function find(name: string): string | undefined {
  return [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin']
    .map((folder) => join(folder, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

describe('behind pgbouncer in transaction mode', { skip: !program && 'there is no pgbouncer' }, () => {
  let folder: string;
  let postgres: EmbeddedPostgres;
  let bouncer: ChildProcess;
  let server: Awaited<ReturnType<typeof startServer>> | undefined;
  let config: ReturnType<typeof readConfig>;
  let url: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'trellis-pgbouncer-'));
    chmodSync(folder, 0o755);
    postgres = await startEmbeddedPostgres(join(folder, 'data'), false);
    const sockets = join(folder, 'sockets');
    mkdirSync(sockets);
    if (process.getuid?.() === 0) chownSync(sockets, NOBODY, NOBODY);
    writeFileSync(
      join(folder, 'pgbouncer.ini'),
      `[databases]
postgres = host=${postgres.connection.host} user=trellis
[pgbouncer]
pool_mode = transaction
auth_type = any
listen_addr =
listen_port = ${PORT}
unix_socket_dir = ${sockets}
default_pool_size = ${SERVER_CONNECTIONS}
`,
    );
    await startBouncer();
    const port = await freePort();
    url = `http://127.0.0.1:${port}/_matrix/client/v3`;
    const text = `
data_dir: server
http: { port: ${port} }
database:
  url: "postgresql://trellis@/postgres?host=${sockets}&port=${PORT}"
  prepared_statements: false
registration: { open: true }
rate_limits: { enabled: false }
passwords: { memory_kib: 64, passes: 1 }`;
    config = readConfig(text, folder);
  });
  after(async () => {
    await server?.close();
    await killBouncer();
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  });

  async function startBouncer(): Promise<void> {
    const ids = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};
    bouncer = spawn(program!, [join(folder, 'pgbouncer.ini')], { stdio: 'ignore', ...ids });
    const sockets = join(folder, 'sockets');
    for (const end = Date.now() + 10_000; ; ) {
      const probe = new Database({
        host: sockets,
        port: PORT,
        user: 'trellis',
        database: 'postgres',
        max: 1,
      });
      try {
        return void (await probe.query('SELECT 1'));
      } catch (error) {
        if (Date.now() > end) throw error;
        await new Promise((wake) => setTimeout(wake, 50));
      } finally {
        await probe.close();
      }
    }
  }

  async function killBouncer(): Promise<void> {
    const ended = new Promise((done) => bouncer.once('exit', done));
    bouncer.kill('SIGKILL');
    await ended;
  }

  async function ask(method: string, path: string, token?: string, body?: object) {
    const answer = await fetch(url + path, {
      method,
      headers: token ? { authorization: `Bearer ${token}` } : {},
      ...(body && { body: JSON.stringify(body) }),
    });
    // biome-ignore lint/suspicious/noExplicitAny: answers of every shape
    return { status: answer.status, body: (await answer.json()) as any };
  }

  async function register(username: string): Promise<string> {
    const body = { username, password: 'correct horse battery', auth: { type: 'm.login.dummy' } };
    const { body: account } = await ask('POST', '/register', undefined, body);
    return account.access_token;
  }

  it('migrates, serves many at once, and starts again', async () => {
    server = await startServer(config, pino({ level: 'silent' }));
    const tokens = await Promise.all(Array.from({ length: 6 }, (_, i) => register(`user${i}`)));
    const created = await Promise.all(
      tokens.map((token) => ask('POST', '/createRoom', token, { preset: 'public_chat' })),
    );
    const rooms = created.map(({ body }) => body.room_id as string);
    const statuses = await Promise.all(
      tokens.flatMap((token, n) =>
        rooms.map(async (roomId) => {
          const joined = await ask('POST', `/join/${roomId}`, token, {});
          const sent = await Promise.all(
            Array.from({ length: 10 }, (_, i) =>
              ask('PUT', `/rooms/${roomId}/send/m.room.message/${n}.${i}`, token, {
                msgtype: 'm.text',
                body: `${i}`,
              }),
            ),
          );
          return [joined, ...sent].map(({ status }) => status);
        }),
      ),
    );
    assert.deepEqual(new Set(statuses.flat()), new Set([200]));

    await server.close();
    server = await startServer(config, pino({ level: 'silent' }));
    for (const [i, token] of tokens.entries()) {
      const { body } = await ask('GET', `/rooms/${rooms[i]}/messages?dir=b&limit=100`, token);
      const messages = body.chunk.filter((event: { type: string }) => event.type === 'm.room.message');
      assert.equal(messages.length, 60);
      assert.equal((await ask('GET', '/sync', token)).status, 200);
    }
    assert.equal(config.database.connections, 10);
    const [row] = await countSessions();
    assert.ok(row!.sessions <= SERVER_CONNECTIONS, `${row!.sessions} sessions`);
  });

  it('goes on when pgbouncer is started again', async () => {
    const token = await register('last');
    await killBouncer();
    assert.equal((await ask('GET', '/profile/@nobody:localhost', token)).status, 503);
    await startBouncer();
    assert.equal((await ask('POST', '/createRoom', token, {})).status, 200);
  });

  async function countSessions(): Promise<Array<{ sessions: number }>> {
    const direct = new Database(postgres.connection);
    try {
      return await direct.query(
        `SELECT count(*) AS sessions FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`,
      );
    } finally {
      await direct.close();
    }
  }
});
