import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { testEngine } from '@trellis/rooms/test/engine.ts';
import { Stream } from '@trellis/storage/streams.ts';
import { Presence } from '@trellis/users/presence.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { Typing } from '@trellis/users/typing.ts';
import { ephemeralEduHandlers } from '../inbound/ephemeral-edus.ts';

const ALICE = '@alice:here.test';
const BOB = '@bob:there.test';

describe('typing, receipts and presence of other servers', async () => {
  const engine = await testEngine('here.test');
  const { db, rooms, memberships } = engine;
  const receipts = new Receipts({ db, stream: new Stream('receipts', 0) });
  const typing = new Typing(new Stream('typing', 0));
  const presence = new Presence({ db, stream: new Stream('presence', 0), enabled: true });
  let isAllowed = true;
  const handlers = ephemeralEduHandlers({
    rooms,
    memberships,
    receipts,
    typing,
    presence,
    isServerAllowed: async () => isAllowed,
  });
  const handle = (type: string, origin: string, content: object) =>
    handlers.get(type)!(origin, content as JsonObject);
  let roomId: string;
  let eventId: string;
  before(async () => {
    roomId = await engine.createRoom(ALICE);
    ({ eventId } = await sendEvent(rooms, roomId, { type: 'm.room.message', sender: ALICE, content: {} }));
    // Stands in for a join by federation, which is not what is tested.
    rooms.peek(roomId)!.setMember(BOB, { membership: 'join', eventId: '$join', sender: BOB, pos: 1 });
    await db.query(
      `INSERT INTO room_members (user_id, room, membership, event_id, sender, pos) VALUES ($1, $2, 'join', '$join', $1, 1)`,
      [BOB, rooms.peek(roomId)!.nid],
    );
  });
  after(async () => {
    typing.close();
    await engine.close();
  });

  it('are taken of users who are in the room', async () => {
    await handle('m.typing', 'there.test', { room_id: roomId, user_id: BOB, typing: true });
    assert.deepEqual(typing.in(roomId), [BOB]);
    await handle('m.typing', 'there.test', { room_id: roomId, user_id: BOB, typing: false });
    assert.deepEqual(typing.in(roomId), []);
    const data = { ts: 7, thread_id: 'main' };
    await handle('m.receipt', 'there.test', {
      [roomId]: { 'm.read': { [BOB]: { event_ids: [eventId], data } } },
    });
    assert.deepEqual(await receipts.contentFor(roomId, ALICE, undefined, 100), {
      [eventId]: { 'm.read': { [BOB]: data } },
    });
    const update = { user_id: BOB, presence: 'online', last_active_ago: 10, status_msg: 'hi' };
    await handle('m.presence', 'there.test', { push: [update] });
    const state = await presence.get(BOB);
    assert.deepEqual([state?.presence, state?.statusMsg, state?.currentlyActive], ['online', 'hi', false]);
  });

  it('are dropped when the server may not speak for the user, or of the room', async () => {
    const position = () => receipts.contentFor(roomId, ALICE, undefined, 100);
    const before = await position();
    const receipt = { event_ids: [eventId], data: { ts: 9 } };
    const attempts: Array<[string, string, object]> = [
      ['m.typing', 'evil.test', { room_id: roomId, user_id: BOB, typing: true }],
      ['m.typing', 'there.test', { room_id: roomId, user_id: ALICE, typing: true }],
      ['m.typing', 'there.test', { room_id: roomId, user_id: '@carol:there.test', typing: true }],
      ['m.typing', 'there.test', { room_id: '!unknown:there.test', user_id: BOB, typing: true }],
      ['m.typing', 'there.test', { room_id: roomId, user_id: BOB, typing: 'yes' }],
      ['m.receipt', 'evil.test', { [roomId]: { 'm.read': { [BOB]: receipt } } }],
      ['m.receipt', 'there.test', { [roomId]: { 'm.read': { [ALICE]: receipt } } }],
      ['m.receipt', 'there.test', { [roomId]: { 'm.read.private': { [BOB]: receipt } } }],
      ['m.receipt', 'there.test', { [roomId]: { 'm.read': { [BOB]: { event_ids: 'x', data: {} } } } }],
      ['m.receipt', 'there.test', { [roomId]: { 'm.read': { [BOB]: { ...receipt, data: { ts: 'x' } } } } }],
      ['m.receipt', 'there.test', { [roomId]: { 'm.read': [] }, x: null }],
      ['m.presence', 'evil.test', { push: [{ user_id: BOB, presence: 'offline' }] }],
      ['m.presence', 'there.test', { push: [{ user_id: '@carol:there.test', presence: 'online' }, null, 1] }],
      ['m.presence', 'there.test', { push: [{ user_id: BOB, presence: 'asleep' }] }],
      ['m.presence', 'there.test', {}],
    ];
    for (const [type, origin, content] of attempts) await handle(type, origin, content);
    assert.deepEqual(typing.in(roomId), []);
    assert.deepEqual(await position(), before);
    assert.equal((await presence.get(BOB))?.presence, 'online');
    assert.equal(await presence.get('@carol:there.test'), undefined);
    isAllowed = false;
    await handle('m.typing', 'there.test', { room_id: roomId, user_id: BOB, typing: true });
    assert.deepEqual(typing.in(roomId), []);
  });
});
