import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { withSignature } from '@trellis/protocol/signing.ts';
import { withSignaturesOf } from '../co-signed.ts';
import { eventFromTemplate } from '../member-template.ts';
import { keyOf, testVerifier } from './engine.ts';

const version = roomVersion('10')!;
const ROOM = '!room:far';
const ALICE = '@alice:here';
const signer = { version, key: keyOf('here'), serverName: 'here' };
const wanted = {
  roomId: ROOM,
  userId: ALICE,
  membership: 'join' as const,
  content: { membership: 'join', displayname: 'Alice' },
};
const good: JsonObject = {
  room_id: ROOM,
  type: 'm.room.member',
  sender: ALICE,
  state_key: ALICE,
  content: { membership: 'join' },
  prev_events: ['$previous'],
  auth_events: ['$create', '$power'],
  depth: 7,
};

const make = (changes: JsonObject, server = 'far') =>
  eventFromTemplate({ roomVersion: '10', event: { ...good, ...changes } }, wanted, server, signer);

test('our event takes its place from the template and nothing of what it says', async () => {
  const event = make({
    content: { membership: 'join', displayname: 'Mallory', 'evil.key': true },
    origin_server_ts: 1,
    redacts: '$other',
    unsigned: { age: 1 },
    hashes: { sha256: 'x' },
    signatures: { far: { 'ed25519:1': 'x' } },
    extra: 'more',
  });
  assert.deepEqual(event.prevEvents, ['$previous']);
  assert.deepEqual(event.authEvents, ['$create', '$power']);
  assert.equal(event.depth, 7);
  assert.deepEqual(event.content, { membership: 'join', displayname: 'Alice' });
  assert.deepEqual(Object.keys(event.pdu.signatures as JsonObject), ['here']);
  for (const name of ['redacts', 'unsigned', 'extra']) assert.equal(event.pdu[name], undefined);
  assert.ok(event.originServerTs > 1);
  assert.equal((await testVerifier.verifyEventSignatures([event])).get(event.eventId), undefined);
});

test('a template that asks for another signature than wanted is refused', () => {
  const hostile: Record<string, JsonObject> = {
    'another type': { type: 'm.room.power_levels' },
    'another room': { room_id: '!mine:evil' },
    'another sender': { sender: '@bob:here' },
    'another target': { state_key: '@bob:here' },
    'another membership': { content: { membership: 'leave' } },
    'no content': { content: null },
    'no state key': { state_key: null },
    'our own user to authorise it': {
      content: { membership: 'join', join_authorised_via_users_server: '@admin:here' },
    },
    'a third server to authorise it': {
      content: { membership: 'join', join_authorised_via_users_server: '@admin:third' },
    },
    'an authoriser that is none': {
      content: { membership: 'join', join_authorised_via_users_server: { far: 1 } },
    },
    'no predecessors': { prev_events: [] },
    'predecessors that are no ids': { prev_events: [{ id: '$x' }] },
    'too many auth events': { auth_events: Array.from({ length: 11 }, (_, i) => `$${i}`) },
    'no depth': { depth: null },
    'a depth beyond all': { depth: 2 ** 60 },
    'a depth below none': { depth: -1 },
  };
  for (const [what, changes] of Object.entries(hostile))
    assert.throws(
      () => make(changes),
      (error) => error instanceof MatrixError && error.status === 502,
      what,
    );
});

test("the resident server's own user may authorise a join, in rooms that know of it", () => {
  const content = { membership: 'join', join_authorised_via_users_server: '@admin:far' };
  assert.equal(make({ content }).content.join_authorised_via_users_server, '@admin:far');
  const old = eventFromTemplate({ roomVersion: '7', event: { ...good, content } }, wanted, 'far', {
    ...signer,
    version: roomVersion('7')!,
  });
  assert.equal(old.content.join_authorised_via_users_server, undefined);
});

test('room versions 1 and 2 keep the hashes of the references', () => {
  const event = eventFromTemplate(
    {
      roomVersion: '1',
      event: {
        ...good,
        prev_events: [['$p:far', { sha256: 'aa' }]],
        auth_events: [['$c:far', { sha256: 'bb' }]],
      },
    },
    wanted,
    'far',
    { ...signer, version: roomVersion('1')! },
  );
  assert.deepEqual(event.pdu.prev_events, [['$p:far', { sha256: 'aa' }]]);
  assert.match(event.eventId, /:here$/);
});

test('of an event that comes back only the signatures are taken, and only if it is the same', () => {
  const ours = make({});
  const signed = withSignature(ours.pdu, 'far', 'ed25519:1', 'AAAA');
  const both = withSignaturesOf('far', ours, { ...signed, unsigned: { spam: true } });
  assert.deepEqual(Object.keys(both.pdu.signatures as JsonObject).sort(), ['far', 'here']);
  assert.equal(both.pdu.unsigned, undefined);
  const forged = withSignature(signed, 'third', 'ed25519:1', 'AAAA');
  assert.equal((withSignaturesOf('far', ours, forged).pdu.signatures as JsonObject).third, undefined);
  for (const bad of [ours.pdu, { ...signed, depth: 8 }, { ...signed, content: {} }, { ...signed, more: 1 }])
    assert.throws(() => withSignaturesOf('far', ours, bad), MatrixError);
});
