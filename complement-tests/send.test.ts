import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, startServer, type TestServer } from './harness/server.ts';

describe('sending events', () => {
  let server: TestServer;
  let alice: Client;
  let bob: Client;
  let room: string;
  before(async () => {
    server = await startServer({ name: 'send' });
    alice = await server.register('alice');
    bob = await server.register('bob');
    room = await alice.createRoom();
    await bob.join(room);
  });
  after(() => server.close());
  const text = (body: string) => ({ msgtype: 'm.text', body });
  const count = async (body: string) => {
    const { chunk } = await alice.get(path`/v3/rooms/${room}/messages`, { dir: 'b', limit: 100 });
    return chunk.filter((e: Json) => e.content.body === body).length;
  };

  it('sends a message to all members, its sender first among them', async () => {
    await bob.syncUntil('the room', (s) => s.rooms?.join?.[room]);
    const id = await alice.sendText(room, 'hello');
    const event = await bob.seesEvent(room, id);
    assert.deepEqual(
      [event.sender, event.content.body, event.type],
      [alice.userId, 'hello', 'm.room.message'],
    );
    assert.ok(Math.abs(event.origin_server_ts - Date.now()) < 60_000);
    assert.ok(event.unsigned.age >= 0);
    assert.deepEqual((await bob.event(room, id)).content, text('hello'));
  });

  it('sends once whatever is repeated with the same transaction id', async () => {
    const first = await alice.send(room, 'm.room.message', text('once'), 'same');
    assert.equal(await alice.send(room, 'm.room.message', text('once'), 'same'), first);
    assert.equal(await count('once'), 1);
    // Another device has transactions of its own.
    const other = await login(server.url, 'alice');
    assert.notEqual(await other.send(room, 'm.room.message', text('twice'), 'same'), first);
  });

  it('sends once when the same transaction comes many times at once', async () => {
    const ids = await Promise.all(
      Array.from({ length: 10 }, () => alice.send(room, 'm.room.message', text('at once'), 'race')),
    );
    assert.equal(new Set(ids).size, 1);
    assert.equal(await count('at once'), 1);
  });

  it('shows the transaction id to the device that sent it, and to no other', async () => {
    await alice.syncUntil('now', () => true);
    await bob.syncUntil('now', () => true);
    const id = await alice.send(room, 'm.room.message', text('echo'), 'echo-1');
    assert.equal((await alice.seesEvent(room, id)).unsigned.transaction_id, 'echo-1');
    assert.equal((await bob.seesEvent(room, id)).unsigned?.transaction_id, undefined);
  });

  it('knows its transactions after a restart', async () => {
    const first = await alice.send(room, 'm.room.message', text('over'), 'restart');
    await server.stop();
    await server.start();
    assert.equal(await alice.send(room, 'm.room.message', text('over'), 'restart'), first);
    assert.equal(await count('over'), 1);
  });

  it('redacts: the content goes, the event stays', async () => {
    const id = await alice.sendText(room, 'to be regretted');
    const redact = (who: Client, transaction: string) =>
      who.put(path`/v3/rooms/${room}/redact/${id}/${transaction}`, { reason: 'typo' });
    await refused(redact(bob, 'r0'), 403, 'M_FORBIDDEN');
    const { event_id: redaction } = await redact(alice, 'r1');
    assert.equal((await redact(alice, 'r1')).event_id, redaction);
    const event = await bob.event(room, id);
    assert.deepEqual(event.content, {});
    assert.equal(event.unsigned.redacted_because.event_id, redaction);
    assert.equal((await bob.event(room, redaction)).content.redacts, id);
  });

  it('lets anyone redact what is their own, and moderators redact all', async () => {
    const own = await bob.sendText(room, 'mine');
    await bob.put(path`/v3/rooms/${room}/redact/${own}/own`, {});
    const other = await bob.sendText(room, 'spam');
    await alice.put(path`/v3/rooms/${room}/redact/${other}/mod`, {});
    for (const id of [own, other]) assert.deepEqual((await alice.event(room, id)).content, {});
  });

  it('keeps every text as it was sent', async () => {
    const content = {
      msgtype: 'm.text',
      body: '\u0000 𝄞 \u2028 "\\" \u001f 中文 \ud7ff',
      'odd\u0000key': [null, true, -1, 2 ** 53 - 1],
    };
    const id = await alice.send(room, 'm.room.message', content);
    assert.deepEqual((await bob.event(room, id)).content, content);
    const { chunk } = await bob.get(path`/v3/rooms/${room}/messages`, { dir: 'b', limit: 1 });
    assert.deepEqual(chunk[0].content, content);
  });

  it('refuses what no event may hold', async () => {
    const send = (raw: string) =>
      alice.request('PUT', `/_matrix/client${path`/v3/rooms/${room}/send/m.room.message/${Math.random()}`}`, {
        raw,
      });
    for (const raw of [
      '{"a": 1.5}',
      '{"a": 9007199254740992}',
      '{"a": 1e400}',
      '{"a": NaN}',
      '[1]',
      '"x"',
      '',
      'x',
    ]) {
      const { status, body } = await send(raw);
      assert.equal(status, 400, `${raw}: ${JSON.stringify(body)}`);
      assert.match(body.errcode, /^M_(BAD|NOT)_JSON$/, raw);
    }
    const { status, body } = await send(JSON.stringify(text('x'.repeat(66_000))));
    assert.deepEqual([status, body.errcode], [413, 'M_TOO_LARGE']);
    await refused(alice.send(room, 't'.repeat(256), {}), 413, 'M_TOO_LARGE');
    await refused(alice.setState(room, 'org.example', {}, 'k'.repeat(256)), 413, 'M_TOO_LARGE');
  });

  it('lets strangers neither send nor read', async () => {
    const stranger = await server.register();
    const id = await alice.sendText(room, 'for members');
    await refused(stranger.sendText(room, 'hi'), 403, 'M_FORBIDDEN');
    await refused(stranger.event(room, id), 404);
    await refused(alice.event(room, '$nothing'), 404, 'M_NOT_FOUND');
    const elsewhere = await alice.createRoom();
    await refused(alice.event(elsewhere, id), 404, 'M_NOT_FOUND');
  });

  it('obeys the power levels of event types', async () => {
    const strict = await alice.createRoom({
      preset: 'public_chat',
      power_level_content_override: { events: { 'm.room.message': 50 } },
    });
    await bob.join(strict);
    await refused(bob.sendText(strict, 'no'), 403, 'M_FORBIDDEN');
    await bob.send(strict, 'org.example.other', {});
  });

  it('keeps the order of one sender and loses nothing of many', async () => {
    const busy = await alice.createRoom();
    await bob.join(busy);
    const line = async (who: Client) => {
      for (let i = 0; i < 20; i++) await who.sendText(busy, `${who.localpart} ${i}`);
    };
    await Promise.all([line(alice), line(bob), line(await login(server.url, 'alice'))]);
    const { chunk } = await alice.get(path`/v3/rooms/${busy}/messages`, { dir: 'f', limit: 100 });
    const bobs = chunk.map((e: Json) => e.content.body).filter((body: string) => body?.startsWith('bob'));
    assert.deepEqual(
      bobs,
      Array.from({ length: 20 }, (_, i) => `bob ${i}`),
    );
    assert.equal(chunk.filter((e: Json) => e.type === 'm.room.message').length, 60);
  });
});
