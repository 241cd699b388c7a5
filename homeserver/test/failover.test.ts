import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ReplicatedPostgres, startReplicated } from '@trellis/storage/testing-replica.ts';
import pino from 'pino';
import { ConfigError, readConfig } from '../config/load.ts';
import { openDatabase } from '../open-database.ts';
import { startServer } from '../server.ts';
import { freePort } from './place.ts';

const SENDERS = 4;

let folder: string;
let servers: ReplicatedPostgres;
let server: Awaited<ReturnType<typeof startServer>>;
let url: string;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'trellis-failover-'));
  servers = await startReplicated();
  const port = await freePort();
  url = `http://127.0.0.1:${port}/_matrix/client`;
  const text = `
data_dir: data
http: { port: ${port} }
database: { url: "${servers.url}" }
registration: { open: true }
rate_limits: { enabled: false }
passwords: { memory_kib: 64, passes: 1 }`;
  server = await startServer(readConfig(text, folder), pino({ level: 'silent' }));
});
after(async () => {
  await server.close();
  await servers.close();
  await rm(folder, { recursive: true, force: true });
});

interface Answer {
  readonly status: number;
  // biome-ignore lint/suspicious/noExplicitAny: answers of every shape
  readonly body: any;
}

/** Every status that was not 200. */
const failures: number[] = [];

class User {
  readonly #token: string;

  constructor(token: string) {
    this.#token = token;
  }

  static async register(username: string): Promise<User> {
    const auth = { type: 'm.login.dummy' };
    const answer = await fetch(`${url}/v3/register`, {
      method: 'POST',
      body: JSON.stringify({ username, password: 'correct horse battery', auth }),
    });
    return new User(((await answer.json()) as { access_token: string }).access_token);
  }

  async ask(method: string, path: string, body?: object): Promise<Answer> {
    const answer = await fetch(`${url}${path}`, {
      method,
      headers: { authorization: `Bearer ${this.#token}` },
      ...(body && { body: JSON.stringify(body) }),
    });
    if (answer.status !== 200) failures.push(answer.status);
    return { status: answer.status, body: await answer.json() };
  }

  /** Asks again under the same transaction id until it is done, as clients do. */
  async untilDone(method: string, path: string, body?: object): Promise<Answer> {
    for (;;) {
      const answer = await this.ask(method, path, body);
      if (answer.status === 200) return answer;
      assert.equal(answer.status, 503, JSON.stringify(answer.body));
      assert.equal(answer.body.errcode, 'M_UNKNOWN');
      await sleep(50);
    }
  }
}

test('the primary is lost under load: no false answer, every message once, and all goes on by itself', async () => {
  const alice = await User.register('alice');
  const bob = await User.register('bob');
  const { room_id: roomId } = (await alice.ask('POST', '/v3/createRoom', { preset: 'public_chat' })).body;
  await bob.ask('POST', `/v3/join/${roomId}`, {});
  let isOver = false;
  let isSent = false;

  const sent: string[][] = [];
  const senders = Array.from({ length: SENDERS }, async (_, n) => {
    const own: string[] = [];
    sent.push(own);
    for (let i = 0; !isOver; i++) {
      // State and account data among them take other ways into the database.
      if (i % 10 === 5) await alice.untilDone('PUT', `/v3/rooms/${roomId}/state/m.test/${n}`, { i });
      const path = `/v3/rooms/${roomId}/send/m.room.message/${n}-${i}`;
      const { body } = await alice.untilDone('PUT', path, { msgtype: 'm.text', body: `${n} ${i}` });
      own.push(body.event_id);
    }
  });

  const seen: string[] = [];
  const reader = (async () => {
    let since = '';
    for (let last = false; !last; ) {
      // Whatever is sent before this is in one of the next answers.
      last = isSent;
      const query = `?timeout=300${since}&filter=${encodeURIComponent('{"room":{"timeline":{"limit":1000}}}')}`;
      const { body } = await bob.untilDone('GET', `/v3/sync${query}`);
      const timeline = body.rooms?.join?.[roomId]?.timeline;
      assert.ok(since === '' || !timeline?.limited);
      for (const event of timeline?.events ?? [])
        if (event.type === 'm.room.message') seen.push(event.event_id);
      since = `&since=${body.next_batch}`;
    }
  })();

  await sleep(700);
  await servers.killPrimary();
  await sleep(500);
  assert.equal((await bob.ask('GET', '/v3/profile/@nobody:localhost')).status, 503);
  await servers.promote();
  await sleep(1500);
  isOver = true;
  await Promise.all(senders);
  isSent = true;
  await reader;

  const all = sent.flat();
  assert.ok(all.length > 20, `${all.length} messages`);
  assert.deepEqual([...seen].sort(), [...all].sort());
  for (const own of sent)
    assert.deepEqual(
      seen.filter((id) => own.includes(id)),
      own,
    );
  assert.deepEqual(new Set(failures), new Set([503]));

  const history: string[] = [];
  for (let from = ''; ; ) {
    const { body } = await bob.untilDone('GET', `/v3/rooms/${roomId}/messages?dir=b&limit=500${from}`);
    for (const event of body.chunk) if (event.type === 'm.room.message') history.unshift(event.event_id);
    if (!body.end) break;
    from = `&from=${body.end}`;
  }
  assert.deepEqual(history, seen);
});

test('what is kept in memory is right after the primary was lost', async () => {
  const carol = await User.register('carol');
  const userId = (await carol.ask('GET', '/v3/account/whoami')).body.user_id;
  await carol.untilDone('PUT', `/v3/user/${userId}/account_data/m.test`, { n: 1 });
  await carol.untilDone('PUT', `/v3/profile/${userId}/displayname`, { displayname: 'Carol' });
  assert.deepEqual((await carol.ask('GET', `/v3/user/${userId}/account_data/m.test`)).body, { n: 1 });
  assert.equal((await carol.ask('GET', `/v3/profile/${userId}`)).body.displayname, 'Carol');
});

test('a server that starts while there is no primary waits for one; with one host it says what is wrong', async () => {
  const pair = await startReplicated();
  const start = async (url: string) =>
    openDatabase(readConfig(`server_name: a.test\ndatabase: { url: "${url}" }`, folder));
  try {
    await pair.killPrimary();
    await assert.rejects(start(pair.primaryUrl), (error: Error) => {
      assert.ok(error instanceof ConfigError);
      assert.match(error.message, /cannot be reached: .*ECONNREFUSED|cannot be reached: .*ENOENT/);
      return true;
    });
    const starting = start(pair.url);
    await sleep(1_000);
    await pair.promote();
    const opened = await starting;
    assert.ok(opened.migrated.length > 0);
    await opened.close();
  } finally {
    await pair.close();
  }
});
