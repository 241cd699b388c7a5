import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, eventually, path } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { register, startServer, type TestServer } from './harness/server.ts';
import { python3, type SynapseServer, startSynapse } from './harness/synapse.ts';

const skip = python3() ? false : 'there is no Python 3 (with venv) here, so no Synapse to federate with';
if (skip) process.stderr.write(`SKIPPED: ${skip}\n`);

describe('federation with Synapse', { skip }, () => {
  let trellis: TestServer;
  let synapse: SynapseServer;
  let alice: Client;
  let bob: Client;
  before(async () => {
    [trellis, synapse] = await Promise.all([startServer({ name: 'beside-synapse' }), startSynapse()]);
    alice = await trellis.register('alice');
    bob = await register(synapse.url, 'bob');
  });
  after(() => Promise.all([trellis?.close(), synapse?.close()]));

  /** One makes a room, the other joins, both talk, and both see the same state in the end. */
  async function talk(host: Client, guest: Client, version: string): Promise<void> {
    const room = await host.createRoom({
      preset: 'public_chat',
      room_version: version,
      name: `Version ${version}`,
    });
    const early = await host.sendText(room, 'before you came');
    await guest.join(room, host.serverName);
    await guest.seesRoom('join', room);
    await host.seesMember(room, guest.userId, 'join');
    const there = await host.sendText(room, 'welcome');
    assert.equal((await guest.seesEvent(room, there)).content.body, 'welcome');
    const back = await guest.sendText(room, 'thank you');
    assert.equal((await host.seesEvent(room, back)).sender, guest.userId);
    await eventually('history from before the join', async () => {
      const { chunk } = await guest.get(path`/v3/rooms/${room}/messages`, { dir: 'b', limit: 50 });
      return chunk.some((e: Json) => e.event_id === early);
    });
    await guest.put(path`/v3/rooms/${room}/redact/${back}/redact-${version}`, {});
    await eventually('the redaction', async () => (await host.event(room, back)).unsigned?.redacted_because);
    const state = async (who: Client) =>
      (await who.get(path`/v3/rooms/${room}/state`)).map((e: Json) => e.event_id).sort();
    assert.deepEqual(await state(host), await state(guest));
    await guest.leave(room);
    await host.seesMember(room, guest.userId, 'leave');
  }

  for (const version of ['6', '10', '11', '12']) {
    it(`in a room of version ${version} made on Trellis`, () => talk(alice, bob, version));
    it(`in a room of version ${version} made on Synapse`, () => talk(bob, alice, version));
  }

  for (const direction of ['from Trellis', 'from Synapse']) {
    it(`by an invite ${direction}`, async () => {
      const [host, guest] = direction === 'from Trellis' ? [alice, bob] : [bob, alice];
      const room = await host.createRoom({ preset: 'private_chat', name: 'Private', invite: [guest.userId] });
      const invite = await guest.seesRoom('invite', room);
      assert.ok(invite.invite_state.events.some((e: Json) => e.type === 'm.room.name'));
      await guest.join(room);
      await host.seesMember(room, guest.userId, 'join');
      const id = await guest.sendText(room, 'here I am');
      await host.seesEvent(room, id);
      const refusedRoom = await host.createRoom({ preset: 'private_chat', invite: [guest.userId] });
      await guest.seesRoom('invite', refusedRoom);
      await guest.leave(refusedRoom);
      await host.seesMember(refusedRoom, guest.userId, 'leave');
    });
  }

  it('with typing, receipts, to-device messages, profiles and keys', async () => {
    const room = await alice.createRoom({ preset: 'public_chat', room_version: '11' });
    await bob.join(room, alice.serverName);
    for (const [here, there] of [
      [alice, bob],
      [bob, alice],
    ] as const) {
      await here.seesMember(room, there.userId, 'join');
      await there.syncUntil('now', () => true);
      const content = (sync: Json, type: string) =>
        sync.rooms?.join?.[room]?.ephemeral?.events?.find((e: Json) => e.type === type)?.content;
      await here.put(path`/v3/rooms/${room}/typing/${here.userId}`, { typing: true, timeout: 20_000 });
      await there.syncUntil('typing', (s) => content(s, 'm.typing')?.user_ids.includes(here.userId));
      const id = await there.sendText(room, 'read this');
      await here.seesEvent(room, id);
      await here.post(path`/v3/rooms/${room}/receipt/m.read/${id}`);
      await there.syncUntil('the receipt', (s) => content(s, 'm.receipt')?.[id]?.['m.read']?.[here.userId]);
      await here.put(path`/v3/sendToDevice/org.example.x/${`to-${there.localpart}`}`, {
        messages: { [there.userId]: { '*': { hello: there.localpart } } },
      });
      await there.syncUntil('the to-device message', (s) =>
        s.to_device?.events?.some(
          (e: Json) => e.sender === here.userId && e.content.hello === there.localpart,
        ),
      );
      await here.put(path`/v3/profile/${here.userId}/displayname`, { displayname: `I am ${here.localpart}` });
      assert.equal((await there.get(path`/v3/profile/${here.userId}`)).displayname, `I am ${here.localpart}`);
      await here.post('/v3/keys/upload', {
        one_time_keys: { 'signed_curve25519:A': { key: 'a', signatures: {} } },
      });
      const { one_time_keys } = await there.post('/v3/keys/claim', {
        one_time_keys: { [here.userId]: { [here.deviceId]: 'signed_curve25519' } },
      });
      assert.ok(one_time_keys[here.userId][here.deviceId]['signed_curve25519:A']);
    }
  });
});
