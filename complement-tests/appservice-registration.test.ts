import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Client, eventually, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { PASSWORD, startServer, type TestServer } from './harness/server.ts';

const SECRET = 'shared with scripts';
const BASE = '/_trellis/admin/v1/application_services';

describe('application services registered by administrators', () => {
  const folder = mkdtempSync(join(tmpdir(), 'trellis-test-registration-'));
  let server: TestServer;
  let service: Server;
  let admin: Client;
  let alice: Client;
  let registration: Json;
  const heard: Array<{ token: string | undefined; bodies: string[] }> = [];
  before(async () => {
    service = createServer(async (incoming, response) => {
      let body = '';
      for await (const chunk of incoming) body += chunk;
      if (incoming.method === 'PUT') {
        const bodies = JSON.parse(body).events.map(({ content }: Json) => content.body);
        heard.push({ token: incoming.headers.authorization, bodies });
      }
      response.end('{}');
    });
    await new Promise<void>((done) => service.listen(0, '127.0.0.1', done));
    registration = {
      url: `http://127.0.0.1:${(service.address() as AddressInfo).port}`,
      sender_localpart: 'bot',
      rate_limited: false,
      namespaces: { users: [{ exclusive: true, regex: '@x_.*' }] },
    };
    const file = join(folder, 'file.yaml');
    writeFileSync(
      file,
      JSON.stringify({
        ...registration,
        namespaces: {},
        id: 'file',
        as_token: 'f1',
        hs_token: 'f2',
        url: null,
      }),
    );
    server = await startServer({
      name: 'registration',
      config: { application_services: [file], registration: { shared_secret: SECRET } },
    });
    admin = await registerAdmin();
    alice = await server.register('alice');
  });
  after(async () => {
    await server?.close();
    service?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  async function registerAdmin(): Promise<Client> {
    const target = '/_synapse/admin/v1/register';
    const { nonce } = (await request(server.url, 'GET', target)).body;
    const mac = createHmac('sha1', SECRET)
      .update([nonce, 'admin', PASSWORD, 'admin'].join('\0'))
      .digest('hex');
    const body = { nonce, username: 'admin', password: PASSWORD, admin: true, mac };
    return new Client(server.url, (await request(server.url, 'POST', target, { body })).body);
  }

  const manage = async (method: string, id = '', body?: Json, who = admin): Promise<Json> => {
    const answer = await who.request(method, `${BASE}${id && `/${id}`}`, { body });
    return { status: answer.status, ...answer.body };
  };
  const hears = (text: string) =>
    eventually(`the service to hear ${text}`, async () => heard.some(({ bodies }) => bodies.includes(text)));
  const actingAs = (registered: Json) =>
    new Client(server.url, {
      user_id: `@bot:${server.serverName}`,
      access_token: registered.as_token,
      device_id: '',
    });

  it('are at work at once, and after a restart', async () => {
    const made = await manage('PUT', 'x', { ...registration, sender_localpart: 'bot_x' });
    assert.equal(made.status, 200);
    assert.ok(made.as_token.length > 20 && made.hs_token.length > 20 && made.as_token !== made.hs_token);
    const bot = actingAs(made);
    assert.equal((await bot.get('/v3/account/whoami')).user_id, `@bot_x:${server.serverName}`);
    await assert.rejects(server.register('x_taken'), /M_EXCLUSIVE/);
    const room = await alice.createRoom();
    await bot.join(room);
    await alice.sendText(room, 'hello');
    await hears('hello');
    assert.equal(heard.at(-1)!.token, `Bearer ${made.hs_token}`);
    await server.stop();
    await server.start();
    await alice.sendText(room, 'hello again');
    await hears('hello again');

    // Another token: the old one is worth nothing, and the service goes on hearing.
    const changed = await manage('PUT', 'x', {
      ...registration,
      sender_localpart: 'bot_x',
      as_token: 'another',
    });
    assert.deepEqual([changed.as_token, changed.hs_token], ['another', made.hs_token]);
    await refused(bot.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    await alice.sendText(room, 'changed');
    await hears('changed');

    assert.equal((await manage('DELETE', 'x')).status, 200);
    await refused(actingAs(changed).get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    await server.register('x_free');
    assert.equal((await manage('GET', 'x')).status, 404);
  });

  it('are listed with those of files, which stay as they are', async () => {
    await manage('PUT', 'y', { sender_localpart: 'y', namespaces: {} });
    const { application_services: all } = await manage('GET');
    assert.deepEqual(
      all.map(({ id, source, url }: Json) => [id, source, url]),
      [
        ['file', 'file', null],
        ['y', 'api', null],
      ],
    );
    assert.ok(!JSON.stringify(all).includes('token'));
    assert.equal((await manage('PUT', 'file', registration)).status, 403);
    assert.equal((await manage('DELETE', 'file')).status, 403);
    const twice = await manage('PUT', 'z', { ...registration, as_token: 'f1' });
    assert.deepEqual([twice.status, twice.errcode], [400, 'M_INVALID_PARAM']);
    const odd = await manage('PUT', 'z', { sender_localpart: 'Z!' });
    assert.deepEqual([odd.status, odd.errcode], [400, 'M_BAD_JSON']);
    assert.match(odd.error, /sender_localpart/);
  });

  it('are the business of administrators only', async () => {
    for (const method of ['GET', 'PUT', 'DELETE'])
      assert.equal((await manage(method, 'x', method === 'PUT' ? {} : undefined, alice)).status, 403);
  });
});
