import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('sync', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'sync' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());
  const bodies = (room: Json) => room.timeline.events.map((e: Json) => e.content.body).filter(Boolean);
  const types = (events: Json[]) => events.map((e) => e.type);

  it('starts with the state and the latest events of each room', async () => {
    const room = await alice.createRoom({ preset: 'public_chat', name: 'The room' });
    await alice.sendText(room, 'one');
    const carol = await server.register();
    await carol.join(room);
    const first = await carol.sync();
    const { timeline, state } = first.rooms.join[room];
    assert.deepEqual(bodies({ timeline }), ['one']);
    assert.equal(
      types([...state.events, ...timeline.events]).filter((type) => type === 'm.room.name').length,
      1,
    );
    assert.ok(typeof first.next_batch === 'string' && typeof timeline.prev_batch === 'string');
    // Nothing has happened since, so nothing is shown.
    const second = await carol.sync({ since: first.next_batch });
    assert.ok(!second.rooms?.join?.[room], JSON.stringify(second.rooms));
  });

  it('shows state in the timeline or in the state, not in both', async () => {
    const room = await alice.createRoom({ preset: 'public_chat' });
    for (let i = 0; i < 5; i++) await alice.setState(room, 'org.example', { i });
    const { timeline, state } = (await alice.sync({ filter: { room: { timeline: { limit: 2 } } } })).rooms
      .join[room];
    assert.equal(timeline.limited, true);
    assert.deepEqual(
      timeline.events.map((e: Json) => e.content.i),
      [3, 4],
    );
    // The state is that before the timeline.
    assert.deepEqual(
      state.events.filter((e: Json) => e.type === 'org.example').map((e: Json) => e.content.i),
      [2],
    );
  });

  it('wakes a waiting client at once', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.seesRoom('join', room);
    // That Bob is there may come first.
    const waiting = bob.syncUntil('the message', (sync) => sync.rooms?.join?.[room]);
    await new Promise((wake) => setTimeout(wake, 100));
    const from = Date.now();
    await alice.sendText(room, 'wake up');
    assert.deepEqual(bodies(await waiting), ['wake up']);
    assert.ok(Date.now() - from < 2_000);
  });

  it('answers an empty sync when the time is up, not before', async () => {
    const dora = await server.register();
    const { next_batch } = await dora.sync();
    // What a login changes by itself may come down first.
    const { next_batch: since } = await dora.sync({ since: next_batch, timeout: 50 });
    const from = Date.now();
    const answer = await dora.sync({ since, timeout: 400 });
    assert.ok(Date.now() - from >= 390, `${Date.now() - from} ms`);
    assert.ok(!answer.rooms?.join || Object.keys(answer.rooms.join).length === 0);
  });

  it('shows each event once over a row of syncs while others send', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.syncUntil('the room', (s) => s.rooms?.join?.[room]);
    const sent: string[] = [];
    const sending = (async () => {
      for (let i = 0; i < 60; i++) sent.push(await alice.sendText(room, `m${i}`));
    })();
    const seen: string[] = [];
    await bob.syncUntil(
      'the last message',
      (sync) => {
        const joined = sync.rooms?.join?.[room];
        if (!joined) return false;
        assert.ok(!joined.timeline.limited);
        seen.push(...bodies(joined));
        return seen.at(-1) === 'm59';
      },
      { filter: { room: { timeline: { limit: 100 } } } },
    );
    await sending;
    assert.deepEqual(
      seen,
      Array.from({ length: 60 }, (_, i) => `m${i}`),
    );
  });

  it('limits the timeline after a gap and says where to go on', async () => {
    const room = await alice.createRoom();
    const { next_batch: since } = await alice.sync();
    await alice.setState(room, 'm.room.name', { name: 'In the gap' });
    for (let i = 0; i < 15; i++) await alice.sendText(room, `gap ${i}`);
    const joined = (await alice.sync({ since, filter: { room: { timeline: { limit: 5 } } } })).rooms.join[
      room
    ];
    assert.equal(joined.timeline.limited, true);
    assert.deepEqual(bodies(joined), ['gap 10', 'gap 11', 'gap 12', 'gap 13', 'gap 14']);
    assert.ok(
      joined.state.events.some((e: Json) => e.type === 'm.room.name'),
      'state that changed in the gap',
    );
    const before = await alice.get(path`/v3/rooms/${room}/messages`, {
      dir: 'b',
      from: joined.timeline.prev_batch,
      limit: 11,
    });
    assert.deepEqual(
      before.chunk.slice(0, 10).map((e: Json) => e.content.body),
      Array.from({ length: 10 }, (_, i) => `gap ${9 - i}`),
    );
    assert.equal(before.chunk[10].type, 'm.room.name');
  });

  it('shows a room joined since then with its whole state', async () => {
    const room = await alice.createRoom({ preset: 'public_chat', name: 'Joined later' });
    const erin = await server.register();
    const { next_batch: since } = await erin.sync();
    await erin.join(room);
    const joined = (await erin.sync({ since, timeout: 5_000 })).rooms.join[room];
    const all = [...joined.state.events, ...joined.timeline.events];
    for (const type of ['m.room.create', 'm.room.name', 'm.room.power_levels'])
      assert.ok(types(all).includes(type), type);
    assert.ok(all.some((e) => e.state_key === alice.userId));
  });

  it('shows a room that was left once, up to the leave', async () => {
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.seesRoom('join', room);
    await bob.leave(room);
    await alice.sendText(room, 'behind his back');
    const left = await bob.seesRoom('leave', room);
    assert.equal(left.timeline.events.at(-1).content.membership, 'leave');
    assert.ok(!JSON.stringify(left).includes('behind his back'));
    assert.ok(!(await bob.sync({ since: bob.since })).rooms?.leave?.[room]);
    assert.ok(!(await bob.sync()).rooms?.leave?.[room], 'left rooms are out of an initial sync');
    const with_left = await bob.sync({ filter: { room: { include_leave: true } } });
    assert.ok(with_left.rooms.leave[room]);
  });

  it('gives the full state when asked for it', async () => {
    const room = await alice.createRoom({ name: 'Full' });
    const { next_batch: since } = await alice.sync();
    const full = (await alice.sync({ since, fullState: true })).rooms.join[room];
    assert.ok(types(full.state.events).includes('m.room.name'));
  });

  it('refuses a token that it did not make', async () => {
    for (const since of ['nonsense', '-1', 's999999999999999999', '💥'])
      await refused(alice.sync({ since }), 400);
    await refused(alice.get('/v3/sync', { timeout: 'soon' }), 400);
    await refused(alice.sync({ filter: 'no such filter' }), 400);
  });

  describe('state_after', () => {
    it('gives the state after the timeline', async () => {
      const room = await alice.createRoom();
      const { next_batch: since } = await alice.sync();
      await alice.setState(room, 'm.room.name', { name: 'After' });
      await alice.sendText(room, 'x');
      const sync = await alice.get('/v3/sync', { since, use_state_after: true });
      const joined = sync.rooms.join[room];
      assert.ok(!joined.state && joined.state_after.events.some((e: Json) => e.type === 'm.room.name'));
    });
  });

  describe('filters', () => {
    it('are kept for the user and come back as they were', async () => {
      const target = path`/v3/user/${alice.userId}/filter`;
      const filter = { room: { timeline: { limit: 3, types: ['m.room.message'] } } };
      const { filter_id } = await alice.post(target, filter);
      assert.deepEqual(await alice.get(`${target}/${filter_id}`), filter);
      await refused(alice.get(`${target}/999999`), 404, 'M_NOT_FOUND');
      await refused(bob.get(`${target}/${filter_id}`), 403, 'M_FORBIDDEN');
      await refused(bob.post(target, filter), 403, 'M_FORBIDDEN');
      await refused(alice.post(target, { room: { timeline: { limit: 'many' } } }), 400);
      const room = await alice.createRoom();
      for (let i = 0; i < 4; i++) await alice.sendText(room, `f${i}`);
      const joined = (await alice.sync({ filter: filter_id })).rooms.join[room];
      assert.deepEqual(bodies(joined), ['f1', 'f2', 'f3']);
    });

    it('choose rooms, types and senders', async () => {
      const room = await alice.createRoom();
      const other = await alice.createRoom();
      await bob.join(room);
      await bob.sendText(room, 'from bob');
      await alice.sendText(room, 'from alice');
      await alice.send(room, 'org.example.other', { body: 'other' });
      const only = async (filter: Json) => (await alice.sync({ filter: { room: filter } })).rooms.join;
      assert.deepEqual(Object.keys(await only({ rooms: [room] })), [room]);
      assert.ok(!(other in (await only({ not_rooms: [other] }))));
      const timeline = async (filter: Json) =>
        bodies((await only({ rooms: [room], timeline: filter }))[room]);
      assert.deepEqual(await timeline({ types: ['m.room.message'] }), ['from bob', 'from alice']);
      assert.deepEqual(await timeline({ types: ['org.example.*'] }), ['other']);
      assert.deepEqual(await timeline({ types: ['m.*', 'org.*'], not_types: ['m.room.*'] }), ['other']);
      assert.deepEqual(await timeline({ senders: [bob.userId] }), ['from bob']);
      assert.deepEqual(await timeline({ not_senders: [alice.userId] }), ['from bob']);
    });

    it('load members lazily: those who speak, and the one who asks', async () => {
      const room = await alice.createRoom({ preset: 'public_chat', name: 'Lazy' });
      await bob.join(room);
      const carol = await server.register();
      await carol.join(room);
      for (let i = 0; i < 3; i++) await bob.sendText(room, `lazy ${i}`);
      const filter = { room: { rooms: [room], timeline: { limit: 2 }, state: { lazy_load_members: true } } };
      const members = (sync: Json) =>
        sync.rooms.join[room].state.events
          .filter((e: Json) => e.type === 'm.room.member')
          .map((e: Json) => e.state_key)
          .sort();
      const first = await alice.sync({ filter });
      assert.deepEqual(members(first), [alice.userId, bob.userId].sort());
      assert.equal(first.rooms.join[room].summary['m.joined_member_count'], 3);
      await carol.sendText(room, 'me too');
      const second = await alice.sync({ filter, since: first.next_batch, timeout: 5_000 });
      assert.deepEqual(members(second), [carol.userId]);
    });
  });

  it('has a summary for rooms without a name', async () => {
    const room = await alice.createRoom({ preset: 'private_chat', invite: [bob.userId] });
    const { summary } = (await alice.sync()).rooms.join[room];
    assert.deepEqual(
      [summary['m.heroes'], summary['m.joined_member_count'], summary['m.invited_member_count']],
      [[bob.userId], 1, 1],
    );
  });

  it('shows only rooms and events of the user', async () => {
    const secret = await alice.createRoom({ preset: 'private_chat', name: 'Only mine' });
    const sync = JSON.stringify(await bob.sync({ fullState: true }));
    assert.ok(!sync.includes(secret));
  });
});
