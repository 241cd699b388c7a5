import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('search', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  const ids: string[] = [];
  before(async () => {
    server = await startServer({ name: 'search' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom({ preset: 'private_chat', name: 'Kitchen' });
    for (const body of ['warm bread', 'cold milk', 'bread and butter', '今日は良い天気です', 'bread again'])
      ids.push(await alice.sendText(room, body));
  });
  after(() => server.close());

  const search = async (who: Client, criteria: Json, query: Json = {}): Promise<Json> => {
    const body = { search_categories: { room_events: criteria } };
    return (await who.api('POST', '/v3/search', body, { query })).search_categories.room_events;
  };
  const found = ({ results }: Json) => results.map(({ result }: Json) => result.event_id);

  it('finds words, the latest first if so wanted', async () => {
    const all = await search(alice, { search_term: 'bread', order_by: 'recent' });
    assert.deepEqual(found(all), [ids[4], ids[2], ids[0]]);
    assert.equal(all.count, 3);
    assert.ok(all.highlights.includes('bread'));
    assert.deepEqual(found(await search(alice, { search_term: '天気' })), [ids[3]]);
    const cities = await alice.sendText(room, '我喜欢北京大学');
    assert.deepEqual(found(await search(alice, { search_term: '京大' })), [cities]);
    const school = await alice.sendText(room, 'ผมไปโรงเรียนทุกวัน');
    assert.deepEqual(found(await search(alice, { search_term: 'เรียน' })), [school]);
    assert.deepEqual(
      found(await search(alice, { search_term: 'kitchen', keys: ['content.name'] })).length,
      1,
    );
  });

  it('shows what was said before and after, and by whom', async () => {
    const { results } = await search(alice, {
      search_term: 'milk',
      event_context: { before_limit: 1, after_limit: 1, include_profile: true },
    });
    const { context } = results[0];
    assert.deepEqual([context.events_before[0].event_id, context.events_after[0].event_id], [ids[0], ids[2]]);
    assert.ok(context.profile_info[alice.userId]);
    assert.ok(context.start && context.end);
  });

  it('goes on page by page, and by groups', async () => {
    const criteria = {
      search_term: 'bread',
      order_by: 'recent',
      filter: { limit: 2 },
      include_state: true,
      groupings: { group_by: [{ key: 'room_id' }, { key: 'sender' }] },
    };
    const first = await search(alice, criteria);
    assert.deepEqual(found(first), [ids[4], ids[2]]);
    assert.ok(first.state[room].some((e: Json) => e.type === 'm.room.create'));
    assert.deepEqual(first.groups.room_id[room].results, [ids[4], ids[2]]);
    assert.ok(first.groups.sender[alice.userId]);
    const second = await search(alice, criteria, { next_batch: first.next_batch });
    assert.deepEqual(found(second), [ids[0]]);
  });

  it('finds nothing in rooms of others, and takes no nonsense', async () => {
    const none = await search(bob, { search_term: 'bread' });
    assert.deepEqual([none.results, none.count], [[], 0]);
    assert.deepEqual(
      found(await search(alice, { search_term: 'bread', filter: { senders: [bob.userId] } })),
      [],
    );
    await refused(search(alice, {}), 400);
    await refused(search(alice, { search_term: 'bread', order_by: 'luck' }), 400);
  });
});
