import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

const PATH = '/unstable/event_relationships';

describe('threads as trees (MSC2836)', () => {
  let one: TestServer;
  let two: TestServer;
  let alice: Client;
  let room: string;
  const ids: Record<string, string> = {};
  before(async () => {
    [one, two] = await Promise.all([startServer({ name: 'one' }), startServer({ name: 'two' })]);
    alice = await one.register('alice');
    room = await alice.createRoom({ preset: 'public_chat' });
    // A ─ B ─ C, D; C ─ E
    for (const [name, parent] of ['A-', 'BA', 'CB', 'DB', 'EC'] as unknown as Array<[string, string]>)
      ids[name] = await say(name, ids[parent]);
  });
  after(() => Promise.all([one?.close(), two?.close()]));

  const say = (body: string, parent?: string): Promise<string> =>
    alice.send(room, 'm.room.message', {
      msgtype: 'm.text',
      body,
      ...(parent && { 'm.relationship': { rel_type: 'm.reference', event_id: parent } }),
    });
  const ask = async (client: Client, event: string, query: Json = {}) =>
    client.api('POST', PATH, { event_id: ids[event], recent_first: false, ...query });
  const names = ({ events }: Json) => events.map(({ content }: Json) => content.body).join('');
  const hashOf = (children: string) =>
    createHash('sha256')
      .update(
        [...children]
          .map((name) => ids[name]!)
          .sort()
          .join(''),
      )
      .digest('base64')
      .replaceAll('=', '');

  it('is advertised', async () => {
    const { unstable_features } = await alice.get('/versions');
    assert.equal(unstable_features['org.matrix.msc2836'], true);
  });

  it('shows a thread from any of its events', async () => {
    assert.equal(names(await ask(alice, 'A')), 'ABCDE');
    assert.equal(names(await ask(alice, 'A', { recent_first: true })), 'ABDCE');
    assert.equal(names(await ask(alice, 'A', { depth_first: true })), 'ABCED');
    assert.equal(names(await ask(alice, 'E', { direction: 'up' })), 'ECBA');
    const part = await ask(alice, 'A', { limit: 2 });
    assert.equal(names(part), 'AB');
    assert.equal(part.limited, true);
  });

  it('counts the children of each event', async () => {
    const { events } = await ask(alice, 'B', { max_depth: 1 });
    assert.deepEqual(events[0].unsigned.children, { 'm.reference': 2 });
    assert.equal(events[0].unsigned.children_hash, hashOf('CD'));
    assert.equal(events[2].unsigned.children, undefined);
  });

  it('fetches what it is missing from the servers of the room', async () => {
    const bob = await two.register('bob');
    await refused(ask(bob, 'B', { room_id: room }), 404, 'M_NOT_FOUND');
    await bob.join(room, one.serverName);
    const first = await ask(bob, 'B', { room_id: room, max_depth: 0, include_parent: true });
    assert.equal(names(first), 'BA');
    assert.equal(first.events[0].unsigned.children_hash, hashOf('CD'));
    const whole = await ask(bob, 'A');
    assert.equal(names(whole), 'ABCDE');
    assert.equal(whole.events[1].unsigned.children_hash, hashOf('CD'));
  });

  it('shows nothing to who may not see the event', async () => {
    const eve = await one.register('eve');
    await refused(ask(eve, 'A'), 404, 'M_NOT_FOUND');
    await refused(eve.api('POST', PATH, { event_id: '$nothing', room_id: room }), 404, 'M_NOT_FOUND');
    await refused(alice.api('POST', PATH, {}), 400);
    await refused(ask(alice, 'A', { direction: 'sideways' }), 400);
  });

  it('refuses a place in the thread of an unknown event', async () => {
    await refused(say('orphan', '$unknown'), 400, 'M_UNKNOWN');
  });

  it('keeps the tree when one of its events is redacted', async () => {
    await alice.api('PUT', path`/v3/rooms/${room}/redact/${ids.C!}/txn`, {});
    const { events } = await ask(alice, 'E', { direction: 'up' });
    assert.deepEqual(
      events.map(({ event_id }: Json) => event_id),
      [ids.E, ids.C, ids.B, ids.A],
    );
  });
});
