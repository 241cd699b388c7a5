import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { startServer, type TestServer } from './harness/server.ts';

const types = (events: Json[]) => events.map((event) => event.type);
const bodies = (room: Json) => room.timeline.events.map((event: Json) => event.content.body).filter(Boolean);
const ofType = (events: Json[], type: string) => events.filter((event) => event.type === type);

describe('rooms in a sync', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    server = await startServer({ name: 'sync-rooms' });
    alice = await server.register('alice');
    bob = await server.register('bob');
  });
  after(() => server.close());

  const joinedBy = async (client: Client, options: Json = { preset: 'public_chat' }) => {
    const room = await alice.createRoom(options);
    await client.join(room);
    return room;
  };

  describe('state', () => {
    it('that the filter keeps out of the timeline is told beside it', async () => {
      const room = await joinedBy(bob);
      const { next_batch: since } = await bob.sync();
      await alice.setState(room, 'm.room.topic', { topic: 'filtered' });
      await alice.sendText(room, 'shown');
      await alice.setState(room, 'm.room.name', { name: 'filtered too' });
      const filter = { room: { timeline: { types: ['m.room.message'] } } };
      const { timeline, state } = (await bob.sync({ since, filter })).rooms.join[room];
      assert.deepEqual(types(timeline.events), ['m.room.message']);
      assert.equal(timeline.limited, false);
      assert.deepEqual(types(state.events).sort(), ['m.room.name', 'm.room.topic']);
      const first = (await bob.sync({ filter })).rooms.join[room];
      assert.equal(ofType(first.state.events, 'm.room.name')[0].content.name, 'filtered too');
    });

    it('is whole where no timeline is wanted', async () => {
      const room = await joinedBy(bob, { preset: 'public_chat', name: 'No timeline' });
      const filter = { room: { timeline: { limit: 0 } } };
      const first = await bob.sync({ filter });
      assert.deepEqual(first.rooms.join[room].timeline.events, []);
      assert.ok(types(first.rooms.join[room].state.events).includes('m.room.name'));
      await alice.setState(room, 'm.room.name', { name: 'Renamed' });
      await alice.sendText(room, 'unseen');
      const next = (await bob.sync({ filter, since: first.next_batch })).rooms.join[room];
      assert.deepEqual(next.timeline.events, []);
      assert.equal(next.timeline.limited, true);
      assert.deepEqual(
        next.state.events.map((event: Json) => event.content.name),
        ['Renamed'],
      );
    });

    it('after a gap is what changed, as it was before the timeline', async () => {
      const room = await joinedBy(bob);
      await alice.setState(room, 'org.example.kept', { n: 0 });
      const { next_batch: since } = await bob.sync();
      await alice.setState(room, 'm.room.name', { name: 'one' });
      await alice.setState(room, 'm.room.name', { name: 'two' });
      await alice.sendText(room, 'a');
      await alice.setState(room, 'm.room.name', { name: 'three' });
      const filter = { room: { timeline: { limit: 2 } } };
      const { timeline, state } = (await bob.sync({ since, filter })).rooms.join[room];
      assert.deepEqual(types(timeline.events), ['m.room.message', 'm.room.name']);
      assert.deepEqual(
        state.events.map((event: Json) => event.content),
        [{ name: 'two' }],
      );
    });
  });

  describe('that the user left', () => {
    const includeLeave = { room: { include_leave: true } };

    it('show nothing but the end of an invite', async () => {
      const room = await alice.createRoom({
        preset: 'private_chat',
        invite: [bob.userId],
        initial_state: [
          { type: 'm.room.history_visibility', state_key: '', content: { history_visibility: 'joined' } },
          { type: 'org.example.secret', state_key: '', content: { body: 'for members' } },
        ],
      });
      await bob.seesRoom('invite', room);
      await alice.setState(room, 'org.example.secret', { body: 'for members too' });
      await bob.leave(room);
      for (const left of [
        await bob.seesRoom('leave', room),
        (await bob.sync({ filter: includeLeave })).rooms.leave[room],
      ]) {
        assert.equal(left.timeline.events.at(-1).content.membership, 'leave');
        assert.equal(left.timeline.events.at(-1).state_key, bob.userId);
        assert.ok(!JSON.stringify(left).includes('for members'), JSON.stringify(left));
      }
    });

    it('show a ban to who was never there, and no more', async () => {
      const room = await alice.createRoom({ preset: 'public_chat', name: 'Never seen' });
      const { next_batch: since } = await bob.sync();
      await alice.post(path`/v3/rooms/${room}/ban`, { user_id: bob.userId });
      const left = (await bob.sync({ since, timeout: 5_000 })).rooms.leave[room];
      assert.deepEqual([types(left.timeline.events), left.state.events], [['m.room.member'], []]);
      assert.equal(left.timeline.events[0].content.membership, 'ban');
    });

    it('come whole when they were joined and left in between', async () => {
      const room = await alice.createRoom({ preset: 'public_chat', name: 'Short stay' });
      const { next_batch: since } = await bob.sync();
      await bob.join(room);
      await bob.leave(room);
      await alice.setState(room, 'm.room.name', { name: 'Behind his back' });
      const left = (await bob.sync({ since })).rooms.leave[room];
      const all = [...left.state.events, ...left.timeline.events];
      assert.deepEqual(
        ofType(all, 'm.room.name').map((event) => event.content.name),
        ['Short stay'],
      );
      assert.equal(all.at(-1).content.membership, 'leave');
    });

    it('end with the leave in the state where no timeline is wanted', async () => {
      const room = await joinedBy(bob, { preset: 'public_chat', name: 'Before' });
      await bob.leave(room);
      await alice.setState(room, 'm.room.name', { name: 'After' });
      const filter = { room: { include_leave: true, timeline: { limit: 0 } } };
      const { state } = (await bob.sync({ filter })).rooms.leave[room];
      const own = state.events.filter((event: Json) => event.state_key === bob.userId);
      assert.deepEqual(
        own.map((event: Json) => event.content.membership),
        ['leave'],
      );
      assert.equal(ofType(state.events, 'm.room.name')[0].content.name, 'Before');
    });

    it('show a later invite that was refused without what happened meanwhile', async () => {
      const room = await joinedBy(bob, { preset: 'public_chat' });
      await bob.leave(room);
      const { next_batch: since } = await bob.sync();
      await alice.setState(room, 'm.room.name', { name: 'Meanwhile' });
      await alice.invite(room, bob.userId);
      await bob.leave(room);
      const left = (await bob.sync({ since })).rooms.leave[room];
      assert.ok(!JSON.stringify(left).includes('Meanwhile'));
      assert.equal(left.timeline.events.at(-1).content.membership, 'leave');
    });

    it('are told of though they were forgotten at once, to those who had them', async () => {
      const room = await joinedBy(bob);
      const { next_batch: since } = await bob.sync();
      await bob.leave(room);
      await bob.post(path`/v3/rooms/${room}/forget`);
      assert.ok((await bob.sync({ since })).rooms.leave[room]);
      assert.ok(!(await bob.sync({ filter: includeLeave })).rooms?.leave?.[room]);
    });
  });

  it('come whole when they were left and joined again in between', async () => {
    const room = await joinedBy(bob, { preset: 'public_chat', name: 'Again' });
    const { next_batch: since } = await bob.sync();
    await bob.leave(room);
    await alice.setState(room, 'm.room.topic', { topic: 'while away' });
    await bob.join(room);
    const { rooms } = await bob.sync({ since });
    const joined = rooms.join[room];
    assert.ok(!rooms.leave?.[room]);
    const all = types([...joined.state.events, ...joined.timeline.events]);
    for (const type of ['m.room.create', 'm.room.name', 'm.room.topic']) assert.ok(all.includes(type), type);
  });

  it('are a new timeline when they are joined, unless they show their beginning', async () => {
    const room = await alice.createRoom();
    const { next_batch: since } = await bob.sync();
    for (let i = 0; i < 12; i++) await alice.sendText(room, `${i}`);
    await bob.join(room);
    assert.equal((await bob.sync({ since })).rooms.join[room].timeline.limited, true);
    const { next_batch: before } = await alice.sync();
    const own = await alice.createRoom();
    assert.equal((await alice.sync({ since: before })).rooms.join[own].timeline.limited, false);
  });

  it('bring the tags that were set before they were joined', async () => {
    const room = await alice.createRoom({ preset: 'private_chat', invite: [bob.userId] });
    await bob.put(path`/v3/user/${bob.userId}/rooms/${room}/tags/u.invited`, {});
    const { next_batch: since } = await bob.sync();
    await bob.join(room);
    const { account_data } = (await bob.sync({ since })).rooms.join[room];
    assert.ok('u.invited' in ofType(account_data.events, 'm.tag')[0].content.tags);
  });

  it('bring the presence of those who come', async () => {
    const room = await alice.createRoom();
    const carol = await server.register();
    await carol.sync({ setPresence: 'online' });
    const { next_batch: since } = await alice.sync();
    const { next_batch: carols } = await carol.sync();
    await carol.join(room);
    const present = (sync: Json) => (sync.presence?.events ?? []).map((event: Json) => event.sender);
    assert.ok(present(await alice.sync({ since, timeout: 5_000 })).includes(carol.userId));
    assert.ok(present(await carol.sync({ since: carols, timeout: 5_000 })).includes(alice.userId));
  });

  describe('summaries', () => {
    it('change with the members, whatever the filter shows of them', async () => {
      const room = await alice.createRoom();
      const filter = { room: { timeline: { types: ['m.room.message'] }, state: { types: [] } } };
      const { next_batch: since } = await alice.sync({ filter });
      await bob.join(room);
      const { summary } = (await alice.sync({ since, filter, timeout: 5_000 })).rooms.join[room];
      assert.equal(summary['m.joined_member_count'], 2);
    });

    it('come with the member events of the heroes', async () => {
      const room = await joinedBy(bob);
      for (let i = 0; i < 3; i++) await alice.sendText(room, `${i}`);
      const filter = { room: { timeline: { limit: 1 }, state: { lazy_load_members: true } } };
      const joined = (await alice.sync({ filter })).rooms.join[room];
      assert.deepEqual(joined.summary['m.heroes'], [bob.userId]);
      assert.ok(joined.state.events.some((event: Json) => event.state_key === bob.userId));
    });
  });

  it('do not show for receipts that the filter leaves out, but for one’s own', async () => {
    const room = await joinedBy(bob);
    const event = await alice.sendText(room, 'read me');
    const filter = { room: { ephemeral: { not_types: ['m.receipt'] } } };
    const { next_batch: since } = await bob.sync({ filter });
    await alice.post(path`/v3/rooms/${room}/receipt/m.read/${event}`);
    const quiet = await bob.sync({ since, filter, timeout: 300 });
    assert.ok(!quiet.rooms?.join?.[room], JSON.stringify(quiet.rooms));
    await bob.post(path`/v3/rooms/${room}/receipt/m.read/${event}`);
    const counts = (await bob.sync({ since: quiet.next_batch, filter, timeout: 5_000 })).rooms.join[room];
    assert.equal(counts.unread_notifications.notification_count, 0);
    assert.deepEqual(counts.ephemeral.events, []);
  });

  it('hide what ignored users say, not what they set, nor whom they invite', async () => {
    const dora = await server.register();
    const room = await joinedBy(dora, {
      preset: 'public_chat',
      power_level_content_override: { state_default: 0 },
    });
    const { next_batch: since } = await bob.sync();
    await bob.join(room);
    await bob.put(path`/v3/user/${bob.userId}/account_data/m.ignored_user_list`, {
      ignored_users: { [dora.userId]: {} },
    });
    await dora.sendText(room, 'unheard');
    await dora.setState(room, 'm.room.topic', { topic: 'heard' });
    await dora.createRoom({ preset: 'private_chat', invite: [bob.userId] });
    const { rooms } = await bob.sync({ since });
    assert.ok(!bodies(rooms.join[room]).includes('unheard'));
    assert.ok(types(rooms.join[room].timeline.events).includes('m.room.topic'));
    assert.equal(rooms.invite, undefined);
    await bob.put(path`/v3/user/${bob.userId}/account_data/m.ignored_user_list`, { ignored_users: {} });
  });

  it('show events as servers send them when that is asked for', async () => {
    const room = await alice.createRoom();
    const filter = { event_format: 'federation', room: { rooms: [room] } };
    const { timeline } = (await alice.sync({ filter })).rooms.join[room];
    const event = timeline.events.at(-1);
    for (const member of ['event_id', 'prev_events', 'auth_events', 'hashes', 'signatures', 'unsigned'])
      assert.ok(member in event, member);
  });

  it('are the same after a token from the future', async () => {
    const room = await joinedBy(bob);
    const { next_batch } = await bob.sync();
    const since = next_batch.replace(/^s\d+/, 's99999999');
    const sync = await bob.sync({ since });
    assert.ok(!sync.rooms?.join?.[room]);
    await alice.sendText(room, 'present');
    assert.deepEqual(bodies((await bob.sync({ since: sync.next_batch, timeout: 5_000 })).rooms.join[room]), [
      'present',
    ]);
  });

  it('hold back device messages beyond a limit for the next sync', async () => {
    const { next_batch: since } = await bob.sync();
    const messages = { [bob.userId]: { [bob.deviceId]: { body: 'one of many' } } };
    for (let i = 0; i < 15; i++)
      await Promise.all(
        Array.from({ length: 10 }, (_, n) =>
          alice.put(path`/v3/sendToDevice/org.example/${`t${i}-${n}`}`, { messages }),
        ),
      );
    const first = await bob.sync({ since });
    assert.equal(first.to_device.events.length, 100);
    const second = await bob.sync({ since: first.next_batch });
    assert.equal(second.to_device.events.length, 50);
  });
});
