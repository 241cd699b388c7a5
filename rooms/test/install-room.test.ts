import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { Pdu } from '@trellis/protocol/event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { authChain } from '../auth-chain.ts';
import { installRoom } from '../install-room.ts';
import { storeOutOfBand } from '../out-of-band.ts';
import { sendEvent } from '../send.ts';
import { forgetUnjoined, roomOfVersion } from '../unjoined-room.ts';
import { ForeignRoom, type TestEngine, testEngine, testVerifier } from './engine.ts';

const ALICE = '@alice:here';
const FOUNDER = '@founder:far';

let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

function install(room: ForeignRoom, changed: { state?: Pdu[]; authChain?: Pdu[]; userId?: string } = {}) {
  const userId = changed.userId ?? ALICE;
  const join = room.build(userId, 'm.room.member', userId, { membership: 'join' });
  return installRoom(engine.rooms, testVerifier, {
    server: 'far',
    join,
    state: changed.state ?? room.statePdus,
    authChain: changed.authChain ?? room.chainPdus,
  });
}

for (const version of ['1', '6', '10', '12'])
  test(`a room of version ${version} is put together`, async () => {
    const far = new ForeignRoom(FOUNDER, version);
    far.add(FOUNDER, 'm.room.name', '', { name: 'Far away' });
    const join = await install(far);
    const room = await engine.rooms.require(far.roomId);
    assert.ok(room.isResident && room.isJoined(ALICE) && room.isJoined(FOUNDER));
    assert.deepEqual(room.extremities, [join.eventId]);
    const state = [...room.state.entries()].map(([, { eventId }]) => eventId);
    assert.deepEqual(
      new Set(state),
      new Set([...far.state.values()].map(({ eventId }) => eventId).concat(join.eventId)),
    );
    const gaps = await engine.db.query('SELECT event_id FROM backward_extremities WHERE room = $1', [
      room.nid,
    ]);
    assert.deepEqual(gaps, [{ event_id: join.prevEvents[0] }]);
    // What is read again from the database is the same, and the room goes on from there.
    engine.rooms.drop(room);
    const again = await engine.rooms.require(far.roomId);
    assert.deepEqual(new Set([...again.state.entries()].map(([, { eventId }]) => eventId)), new Set(state));
    const sent = await sendEvent(engine.rooms, far.roomId, {
      type: 'm.room.message',
      sender: ALICE,
      content: {},
    });
    assert.deepEqual(sent.prevEvents, [join.eventId]);
    assert.equal(sent.depth, join.depth + 1);
  });

test('a join and what authorises it are stored together or not at all', async (t) => {
  const far = new ForeignRoom(FOUNDER);
  const { writer, events } = engine.rooms.parts;
  const ids = far.statePdus.map((_pdu, i) => [...far.state.values()][i]!.eventId);
  const write = t.mock.method(writer, 'write', () => Promise.reject(new Error('the disk is full')));
  await assert.rejects(install(far), /the disk is full/);
  assert.equal(write.mock.callCount(), 1);
  write.mock.restore();
  assert.equal((await events.nidsOf(ids)).size, 0);
  for (const id of ids) assert.equal(events.cached(id), undefined);
  assert.equal((await engine.rooms.require(far.roomId)).isResident, false);
  const calls = t.mock.method(writer, 'write');
  await install(far);
  assert.equal(calls.mock.callCount(), 1);
  assert.equal((await events.nidsOf(ids)).size, ids.length);
});

test('2,000 members, some of them badly signed, are stored in bulk', async () => {
  const far = new ForeignRoom(FOUNDER);
  for (let i = 0; i < 2000; i++) {
    const userId = `@user${i}:server${i % 40}`;
    far.add(userId, 'm.room.member', userId, { membership: 'join', displayname: `User ${i}` });
  }
  const bad = new Set<string>();
  const spoil = (pdu: Pdu): Pdu => {
    const { state_key: userId } = pdu;
    if (!/^@user\d*7:/.test(userId as string)) return pdu;
    bad.add(userId as string);
    return { ...pdu, signatures: { elsewhere: { 'ed25519:test': 'AAAA' } } };
  };
  const statements = countStatements();
  const started = performance.now();
  await install(far, { state: far.statePdus.map(spoil), authChain: far.chainPdus.slice(0, 4) });
  const took = performance.now() - started;
  const room = await engine.rooms.require(far.roomId);
  assert.equal(bad.size, 200);
  assert.equal(room.count('join'), 2 + 1800);
  for (const userId of bad) assert.equal(room.member(userId), undefined);
  assert.ok(statements() < 60, `${statements()} statements`);
  assert.ok(took < 10_000, `${took} ms`);
  // The index of auth chains holds them all.
  const member = room.state.get('m.room.member', '@user100:server20')!;
  const chain = await authChain(engine.db, engine.rooms.parts.events, [member.eventId]);
  assert.equal(chain.length, 4);
});

test('state is left out when nothing allows it', async () => {
  const far = new ForeignRoom(FOUNDER);
  far.add('@mallory:evil', 'm.room.name', '', { name: 'Mine now' });
  far.add('@orphan:far', 'm.room.member', '@orphan:far', { membership: 'join' });
  const orphaned = far.add('@orphan:far', 'm.room.member', '@orphan:far', { membership: 'leave' });
  const chain = far.chainPdus.filter((pdu) => pdu.state_key !== '@orphan:far');
  assert.equal(orphaned.authEvents.length, 3);
  await install(far, { authChain: chain });
  const room = await engine.rooms.require(far.roomId);
  assert.equal(room.state.get('m.room.name', ''), undefined);
  assert.equal(room.member('@orphan:far'), undefined);
});

