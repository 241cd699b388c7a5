import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { alone } from '@trellis/cluster/cluster.ts';
import { compileRules } from '@trellis/protocol/push-rules/index.ts';
import { PushEvaluation } from '@trellis/rooms/push-evaluation.ts';
import { sendEvent } from '@trellis/rooms/send.ts';
import { type TestEngine, testEngine } from '@trellis/rooms/test/engine.ts';
import { Unread } from '@trellis/rooms/unread.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { type ReceiptChange, Stream } from '@trellis/storage/streams.ts';
import { Devices } from '@trellis/users/devices.ts';
import { type PusherRequest, Pushers } from '@trellis/users/pushers.ts';
import { Receipts } from '@trellis/users/receipts.ts';
import { Badges } from '../badges.ts';
import { Candidates } from '../candidates.ts';
import { Gateway } from '../gateway.ts';
import { HttpDelivery } from '../http-delivery.ts';
import { MailDelivery } from '../mail-delivery.ts';
import type { Mail } from '../mailer.ts';
import { PusherTable } from '../pusher-table.ts';
import { Pushes } from '../pushes.ts';
import { plainFetch, TestGateway } from './test-gateway.ts';

const SERVER = 'here.test';
const ALICE = `@alice:${SERVER}`;
const BOB = `@bob:${SERVER}`;

async function until(what: string, check: () => unknown, limitMs = 5_000): Promise<void> {
  const end = Date.now() + limitMs;
  while (!(await check())) {
    assert.ok(Date.now() < end, `waited for ${what}`);
    await new Promise((wake) => setTimeout(wake, 10));
  }
}

/** For what must not happen. */
const aWhile = () => new Promise((wake) => setTimeout(wake, 150));

