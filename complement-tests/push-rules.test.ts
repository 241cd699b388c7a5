import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, startServer, type TestServer } from './harness/server.ts';

describe('push rules and unread counts', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'push-rules' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  it('start with the predefined rules', async () => {
    const { global } = await alice.get('/v3/pushrules/');
    assert.deepEqual(await alice.get('/v3/pushrules/global/'), global);
    for (const kind of ['override', 'content', 'room', 'sender', 'underride'])
      assert.ok(Array.isArray(global[kind]), kind);
    const ids = (kind: string) => global[kind].map((rule: Json) => rule.rule_id);
    assert.equal(ids('override')[0], '.m.rule.master');
    for (const id of [
      '.m.rule.suppress_notices',
      '.m.rule.invite_for_me',
      '.m.rule.is_user_mention',
      '.m.rule.reaction',
    ])
      assert.ok(ids('override').includes(id), id);
    assert.deepEqual(ids('underride').slice(0, 5), [
      '.m.rule.call',
      '.m.rule.encrypted_room_one_to_one',
      '.m.rule.room_one_to_one',
      '.m.rule.message',
      '.m.rule.encrypted',
    ]);
  });

  it('can be made, put in order, changed and taken away', async () => {
    const rule = (id: string) => `/v3/pushrules/global/content/${encodeURIComponent(id)}`;
    const { global } = await alice.get('/v3/pushrules/');
    const before = global.content.length;
    await alice.put(rule('cake'), { pattern: 'cake', actions: ['notify'] });
    await alice.api('PUT', rule('tea'), { pattern: 'tea', actions: [] }, { query: { after: 'cake' } });
    await alice.api('PUT', rule('milk'), { pattern: 'milk', actions: [] }, { query: { before: 'tea' } });
    const content = (await alice.get('/v3/pushrules/')).global.content;
    assert.equal(content.length, before + 3);
    const own = content.filter((r: Json) => !r.default).map((r: Json) => r.rule_id);
    assert.deepEqual(own, ['cake', 'milk', 'tea']);
    await alice.put(`${rule('cake')}/enabled`, { enabled: false });
    assert.equal((await alice.get(rule('cake'))).enabled, false);
    assert.deepEqual(await alice.get(`${rule('cake')}/enabled`), { enabled: false });
    await alice.put(`${rule('cake')}/actions`, { actions: ['notify', { set_tweak: 'highlight' }] });
    assert.deepEqual((await alice.get(`${rule('cake')}/actions`)).actions, [
      'notify',
      { set_tweak: 'highlight' },
    ]);
    await alice.delete(rule('cake'));
    await refused(alice.get(rule('cake')), 404, 'M_NOT_FOUND');
  });

  it('come down the sync when they change', async () => {
    await alice.syncUntil('now', () => true);
    await alice.put('/v3/pushrules/global/override/.m.rule.suppress_notices/enabled', { enabled: false });
    await alice.syncUntil('the rules', (s) =>
      s.account_data?.events?.some((e: Json) => e.type === 'm.push_rules'),
    );
  });

  it('refuse what makes no sense', async () => {
    const put = (target: string, body: Json) => alice.put(`/v3/pushrules/global/${target}`, body);
    await refused(put('nonsense/x', { actions: [] }), 400);
    await refused(put('content/x', { actions: ['notify'] }), 400);
    await refused(put('content/.m.rule.mine', { pattern: 'x', actions: [] }), 400);
    await refused(put('override/x', { actions: [{ set_tweak: 7 }], conditions: [] }), 400);
    await refused(alice.delete('/v3/pushrules/global/override/.m.rule.master'), 400);
    await refused(
      alice.put('/v3/pushrules/global/override/unknown/enabled', { enabled: true }),
      404,
      'M_NOT_FOUND',
    );
    await refused(alice.get('/v3/pushrules/global/override/unknown'), 404, 'M_NOT_FOUND');
  });

  describe('count what is unread', () => {
    const counts = async (room: string) => {
      const { unread_notifications: n } = (await bob.sync()).rooms.join[room];
      return [n.notification_count, n.highlight_count];
    };

    it('messages, and mentions among them, until they are read', async () => {
      const room = await alice.createRoom();
      await bob.join(room);
      assert.deepEqual(await counts(room), [0, 0]);
      await alice.sendText(room, 'one');
      await alice.sendText(room, 'two');
      const last = await alice.send(room, 'm.room.message', {
        msgtype: 'm.text',
        body: 'three',
        'm.mentions': { user_ids: [bob.userId] },
      });
      assert.deepEqual(await counts(room), [3, 1]);
      await bob.post(path`/v3/rooms/${room}/receipt/m.read/${last}`);
      assert.deepEqual(await counts(room), [0, 0]);
      await alice.send(room, 'm.room.message', { msgtype: 'm.notice', body: 'a bot says' });
      await alice.send(room, 'm.reaction', {
        'm.relates_to': { rel_type: 'm.annotation', event_id: last, key: '👍' },
      });
      await alice.sendText(room, 'four');
      const expected = (await bob.get('/v3/pushrules/global/override/.m.rule.suppress_notices')).enabled
        ? 1
        : 2;
      assert.deepEqual(await counts(room), [expected, 0]);
    });

    it('by thread, when the client asks for that', async () => {
      const room = await alice.createRoom();
      await bob.join(room);
      const text = (body: string, root?: string) =>
        alice.send(room, 'm.room.message', {
          msgtype: 'm.text',
          body,
          ...(root && { 'm.relates_to': { rel_type: 'm.thread', event_id: root } }),
        });
      const byThread = async () => {
        const filter = { room: { rooms: [room], timeline: { unread_thread_notifications: true } } };
        const joined = (await bob.sync({ filter })).rooms.join[room];
        const threads = joined.unread_thread_notifications;
        return [joined.unread_notifications.notification_count, threads?.[root]?.notification_count];
      };
      const read = (eventId: string, thread_id?: string) =>
        bob.post(path`/v3/rooms/${room}/receipt/m.read/${eventId}`, { thread_id });
      const root = await text('root');
      const first = await text('first', root);
      const last = await text('last', root);
      assert.deepEqual(await counts(room), [3, 0]);
      assert.deepEqual(await byThread(), [1, 2]);
      await refused(read(first, 'main'), 400, 'M_INVALID_PARAM');
      await read(first, root);
      assert.deepEqual(await byThread(), [1, 1]);
      await read(root);
      assert.deepEqual(await byThread(), [0, 1]);
      await read(last, root);
      assert.deepEqual(await byThread(), [0, undefined]);
    });

    it('not in a room that is muted', async () => {
      const room = await alice.createRoom();
      await bob.join(room);
      await bob.put(path`/v3/pushrules/global/room/${room}`, { actions: [] });
      await alice.sendText(room, 'hush');
      assert.deepEqual(await counts(room), [0, 0]);
    });
  });

  it('list what was notified', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    const id = await alice.sendText(room, 'for the list');
    const { notifications } = await bob.get('/v3/notifications', { limit: 5 });
    assert.equal(notifications[0].event.event_id, id);
    assert.equal(notifications[0].read, false);
  });

  it('hold for the room that takes the place of another', async () => {
    const old = await alice.createRoom();
    await bob.join(old);
    await bob.put(path`/v3/pushrules/global/room/${old}`, { actions: [] });
    await bob.put(path`/v3/user/${bob.userId}/rooms/${old}/tags/m.favourite`, {});
    const creation_content = { predecessor: { room_id: old } };
    const room = await alice.createRoom({ preset: 'public_chat', creation_content });
    await bob.join(room);
    const rule = await eventually('the rule', () =>
      bob.get(path`/v3/pushrules/global/room/${room}`).catch(() => undefined),
    );
    assert.deepEqual(rule.actions, []);
    const tags = await eventually('the tag', async () => {
      const { tags } = await bob.get(path`/v3/user/${bob.userId}/rooms/${room}/tags`);
      return tags['m.favourite'] && tags;
    });
    assert.deepEqual(tags, { 'm.favourite': {} });
  });

  it('set pushers, which go with their device', async () => {
    const pusher = {
      pushkey: 'key',
      kind: 'http',
      app_id: 'org.example.app',
      app_display_name: 'App',
      device_display_name: 'Phone',
      lang: 'en',
      data: { url: 'https://push.example.org/_matrix/push/v1/notify', format: 'event_id_only' },
    };
    const phone = await login(server.url, 'alice');
    await phone.post('/v3/pushers/set', pusher);
    const { pushers } = await alice.get('/v3/pushers');
    assert.equal(pushers.length, 1);
    // Besides, there may be fields of later versions.
    assert.partialDeepStrictEqual(pushers[0], pusher);
    await refused(phone.post('/v3/pushers/set', { ...pusher, lang: undefined }), 400, 'M_MISSING_PARAM');
    await phone.post('/v3/logout');
    assert.deepEqual((await alice.get('/v3/pushers')).pushers, []);
  });
});
