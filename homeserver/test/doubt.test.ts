import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '@trellis/storage/embedded-postgres.ts';
import pino from 'pino';
import { readConfig } from '../config/load.ts';
import { startServer } from '../server.ts';
import { freePort } from './place.ts';

/** Between the server and PostgreSQL: can lose the answer to a statement that has been done. */
class Line {
  readonly #server: Server;
  /** What the statement contains whose answer is to be lost. */
  #losing: string | undefined;
  lost = 0;

  constructor(from: string, to: string) {
    this.#server = createServer((client) => {
      const upstream = connect(to);
      let isDoomed = false;
      client.on('data', (data) => {
        if (this.#losing && data.includes(this.#losing)) {
          this.#losing = undefined;
          isDoomed = true;
        }
        upstream.write(data);
      });
      upstream.on('data', (data) => {
        if (!isDoomed) return void client.write(data);
        this.lost++;
        client.destroy();
        upstream.destroy();
      });
      client.on('close', () => upstream.destroy()).on('error', () => {});
      upstream.on('close', () => client.destroy()).on('error', () => {});
    }).listen(from);
  }

  lose(statement: string): void {
    this.#losing = statement;
  }

  close(): void {
    this.#server.close();
  }
}

let folder: string;
let postgres: EmbeddedPostgres;
let line: Line;
let server: Awaited<ReturnType<typeof startServer>>;
let url: string;
let token: string;

before(async () => {
  folder = await mkdtemp('/tmp/trellis-doubt-');
  postgres = await startEmbeddedPostgres(join(await mkdtemp(join(tmpdir(), 'trellis-test-')), 'data'), false);
  line = new Line(join(folder, '.s.PGSQL.5432'), join(postgres.connection.host!, '.s.PGSQL.5432'));
  const port = await freePort();
  url = `http://127.0.0.1:${port}/_matrix/client/v3`;
  const text = `
data_dir: data
http: { port: ${port} }
database: { url: "postgresql://trellis@/postgres?host=${folder}" }
registration: { open: true }
rate_limits: { enabled: false }
passwords: { memory_kib: 64, passes: 1 }`;
  server = await startServer(readConfig(text, folder), pino({ level: 'silent' }));
  const account = { username: 'alice', password: 'correct horse', auth: { type: 'm.login.dummy' } };
  token = (await ask('POST', '/register', account)).body.access_token;
});
after(async () => {
  await server.close();
  line.close();
  await postgres.stop();
  await rm(folder, { recursive: true, force: true });
});

async function ask(method: string, path: string, body?: object) {
  const answer = await fetch(url + path, {
    method,
    headers: token ? { authorization: `Bearer ${token}` } : {},
    ...(body && { body: JSON.stringify(body) }),
  });
  // biome-ignore lint/suspicious/noExplicitAny: answers of every shape
  return { status: answer.status, body: (await answer.json()) as any };
}

test('events whose commit was not answered are there, are told, and are the end of the room', async () => {
  const { room_id: roomId } = (await ask('POST', '/createRoom', {})).body;
  const { next_batch: since } = (await ask('GET', '/sync')).body;
  const lost = line.lost;
  line.lose('n lost');
  const sent = await ask('PUT', `/rooms/${roomId}/send/m.test/1`, { text: 'n lost' });
  line.lose('COMMIT');
  const state = await ask('PUT', `/rooms/${roomId}/state/m.test/key`, { text: 'state' });
  assert.equal(line.lost - lost, 2);
  assert.deepEqual([sent.status, state.status], [200, 200]);
  const last = await ask('PUT', `/rooms/${roomId}/send/m.test/2`, {});
  const { body } = await ask('GET', `/sync?since=${since}`);
  assert.deepEqual(
    body.rooms.join[roomId].timeline.events.map((event: { event_id: string }) => event.event_id),
    [sent, state, last].map((answer) => answer.body.event_id),
  );
});

/** Fails, as its answer is lost, though it is done. */
async function putWithoutAnswer(path: string, body: object, statement: string): Promise<void> {
  const lost = line.lost;
  line.lose(statement);
  assert.equal((await ask('PUT', path, body)).status, 503);
  assert.equal(line.lost - lost, 1);
  await sleep(300);
}

test('what was stored without an answer is shown to those who had another in memory', async () => {
  const user = encodeURIComponent('@alice:localhost');
  const data = `/user/${user}/account_data/m.test`;
  const name = `/profile/${user}/displayname`;
  await ask('PUT', data, { n: 'first' });
  await ask('PUT', name, { displayname: 'First' });
  const { next_batch: since } = (await ask('GET', '/sync')).body;
  assert.deepEqual((await ask('GET', data)).body, { n: 'first' });
  assert.equal((await ask('GET', name)).body.displayname, 'First');

  await putWithoutAnswer(data, { n: 'second' }, '"second"');
  assert.deepEqual((await ask('GET', data)).body, { n: 'second' });
  const { body } = await ask('GET', `/sync?since=${since}`);
  assert.deepEqual(body.account_data.events, [{ type: 'm.test', content: { n: 'second' } }]);
  await putWithoutAnswer(name, { displayname: 'Second' }, 'COMMIT');
  assert.equal((await ask('GET', name)).body.displayname, 'Second');
});
