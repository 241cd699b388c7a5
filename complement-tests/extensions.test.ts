import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, nextTransactionId, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

const text = (body: string, more: Json = {}) => ({ msgtype: 'm.text', body, ...more });

describe('what clients use beyond the specification', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({
      name: 'extensions',
      config: {
        rooms: { keep_redacted_ms: 60_000 },
        rtc: { transports: [{ type: 'livekit', livekit_service_url: 'https://rtc.example.org' }] },
      },
    });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  const sharedRoom = async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    return room;
  };

  it('is announced', async () => {
    const { unstable_features: features } = await alice.get('/versions');
    for (const name of [
      'com.beeper.msc4169',
      'fi.mau.msc2815',
      'io.element.msc4388',
      'org.matrix.msc3391',
      'org.matrix.msc3814',
      'org.matrix.msc3890',
      'org.matrix.msc3912',
      'org.matrix.msc4108',
      'org.matrix.msc4143',
      'org.matrix.msc4354',
      'org.matrix.msc4429',
      'uk.tcpip.msc4133',
      'uk.timedout.msc4323',
    ])
      assert.equal(features[name], true, name);
  });

  describe('rendezvous by sequence tokens (MSC4388)', () => {
    const base = '/unstable/io.element.msc4388/rendezvous';

    it('carries messages between devices without a token', async () => {
      const call = async (method: string, target: string, body?: Json, headers?: Record<string, string>) =>
        request(server.url, method, `/_matrix/client${target}`, { body, headers: headers ?? {} });
      assert.deepEqual((await call('GET', base)).body, { create_available: true });
      const { body: made } = await call('POST', base, { data: 'one' });
      const url = `${base}/${made.id}`;
      assert.ok(made.expires_ts > Date.now() + 100_000 && made.expires_ts <= Date.now() + 300_000);
      const { id: _, ...state } = made;
      assert.deepEqual((await call('GET', url)).body, { ...state, data: 'one' });
      const update = { sequence_token: made.sequence_token, data: 'two' };
      const { body: second } = await call('PUT', url, update);
      assert.notEqual(second.sequence_token, made.sequence_token);
      // The same again, as after a lost answer; something else meets the other's write.
      assert.deepEqual((await call('PUT', url, update)).body, second);
      const late = await call('PUT', url, { ...update, data: 'three' });
      assert.equal(late.status, 409);
      assert.equal(late.body.errcode, 'IO_ELEMENT_MSC4388_CONCURRENT_WRITE');
      assert.equal((await call('GET', url, undefined, { 'sec-fetch-dest': 'document' })).status, 403);
      assert.equal((await call('GET', url)).body.data, 'two');
      assert.equal((await call('PUT', url, { ...update, data: 'x'.repeat(4097) })).status, 413);
      assert.equal((await call('DELETE', url)).status, 200);
      assert.equal((await call('GET', url)).body.errcode, 'M_NOT_FOUND');
    });
  });

  describe('rendezvous by entity tags (MSC4108)', () => {
    const base = '/_matrix/client/unstable/org.matrix.msc4108/rendezvous';
    const plain = { 'content-type': 'text/plain' };

    it('carries messages between devices without a token', async () => {
      const made = await fetch(server.url + base, { method: 'POST', headers: plain, body: 'one' });
      assert.equal(made.status, 201);
      const { url } = (await made.json()) as { url: string };
      assert.ok(url.startsWith(server.url + base));
      const etag = made.headers.get('etag')!;
      assert.ok(new Date(made.headers.get('expires')!).getTime() > Date.now());
      const same = await fetch(url, { headers: { 'if-none-match': etag } });
      assert.equal(same.status, 304);
      const got = await fetch(url);
      assert.equal(got.headers.get('content-type'), 'text/plain');
      assert.equal(got.headers.get('access-control-expose-headers'), 'ETag');
      assert.equal(await got.text(), 'one');
      const put = (body: string, tag: string) =>
        fetch(url, { method: 'PUT', headers: { ...plain, 'if-match': tag }, body });
      const changed = await put('two', etag);
      assert.equal(changed.status, 202);
      assert.notEqual(changed.headers.get('etag'), etag);
      const late = await put('three', etag);
      assert.equal(late.status, 412);
      assert.equal(late.headers.get('etag'), changed.headers.get('etag'));
      assert.equal(((await late.json()) as Json)['org.matrix.msc4108.errcode'], 'M_CONCURRENT_WRITE');
      assert.equal((await fetch(url, { method: 'DELETE' })).status, 204);
      assert.equal((await fetch(url)).status, 404);
    });

    it('lets browsers send its conditions', async () => {
      const { headers } = await fetch(server.url + base, { method: 'OPTIONS' });
      assert.match(headers.get('access-control-allow-headers')!, /If-Match, If-None-Match/);
    });

    it('takes nothing but short plain text', async () => {
      const post = (headers: Record<string, string>, body: string) =>
        fetch(server.url + base, { method: 'POST', headers, body });
      assert.equal((await post({ 'content-type': 'text/html' }, '<b>')).status, 400);
      assert.equal((await post(plain, 'x'.repeat(5000))).status, 413);
    });
  });

  it('tells clients of the transports for calls (MSC4519)', async () => {
    const transports = [{ type: 'livekit', livekit_service_url: 'https://rtc.example.org' }];
    assert.deepEqual(await alice.get('/unstable/org.matrix.msc4143/rtc/transports'), {
      rtc_transports: transports,
    });
    const { body } = await request(server.url, 'GET', '/.well-known/matrix/client');
    assert.deepEqual(body['org.matrix.msc4143.rtc_foci'], transports);
  });

  describe('dehydrated devices (MSC3814)', () => {
    const base = '/unstable/org.matrix.msc3814.v1/dehydrated_device';
    const device = (user: Client, id: string, key = 'key') => ({
      device_id: id,
      device_data: { algorithm: 'org.matrix.msc3814.v2', device_pickle: id },
      initial_device_display_name: 'Dehydrated device',
      device_keys: {
        user_id: user.userId,
        device_id: id,
        dehydrated: true,
        algorithms: ['m.olm.v1.curve25519-aes-sha2'],
        keys: { [`ed25519:${id}`]: key, [`curve25519:${id}`]: id },
        signatures: {},
      },
      one_time_keys: { 'signed_curve25519:AAAA': { key: 'one', signatures: {} } },
      fallback_keys: { 'signed_curve25519:BBBB': { key: 'fallback', fallback: true, signatures: {} } },
    });
    const keysOf = async (user: Client) =>
      Object.keys(
        (await alice.post('/v3/keys/query', { device_keys: { [user.userId]: [] } })).device_keys[user.userId],
      );

    it('get keys and messages like any device, which whoever logs in may read again and again', async () => {
      const carol = await server.register('carol');
      await refused(carol.get(base), 404, 'M_NOT_FOUND');
      const id = 'ab/cd+ef';
      assert.deepEqual(await carol.put(base, device(carol, id)), { device_id: id });
      assert.deepEqual(await carol.get(base), { device_id: id, device_data: device(carol, id).device_data });
      assert.deepEqual(await keysOf(carol), [id]);
      const claim = async () => {
        const body = { one_time_keys: { [carol.userId]: { [id]: 'signed_curve25519' } } };
        const answer = await alice.post('/v3/keys/claim', body);
        return Object.keys(answer.one_time_keys[carol.userId][id]);
      };
      assert.deepEqual(await claim(), ['signed_curve25519:AAAA']);
      assert.deepEqual(await claim(), ['signed_curve25519:BBBB']);
      for (const n of [1, 2, 3])
        await alice.put(path`/v3/sendToDevice/m.test/${nextTransactionId()}`, {
          messages: { [carol.userId]: { [id]: { n } } },
        });
      const events = path`/unstable/org.matrix.msc3814.v1/dehydrated_device/${id}/events`;
      for (const _ of [1, 2]) {
        const first = await carol.get(events, { limit: 2 });
        assert.deepEqual(
          first.events.map((e: Json) => e.content.n),
          [1, 2],
        );
        const second = await carol.get(events, { limit: 2, from: first.next_batch });
        assert.deepEqual(
          second.events.map((e: Json) => e.content.n),
          [3],
        );
        assert.equal(second.next_batch, undefined);
      }
      // The form of earlier drafts: an empty batch is the last.
      const all = await carol.post(events);
      assert.equal(all.events.length, 3);
      assert.deepEqual((await carol.post(events, { next_batch: all.next_batch })).events, []);
      await refused(carol.get(`${base}/${carol.deviceId}/events`), 403, 'M_FORBIDDEN');
    });

    it('are one for each user, and go on request', async () => {
      const dave = await server.register('dave');
      await dave.put(base, device(dave, 'first'));
      await dave.put(base, device(dave, 'second'));
      assert.deepEqual(await keysOf(dave), ['second']);
      await dave.put(base, device(dave, 'second', 'other key'));
      assert.equal((await dave.get(base)).device_id, 'second');
      assert.deepEqual(await dave.delete(base), { device_id: 'second' });
      assert.deepEqual(await keysOf(dave), []);
      await refused(dave.delete(base), 404, 'M_NOT_FOUND');
      const { devices } = await dave.get('/v3/devices');
      assert.deepEqual(
        devices.map((d: Json) => d.device_id),
        [dave.deviceId],
      );
    });

    it('take no device that is in use', async () => {
      await refused(alice.put(base, device(alice, alice.deviceId)), 400, 'M_INVALID_PARAM');
      await refused(alice.put(base, { ...device(alice, 'x'), device_keys: undefined }), 400, 'M_BAD_JSON');
      assert.equal((await alice.get('/v3/devices')).devices.length, 1);
    });
  });

  describe('redactions of what relates to an event (MSC3912)', () => {
    const related = (type: string, event_id: string) => ({ 'm.relates_to': { rel_type: type, event_id } });
    const isRedacted = async (room: string, id: string) =>
      (await alice.event(room, id)).unsigned.redacted_because !== undefined;
    const redact = (user: Client, room: string, id: string, types: string[]) =>
      user.put(path`/v3/rooms/${room}/redact/${id}/${nextTransactionId()}`, {
        reason: 'gone',
        'org.matrix.msc3912.with_relations': types,
      });

    it('take along the types that were asked for, now and later, and nothing that the user may not redact', async () => {
      const room = await sharedRoom();
      const root = await bob.sendText(room, 'root');
      const edit = await bob.send(room, 'm.room.message', {
        ...text('* edit', related('m.replace', root)),
        'm.new_content': text('edit'),
      });
      const reply = await bob.send(room, 'm.room.message', text('reply', related('m.thread', root)));
      const foreign = await alice.send(room, 'm.room.message', text('foreign', related('m.reference', root)));
      await redact(bob, room, root, ['m.replace', 'm.reference']);
      await eventually('the edit to be redacted', () => isRedacted(room, edit));
      const { unsigned } = await alice.event(room, edit);
      assert.equal(unsigned.redacted_because.content.reason, 'gone');
      const late = await bob.send(room, 'm.room.message', text('late', related('m.reference', root)));
      await eventually('the late one to be redacted', () => isRedacted(room, late));
      assert.equal(await isRedacted(room, reply), false);
      assert.equal(await isRedacted(room, foreign), false);
    });

    it('take all types along by a star', async () => {
      const room = await sharedRoom();
      const root = await bob.sendText(room, 'root');
      const one = await bob.send(room, 'm.room.message', text('1', related('m.thread', root)));
      const two = await bob.send(room, 'm.room.message', text('2', related('org.example', root)));
      await redact(alice, room, root, ['*']);
      await eventually('both', async () => (await isRedacted(room, one)) && (await isRedacted(room, two)));
    });

    it('refuse what is no list', async () => {
      const room = await sharedRoom();
      const id = await alice.sendText(room, 'x');
      await refused(
        alice.put(path`/v3/rooms/${room}/redact/${id}/t`, {
          'org.matrix.msc3912.with_relations': 'm.thread',
        }),
        400,
        'M_BAD_JSON',
      );
    });
  });

  it('shows moderators what was redacted (MSC2815)', async () => {
    const room = await sharedRoom();
    const id = await bob.sendText(room, 'oh no');
    await bob.put(path`/v3/rooms/${room}/redact/${id}/r`, {});
    const target = path`/v3/rooms/${room}/event/${id}`;
    const query = { 'fi.mau.msc2815.include_unredacted_content': 'true' };
    const shown = await alice.get(target, query);
    assert.deepEqual(shown.content, text('oh no'));
    assert.ok(shown.unsigned.redacted_because);
    assert.deepEqual((await alice.get(target)).content, {});
    await refused(bob.get(target, query), 403, 'M_FORBIDDEN');
  });

  describe('sticky events (MSC4354)', () => {
    const sendSticky = (user: Client, room: string, body: Json, duration: number | string = 60_000) =>
      user.api('PUT', path`/v3/rooms/${room}/send/org.example.call/${nextTransactionId()}`, body, {
        query: { 'org.matrix.msc4354.sticky_duration_ms': duration },
      });

    it('come with a sync whose timeline leaves them out, and with that of who joins', async () => {
      const room = await sharedRoom();
      const { next_batch: since } = await bob.sync();
      const { event_id: id } = await sendSticky(alice, room, { msc4354_sticky_key: 'k' });
      for (let i = 0; i < 12; i++) await alice.sendText(room, `${i}`);
      const section = (await bob.sync({ since })).rooms.join[room];
      assert.equal(section.timeline.limited, true);
      const [event, ...others] = section.msc4354_sticky.events;
      assert.equal(others.length, 0);
      assert.equal(event.event_id, id);
      assert.deepEqual(event.msc4354_sticky, { duration_ms: 60_000 });
      const ttl = event.unsigned.msc4354_sticky_duration_ttl_ms;
      assert.ok(ttl > 0 && ttl <= 60_000);
      assert.deepEqual((await alice.event(room, id)).msc4354_sticky, { duration_ms: 60_000 });
      const erin = await server.register('erin');
      await alice.setState(room, 'm.room.history_visibility', { history_visibility: 'joined' });
      await erin.join(room);
      assert.equal((await erin.sync()).rooms.join[room].msc4354_sticky.events[0].event_id, id);
    });

    it('are not told twice, nor when they have expired or are redacted', async () => {
      const room = await sharedRoom();
      const { next_batch: since } = await bob.sync();
      const { event_id: shown } = await sendSticky(alice, room, {});
      const { msc4354_sticky, timeline } = (await bob.sync({ since })).rooms.join[room];
      assert.equal(timeline.events.at(-1).event_id, shown);
      assert.equal(msc4354_sticky, undefined);
      await sendSticky(alice, room, {}, 1);
      const { event_id: taken } = await sendSticky(alice, room, {});
      await alice.put(path`/v3/rooms/${room}/redact/${taken}/r`, {});
      for (let i = 0; i < 12; i++) await alice.sendText(room, `${i}`);
      const ids = (await bob.sync()).rooms.join[room].msc4354_sticky.events.map((e: Json) => e.event_id);
      assert.deepEqual(ids, [shown]);
    });

    it('survive a restart, may be state, and come later', async () => {
      const room = await sharedRoom();
      const query = { 'org.matrix.msc4354.sticky_duration_ms': 60_000 };
      const state = path`/v3/rooms/${room}/state/org.example.call/x`;
      const first = await alice.api('PUT', state, {}, { query });
      // Sent again, it is sticky anew.
      const second = await alice.api('PUT', state, {}, { query });
      assert.notEqual(first.event_id, second.event_id);
      const later = { ...query, 'org.matrix.msc4140.delay': 10 };
      await alice.api('PUT', path`/v3/rooms/${room}/send/org.example.later/t`, {}, { query: later });
      const stickyTypes = async () => {
        const filter = { room: { timeline: { limit: 1, not_types: ['org.example.*'] } } };
        const events = (await bob.sync({ filter })).rooms.join[room].msc4354_sticky?.events ?? [];
        return events.map((e: Json) => e.type).join(' ');
      };
      const expected = 'org.example.call org.example.call org.example.later';
      await eventually('the delayed one', async () => (await stickyTypes()) === expected);
      await server.stop();
      await server.start();
      assert.equal(await stickyTypes(), expected);
    });

    it('are refused with a wrong duration', async () => {
      const room = await sharedRoom();
      for (const duration of [3_600_001, -1, 'x'])
        await refused(sendSticky(alice, room, {}, duration), 400, 'M_INVALID_PARAM');
    });
  });

  describe('changes of profiles in /sync (MSC4429)', () => {
    const filter = { 'org.matrix.msc4429.profile_fields': { ids: ['m.tz', 'org.example.mood'] } };
    const usersOf = (sync: Json) => sync['org.matrix.msc4429.users'];
    const set = (user: Client, field: string, value: Json) =>
      user.put(path`/v3/profile/${user.userId}/${field}`, { [field]: value });

    it('come to who shares a room and asks for the field', async () => {
      const frank = await server.register('frank');
      const grace = await server.register('grace');
      await set(grace, 'm.tz', 'Europe/Berlin');
      const room = await frank.createRoom();
      const alone = await frank.sync({ filter });
      assert.equal(usersOf(alone), undefined);
      await grace.join(room);
      const joined = await frank.sync({ filter, since: alone.next_batch });
      assert.deepEqual(usersOf(joined), { [grace.userId]: { profile_updates: { 'm.tz': 'Europe/Berlin' } } });
      const waiting = frank.sync({ filter, since: joined.next_batch, timeout: 10_000 });
      await set(grace, 'org.example.mood', { emoji: 'x' });
      const news = await waiting;
      assert.deepEqual(usersOf(news), {
        [grace.userId]: { profile_updates: { 'org.example.mood': { emoji: 'x' } } },
      });
      await grace.delete(path`/v3/profile/${grace.userId}/m.tz`);
      await set(grace, 'org.example.unasked', 1);
      const removed = await frank.sync({ filter, since: news.next_batch });
      assert.deepEqual(usersOf(removed), { [grace.userId]: { profile_updates: { 'm.tz': null } } });
      assert.deepEqual(usersOf(await frank.sync({ filter })), {
        [grace.userId]: { profile_updates: { 'org.example.mood': { emoji: 'x' } } },
      });
      assert.equal(usersOf(await frank.sync({ since: news.next_batch })), undefined);
      assert.equal(usersOf(await alice.sync({ filter }))?.[grace.userId], undefined);
      await grace.leave(room);
      const left = await frank.sync({ filter, since: removed.next_batch });
      assert.deepEqual(usersOf(left), { [grace.userId]: { profile_updates: null } });
    });
  });

  describe('receipts of what has been received', () => {
    const receiptOf = (sync: Json, room: string, id: string) =>
      sync.rooms?.join?.[room]?.ephemeral.events.find((e: Json) => e.content[id]?.['org.trellis.received'])
        ?.content[id];
    const sinceAfter = async (user: Client, since: string) => (await user.sync({ since })).next_batch;

    it('tell a sender when another user with the setting has confirmed the message by a sync', async () => {
      const room = await sharedRoom();
      await bob.put(path`/v3/user/${bob.userId}/account_data/org.trellis.received_receipts`, {
        enabled: true,
      });
      let since = (await bob.sync()).next_batch;
      // The setting is looked up, and what is before it confirmed, without telling anybody.
      since = await sinceAfter(bob, since);
      await eventually('the setting to be read', async () => {
        const id = await alice.sendText(room, 'there?');
        since = await sinceAfter(bob, since);
        since = await sinceAfter(bob, since);
        return alice
          .syncUntil('a receipt', (sync) => receiptOf(sync, room, id), {}, 2_500)
          .then(
            (types) => {
              assert.ok(types['org.trellis.received'][bob.userId].ts > 0);
              return true;
            },
            () => false,
          );
      });
    });

    it('are not given by who has not asked for it', async () => {
      const room = await sharedRoom();
      const { next_batch: aliceSince } = await alice.sync();
      const since = (await alice.sync()).next_batch;
      const id = await bob.sendText(room, 'well?');
      await sinceAfter(alice, await sinceAfter(alice, await sinceAfter(alice, since)));
      await new Promise((wake) => setTimeout(wake, 1_500));
      assert.equal(receiptOf(await bob.sync({ since: aliceSince }), room, id), undefined);
    });
  });

  it('serves what is in the specification by the names before it', async () => {
    const room = await sharedRoom();
    await alice.post(path`/unstable/org.matrix.msc4151/rooms/${room}/report`, { reason: 'r' });
    await alice.post(path`/unstable/org.matrix.msc4260/users/${bob.userId}/report`, { reason: 'r' });
    await refused(
      alice.put(path`/unstable/uk.timedout.msc4323/admin/lock/${bob.userId}`, { locked: true }),
      403,
      'M_FORBIDDEN',
    );
    const summary = await alice.get(path`/unstable/im.nheko.summary/summary/${room}`);
    assert.equal(summary.room_id, room);
    const mutual = await alice.get('/unstable/uk.half-shot.msc2666/user/mutual_rooms', {
      user_id: bob.userId,
    });
    assert.ok(mutual.joined.includes(room));
    const id = await alice.sendText(room, 'x');
    await alice.send(room, 'm.room.redaction', { redacts: id });
    assert.ok((await alice.event(room, id)).unsigned.redacted_because);
  });
});