test('an answer that can not be right is refused as a whole', async () => {
  const refused = (promise: Promise<unknown>) =>
    assert.rejects(promise, (error) => error instanceof MatrixError && error.status === 502);
  const far = new ForeignRoom(FOUNDER);
  const without = (type: string) => (pdu: Pdu) => pdu.type !== type;
  await refused(install(far, { state: [], authChain: [] }));
  await refused(install(far, { state: far.statePdus.filter(without('m.room.create')) }));
  const powerless = new ForeignRoom(FOUNDER);
  await refused(
    install(powerless, {
      state: powerless.statePdus.filter(without('m.room.power_levels')),
      authChain: powerless.chainPdus.filter(without('m.room.power_levels')),
    }),
  );
  await refused(
    install(far, { state: [...far.statePdus, far.build(FOUNDER, 'm.room.join_rules', '', {}).pdu] }),
  );
  const banned = new ForeignRoom(FOUNDER);
  const join = banned.build(ALICE, 'm.room.member', ALICE, { membership: 'join' });
  banned.add(FOUNDER, 'm.room.member', ALICE, { membership: 'ban' });
  await refused(
    installRoom(engine.rooms, testVerifier, {
      server: 'far',
      join,
      state: banned.statePdus,
      authChain: banned.chainPdus,
    }),
  );
  const elsewhere = new ForeignRoom(FOUNDER);
  await refused(
    installRoom(engine.rooms, testVerifier, {
      server: 'far',
      join: far.build(ALICE, 'm.room.member', ALICE, { membership: 'join' }),
      state: elsewhere.statePdus,
      authChain: elsewhere.chainPdus,
    }),
  );
  assert.notEqual((await engine.rooms.get(far.roomId))?.isResident, true);
});

test('coming back replaces what was known of the earlier stay', async () => {
  const far = new ForeignRoom(FOUNDER);
  far.add('@stays:far', 'm.room.member', '@stays:far', { membership: 'join' });
  far.add('@goes:far', 'm.room.member', '@goes:far', { membership: 'join' });
  far.keep(await install(far));
  await engine.membership().leave(far.roomId, ALICE);
  const left = await engine.rooms.require(far.roomId);
  assert.equal(left.isResident, false);
  far.add('@goes:far', 'm.room.member', '@goes:far', { membership: 'leave' });
  far.add('@comes:far', 'm.room.member', '@comes:far', { membership: 'join' });
  far.add(FOUNDER, 'm.room.topic', '', { topic: 'later' });
  far.keep(far.build(ALICE, 'm.room.member', ALICE, { membership: 'leave' }));
  const join = await install(far);
  const room = await engine.rooms.require(far.roomId);
  assert.ok(room.isResident);
  assert.deepEqual(room.extremities, [join.eventId]);
  assert.deepEqual(
    ['@stays:far', '@goes:far', '@comes:far', ALICE].map((userId) => room.membership(userId)),
    ['join', 'leave', 'join', 'join'],
  );
  engine.rooms.drop(room);
  const again = await engine.rooms.require(far.roomId);
  assert.deepEqual(
    [...again.members()].map(([userId, { membership }]) => [userId, membership]).sort(),
    [...room.members()].map(([userId, { membership }]) => [userId, membership]).sort(),
  );
  assert.ok(again.state.get('m.room.topic', ''));
});

test('an invite that the room knows nothing of is gone, a wrong version of the room gives way', async () => {
  const far = new ForeignRoom(FOUNDER, '10');
  const invite = far.build(FOUNDER, 'm.room.member', '@bob:here', { membership: 'invite' });
  await storeOutOfBand(engine.rooms, { ...invite, version: new ForeignRoom(FOUNDER, '9').version }, null);
  assert.equal((await engine.rooms.require(far.roomId)).membership('@bob:here'), 'invite');
  await install(far);
  const room = await engine.rooms.require(far.roomId);
  assert.equal(room.version.id, '10');
  assert.equal(room.membership('@bob:here'), undefined);
  assert.equal((await engine.memberships.of('@bob:here')).get(far.roomId), undefined);
});

/** Statements that reach the database from now on. */
function countStatements(): () => number {
  let count = 0;
  const counted = new WeakSet<object>();
  engine.db.pool.on('acquire', (client) => {
    if (counted.has(client)) return;
    counted.add(client);
    const query = client.query.bind(client) as (...args: unknown[]) => unknown;
    client.query = ((...args: unknown[]) => {
      count++;
      return query(...args);
    }) as typeof client.query;
  });
  return () => count;
}

test('of a room that could not be joined nothing is left, but of one that is known for something else', async () => {
  const version = roomVersion('11')!;
  const rows = () => engine.db.query('SELECT 1 FROM rooms WHERE room_id = $1', ['!refused:far']);
  await roomOfVersion(engine.rooms, '!refused:far', version);
  assert.equal((await rows()).length, 1);
  await forgetUnjoined(engine.rooms, '!refused:far');
  assert.equal((await rows()).length, 0);
  assert.equal(await engine.rooms.get('!refused:far'), undefined);
  await forgetUnjoined(engine.rooms, '!never-heard-of:far');

  const joined = new ForeignRoom(FOUNDER, '11');
  await install(joined);
  await forgetUnjoined(engine.rooms, joined.roomId);
  assert.ok((await engine.rooms.get(joined.roomId))?.isJoined(ALICE));

  const invited = await roomOfVersion(engine.rooms, '!invited:far', version);
  await engine.db.query(
    `INSERT INTO room_members (user_id, room, membership, event_id, sender, pos) VALUES ($1, $2, 'invite', '$i', $3, 1)`,
    [ALICE, invited.nid, FOUNDER],
  );
  await forgetUnjoined(engine.rooms, '!invited:far');
  assert.ok(await engine.rooms.get('!invited:far'));
});
