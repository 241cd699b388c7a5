import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Filter } from '@trellis/protocol/filters.ts';
import { Notifier, type Positions } from '@trellis/rooms/notifier.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { type TestEngine, testEngine } from '@trellis/rooms/test/engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from '@trellis/rooms/test/remote-graph.ts';
import { Stream, type Streams } from '@trellis/storage/streams.ts';
import { LazyMembers } from '../sync/lazy-members.ts';
import type { SyncSources } from '../sync/sources.ts';
import { answerSync } from '../sync/sync.ts';
import type { SyncRequest } from '../sync/view.ts';

const BOB = '@bob:near';

let engine: TestEngine;
let sources: SyncSources;
before(async () => {
  engine = await testEngine('here');
  sources = quietSources(engine);
});
after(() => engine.close());

/** What a sync reads besides rooms, with nothing in it. */
function quietSources({ rooms, memberships }: TestEngine): SyncSources {
  const names = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'];
  const streams = Object.fromEntries(names.map((name) => [name, new Stream(name, 0)])) as unknown as Streams;
  return {
    rooms,
    memberships,
    notifier: new Notifier(rooms, streams, memberships),
    filter: async () => ({}),
    accountData: async () => [],
    receipts: async () => undefined,
    typing: () => [],
    toDevice: async () => ({ events: [], upTo: 0, more: false }),
    toDeviceReceived: async () => {},
    deviceListChanges: async () => [],
    keyCounts: async () => ({ oneTimeKeys: {}, unusedFallbackTypes: [] }),
    presence: async () => [],
    presenceOf: () => [],
    presenceEnabled: false,
    touchPresence: () => ({ told: undefined, done: () => {} }),
    unread: async () => ({ notify: 0, highlight: 0, threads: new Map() }),
    ignoredUsers: async () => new Set(),
    hidesInvite: async () => false,
  };
}

const lazy = new LazyMembers();

async function sync(
  roomId: string,
  filter: Filter,
  since?: Positions,
  stateAfter: SyncRequest['stateAfter'] = 'state',
) {
  const { json, to } = await answerSync({
    sources,
    userId: ALICE,
    deviceId: 'DEVICE',
    filter: { ...filter, room: { ...filter.room, rooms: [roomId] } },
    lazy,
    stateAfter,
    fullState: false,
    relations: async () => new Map(),
    since,
  });
  const section = JSON.parse(json).rooms?.join?.[roomId];
  const idsOf = (events: Array<{ event_id: string }> = []) => events.map(({ event_id: id }) => id);
  return {
    to,
    limited: section?.timeline.limited,
    timeline: idsOf(section?.timeline.events),
    state: idsOf(section?.[stateAfter].events),
  };
}

async function sharedRoom(name?: string) {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  if (name !== undefined)
    graph.add({ sender: FOUNDER, type: 'm.room.name', stateKey: '', content: { name } });
  const room = await graph.joinFrom(engine);
  return { graph, room, receiver: receiverOf(engine, graph) };
}

const say = (roomId: string, body: string) =>
  sendEvent(engine.rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body } });

test('a first event that forks off an old one does not hide what the room holds by then', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const fork = graph.ends;
  const { to: since } = await sync(room.roomId, {});
  const topic = graph.topic(FOUNDER, 'of the main branch', { prev: fork });
  await receiver.receive('far', topic);
  const late = graph.message(BOB, 'late', { prev: fork });
  await receiver.receive('near', late);
  const latest = { room: { timeline: { limit: 1 } } };
  for (const answer of [await sync(room.roomId, latest, since), await sync(room.roomId, latest)]) {
    assert.deepEqual(answer.timeline, [late.eventId]);
    assert.ok(answer.state.includes(topic.eventId));
  }
});

test('the state at an earlier token is what the room held then', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const fork = graph.ends;
  const topic = graph.topic(FOUNDER, 'known', { prev: fork });
  await receiver.receive('far', topic);
  const { to: since } = await sync(room.roomId, {});
  await receiver.receive('near', graph.message(BOB, 'from before the topic', { prev: fork }));
  for (let i = 0; i < 3; i++) await say(room.roomId, `${i}`);
  const answer = await sync(room.roomId, { room: { timeline: { limit: 1 } } }, since);
  assert.deepEqual([answer.limited, answer.state], [true, []]);
});

