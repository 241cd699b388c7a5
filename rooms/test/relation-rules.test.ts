import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { checkRelation } from '../relation-rules.ts';
import { sendEvent } from '../send.ts';
import { type TestEngine, testEngine } from './engine.ts';

const alice = '@alice:here';
const bob = '@bob:here';
let engine: TestEngine;
before(async () => {
  engine = await testEngine('here');
});
after(() => engine.close());

const draft = (sender: string, content: JsonObject, type = 'm.room.message') => ({ type, sender, content });
const relation = (rel_type: string, event_id: string, more = {}) => ({
  'm.relates_to': { rel_type, event_id, ...more },
});

test('no thread starts from an event that relates to another', async () => {
  const roomId = await engine.createRoom(alice);
  const room = await engine.rooms.require(roomId);
  const root = await sendEvent(engine.rooms, roomId, draft(alice, { body: 'root' }));
  const child = await sendEvent(engine.rooms, roomId, draft(alice, relation('m.thread', root.eventId)));
  const check = (target: string) =>
    checkRelation(engine.rooms, room, draft(alice, relation('m.thread', target)));
  await check(root.eventId);
  await check('$not-here');
  await assert.rejects(check(child.eventId), { status: 400, errcode: 'M_UNKNOWN' });
});

test('nobody annotates an event twice in the same way, unless the first is redacted', async () => {
  const roomId = await engine.createRoom(alice);
  const room = await engine.rooms.require(roomId);
  const { eventId } = await sendEvent(engine.rooms, roomId, draft(alice, { body: 'root' }));
  const reaction = (sender: string, key: string, type = 'm.reaction') =>
    draft(sender, relation('m.annotation', eventId, { key }), type);
  const first = await sendEvent(engine.rooms, roomId, reaction(alice, 'A'));
  await assert.rejects(checkRelation(engine.rooms, room, reaction(alice, 'A')), {
    status: 400,
    errcode: 'M_DUPLICATE_ANNOTATION',
  });
  for (const other of [reaction(alice, 'B'), reaction(bob, 'A'), reaction(alice, 'A', 'org.example.other')])
    await checkRelation(engine.rooms, room, other);
  await sendEvent(engine.rooms, roomId, {
    ...draft(alice, {}, 'm.room.redaction'),
    redacts: first.eventId,
  });
  await checkRelation(engine.rooms, room, reaction(alice, 'A'));
});
