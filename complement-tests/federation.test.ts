import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('federation between two servers', () => {
  let one: TestServer;
  let two: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    [one, two] = await Promise.all([startServer({ name: 'one' }), startServer({ name: 'two' })]);
    alice = await one.register('alice');
    bob = await two.register('bob');
  });
  after(() => Promise.all([one?.close(), two?.close()]));
  const shared = async (options: Json = { preset: 'public_chat' }) => {
    const room = await alice.createRoom(options);
    await bob.join(room, one.serverName);
    await bob.seesRoom('join', room);
    await alice.seesMember(room, bob.userId, 'join');
    return room;
  };

  it('publishes signing keys and a version', async () => {
    const keys = (await request(one.url, 'GET', '/_matrix/key/v2/server')).body;
    assert.equal(keys.server_name, one.serverName);
    assert.ok(Object.keys(keys.verify_keys).length > 0 && keys.valid_until_ts > Date.now());
    assert.ok(keys.signatures[one.serverName]);
    const version = (await request(one.url, 'GET', '/_matrix/federation/v1/version')).body;
    assert.ok(version.server.name && version.server.version);
  });

  it('refuses requests that no server signed', async () => {
    for (const target of ['/_matrix/federation/v1/state/!x:y', '/_matrix/federation/v1/publicRooms']) {
      const answer = await request(one.url, 'GET', target);
      assert.equal(answer.status, 401, target);
    }
    const headers = { authorization: `X-Matrix origin="${two.serverName}",key="ed25519:1",sig="AAAA"` };
    const forged = await request(one.url, 'GET', '/_matrix/federation/v1/publicRooms', { headers });
    assert.equal(forged.status, 401);
  });

  for (const version of ['1', '6', '10', '11', '12']) {
    it(`carries messages both ways in a room of version ${version}`, async () => {
      const room = await shared({ preset: 'public_chat', room_version: version });
      const there = await alice.sendText(room, 'hello two');
      assert.equal((await bob.seesEvent(room, there)).content.body, 'hello two');
      const back = await bob.sendText(room, 'hello one');
      assert.equal((await alice.seesEvent(room, back)).sender, bob.userId);
      const [a, b] = await Promise.all([
        alice.get(path`/v3/rooms/${room}/state`),
        bob.get(path`/v3/rooms/${room}/state`),
      ]);
      const ids = (state: Json[]) => state.map((e) => e.event_id).sort();
      assert.deepEqual(ids(a), ids(b));
    });
  }

  it('joins by an alias of the other server', async () => {
    const room = await alice.createRoom({ preset: 'public_chat', room_alias_name: 'fed' });
    assert.equal(await bob.join(`#fed:${one.serverName}`), room);
    await refused(bob.join(`#nothing:${one.serverName}`), 404, 'M_NOT_FOUND');
  });

  it('invites, and takes the answer', async () => {
    const yes = await alice.createRoom({ preset: 'private_chat', name: 'Far away', invite: [bob.userId] });
    const invite = await bob.seesRoom('invite', yes);
    assert.ok(
      invite.invite_state.events.some((e: Json) => e.type === 'm.room.name' && e.content.name === 'Far away'),
    );
    await bob.join(yes);
    await alice.seesMember(yes, bob.userId, 'join');
    const no = await alice.createRoom({ preset: 'private_chat', invite: [bob.userId] });
    await bob.seesRoom('invite', no);
    await bob.leave(no);
    await alice.seesMember(no, bob.userId, 'leave');
    await refused(bob.join(no, one.serverName), 403, 'M_FORBIDDEN');
  });

  it('knocks', async () => {
    const room = await alice.createRoom({
      preset: 'private_chat',
      initial_state: [{ type: 'm.room.join_rules', content: { join_rule: 'knock' } }],
    });
    await bob.api(
      'POST',
      path`/v3/knock/${room}`,
      { reason: 'hello?' },
      { query: { via: one.serverName, server_name: one.serverName } },
    );
    await alice.seesMember(room, bob.userId, 'knock');
    await alice.invite(room, bob.userId);
    await bob.seesRoom('invite', room);
    await bob.join(room);
  });

  it('kicks, bans and leaves', async () => {
    const room = await shared();
    await alice.post(path`/v3/rooms/${room}/kick`, { user_id: bob.userId });
    await bob.seesRoom('leave', room);
    await bob.join(room, one.serverName);
    await alice.post(path`/v3/rooms/${room}/ban`, { user_id: bob.userId });
    await bob.seesRoom('leave', room);
    await refused(bob.join(room, one.serverName), 403, 'M_FORBIDDEN');
    const other = await shared();
    await bob.leave(other);
    await alice.seesMember(other, bob.userId, 'leave');
  });

  it('lets members of a room into another that is restricted to it', async () => {
    const club = await shared();
    const room = await alice.createRoom({
      preset: 'private_chat',
      initial_state: [
        {
          type: 'm.room.join_rules',
          content: { join_rule: 'restricted', allow: [{ type: 'm.room_membership', room_id: club }] },
        },
      ],
    });
    await bob.join(room, one.serverName);
    assert.equal(
      (await alice.getState(room, 'm.room.member', bob.userId)).join_authorised_via_users_server,
      alice.userId,
    );
    const stranger = await two.register();
    await refused(stranger.join(room, one.serverName), 403, 'M_FORBIDDEN');
  });

  it('shows history from before the join', async () => {
    const room = await alice.createRoom();
    for (let i = 0; i < 30; i++) await alice.sendText(room, `old ${i}`);
    await bob.join(room, one.serverName);
    const seen: string[] = [];
    let from: string | undefined;
    await eventually('the beginning of the room', async () => {
      const page: Json = await bob.get(path`/v3/rooms/${room}/messages`, { dir: 'b', from, limit: 20 });
      seen.push(...page.chunk.map((e: Json) => e.content.body).filter(Boolean));
      from = page.end;
      return seen.includes('old 0') || from === undefined;
    });
    assert.deepEqual(
      seen,
      Array.from({ length: 30 }, (_, i) => `old ${29 - i}`),
    );
  });

  it('redacts on both sides', async () => {
    const room = await shared();
    const id = await bob.sendText(room, 'oops');
    await alice.seesEvent(room, id);
    await bob.put(path`/v3/rooms/${room}/redact/${id}/${randomBytes(4).toString('hex')}`, {});
    await eventually(
      'the redaction',
      async () => Object.keys((await alice.event(room, id)).content).length === 0,
    );
  });

  it('agrees on the state after both sides changed it at once', async () => {
    const room = await shared({ preset: 'public_chat', power_level_content_override: { state_default: 0 } });
    for (let i = 0; i < 5; i++)
      await Promise.all([
        alice.setState(room, 'm.room.topic', { topic: `alice ${i}` }),
        bob.setState(room, 'm.room.topic', { topic: `bob ${i}` }),
      ]);
    const last = await alice.sendText(room, 'the end');
    await bob.seesEvent(room, last);
    await eventually('the same topic', async () => {
      const [a, b] = await Promise.all([
        alice.getState(room, 'm.room.topic'),
        bob.getState(room, 'm.room.topic'),
      ]);
      return a.topic === b.topic;
    });
  });

  it('keeps what it could not deliver, and delivers it later', async () => {
    const room = await shared();
    await two.stop();
    const ids = [await alice.sendText(room, 'while you were away'), await alice.sendText(room, 'and this')];
    await one.stop();
    await one.start();
    await two.start();
    await eventually(
      'the missed messages',
      async () => {
        const { chunk } = await bob.get(path`/v3/rooms/${room}/messages`, { dir: 'b', limit: 10 });
        return ids.every((id) => chunk.some((e: Json) => e.event_id === id));
      },
      40_000,
    );
  });

  it('passes on typing, receipts, presence and profiles', async () => {
    const room = await shared();
    await alice.syncUntil('now', () => true);
    await bob.put(path`/v3/rooms/${room}/typing/${bob.userId}`, { typing: true, timeout: 20_000 });
    const content = (sync: Json, type: string) =>
      sync.rooms?.join?.[room]?.ephemeral?.events?.find((e: Json) => e.type === type)?.content;
    await alice.syncUntil('typing', (s) => content(s, 'm.typing')?.user_ids.includes(bob.userId));
    const id = await alice.sendText(room, 'read this');
    await bob.seesEvent(room, id);
    await bob.post(path`/v3/rooms/${room}/receipt/m.read/${id}`);
    await alice.syncUntil('the receipt', (s) => content(s, 'm.receipt')?.[id]?.['m.read']?.[bob.userId]);
    await bob.put(path`/v3/profile/${bob.userId}/displayname`, { displayname: 'Bob afar' });
    assert.equal((await alice.get(path`/v3/profile/${bob.userId}`)).displayname, 'Bob afar');
    await refused(alice.get(path`/v3/profile/${`@nobody:${two.serverName}`}`), 404, 'M_NOT_FOUND');
  });

  it('passes on to-device messages and device lists', async () => {
    await shared();
    await alice.syncUntil('now', () => true);
    await bob.put(path`/v3/sendToDevice/org.example.far/${randomBytes(4).toString('hex')}`, {
      messages: { [alice.userId]: { '*': { n: 1 } } },
    });
    await alice.syncUntil('the message', (s) =>
      s.to_device?.events?.some((e: Json) => e.type === 'org.example.far' && e.sender === bob.userId),
    );
    await bob.post('/v3/keys/upload', {
      device_keys: {
        user_id: bob.userId,
        device_id: bob.deviceId,
        algorithms: ['m.megolm.v1.aes-sha2'],
        keys: { [`ed25519:${bob.deviceId}`]: 'k' },
        signatures: {},
      },
      one_time_keys: { 'signed_curve25519:A': { key: 'a', signatures: {} } },
    });
    await alice.syncUntil("bob's devices changed", (s) => s.device_lists?.changed?.includes(bob.userId));
    const { device_keys } = await alice.post('/v3/keys/query', { device_keys: { [bob.userId]: [] } });
    assert.ok(device_keys[bob.userId][bob.deviceId]);
    const claim = { one_time_keys: { [bob.userId]: { [bob.deviceId]: 'signed_curve25519' } } };
    assert.ok(
      (await alice.post('/v3/keys/claim', claim)).one_time_keys[bob.userId][bob.deviceId][
        'signed_curve25519:A'
      ],
    );
  });

  it('fetches media and the room directory of the other', async () => {
    const bytes = randomBytes(3000);
    const { content_uri } = (
      await bob.request('POST', '/_matrix/media/v3/upload', {
        raw: bytes,
        headers: { 'content-type': 'application/octet-stream' },
      })
    ).body;
    const [, , name, id] = content_uri.split('/');
    const answer = await alice.request('GET', `/_matrix/client/v1/media/download${path`/${name}/${id}`}`);
    assert.equal(answer.status, 200);
    assert.ok(answer.body.equals(bytes));
    const room = await alice.createRoom({ visibility: 'public', name: 'For the whole world' });
    const { chunk } = await bob.get('/v3/publicRooms', { server: one.serverName });
    assert.ok(chunk.some((r: Json) => r.room_id === room && r.name === 'For the whole world'));
  });
});