describe('pushers', () => {
  let engine: TestEngine;
  let devices: Devices;
  let gateway: TestGateway;
  let roomId: string;
  let pushers: Pushers;
  let receipts: Receipts;
  let table: PusherTable;
  let pushes: Pushes;
  const mails: Mail[] = [];
  const ignored = new Set<string>();

  before(async () => {
    engine = await testEngine(SERVER);
    devices = new Devices({ db: engine.db, deviceLists: { changed: async () => {} }, flushIntervalMs: 1e9 });
  });
  after(async () => {
    await pushes.close();
    await devices.close();
    await engine.close();
  });
  beforeEach(async () => {
    await pushes?.close();
    await engine.db.query('DELETE FROM pushers');
    for (const rows of ['duty_marks', 'duty_handovers']) await engine.db.query(`DELETE FROM ${rows}`);
    gateway?.close();
    gateway = new TestGateway();
    await gateway.listen();
    mails.length = 0;
    ignored.clear();
    await start();
    roomId = await engine.createRoom(ALICE, { preset: 'public_chat', name: 'Tea' });
    await engine.membership().join(roomId, BOB, []);
  });
  after(() => gateway.close());

  /** As after a start of the process. */
  async function start(): Promise<void> {
    const { db, rooms, memberships } = engine;
    const stream = new Stream<ReceiptChange>('receipts', 0);
    receipts = new Receipts({ db, stream });
    pushers = new Pushers({
      db,
      devices,
      eventPosition: () => rooms.parts.stream.current,
      allowInsecure: true,
    });
    const evaluation = new PushEvaluation(rooms, {
      compiled: () => compileRules(undefined),
      ignoredUsers: async () => ignored,
    });
    table = new PusherTable(db);
    const unread = new Unread({ rooms, evaluation, reads: receipts });
    const badges = new Badges({ db, memberships, unread, counted: 'messages' });
    const log = { warn: () => {}, info: () => {} };
    pushes = new Pushes({
      cluster: alone(),
      rooms,
      receipts: stream,
      table,
      badges,
      candidates: new Candidates({ rooms, evaluation, reads: receipts, hidesInvite: () => false }),
      http: new HttpDelivery({
        rooms,
        gateway: new Gateway(plainFetch, { allowInsecure: true }),
        badges,
        progressed: ({ row }) => void table.save(row),
      }),
      mail: new MailDelivery({
        rooms,
        table,
        send: async (mail) => void mails.push(mail),
        serverName: SERVER,
        clientUrl: 'https://client.test/',
        unsubscribeUrl: 'https://here.test/stop?token=',
        delayMs: 300,
      }),
      log,
    });
    pushers.onChange((userId) => pushes.changed(userId));
    await pushes.start();
  }

  async function restart(): Promise<void> {
    await pushes.close();
    await start();
  }

  const setPusher = (more: Partial<PusherRequest> = {}, userId = BOB) =>
    pushers.set(userId, undefined, {
      pushkey: 'key',
      kind: 'http',
      app_id: 'org.example.app',
      app_display_name: 'App',
      device_display_name: 'Phone',
      lang: 'en',
      data: { url: gateway.url, custom: 7 },
      ...more,
    });
  const send = (body: string, more: object = {}, sender = ALICE) =>
    sendEvent(engine.rooms, roomId, {
      type: 'm.room.message',
      sender,
      content: { msgtype: 'm.text', body, ...more },
    });
  const read = (event: StoredEvent) =>
    receipts.set({
      roomId,
      userId: BOB,
      type: 'm.read',
      threadId: null,
      eventId: event.eventId,
      eventPos: event.pos!,
      ts: Date.now(),
    });

  it('tell a gateway all of an event, and how much is unread', async () => {
    await engine.membership().join(roomId, `@carol:${SERVER}`, []);
    await setPusher();
    await send('one');
    const event = await send('hey bob', { 'm.mentions': { user_ids: [BOB] } });
    await until('two notifications', () => gateway.got.length === 2);
    const [{ counts, prio }, second] = gateway.got;
    assert.equal(prio, 'low');
    assert.ok(counts.unread >= 1);
    const { pushkey_ts, ...device } = second.devices[0];
    assert.ok(Math.abs(pushkey_ts - Date.now() / 1000) < 60);
    assert.deepEqual(device, {
      app_id: 'org.example.app',
      pushkey: 'key',
      data: { custom: 7 },
      tweaks: { sound: 'default', highlight: true },
    });
    const { devices: _, ...rest } = second;
    assert.deepEqual(rest, {
      event_id: event.eventId,
      room_id: roomId,
      type: 'm.room.message',
      sender: ALICE,
      room_name: 'Tea',
      prio: 'high',
      counts: { unread: 2 },
      content: event.content,
    });
  });

  it('tell no more than ids where that is asked for', async () => {
    await setPusher({ data: { url: gateway.url, format: 'event_id_only' } });
    const event = await send('secret');
    await until('a notification', () => gateway.got.length === 1);
    const { event_id, devices: told, content, sender, type } = gateway.got[0];
    assert.equal(event_id, event.eventId);
    assert.deepEqual([content, sender, type, told[0].tweaks], [undefined, undefined, undefined, undefined]);
    assert.deepEqual(told[0].data, { format: 'event_id_only' });
  });

  it('tell of invites, not of own or ignored messages, nor of what was before', async () => {
    await send('before');
    await setPusher();
    ignored.add('@mallory:here.test');
    await engine.membership().join(roomId, '@mallory:here.test', []);
    await send('spam', {}, '@mallory:here.test');
    await send('mine', {}, BOB);
    const invitedTo = await engine.createRoom(ALICE, { preset: 'private_chat', invite: [BOB] });
    await until('the invite', () => gateway.got.some(({ room_id }) => room_id === invitedTo));
    const invite = gateway.got.find(({ room_id }) => room_id === invitedTo);
    assert.equal(invite.user_is_target, true);
    assert.equal(gateway.events.length, 1);
  });

  it('are told that less is unread', async () => {
    await setPusher();
    await send('one');
    const last = await send('two');
    await until('two notifications', () => gateway.events.length === 2);
    const before = gateway.got.at(-1).counts.unread;
    await read(last);
    await until('the badge', () => gateway.got.length === 3);
    const { counts, event_id } = gateway.got[2];
    assert.equal(event_id, undefined);
    assert.equal(before - (counts.unread ?? 0), 2);
  });

  it('try again what did not arrive, in order and each once', async () => {
    await setPusher();
    gateway.answers.push({ status: 500 });
    const first = await send('one');
    const second = await send('two');
    await until('the wait to be noted', async () => (await table.of(BOB))[0]!.failures === 1);
    assert.deepEqual(gateway.events, []);
    await until('both', () => gateway.events.length === 2);
    assert.deepEqual(gateway.events, [first.eventId, second.eventId]);
    await until('that it is well again', async () => {
      const [row] = await table.of(BOB);
      return row!.failures === 0 && row!.dueTs === null && row!.failingSinceTs === null;
    });
  });

  it('wait longer and longer, and as long as a gateway asks for', async () => {
    await setPusher();
    gateway.answers.push({ status: 429, headers: { 'retry-after': '120' } });
    await send('one');
    await until('the wait', async () => (await table.of(BOB))[0]!.dueTs !== null);
    const [row] = await table.of(BOB);
    assert.ok(row!.dueTs! > Date.now() + 100_000);
    gateway.answers.push({ status: 502 });
    await setPusher({ lang: 'de' });
    await until('a second failure', async () => (await table.of(BOB))[0]!.failures === 2);
    const again = (await table.of(BOB))[0]!;
    assert.ok(again.dueTs! > Date.now() + 1_000 && again.dueTs! < Date.now() + 3_000);
  });

  it('lose nothing by a restart, neither waiting nor in the middle', async () => {
    await setPusher();
    gateway.answers.push({ status: 500 });
    const one = await send('one');
    await until('the wait to be noted', async () => (await table.of(BOB))[0]!.failures === 1);
    await restart();
    const two = await send('two');
    await until('both', () => gateway.events.length === 2);
    assert.deepEqual(gateway.events, [one.eventId, two.eventId]);
    await pushes.close();
    // Nobody follows the stream now, as between a crash and the next start.
    const three = await send('three');
    await start();
    await until('the third', () => gateway.events.length === 3);
    assert.equal(gateway.events[2], three.eventId);
    await restart();
    await aWhile();
    assert.equal(gateway.events.length, 3);
  });

  it('do not tell later what has been read by then', async () => {
    await setPusher();
    gateway.answers.push({ status: 500 });
    await read(await send('read elsewhere'));
    const unread = await send('not read');
    await until('the rest', () => gateway.events.length === 1);
    assert.deepEqual(gateway.events, [unread.eventId]);
  });

  it('go when the gateway rejects their key', async () => {
    await setPusher();
    await setPusher({ pushkey: 'other' });
    gateway.answers.push({ status: 200, body: { rejected: ['key', 'other'] } });
    gateway.answers.push({ status: 200, body: { rejected: ['something else'] } });
    await send('one');
    await until('one to be gone', async () => (await pushers.of(BOB)).length === 1);
    await send('two');
    await until('the other to go on', () => gateway.events.length >= 3);
  });

  it('are silent while they are switched off, and begin anew', async () => {
    await pushers.set(BOB, 'PHONE', { ...(await requestOf()), enabled: true });
    await pushers.set(BOB, 'LAPTOP', { ...(await requestOf()), enabled: false });
    const [switched] = await pushers.of(BOB);
    assert.deepEqual([switched!.enabled, switched!.deviceId], [false, 'PHONE']);
    await send('unheard');
    await aWhile();
    assert.deepEqual(gateway.events, []);
    await pushers.set(BOB, 'LAPTOP', { ...(await requestOf()), enabled: true });
    const heard = await send('heard');
    await until('a notification', () => gateway.events.length === 1);
    assert.deepEqual(gateway.events, [heard.eventId]);
    await aWhile();
    assert.equal(gateway.events.length, 1);
  });

  const requestOf = async (): Promise<PusherRequest> => ({
    pushkey: 'key',
    kind: 'http',
    app_id: 'org.example.app',
    app_display_name: 'App',
    device_display_name: 'Phone',
    lang: 'en',
    data: { url: gateway.url },
  });

  describe('by mail', () => {
    beforeEach(async () => {
      await engine.db.query(
        `INSERT INTO account_threepids VALUES ('email', 'bob@example.org', $1, 1, 1) ON CONFLICT DO NOTHING`,
        [BOB],
      );
      await setPusher({ kind: 'email', app_id: 'm.email', pushkey: 'bob@example.org', data: {} });
    });

    it('gather what is unread for a while in one mail', async () => {
      await send('first <b>');
      await send('second');
      await until('the wait', async () => (await table.of(BOB))[0]!.dueTs !== null);
      await restart();
      await until('a mail', () => mails.length === 1);
      const [{ to, subject, text, html, unsubscribeUrl }] = mails as [Mail];
      assert.equal(to, 'bob@example.org');
      assert.equal(subject, '2 unread messages in Tea');
      assert.match(text, /first <b>[\s\S]*second/);
      assert.match(html, /first &lt;b&gt;/);
      assert.ok(text.includes(`https://client.test/#/room/${encodeURIComponent(roomId)}`));
      const token = unsubscribeUrl!.split('=')[1]!;
      assert.equal((await table.findByUnsubscribeToken(token))?.pushkey, 'bob@example.org');
    });

    it('say nothing of what was read in time', async () => {
      await read(await send('seen'));
      await new Promise((wake) => setTimeout(wake, 500));
      assert.deepEqual(mails, []);
    });

    it('come less often while nobody reads', async () => {
      await send('one');
      await until('a mail', () => mails.length === 1);
      await send('two');
      await until('the next wait', async () => {
        const [row] = await table.of(BOB);
        return row!.mailedTs !== null && row!.dueTs !== null;
      });
      const [row] = await table.of(BOB);
      assert.equal(row!.mails, 1);
      assert.ok(row!.dueTs! - row!.mailedTs! >= 6 * 300);
    });
  });
});
