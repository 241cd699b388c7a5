import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, startServer, type TestServer } from './harness/server.ts';

describe('account data and tags', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  before(async () => {
    server = await startServer({ name: 'account-data' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom();
  });
  after(() => server.close());
  const global = (type: string, who = alice) => path`/v3/user/${who.userId}/account_data/${type}`;
  const ofRoom = (type: string, who = alice) =>
    path`/v3/user/${who.userId}/rooms/${room}/account_data/${type}`;

  it('keeps data for the account, and shows it to its other devices', async () => {
    const other = await login(server.url, 'alice');
    await other.syncUntil('now', () => true);
    const content = { theme: 'dark', list: [1, null, 'é\u0000'] };
    await alice.put(global('org.example.settings'), content);
    assert.deepEqual(await alice.get(global('org.example.settings')), content);
    const event = await other.syncUntil('the data', (s) =>
      s.account_data?.events?.find((e: Json) => e.type === 'org.example.settings'),
    );
    assert.deepEqual(event.content, content);
    const { account_data } = await alice.sync();
    assert.ok(account_data.events.some((e: Json) => e.type === 'org.example.settings'));
    assert.ok(account_data.events.some((e: Json) => e.type === 'm.push_rules'));
  });

  it('keeps data for a room', async () => {
    await alice.put(ofRoom('org.example.room'), { pinned: true });
    assert.deepEqual(await alice.get(ofRoom('org.example.room')), { pinned: true });
    const events = (await alice.sync()).rooms.join[room].account_data.events;
    assert.ok(events.some((e: Json) => e.type === 'org.example.room' && e.content.pinned));
    await refused(alice.get(global('org.example.room')), 404, 'M_NOT_FOUND');
  });

  it('keeps it from others', async () => {
    await refused(bob.get(global('org.example.settings')), 403, 'M_FORBIDDEN');
    await refused(bob.put(global('org.example.settings'), {}), 403, 'M_FORBIDDEN');
    await refused(bob.get(ofRoom('org.example.room')), 403, 'M_FORBIDDEN');
  });

  it('refuses types that the server keeps itself, and what is not an object', async () => {
    await refused(alice.put(ofRoom('m.fully_read'), { event_id: '$x' }), 405);
    await refused(alice.put(global('m.push_rules'), {}), 405);
    const list = await alice.request('PUT', `/_matrix/client${global('org.example.x')}`, { raw: '[]' });
    assert.equal(list.status, 400);
  });

  it('deletes data (MSC3391)', async () => {
    const deletion = path`/unstable/org.matrix.msc3391/user/${alice.userId}/account_data/org.example.gone`;
    for (const remove of [() => alice.delete(deletion), () => alice.put(global('org.example.gone'), {})]) {
      await alice.put(global('org.example.gone'), { here: true });
      const { next_batch: since } = await alice.sync();
      await remove();
      await refused(alice.get(global('org.example.gone')), 404, 'M_NOT_FOUND');
      const { account_data } = await alice.sync({ since });
      assert.deepEqual(account_data.events, [{ type: 'org.example.gone', content: {} }]);
      const types = (await alice.sync()).account_data.events.map((e: Json) => e.type);
      assert.ok(!types.includes('org.example.gone'));
    }
  });

  it('tags rooms', async () => {
    const tag = (name: string) => path`/v3/user/${alice.userId}/rooms/${room}/tags/${name}`;
    const tags = path`/v3/user/${alice.userId}/rooms/${room}/tags`;
    await alice.put(tag('m.favourite'), { order: 0.25 });
    await alice.put(tag('u.Work ☕'), {});
    assert.deepEqual((await alice.get(tags)).tags, { 'm.favourite': { order: 0.25 }, 'u.Work ☕': {} });
    const events = (await alice.sync()).rooms.join[room].account_data.events;
    assert.equal(events.find((e: Json) => e.type === 'm.tag').content.tags['m.favourite'].order, 0.25);
    await alice.delete(tag('m.favourite'));
    assert.deepEqual(Object.keys((await alice.get(tags)).tags), ['u.Work ☕']);
    await refused(bob.get(tags), 403, 'M_FORBIDDEN');
  });

  it('ignores the messages and invites of ignored users', async () => {
    await bob.join(room);
    await alice.put(global('m.ignored_user_list'), { ignored_users: { [bob.userId]: {} } });
    await alice.syncUntil('now', () => true);
    await bob.sendText(room, 'can you hear me?');
    await alice.sendText(room, 'silence');
    await alice.syncUntil('the own message', (s) => {
      assert.ok(!JSON.stringify(s).includes('can you hear me?'));
      return JSON.stringify(s).includes('silence');
    });
    const hidden = await bob.createRoom({ invite: [alice.userId] });
    assert.ok(!(await alice.sync()).rooms?.invite?.[hidden]);
    await alice.put(global('m.ignored_user_list'), { ignored_users: {} });
  });
});
