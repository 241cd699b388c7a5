import './harness/no-native-crypto.ts';
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Appservice, LogService, SimpleFsStorageProvider } from '@vector-im/matrix-bot-sdk';
import { stringify } from 'yaml';
import { Client, eventually, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { freePort } from './harness/ports.ts';
import { startServer, type TestServer } from './harness/server.ts';

const REGISTRATION = {
  id: 'irc',
  as_token: 'as-token-of-the-bridge',
  hs_token: 'hs-token-of-the-bridge',
  sender_localpart: '_irc_bot',
  rate_limited: false,
  protocols: ['irc'],
  namespaces: {
    users: [{ exclusive: true, regex: '@_irc_.*' }],
    aliases: [{ exclusive: true, regex: '#_irc_.*' }],
    rooms: [],
  },
  'de.sorunome.msc2409.push_ephemeral': true,
};

const PLAIN_REGISTRATION = {
  id: 'plain',
  as_token: 'as-token-of-the-plain-one',
  hs_token: 'hs-token-of-the-plain-one',
  sender_localpart: 'plain',
  namespaces: {},
};

/** A bridge made with matrix-bot-sdk, which can be stopped and started again on its port. */
class Bridge {
  readonly url: string;
  readonly #port: number;
  readonly #storageFile: string;
  #homeserver: TestServer | undefined;
  #running: Appservice | undefined;
  readonly events: Json[] = [];
  readonly ephemeral: Json[] = [];
  readonly asked: string[] = [];

  constructor(port: number, folder: string) {
    this.#port = port;
    this.#storageFile = join(folder, 'bridge.json');
    this.url = `http://127.0.0.1:${port}`;
  }

  get sdk(): Appservice {
    return this.#running!;
  }

  async begin(homeserver = this.#homeserver!): Promise<void> {
    this.#homeserver = homeserver;
    this.#running = new Appservice({
      port: this.#port,
      bindAddress: '127.0.0.1',
      homeserverName: homeserver.serverName,
      homeserverUrl: homeserver.url,
      registration: { ...REGISTRATION, url: this.url },
      storage: new SimpleFsStorageProvider(this.#storageFile),
      joinStrategy: {
        joinRoom: (roomId: string, _user: string, join: (id: string) => Promise<string>) => join(roomId),
      },
    });
    const { sdk } = this;
    sdk.on('room.event', (_roomId: string, event: Json) => this.events.push(event));
    sdk.on('ephemeral.event', (event: Json) => this.ephemeral.push(event));
    sdk.on('query.user', (userId: string, create: (made: Json) => void) => {
      this.asked.push(userId);
      create(userId.includes('nobody') ? false : { display_name: 'Made when asked for' });
    });
    sdk.on('query.room', (alias: string, create: (made: Json) => void) => {
      this.asked.push(alias);
      create(alias.includes('nowhere') ? false : { preset: 'public_chat', name: 'A channel' });
    });
    sdk.on('thirdparty.protocol', (_name: string, answer: (protocol: Json) => void) =>
      answer({
        user_fields: ['nick'],
        location_fields: ['channel'],
        icon: 'mxc://example.org/irc',
        field_types: {},
        instances: [{ desc: 'Libera', network_id: 'libera', fields: {} }],
      }),
    );
    const user = (nick: string) => ({ userid: `@_irc_${nick}:x`, protocol: 'irc', fields: { nick } });
    const location = (channel: string) => ({
      alias: `#_irc_${channel}:x`,
      protocol: 'irc',
      fields: { channel },
    });
    type Give = (things: Json) => void;
    sdk.on('thirdparty.user.remote', (_name: string, { nick }: Json, give: Give) => give([user(nick)]));
    sdk.on('thirdparty.user.matrix', (_userId: string, give: Give) => give([user('eve')]));
    sdk.on('thirdparty.location.remote', (_name: string, { channel }: Json, give: Give) =>
      give([location(channel)]),
    );
    sdk.on('thirdparty.location.matrix', (_alias: string, give: Give) => give([location('chat')]));
    await sdk.begin();
  }

  stop(): void {
    this.#running?.stop();
    this.#running = undefined;
  }

  /** Acts as one of the bridge's users, by the bridge's token. */
  client(localpart: string): Client {
    const homeserver = this.#homeserver!;
    const user_id = `@${localpart}:${homeserver.serverName}`;
    const client = new Client(homeserver.url, {
      user_id,
      access_token: REGISTRATION.as_token,
      device_id: '',
    });
    const ask = client.request.bind(client);
    client.request = (method, target, options = {}) =>
      ask(method, target, { ...options, query: { user_id, ...options.query } });
    return client;
  }

  bodies(roomId: string): string[] {
    return this.events
      .filter(({ room_id, type }) => room_id === roomId && type === 'm.room.message')
      .map(({ content }) => content.body);
  }

  hears(roomId: string, body: string): Promise<unknown> {
    return eventually(`the bridge to hear "${body}"`, async () => this.bodies(roomId).includes(body));
  }
}