describe('limits for group chats', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({
      name: 'limits',
      config: {
        limits: {
          room_members: 2,
          rooms_joined: 4,
          rooms_created: 2,
          invites_per_day: 3,
          info_uri: 'https://example.org/limits',
        },
        rooms: { forget_on_leave: true },
        received_receipts: { by_default: true },
      },
    });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  it('refuse members beyond the size of a room', async () => {
    const carol = await server.register('carol');
    const room = await alice.createRoom();
    await bob.join(room);
    const { body } = await refused(carol.join(room), 403, 'M_FORBIDDEN');
    assert.match(body.error, /full/);
    await refused(alice.invite(room, carol.userId), 403, 'M_FORBIDDEN');
    // Whoever is in may come again, and when somebody leaves there is room.
    await bob.join(room);
    await bob.leave(room);
    await carol.join(room);
    await carol.leave(room);
    await alice.leave(room);
  });

  it('refuse members from other servers too, whose sticky events come as all others', async () => {
    const other = await startServer({ name: 'elsewhere' });
    try {
      const zoe = await other.register('zoe');
      const room = await alice.createRoom();
      await bob.join(room);
      await refused(zoe.join(room, server.serverName), 403, 'M_FORBIDDEN');
      await bob.leave(room);
      await zoe.join(room, server.serverName);
      const filter = { room: { timeline: { not_types: ['org.example.call'] } } };
      const target = path`/v3/rooms/${room}/send/org.example.call/t`;
      await zoe.api('PUT', target, {}, { query: { 'org.matrix.msc4354.sticky_duration_ms': 60_000 } });
      const [event] = await alice.syncUntil(
        'the sticky event',
        (sync) => sync.rooms?.join?.[room]?.msc4354_sticky?.events,
        { filter },
      );
      assert.equal(event.sender, zoe.userId);
      await alice.leave(room);
    } finally {
      await other.close();
    }
  });

  it('refuse rooms beyond what a user may create or be in', async () => {
    const dave = await server.register('dave');
    const [first] = [await dave.createRoom(), await dave.createRoom()];
    const { body } = await refused(dave.createRoom(), 403, 'M_USER_LIMIT_EXCEEDED');
    assert.equal(body.info_uri, 'https://example.org/limits');
    await dave.leave(first);
    await dave.createRoom();
    const erin = await server.register('erin');
    const frank = await server.register('frank');
    const others = [await erin.createRoom(), await erin.createRoom(), await frank.createRoom()];
    await dave.join(others[0]!);
    await dave.join(others[1]!);
    await refused(dave.join(others[2]!), 403, 'M_USER_LIMIT_EXCEEDED');
  });

  it('refuse invites beyond those of a day', async () => {
    const grace = await server.register('grace');
    const room = await grace.createRoom();
    for (const name of ['one', 'two', 'three'])
      await grace.invite(room, `@${name}:${server.serverName}`).catch(() => {});
    const { body } = await refused(grace.invite(room, bob.userId), 429, 'M_LIMIT_EXCEEDED');
    assert.ok(body.retry_after_ms > 3_600_000);
  });

  it('come with rooms that are forgotten when they are left, if so configured (MSC4267)', async () => {
    const { capabilities } = await bob.get('/v3/capabilities');
    assert.deepEqual(capabilities['m.forget_forced_upon_leave'], { enabled: true });
    const heidi = await server.register('heidi');
    const room = await heidi.createRoom();
    const { next_batch: since } = await heidi.sync();
    await heidi.leave(room);
    const filter = { room: { include_leave: true } };
    await eventually('it to be forgotten', async () => !(await heidi.sync({ filter })).rooms?.leave?.[room]);
    assert.ok((await heidi.sync({ since })).rooms.leave[room]);
  });

  it('leave receipts to those who do not want to give them', async () => {
    const ivan = await server.register('ivan');
    const judy = await server.register('judy');
    const room = await ivan.createRoom();
    await judy.join(room);
    await judy.put(path`/v3/user/${judy.userId}/account_data/org.trellis.received_receipts`, {
      enabled: false,
    });
    const { next_batch: ivanSince } = await ivan.sync();
    let { next_batch: since } = await judy.sync();
    for (let i = 0; i < 3; i++) ({ next_batch: since } = await judy.sync({ since }));
    await ivan.sendText(room, 'hello');
    for (let i = 0; i < 3; i++) ({ next_batch: since } = await judy.sync({ since }));
    await new Promise((wake) => setTimeout(wake, 1_500));
    const { rooms } = await ivan.sync({ since: ivanSince });
    assert.deepEqual(rooms.join[room].ephemeral.events, []);
  });
});
