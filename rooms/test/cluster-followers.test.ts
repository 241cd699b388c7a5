import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { sendEvent } from '../send.ts';
import { type EngineCluster, engineCluster, type ProcessEngine, until } from './cluster-processes.ts';

const ALICE = '@alice:here';
const BOB = '@bob:here';
const CAROL = '@carol:here';
const message = (body: string, sender = ALICE) => ({ type: 'm.room.message', sender, content: { body } });

let processes: EngineCluster;
before(async () => {
  processes = await engineCluster(2);
});
after(() => processes?.close());

/** As `/sync` does: follows the user, then waits until there is something after that. */
async function poll({ notifier }: ProcessEngine, userId: string, timeoutMs = 5000) {
  const positions = notifier.positions();
  await notifier.feed(userId).ready;
  const begun = Date.now();
  await notifier.wait(userId, positions, timeoutMs, new AbortController().signal);
  return { positions, waited: Date.now() - begun };
}

test('who syncs at one process hears of what is sent at another, in a room that is not in its memory', async () => {
  const [first, second] = processes.engines as [ProcessEngine, ProcessEngine];
  const roomId = await first.createRoom(ALICE);
  await second.membership().join(roomId, BOB, []);
  assert.deepEqual(await first.memberships.joined(BOB), [roomId]);
  const room = second.rooms.peek(roomId);
  if (room) second.rooms.drop(room);
  const waiting = poll(second, BOB);
  await second.notifier.feed(BOB).ready;
  await sendEvent(first.rooms, roomId, message('hello'));
  const { positions } = await waiting;
  const feed = second.notifier.feed(BOB);
  assert.ok(feed.covers(positions));
  assert.deepEqual(
    feed.between(positions, second.notifier.positions()).map((entry) => entry.roomId),
    [roomId],
  );
  // Who leaves hears of that, and of nothing after it.
  await first.membership().leave(roomId, BOB);
  const left = second.notifier.positions();
  assert.ok(feed.hasNews(positions));
  await sendEvent(first.rooms, roomId, message('gone'));
  assert.ok(!feed.hasNews(left));
  assert.equal((await second.memberships.of(BOB)).get(roomId)?.membership, 'leave');
});

test('a room that is forgotten at one process is so at all', async () => {
  const [first, second] = processes.engines as [ProcessEngine, ProcessEngine];
  const roomId = await first.createRoom(ALICE);
  await first.membership().join(roomId, BOB, []);
  await first.membership().leave(roomId, BOB);
  await second.memberships.of(BOB);
  await first.memberships.forget(BOB, roomId);
  assert.equal((await second.memberships.of(BOB)).get(roomId)?.forgotten, true);
  await second.membership().join(roomId, BOB, []);
  assert.equal((await first.memberships.of(BOB)).get(roomId)?.forgotten, false);
});

test('erased users and the directory are the same everywhere', async () => {
  const [first, second] = processes.engines as [ProcessEngine, ProcessEngine];
  const roomId = await first.createRoom(ALICE);
  await first.membership().join(roomId, BOB, []);
  const said = await sendEvent(first.rooms, roomId, message('oops', BOB));
  await first.membership().leave(roomId, BOB);
  const known = async ({ rooms, erased }: ProcessEngine) =>
    (await erased.among(await rooms.require(roomId), [said])).has(BOB);
  assert.equal(await known(second), false);
  await first.erased.erase(BOB, first.rooms.parts.stream.current);
  assert.equal(await known(second), true);

  const changed: string[] = [];
  second.aliases.onChanged((id) => changed.push(id));
  await second.rooms.require(roomId);
  await first.aliases.publish(roomId, true);
  assert.equal((await second.rooms.require(roomId)).published, true);
  await first.aliases.set('#there:here', roomId, ALICE, []);
  assert.deepEqual(changed, [roomId]);
});

test('what a process stored and did not tell before it died is found in the database', async () => {
  const [first, second] = processes.engines as [ProcessEngine, ProcessEngine];
  const third = await processes.join();
  const roomId = await first.createRoom(ALICE);
  await first.membership().join(roomId, CAROL, []);
  assert.deepEqual(await second.memberships.joined(CAROL), [roomId]);
  await second.rooms.require(roomId);
  const waiting = poll(second, ALICE, 20_000);
  await second.notifier.feed(ALICE).ready;

  // It never gets to say that it is done.
  third.rooms.parts.stream.complete = () => new Promise(() => {});
  void third.membership().leave(roomId, CAROL);
  await until(async () => {
    const [row] = await second.db.query<{ membership: string }>(
      'SELECT m.membership FROM room_members m JOIN rooms r ON r.nid = m.room WHERE r.room_id = $1 AND user_id = $2',
      [roomId, CAROL],
    );
    return row?.membership === 'leave';
  });
  assert.equal((await second.memberships.of(CAROL)).get(roomId)?.membership, 'join');
  await processes.cluster.kill(third.member);

  const { positions, waited } = await waiting;
  assert.ok(waited < 15_000);
  const feed = second.notifier.feed(ALICE);
  await feed.ready;
  assert.ok(!feed.covers(positions), 'the feed does not claim to know what was missed');
  assert.ok(feed.covers(second.notifier.positions()));
  for (const { memberships, rooms } of [first, second]) {
    assert.equal((await memberships.of(CAROL)).get(roomId)?.membership, 'leave');
    assert.equal((await rooms.require(roomId)).membership(CAROL), 'leave');
  }
});

test('who was told more by another process is answered once this one knows as much', async () => {
  const [first, second] = processes.engines as [ProcessEngine, ProcessEngine];
  const roomId = await first.createRoom(ALICE);
  const { events } = second.notifier.positions();
  let isThere = false;
  const reached = second.notifier.reach({ events: events + 1 }).then(() => {
    isThere = true;
  });
  await second.notifier.reach({ events });
  assert.equal(isThere, false);
  await sendEvent(first.rooms, roomId, message('more'));
  await reached;
  assert.ok(second.notifier.positions().events > events);
});
