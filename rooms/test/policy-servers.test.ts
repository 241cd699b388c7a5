import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { signedText, viewOf } from '@trellis/protocol/make-event.ts';
import { SigningKey, signatureOf, withSignature } from '@trellis/protocol/signing.ts';
import { JoinsUnderWay } from '../joins-under-way.ts';
import { RoomPolicies } from '../policy-servers.ts';
import type { RemoteHandshakes } from '../remote-handshakes.ts';
import { RemoteMembershipByHandshake } from '../remote-membership.ts';
import { sendEvent } from '../send.ts';
import { keyOf, type TestEngine, testEngine, testVerifier } from './engine.ts';
import { ALICE, FOUNDER, RemoteGraph, receiverOf } from './remote-graph.ts';

const BOB = '@bob:near';
const KEY_ID = 'ed25519:policy_server';
const key = SigningKey.generate('policy');

let engine: TestEngine;
/** What the policy server says to an event; signs it when left out. */
let verdict: ((event: RoomEvent) => Promise<JsonObject>) | undefined;
const asked: string[] = [];

const signatureOn = (event: RoomEvent, by = key) => by.sign(signedText(event));
const policies = new RoomPolicies();
policies.connect({
  async sign(server, event) {
    asked.push(`${server} ${event.type}`);
    return verdict ? verdict(event) : { [server]: { [KEY_ID]: signatureOn(event) } };
  },
});

before(async () => {
  engine = await testEngine('here', { policies });
});
after(() => engine.close());
beforeEach(() => {
  verdict = undefined;
  asked.length = 0;
});

/** A room whose policy server is `policy`, which has a user in it unless `isIn` is false. */
async function guardedRoom(
  content: JsonObject = { public_keys: { ed25519: key.publicKeyBase64 } },
  isIn = true,
) {
  const graph = new RemoteGraph();
  graph.member(BOB, 'join');
  if (isIn) graph.member('@guard:policy', 'join');
  graph.add({ sender: FOUNDER, type: 'm.room.policy', stateKey: '', content: { via: 'policy', ...content } });
  const room = await graph.joinFrom(engine);
  return { graph, roomId: room.roomId, receiver: receiverOf(engine, graph) };
}

const say = (roomId: string) =>
  sendEvent(engine.rooms, roomId, { type: 'm.room.message', sender: ALICE, content: { body: 'x' } });
const refuses = async (): Promise<never> => {
  throw new MatrixError(400, 'M_FORBIDDEN', 'The message appears to contain possible spam');
};

test('events of local users are signed by the policy server before they are sent', async () => {
  const { roomId } = await guardedRoom();
  const sent = await say(roomId);
  assert.deepEqual(asked, ['policy m.room.message']);
  assert.equal(signatureOf(sent.pdu, 'policy', KEY_ID), signatureOn(sent));
  assert.deepEqual(Object.keys(sent.pdu.signatures as JsonObject).sort(), ['here', 'policy']);
});

test('an invite is signed by it before the invited server hears of it, or is not sent', async () => {
  const { roomId } = await guardedRoom();
  const sent: RoomEvent[] = [];
  const remote = new RemoteMembershipByHandshake({
    rooms: engine.rooms,
    memberships: engine.memberships,
    verifier: testVerifier,
    receiver: { receive: async () => undefined },
    joins: new JoinsUnderWay(),
    handshakes: {
      sendInvite: async (server: string, invite: RoomEvent) => {
        sent.push(invite);
        return withSignature(invite.pdu, server, 'ed25519:test', signatureOn(invite, keyOf(server)));
      },
    } as unknown as RemoteHandshakes,
  });
  verdict = refuses;
  await assert.rejects(remote.invite(roomId, ALICE, '@carl:away', { membership: 'invite' }), {
    errcode: 'M_FORBIDDEN',
  });
  assert.equal(sent.length, 0);
  verdict = undefined;
  asked.length = 0;
  const invite = await remote.invite(roomId, ALICE, '@carl:away', { membership: 'invite' });
  assert.equal(signatureOf(sent[0]!.pdu, 'policy', KEY_ID), signatureOn(invite));
  assert.deepEqual(Object.keys(invite.pdu.signatures as JsonObject).sort(), ['away', 'here', 'policy']);
  assert.deepEqual(asked, ['policy m.room.member']);
});

