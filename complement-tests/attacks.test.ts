import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { gzipSync } from 'node:zlib';
import { type Client, eventually, path, refused, request } from './harness/client.ts';
import { HostileServer } from './harness/hostile-server.ts';
import type { Json } from './harness/json.ts';
import { login, PASSWORD, startServer, type TestServer } from './harness/server.ts';

/** Black-box attacks, by class and id: docs/security.md says which stands where. */
describe('attacks', () => {
  let server: TestServer;
  let hostile: HostileServer;
  let alice: Client;
  let eve: string;
  before(async () => {
    [server, hostile] = await Promise.all([startServer({ name: 'attacked' }), HostileServer.start()]);
    alice = await server.register('alice');
    eve = `@eve:${hostile.name}`;
  });
  after(() => Promise.all([server?.close(), hostile?.close()]));

  const room = (options: Json = {}) =>
    alice.createRoom({ preset: 'public_chat', room_version: '10', ...options });

  /** A room with Eve in it, and how events of hers are built there. */
  async function withEve() {
    const roomId = await room();
    const { state, id, join } = await hostile.join(server, roomId, eve);
    const auth = state
      .filter((e) => ['m.room.create', 'm.room.power_levels'].includes(e.type))
      .map((e) => idOf(e));
    const build = (proto: Json) =>
      hostile.event({
        room_id: roomId,
        sender: eve,
        prev_events: [id],
        auth_events: [...auth, id],
        depth: join.depth + 1,
        ...proto,
      });
    return { roomId, build };
  }
  const idOf = (pdu: Json) => hostile.event(pdu).id;

  it('by forged origins and signatures are refused', async () => {
    const own = await hostile.request(
      server,
      'GET',
      `/_matrix/federation/v1/query/profile?user_id=${alice.userId}`,
    );
    assert.equal(own.status, 200);
    for (const [target, more] of [
      ['/_matrix/federation/v1/query/profile?user_id=x', { origin: server.serverName }],
      ['/_matrix/federation/v1/query/profile?user_id=x', { origin: '127.0.0.1:1' }],
      ['/_matrix/federation/v1/send/1', { raw: '{"pdus":[]}' }],
    ] as Array<[string, object]>) {
      const body = target.includes('/send/') ? { pdus: [{}] } : undefined;
      const answer = await hostile.request(server, body ? 'PUT' : 'GET', target, body, more);
      assert.equal(answer.status, 401, JSON.stringify(answer.body));
    }
  });

  it('have the server sign nothing by templates (CVE-2025-68667, CVE-2026-24471)', async () => {
    const roomId = `!trap:${hostile.name}`;
    for (const event of [
      { type: 'm.room.power_levels', state_key: '', content: { users: { [eve]: 100 } } },
      { type: 'm.room.member', state_key: eve, content: { membership: 'join' } },
      { type: 'm.room.message', content: { membership: 'join', body: 'x' } },
      {
        type: 'm.room.member',
        state_key: alice.userId,
        room_id: '!other:x',
        content: { membership: 'join' },
      },
    ]) {
      hostile.received.length = 0;
      hostile.answer = ({ path: asked }) =>
        asked.includes('/make_join/')
          ? {
              room_version: '10',
              event: {
                room_id: roomId,
                sender: alice.userId,
                prev_events: ['$a'],
                auth_events: ['$b'],
                depth: 5,
                ...event,
              },
            }
          : undefined;
      const answer = await alice.request('POST', path`/_matrix/client/v3/join/${roomId}`, {
        query: { server_name: [hostile.name] },
        body: {},
      });
      assert.ok(answer.status >= 400, JSON.stringify(answer.body));
      assert.deepEqual(
        hostile.received.filter(({ body }) => body !== undefined),
        [],
      );
    }
    hostile.answer = () => undefined;
  });

  it('by invites neither break a sync nor fill it (CVE-2024-52815, CVE-2023-32323)', async () => {
    const states: Json[] = [
      [null, 7, 'x', [], {}, { type: 7 }, { type: 'm.room.name', state_key: '', sender: 5, content: {} }],
      [{ type: 'm.room.name', state_key: '', sender: eve, content: { name: { nested: [] } } }],
      Array.from({ length: 100 }, () => ({
        type: 'm.room.topic',
        state_key: '',
        sender: eve,
        content: { topic: 'x'.repeat(30_000) },
      })),
      [{ type: 'm.room.create', state_key: '', sender: eve, origin_server_ts: {}, content: { type: [] } }],
    ];
    for (const state of states) {
      const roomId = `!${randomBytes(6).toString('hex')}:${hostile.name}`;
      const { id, pdu } = hostile.event({
        type: 'm.room.member',
        room_id: roomId,
        sender: eve,
        state_key: alice.userId,
        content: { membership: 'invite', displayname: {}, avatar_url: 7 },
        prev_events: ['$a'],
        auth_events: ['$b'],
      });
      const answer = await hostile.request(
        server,
        'PUT',
        `/_matrix/federation/v2/invite/${encodeURIComponent(roomId)}/${encodeURIComponent(id)}`,
        { room_version: '10', event: pdu, invite_room_state: state },
      );
      assert.equal(answer.status, 200, JSON.stringify(answer.body));
      const sync = await alice.get('/v3/sync', { timeout: 0 });
      const shown = sync.rooms.invite[roomId];
      assert.ok(shown);
      assert.ok(JSON.stringify(shown).length < 700_000);
      await alice.leave(roomId);
    }
  });

  it('by malformed members and messages leave clients their rooms (CVE-2024-51750, CVE-2025-30355)', async () => {
    const { roomId, build } = await withEve();
    const events = [
      build({
        type: 'm.room.member',
        state_key: eve,
        content: { membership: 'join', displayname: { a: 1 } },
      }),
      build({ type: 'm.room.message', content: { body: [], msgtype: null, 'm.relates_to': 'x' } }),
      build({
        type: 'm.room.message',
        content: { 'm.mentions': { user_ids: 'all', room: {} } },
        depth: 2 ** 53 - 1,
      }),
    ];
    const sent = await hostile.send(
      server,
      [
        ...events.map(({ pdu }) => pdu),
        null,
        { room_id: '!\0:x' },
        { ...events[1]!.pdu, depth: 1e300 },
      ].filter((pdu) => pdu !== null),
    );
    assert.equal(sent.status, 200, JSON.stringify(sent.body));
    await alice.seesEvent(roomId, events[2]!.id);
    const next = await alice.sendText(roomId, 'still here');
    await alice.seesEvent(roomId, next);
    await alice.get(path`/v3/rooms/${roomId}/members`);
    await alice.get(path`/v3/rooms/${roomId}/joined_members`);
  });

  it('by EDUs speak for nobody else (CVE-2023-42453; conduwuit 0.4.1)', async () => {
    const { roomId } = await withEve();
    const id = await alice.sendText(roomId, 'read by nobody');
    await alice.syncUntil('now', () => true);
    const victim = alice.userId;
    const edus = [
      {
        edu_type: 'm.receipt',
        content: { [roomId]: { 'm.read': { [victim]: { event_ids: [id], data: { ts: 1 } } } } },
      },
      { edu_type: 'm.typing', content: { room_id: roomId, user_id: victim, typing: true } },
      { edu_type: 'm.presence', content: { push: [{ user_id: victim, presence: 'unavailable' }] } },
      {
        edu_type: 'm.direct_to_device',
        content: {
          sender: victim,
          type: 'x',
          message_id: '1',
          messages: { [victim]: { '*': { forged: 1 } } },
        },
      },
      { edu_type: 'm.device_list_update', content: { user_id: victim, device_id: 'X', stream_id: 1 } },
      { edu_type: 7, content: [] },
      'junk',
    ].filter((edu) => typeof edu !== 'string');
    assert.equal((await hostile.send(server, [], edus)).status, 200);
    // What is right comes after it, so that all before has been seen.
    const right = {
      sender: eve,
      type: 'org.right',
      message_id: '2',
      messages: { [victim]: { '*': { n: 1 } } },
    };
    await hostile.send(server, [], [{ edu_type: 'm.direct_to_device', content: right }]);
    // And once more, under another transaction: it is the same message.
    await hostile.send(server, [], [{ edu_type: 'm.direct_to_device', content: right }]);
    const sync = await alice.get('/v3/sync', { timeout: 0 });
    const text = JSON.stringify(sync);
    assert.ok(!text.includes('"forged"'));
    assert.equal(sync.to_device.events.filter((e: Json) => e.type === 'org.right').length, 1);
    const ephemeral = JSON.stringify(sync.rooms.join[roomId].ephemeral ?? {});
    assert.ok(!ephemeral.includes('m.receipt') && !ephemeral.includes(victim));
  });

  it('by size are bounded, and what the specification allows is taken', { timeout: 120_000 }, async () => {
    const { roomId, build } = await withEve();
    const fill = 'x'.repeat(64_000);
    const events = Array.from({ length: 50 }, (_, n) => build({ type: 'm.test', content: { n, fill } }));
    const pdus = events.map(({ pdu }) => pdu);
    const edus = Array.from({ length: 100 }, () => ({
      edu_type: 'm.unknown',
      content: { fill: 'x'.repeat(20_000) },
    }));
    const sent = await hostile.send(server, pdus, edus);
    assert.equal(sent.status, 200, JSON.stringify(sent.body).slice(0, 500));
    assert.equal(Object.values(sent.body.pdus).filter((result) => (result as Json).error).length, 0);
    for (const { id } of events) await alice.event(roomId, id);
    const tooMany = await hostile.send(server, [...pdus, pdus[0]]);
    assert.equal(tooMany.status, 400);
    const huge = 'x'.repeat(11 * 1024 * 1024);
    const tooLarge = await hostile
      .send(server, [], [{ edu_type: 'x', content: { huge } }])
      .catch(() => ({ status: 413 }));
    assert.equal(tooLarge.status, 413);
    const other = await hostile
      .request(server, 'POST', path`/_matrix/federation/v1/get_missing_events/${roomId}`, {
        huge: huge.slice(0, 5e6),
      })
      .catch(() => ({ status: 413 }));
    assert.equal(other.status, 413);
    // A few megabytes of brackets.
    const start = performance.now();
    const deep = await request(server.url, 'POST', '/_matrix/client/v3/login', {
      raw: '['.repeat(4_000_000),
    });
    assert.equal(deep.status, 400);
    assert.ok(performance.now() - start < 3_000);
    await alice.sendText(roomId, 'still here');
  });

  it('by compressed and multipart bodies get nowhere (CWE-409, CVE-2024-52805)', async () => {
    const bomb = gzipSync(Buffer.alloc(40 * 1024 * 1024, ' '));
    const form = `--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n${'y'.repeat(2_000_000)}\r\n--x--\r\n`;
    for (const target of ['/v3/login', '/v3/register', '/v3/createRoom', '/v3/keys/upload'])
      for (const [raw, headers] of [
        [bomb, { 'content-encoding': 'gzip', 'content-type': 'application/json' }],
        [form, { 'content-type': 'multipart/form-data; boundary=x' }],
      ] as Array<[string | Uint8Array, Record<string, string>]>) {
        const answer = await alice.request('POST', `/_matrix/client${target}`, { raw, headers });
        assert.ok(answer.status >= 400 && answer.status < 500, `${target}: ${answer.status}`);
      }
  });

  it('by what PostgreSQL cannot hold are refused as malformed', async () => {
    const nul = '%00';
    for (const target of [
      `/v3/rooms/!a${nul}:x/state`,
      `/v3/rooms/!a:x/event/$${nul}`,
      `/v3/profile/@a${nul}:x`,
      `/v3/directory/room/%23a${nul}:x`,
      `/v3/user/${encodeURIComponent(alice.userId)}/filter/${nul}`,
      `/v3/devices/${nul}`,
    ]) {
      const answer = await alice.request('GET', `/_matrix/client${target}`);
      assert.ok(answer.status >= 400 && answer.status < 500, `${target}: ${answer.status}`);
    }
    for (const target of [
      `v1/event/$${nul}`,
      `v1/state/!a${nul}:x?event_id=$a`,
      `v1/user/devices/@a${nul}:x`,
    ]) {
      const answer = await hostile.request(server, 'GET', `/_matrix/federation/${target}`);
      assert.ok(answer.status >= 400 && answer.status < 500, `${target}: ${answer.status}`);
    }
  });

  it('by smuggled and pipelined requests mix nothing up (CVE-2024-41671)', async () => {
    const raw = (text: string) =>
      new Promise<string>((resolve) => {
        let answer = '';
        const socket = connect(server.clientPort, '127.0.0.1', () => socket.write(text));
        socket.on('data', (chunk) => {
          answer += chunk;
        });
        socket.on('error', () => {});
        socket.on('close', () => resolve(answer));
        setTimeout(() => socket.destroy(), 1_000);
      });
    const smuggled = 'GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nX-Smuggled: 1\r\n\r\n';
    for (const headers of [
      `Content-Length: 4\r\nTransfer-Encoding: chunked`,
      `Transfer-Encoding: chunked\r\nContent-Length: ${smuggled.length}`,
      'Content-Length: 5\r\nContent-Length: 6',
      'Transfer-Encoding: xchunked',
      'Transfer-Encoding : chunked',
      'Content-Length: +5',
    ]) {
      const answer = await raw(
        `POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\n${headers}\r\n\r\n0\r\n\r\n${smuggled}`,
      );
      assert.equal(answer.split('HTTP/1.1 ').length - 1, 1, `${headers}: ${answer.slice(0, 300)}`);
      assert.match(answer, /^HTTP\/1\.1 400/, headers);
    }
    const paths = [
      '/_matrix/client/versions',
      '/_matrix/client/v3/login',
      '/nowhere',
      '/_matrix/client/versions',
    ];
    const answers = await raw(paths.map((each) => `GET ${each} HTTP/1.1\r\nHost: x\r\n\r\n`).join(''));
    const statuses = [...answers.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => status);
    assert.deepEqual(statuses, ['200', '200', '404', '200']);
    assert.ok(answers.indexOf('"versions"') < answers.indexOf('"flows"'));
  });

  it('by strangers read nothing of a private room (CVE-2021-39163, CVE-2021-39164)', async () => {
    const bob = await server.register('bob');
    const secret = await room({ preset: 'private_chat', name: 'Secret name' });
    const id = await alice.sendText(secret, 'secret');
    for (const target of [
      'state',
      'members',
      'joined_members',
      'messages?dir=b',
      `event/${encodeURIComponent(id)}`,
      `context/${encodeURIComponent(id)}`,
      'state/m.room.name',
      'aliases',
      'threads',
      `relations/${encodeURIComponent(id)}`,
      'timestamp_to_event?ts=1&dir=f',
      'initialSync',
      'hierarchy',
    ]) {
      const prefix = target.match(/^(threads|relations|timestamp|hierarchy)/) ? 'v1' : 'v3';
      const answer = await bob.request(
        'GET',
        `/_matrix/client/${prefix}/rooms/${encodeURIComponent(secret)}/${target}`,
      );
      assert.ok(answer.status === 403 || answer.status === 404, `${target}: ${answer.status}`);
      assert.ok(!/secret/i.test(JSON.stringify(answer.body)), target);
    }
    for (const target of [
      'read_markers',
      `receipt/m.read/${encodeURIComponent(id)}`,
      `typing/${bob.userId}`,
    ]) {
      const method = target.startsWith('typing') ? 'PUT' : 'POST';
      const body = { 'm.fully_read': id, typing: true, timeout: 1000 };
      const answer = await bob.request(
        method,
        `/_matrix/client/v3/rooms/${encodeURIComponent(secret)}/${target}`,
        { body },
      );
      assert.ok(answer.status >= 400 && answer.status < 500, `${target}: ${answer.status}`);
    }
  });

  it('after a kick see nothing more, though they wait in a sync (CVE-2024-53867)', async () => {
    const carol = await server.register('carol');
    const roomId = await room();
    await carol.join(roomId);
    const { next_batch: since } = await carol.get('/v3/sync', { timeout: 0 });
    const waiting = carol.get('/v3/sync', { since, timeout: 5_000 });
    await alice.post(path`/v3/rooms/${roomId}/kick`, { user_id: carol.userId });
    await alice.sendText(roomId, 'after the kick');
    await alice.setState(roomId, 'm.room.topic', { topic: 'after the kick' });
    const first = await waiting;
    const second = await carol.get('/v3/sync', { since: first.next_batch, timeout: 500 });
    const whole = await carol.get('/v3/sync', { timeout: 0 });
    const sliding = await carol.request(
      'POST',
      '/_matrix/client/unstable/org.matrix.simplified_msc3575/sync',
      {
        body: { lists: { a: { ranges: [[0, 9]], timeline_limit: 20, required_state: [['*', '*']] } } },
      },
    );
    for (const sync of [first, second, whole, sliding.body])
      assert.ok(!JSON.stringify(sync).includes('after the kick'));
  });

  it('by tokens of another kind, and of accounts that are gone, do not get in (CVE-2023-32682)', async () => {
    const dave = await server.register('dave');
    const openId = await dave.post(path`/v3/user/${dave.userId}/openid/request_token`);
    for (const token of [openId.access_token, '', 'null', 'undefined', '../', '%00', 'x'.repeat(10_000)]) {
      const answer = await request(server.url, 'GET', '/_matrix/client/v3/account/whoami', { token });
      assert.equal(answer.status, 401, String(token).slice(0, 20));
    }
    const auth = {
      type: 'm.login.password',
      identifier: { type: 'm.id.user', user: dave.userId },
      password: PASSWORD,
    };
    await dave.post('/v3/account/deactivate', { auth });
    await refused(dave.get('/v3/account/whoami'), 401);
    await assert.rejects(login(server.url, 'dave'));
    for (const body of [
      { type: 'm.login.password', user: 'dave', password: PASSWORD },
      { type: 'm.login.token', token: openId.access_token },
      { type: 'm.login.application_service', identifier: { type: 'm.id.user', user: 'dave' } },
      { type: 'm.login.dummy', user: 'dave' },
    ]) {
      const answer = await request(server.url, 'POST', '/_matrix/client/v3/login', { body });
      assert.ok(answer.status >= 400 && answer.status < 500, JSON.stringify(body));
    }
  });

  it("by junk in keys stop no federation (CVE-2025-61672) and read no others' devices (CVE-2023-43796)", async () => {
    const mallory = await server.register('mallory');
    const { userId, deviceId } = mallory;
    const junk: Json[] = [
      { device_keys: null },
      { device_keys: 7 },
      { device_keys: { user_id: userId, device_id: deviceId } },
      { device_keys: { user_id: userId, device_id: deviceId, algorithms: 'x', keys: [], signatures: null } },
      {
        device_keys: {
          user_id: userId,
          device_id: deviceId,
          algorithms: [],
          keys: { a: { b: 1 } },
          signatures: {},
        },
      },
      { one_time_keys: { 'signed_curve25519:A': null, x: 7 } },
      { fallback_keys: [] },
    ];
    for (const body of junk) {
      const answer = await mallory.request('POST', '/_matrix/client/v3/keys/upload', { body });
      assert.ok(answer.status < 500, JSON.stringify(body));
    }
    const { roomId } = await withEve();
    await mallory.join(roomId);
    hostile.answer = ({ path: asked }) =>
      asked.includes('/user/devices/')
        ? { user_id: eve, stream_id: 'x', devices: [null, { device_id: 7, keys: [] }] }
        : asked.includes('/user/keys/query')
          ? { device_keys: { [eve]: { X: null, Y: { keys: 'x' } } }, master_keys: { [eve]: 7 } }
          : asked.includes('/send/')
            ? { pdus: {} }
            : undefined;
    const answer = await mallory.post('/v3/keys/query', { device_keys: { [eve]: [] } });
    assert.ok(answer.device_keys);
    const id = await alice.sendText(roomId, 'arrives');
    await eventually('the message at the other server', async () =>
      hostile.received.some(({ body }) =>
        body?.pdus?.some((pdu: Json) => idOf(pdu) === id || pdu.content?.body === 'arrives'),
      ),
    );
    // Other servers are told of our users only.
    const asked = await hostile.request(server, 'POST', '/_matrix/federation/v1/user/keys/query', {
      device_keys: { [eve]: [], '@x:127.0.0.1:1': [] },
    });
    assert.deepEqual(asked.body.device_keys, {});
    hostile.answer = () => undefined;
  });

  it('by endless parameters of third-party identifiers are refused (CVE-2021-21393, CVE-2021-21394)', async () => {
    const long = 'x'.repeat(1_000_000);
    for (const target of [
      'register/email',
      'account/password/email',
      'account/3pid/email',
      'account/3pid/msisdn',
    ])
      for (const body of [
        { client_secret: long, email: 'a@b.c', send_attempt: 1, country: 'GB', phone_number: '1' },
        { client_secret: 'x', email: `${long}@b.c`, send_attempt: 1, country: long, phone_number: long },
      ]) {
        const answer = await alice.request('POST', `/_matrix/client/v3/${target}/requestToken`, { body });
        assert.ok(answer.status >= 400 && answer.status < 500, `${target}: ${answer.status}`);
      }
  });

  it('leave the server without one error of its own', () => {
    const errors = server
      .log()
      .split('\n')
      .filter((line) => line.includes('"level":50') || line.includes('"level":60'))
      // What is said of the other server's answers.
      .filter((line) => !line.includes('"status":502'));
    assert.deepEqual(errors, []);
  });
});