describe('an application service', () => {
  const folder = mkdtempSync(join(tmpdir(), 'trellis-test-bridge-'));
  let server: TestServer;
  let bridge: Bridge;
  let alice: Client;
  let room: string;
  let plain: Server;
  const plainRequests: string[] = [];

  before(async () => {
    const silence = () => {};
    LogService.setLogger({ trace: silence, debug: silence, info: silence, warn: silence, error: silence });
    bridge = new Bridge(await freePort(), folder);
    plain = createServer((incoming, response) => {
      plainRequests.push(`${incoming.method} ${incoming.url}`);
      response.setHeader('content-type', 'application/json').end('{}');
    });
    await new Promise<void>((done) => plain.listen(0, '127.0.0.1', done));
    const plainUrl = `http://127.0.0.1:${(plain.address() as AddressInfo).port}`;
    const files = [
      { ...REGISTRATION, url: bridge.url },
      { ...PLAIN_REGISTRATION, url: plainUrl },
    ].map((registration) => {
      const file = join(folder, `${registration.id}.yaml`);
      writeFileSync(file, stringify(registration));
      return file;
    });
    server = await startServer({ name: 'bridged', config: { application_services: files } });
    await bridge.begin(server);
    alice = await server.register('alice');
  });
  after(async () => {
    bridge?.stop();
    await server?.close();
    plain?.close();
    rmSync(folder, { recursive: true, force: true });
  });

  it('has users made when they are asked for, and them only', async () => {
    const carol = `@_irc_carol:${server.serverName}`;
    const { displayname } = await alice.get(path`/v3/profile/${carol}`);
    assert.equal(displayname, 'Made when asked for');
    await refused(alice.get(path`/v3/profile/${`@_irc_nobody:${server.serverName}`}`), 404, 'M_NOT_FOUND');
    await refused(alice.get(path`/v3/profile/${`@nobody:${server.serverName}`}`), 404, 'M_NOT_FOUND');
    assert.deepEqual(bridge.asked, [carol, `@_irc_nobody:${server.serverName}`]);
  });

  it('passes messages both ways', async () => {
    const dave = `@_irc_dave:${server.serverName}`;
    room = await alice.createRoom({ preset: 'private_chat', invite: [dave] });
    assert.ok(bridge.asked.includes(dave));
    const invite = await eventually('the invite to reach the bridge', async () =>
      bridge.events.find(({ room_id, state_key }) => room_id === room && state_key === dave),
    );
    assert.equal(invite.content.membership, 'invite');
    assert.ok(
      invite.unsigned.invite_room_state === undefined || Array.isArray(invite.unsigned.invite_room_state),
    );
    const intent = bridge.sdk.getIntentForUserId(dave);
    await intent.joinRoom(room);
    const question = await alice.sendText(room, 'is anyone there?');
    await bridge.hears(room, 'is anyone there?');
    assert.ok(bridge.events.some(({ event_id }) => event_id === question));
    const answer = await intent.sendText(room, 'I am');
    assert.equal((await alice.seesEvent(room, answer)).sender, dave);
  });

  it('hears who types and how far they have read', async () => {
    const eventId = await alice.sendText(room, 'read this');
    await alice.put(path`/v3/rooms/${room}/typing/${alice.userId}`, { typing: true, timeout: 20_000 });
    await alice.post(path`/v3/rooms/${room}/receipt/m.read/${eventId}`, {});
    const news = (type: string) =>
      bridge.ephemeral.find((event) => event.type === type && event.room_id === room);
    const typing = await eventually('typing', async () => news('m.typing'));
    assert.deepEqual(typing.content, { user_ids: [alice.userId] });
    const receipt = await eventually('a receipt', async () => news('m.receipt'));
    assert.ok(receipt.content[eventId]['m.read'][alice.userId].ts > 0);
  });

  it('gets nothing twice and misses nothing when it is away, and when the server is', async () => {
    await bridge.hears(room, 'read this');
    bridge.stop();
    const sent = ['read this'];
    for (let i = 0; i < 150; i++) {
      sent.push(`while away ${i}`);
      await alice.sendText(room, sent.at(-1)!);
    }
    await server.stop();
    await server.start();
    sent.push('after the restart');
    await alice.sendText(room, 'after the restart');
    await bridge.begin();
    await eventually(
      'the bridge to catch up',
      async () => bridge.bodies(room).includes('after the restart'),
      30_000,
    );
    await server.kill();
    await server.start();
    sent.push('after the crash');
    await alice.sendText(room, 'after the crash');
    await bridge.hears(room, 'after the crash');
    const bodies = bridge.bodies(room);
    assert.deepEqual(bodies.slice(bodies.indexOf('read this')), sent);
    const ids = bridge.events.map(({ event_id }) => event_id);
    assert.equal(new Set(ids).size, ids.length);
  });

  it('makes rooms whose alias somebody looks for, and has its names for itself', async () => {
    const alias = `#_irc_channel:${server.serverName}`;
    const joined = await alice.join(alias);
    assert.equal((await alice.getState(joined, 'm.room.name')).name, 'A channel');
    await refused(alice.join(`#_irc_nowhere:${server.serverName}`), 404, 'M_NOT_FOUND');
    for (const attempt of [
      () => alice.post('/v3/createRoom', { room_alias_name: '_irc_mine' }),
      () => alice.put(path`/v3/directory/room/${`#_irc_mine:${server.serverName}`}`, { room_id: room }),
      () => alice.delete(path`/v3/directory/room/${alias}`),
      () => bridge.client('_irc_bot').post('/v3/createRoom', { room_alias_name: 'not-irc' }),
      () => server.register('_irc_mallory'),
    ])
      await assert.rejects(attempt, /M_EXCLUSIVE|M_INVALID_USERNAME/);
    await bridge.client('_irc_dave').delete(path`/v3/directory/room/${alias}`);
  });

  it('publishes rooms in the directory of its network', async () => {
    const published = path`/v3/directory/list/appservice/libera/${room}`;
    await bridge.client('_irc_bot').put(published, { visibility: 'public' });
    const list = async (query: Json) =>
      (await alice.post('/v3/publicRooms', query)).chunk.map((entry: Json) => entry.room_id);
    assert.deepEqual(await list({ third_party_instance_id: 'irc|libera' }), [room]);
    assert.deepEqual(await list({}), []);
    await refused(alice.put(published, { visibility: 'public' }), 403, 'M_FORBIDDEN');
    await bridge.client('_irc_bot').put(published, { visibility: 'private' });
    assert.deepEqual(await list({ third_party_instance_id: 'irc|libera' }), []);
  });

  it('acts as its users and their devices, at times of its choosing', async () => {
    const dave = bridge.client('_irc_dave');
    const ts = 1_500_000_000_000;
    const target = `/_matrix/client${path`/v3/rooms/${room}/send/m.room.message/massaged`}`;
    const { body } = await dave.request('PUT', target, {
      body: { msgtype: 'm.text', body: 'from long ago' },
      query: { ts },
    });
    const event = await alice.get(path`/v3/rooms/${room}/event/${body.event_id}`);
    assert.equal(event.origin_server_ts, ts);
    const device = '/_matrix/client/v3/devices/BRIDGEDEVICE';
    // Since v1.17 a device is made by its name (MSC4190).
    assert.equal((await dave.request('PUT', device, { body: { display_name: 'bridge' } })).status, 201);
    const whoami = await dave.request('GET', '/_matrix/client/v3/account/whoami', {
      query: { device_id: 'BRIDGEDEVICE' },
    });
    assert.equal(whoami.body.device_id, 'BRIDGEDEVICE');
    const messages = { [dave.userId]: { BRIDGEDEVICE: { secret: 1 } } };
    await alice.put('/v3/sendToDevice/org.example.secret/once', { messages });
    const message = await eventually('a message to the device', async () =>
      bridge.ephemeral.find(({ type }) => type === 'org.example.secret'),
    );
    assert.equal(message.to_user_id, dave.userId);
    assert.equal(message.to_device_id, 'BRIDGEDEVICE');
    assert.deepEqual(message.content, { secret: 1 });
    assert.equal((await dave.request('DELETE', device)).status, 200);
    await refused(bridge.client('alice').get('/v3/account/whoami'), 403, 'M_FORBIDDEN');
  });

  it('tells of its network, and is asked whether it is there', async () => {
    const protocols = await alice.get('/v3/thirdparty/protocols');
    assert.deepEqual(Object.keys(protocols), ['irc']);
    assert.equal(protocols.irc.instances[0].instance_id, 'irc|libera');
    const users = await alice.get('/v3/thirdparty/user/irc', { nick: 'eve' });
    assert.deepEqual(users, [{ userid: '@_irc_eve:x', protocol: 'irc', fields: { nick: 'eve' } }]);
    assert.deepEqual(await alice.get('/v3/thirdparty/protocol/irc'), protocols.irc);
    await refused(alice.get('/v3/thirdparty/protocol/xmpp'), 404, 'M_NOT_FOUND');
    const [location] = await alice.get('/v3/thirdparty/location/irc', { channel: 'chat' });
    assert.deepEqual(location, { alias: '#_irc_chat:x', protocol: 'irc', fields: { channel: 'chat' } });
    assert.deepEqual(await alice.get('/v3/thirdparty/location', { alias: '#_irc_chat:x' }), [location]);
    assert.deepEqual(await alice.get('/v3/thirdparty/user', { userid: '@_irc_eve:x' }), users);
    await refused(alice.get('/v3/thirdparty/user/xmpp', { nick: 'eve' }), 404, 'M_NOT_FOUND');
    await refused(alice.post('/v1/appservice/irc/ping'), 403, 'M_FORBIDDEN');
    // The library has no endpoint for pings.
    const answer = await bridge.client('_irc_bot').request('POST', '/_matrix/client/v1/appservice/irc/ping', {
      body: { transaction_id: 'x' },
    });
    assert.equal(answer.status, 502);
    assert.equal(answer.body.errcode, 'M_BAD_STATUS');
    assert.equal(answer.body.status, 404);
    const other = new Client(server.url, {
      user_id: `@plain:${server.serverName}`,
      access_token: PLAIN_REGISTRATION.as_token,
      device_id: '',
    });
    assert.ok((await other.post('/v1/appservice/plain/ping', { transaction_id: 'mine' })).duration_ms >= 0);
    assert.deepEqual(plainRequests, ['POST /_matrix/app/v1/ping']);
    bridge.stop();
    const gone = await bridge.client('_irc_bot').request('POST', '/_matrix/client/v1/appservice/irc/ping', {
      body: {},
    });
    assert.deepEqual([gone.status, gone.body.errcode], [502, 'M_CONNECTION_FAILED']);
    // A bridge that is gone is in nobody's way.
    await alice.sendText(room, 'to nobody');
    assert.deepEqual(
      await alice.get('/v3/thirdparty/user/irc', { nick: 'eve' }).catch((e) => e.answer.status),
      404,
    );
    assert.equal((await request(server.url, 'GET', '/_matrix/client/versions')).status, 200);
  });
});