test('what state resolution decides without an event of the timeline is told', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const fork = graph.ends;
  const power = { users: { [FOUNDER]: 100, [BOB]: 50 } };
  const levels = { sender: FOUNDER, type: 'm.room.power_levels', stateKey: '', content: power };
  await receiver.receive('far', graph.add({ ...levels, prev: fork }));
  const first = graph.topic(BOB, 'by Bob', { ts: Date.now() + 1000 });
  await receiver.receive('near', first);
  const { to: since } = await sync(room.roomId, {});
  // Another branch, on which Bob is banned: by the rules his topic goes.
  const ban = graph.add({
    sender: FOUNDER,
    type: 'm.room.member',
    stateKey: BOB,
    content: { membership: 'ban' },
    prev: fork,
  });
  const topic = graph.topic(FOUNDER, 'by the founder', { prev: [ban], ts: Date.now() - 1000 });
  // Alice hears of the topic's branch by its end alone, which is no state event.
  const end = graph.message(FOUNDER, 'the end', { prev: [topic] });
  await receiver.receive('far', end);
  const live = await engine.rooms.require(room.roomId);
  assert.equal(live.state.get('m.room.topic', '')?.eventId, topic.eventId);
  const onlyMessages = { room: { timeline: { types: ['m.room.message'] } } };
  const answer = await sync(room.roomId, onlyMessages, since);
  assert.deepEqual(answer.timeline, [end.eventId]);
  assert.deepEqual(answer.state.sort(), [ban.eventId, topic.eventId].sort());
  const stateAfter = await sync(room.roomId, onlyMessages, since, 'state_after');
  assert.deepEqual(stateAfter.state.sort(), [ban.eventId, topic.eventId].sort());
});

test('a gap that cannot be filled ends the timeline, and the state leads over it', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const { to: since } = await sync(room.roomId, {});
  const own = await say(room.roomId, 'before the gap');
  graph.adopt(own);
  const topic = graph.topic(FOUNDER, 'in the gap');
  const first = graph.message(BOB, 'first after the gap');
  const last = graph.message(BOB, 'after the gap');
  graph.lies.missingEvents = async () => [first.pdu];
  await receiver.receive('near', last);
  const answer = await sync(room.roomId, {}, since);
  assert.deepEqual([answer.limited, answer.timeline], [true, [first.eventId, last.eventId]]);
  assert.deepEqual(answer.state, [topic.eventId]);
});

test('events that come late do not take the places of newer ones in a first timeline', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const fork = graph.ends;
  for (let i = 0; i < 2; i++) await say(room.roomId, `${i}`);
  const newest = await say(room.roomId, 'newest');
  const late = graph.topic(FOUNDER, 'late', { prev: fork });
  await receiver.receive('far', late);
  const filter = { room: { timeline: { limit: 1, not_types: ['org.example'] } } };
  const answer = await sync(room.roomId, filter);
  assert.deepEqual(answer.timeline, [newest.eventId]);
  assert.ok(answer.state.includes(late.eventId));
});

test('members are sent again to who may have missed the answer that had them', async () => {
  // Rooms with a name need no heroes.
  const { graph, room, receiver } = await sharedRoom('Named');
  const filter = { room: { timeline: { limit: 1 }, state: { lazy_load_members: true } } };
  const { to: since } = await sync(room.roomId, filter);
  const bob = room.member(BOB)!.eventId;
  await receiver.receive('near', graph.message(BOB, 'hello'));
  const lost = await sync(room.roomId, filter, since);
  assert.deepEqual(lost.state, [bob]);
  const again = await sync(room.roomId, filter, since);
  assert.deepEqual(again.state, [bob]);
  await receiver.receive('near', graph.message(BOB, 'hello again'));
  assert.deepEqual((await sync(room.roomId, filter, again.to)).state, []);
});

test('rooms without news are not told of after a token that is older than what is kept in memory', async () => {
  const { graph, room, receiver } = await sharedRoom();
  const other = await sharedRoom();
  const { to: since } = await sync(room.roomId, {});
  const message = graph.message(BOB, 'news');
  await receiver.receive('near', message);
  sources = quietSources(engine);
  sources.notifier.feed(ALICE);
  assert.deepEqual((await sync(room.roomId, {}, since)).timeline, [message.eventId]);
  assert.equal((await sync(other.room.roomId, {}, since)).limited, undefined);
});
