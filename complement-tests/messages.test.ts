import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('room history', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  const ids: string[] = [];
  before(async () => {
    server = await startServer({ name: 'messages' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom();
    for (let i = 0; i < 25; i++) ids.push(await alice.sendText(room, `m${i}`));
  });
  after(() => server.close());
  const messages = (who: Client, query: Json, of = room) => who.get(path`/v3/rooms/${of}/messages`, query);
  const bodies = (events: Json[]) => events.map((e) => e.content.body).filter(Boolean);

  it('goes back page by page to the beginning, and forward to the end', async () => {
    for (const dir of ['b', 'f']) {
      const all: Json[] = [];
      let from: string | undefined;
      for (let pages = 0; ; pages++) {
        const page: Json = await messages(alice, { dir, from, limit: 7 });
        assert.ok(page.chunk.length <= 7);
        all.push(...page.chunk);
        from = page.end;
        if (from === undefined || page.chunk.length === 0) break;
        assert.ok(pages < 20);
      }
      const expected = Array.from({ length: 25 }, (_, i) => `m${i}`);
      assert.deepEqual(bodies(all), dir === 'f' ? expected : expected.reverse());
      assert.equal((dir === 'f' ? all[0] : all.at(-1)).type, 'm.room.create');
      assert.equal(new Set(all.map((e) => e.event_id)).size, all.length);
    }
  });

  it('turns round without losing or repeating an event', async () => {
    const back = await messages(alice, { dir: 'b', limit: 10 });
    const forth = await messages(alice, { dir: 'f', from: back.end, limit: 10 });
    assert.deepEqual(
      forth.chunk.map((e: Json) => e.event_id),
      back.chunk.map((e: Json) => e.event_id).reverse(),
    );
  });

  it('stops at the end that it is given', async () => {
    const first = await messages(alice, { dir: 'b', limit: 5 });
    const second = await messages(alice, { dir: 'b', from: first.end, limit: 5 });
    const between = await messages(alice, { dir: 'b', from: first.end, to: second.end, limit: 50 });
    assert.deepEqual(
      between.chunk.map((e: Json) => e.event_id),
      second.chunk.map((e: Json) => e.event_id),
    );
  });

  it('filters', async () => {
    const page = await messages(alice, {
      dir: 'b',
      limit: 50,
      filter: JSON.stringify({ types: ['m.room.create'] }),
    });
    assert.deepEqual(
      page.chunk.map((e: Json) => e.type),
      ['m.room.create'],
    );
    const lazy = await messages(alice, {
      dir: 'b',
      limit: 3,
      filter: JSON.stringify({ lazy_load_members: true }),
    });
    assert.deepEqual(
      lazy.state.map((e: Json) => e.state_key),
      [alice.userId],
    );
  });

  it('finds the event of a time', async () => {
    const find = (ts: number, dir: string) =>
      alice.get(path`/v1/rooms/${room}/timestamp_to_event`, { ts, dir });
    const { origin_server_ts: sent } = await alice.event(room, ids[24]!);
    const last = await find(Date.now() + 60_000, 'b');
    assert.deepEqual([last.event_id, last.origin_server_ts], [ids[24], sent]);
    const { event_id } = await find(0, 'f');
    assert.equal((await alice.event(room, event_id)).type, 'm.room.create');
    await refused(find(Date.now() + 60_000, 'f'), 404, 'M_NOT_FOUND');
    await refused(find(0, 'up'), 400);
    await refused(bob.get(path`/v1/rooms/${room}/timestamp_to_event`, { ts: 0, dir: 'f' }), 403);
  });

  it('refuses directions and tokens that do not exist', async () => {
    await refused(messages(alice, { dir: 'up' }), 400);
    await refused(messages(alice, {}), 400);
    await refused(messages(alice, { dir: 'b', from: 'nonsense' }), 400);
    await refused(messages(alice, { dir: 'b', limit: 'ten' }), 400);
    await refused(messages(bob, { dir: 'b' }), 403, 'M_FORBIDDEN');
  });

  it('shows what is round an event', async () => {
    const context = await alice.get(path`/v3/rooms/${room}/context/${ids[12]!}`, { limit: 4 });
    assert.equal(context.event.event_id, ids[12]);
    assert.deepEqual(bodies(context.events_before), ['m11', 'm10']);
    assert.deepEqual(bodies(context.events_after), ['m13', 'm14']);
    assert.ok(context.state.some((e: Json) => e.type === 'm.room.create'));
    const before = await messages(alice, { dir: 'b', from: context.start, limit: 1 });
    assert.deepEqual(bodies(before.chunk), ['m9']);
    const after_ = await messages(alice, { dir: 'f', from: context.end, limit: 1 });
    assert.deepEqual(bodies(after_.chunk), ['m15']);
    await refused(bob.get(path`/v3/rooms/${room}/context/${ids[12]!}`), 404);
  });

  describe('visibility', () => {
    const make = async (visibility: string) => {
      const made = await alice.createRoom({
        preset: 'public_chat',
        initial_state: [{ type: 'm.room.history_visibility', content: { history_visibility: visibility } }],
      });
      const before = await alice.sendText(made, 'before');
      await alice.invite(made, bob.userId);
      await alice.sendText(made, 'invited');
      await bob.join(made);
      await alice.sendText(made, 'joined');
      return { made, before };
    };
    for (const [visibility, expected] of [
      ['joined', ['joined']],
      ['invited', ['invited', 'joined']],
      ['shared', ['before', 'invited', 'joined']],
      ['world_readable', ['before', 'invited', 'joined']],
    ] as const) {
      it(`"${visibility}" shows a member ${expected.join(', ')}`, async () => {
        const { made, before } = await make(visibility);
        const seen = await messages(bob, { dir: 'f', limit: 100 }, made);
        assert.deepEqual(bodies(seen.chunk), expected);
        const sync = (await bob.sync()).rooms.join[made];
        assert.deepEqual(bodies(sync.timeline.events), expected);
        if (visibility === 'shared') await bob.event(made, before);
        else if (visibility !== 'world_readable') await refused(bob.event(made, before), 404);
        await bob.leave(made);
        await alice.sendText(made, 'left');
        if (visibility !== 'world_readable') {
          const later = await messages(bob, { dir: 'b', limit: 100 }, made);
          assert.ok(!bodies(later.chunk).includes('left'));
        }
        const stranger = await server.register();
        const peek = messages(stranger, { dir: 'b', limit: 100 }, made);
        if (visibility === 'world_readable') assert.equal(bodies((await peek).chunk)[0], 'left');
        else await refused(peek, 403, 'M_FORBIDDEN');
      });
    }
  });
});