test('what it refuses is not sent, and the user is told its words', async () => {
  const { roomId } = await guardedRoom();
  verdict = refuses;
  await assert.rejects(say(roomId), { errcode: 'M_FORBIDDEN', message: /possible spam/ });
  for (const answer of [{}, { other: { [KEY_ID]: 'x' } }, { policy: { [KEY_ID]: 'x' } }]) {
    verdict = async () => answer as unknown as JsonObject;
    await assert.rejects(say(roomId), { errcode: 'M_FORBIDDEN' });
  }
  verdict = async (event) => ({ policy: { [KEY_ID]: signatureOn(event, SigningKey.generate('other')) } });
  await assert.rejects(say(roomId), { errcode: 'M_FORBIDDEN' });
  verdict = undefined;
  await say(roomId);
});

test('a room without a policy server that is in it, or without its key, asks nobody', async () => {
  const rooms = [
    await guardedRoom({}),
    await guardedRoom({ public_keys: { ed25519: key.publicKeyBase64 } }, false),
    await guardedRoom({ via: 7, public_keys: { ed25519: key.publicKeyBase64 } }),
    await guardedRoom({ public_keys: { other: 'x' } }),
  ];
  for (const { roomId } of rooms) await say(roomId);
  assert.deepEqual(asked, []);
});

test('the event that names the policy server needs nothing of it', async () => {
  const { graph, receiver } = await guardedRoom();
  verdict = refuses;
  const off = graph.add({ sender: FOUNDER, type: 'm.room.policy', stateKey: '' });
  assert.equal((await receiver.receive('far', off))?.status, 'accepted');
  const free = graph.message(BOB, 'free');
  assert.equal((await receiver.receive('near', free))?.status, 'accepted');
  assert.deepEqual(asked, []);
});

test('events of others are soft-failed unless they are signed, or are on being asked', async () => {
  const { graph, receiver } = await guardedRoom();
  const unsigned = graph.message(BOB, 'not signed yet');
  const placed = await receiver.receive('near', unsigned);
  assert.equal(placed?.status, 'accepted');
  assert.ok(signatureOf(placed.pdu, 'policy', KEY_ID), 'others who ask for it need not ask in turn');
  assert.deepEqual(asked, ['policy m.room.message']);

  const event = graph.message(BOB, 'signed');
  const signed = viewOf(
    withSignature(event.pdu, 'policy', KEY_ID, signatureOn(event)),
    event.eventId,
    event.version,
  );
  assert.equal((await receiver.receive('near', signed))?.status, 'accepted');
  assert.equal(asked.length, 1);

  verdict = refuses;
  const spam = graph.message(BOB, 'spam');
  assert.equal((await receiver.receive('near', spam))?.status, 'soft-failed');
  const notAllowed = graph.topic(BOB, 'no power', { prev: [event] });
  assert.equal((await receiver.receive('near', notAllowed))?.status, 'rejected');
});

test('a busy policy server is asked once more, one that is down is left alone for a while', async () => {
  const { graph, receiver, roomId } = await guardedRoom();
  let calls = 0;
  verdict = async (event) => {
    if (++calls === 1) throw new MatrixError(429, 'M_LIMIT_EXCEEDED', 'busy', { retry_after_ms: 5 });
    return { policy: { [KEY_ID]: signatureOn(event) } };
  };
  assert.equal((await receiver.receive('near', graph.message(BOB, 'waits')))?.status, 'accepted');
  assert.equal(calls, 2);
  verdict = async () => {
    calls++;
    throw new MatrixError(502, 'M_UNKNOWN', 'down');
  };
  for (let i = 0; i < 3; i++) await assert.rejects(say(roomId), { status: 502 });
  assert.equal(calls, 3);
});
