import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  ClientEvent,
  createClient,
  type MatrixClient,
  type MatrixEvent,
  MatrixEventEvent,
  MemoryStore,
  RoomEvent,
  RoomMemberEvent,
  SyncState,
} from 'matrix-js-sdk';
import { SlidingSync } from 'matrix-js-sdk/lib/sliding-sync.js';
import { type Client, eventually, path, refused } from './harness/client.ts';
import { calmSdk, quiet } from './harness/js-sdk.ts';
import type { Json } from './harness/json.ts';
import { register, startServer, type TestServer } from './harness/server.ts';

let server: TestServer;
before(async () => {
  server = await startServer();
});
after(() => server.close());

const V4 = '/v4/sync';
const OLDER = '/unstable/org.matrix.simplified_msc3575/sync';
const list = (over: object = {}) => ({
  range: [0, 19],
  timeline_limit: 5,
  required_state: { include: [] },
  ...over,
});
const bodies = (room: Json): string[] =>
  (room?.timeline ?? []).flatMap((event: Json) => event.content.body ?? []);

describe('sliding sync', () => {
  it('is advertised', async () => {
    const { body } = await (await server.register()).request('GET', '/_matrix/client/versions');
    for (const feature of ['org.matrix.simplified_msc3575', 'org.matrix.msc4306'])
      assert.equal(body.unstable_features[feature], true, feature);
  });

  it('shows the rooms with the newest activity, waits for more, and loses nothing between devices', async () => {
    const [alice, bob] = [await server.register(), await server.register()];
    const rooms = [];
    for (const name of ['one', 'two', 'three'])
      rooms.push(await alice.createRoom({ preset: 'public_chat', name }));
    const [one, , three] = rooms as [string, string, string];
    await bob.join(one);
    const lists = { all: list({ range: [0, 0] }) };
    const first = await alice.post(V4, { lists });
    assert.deepEqual([Object.keys(first.rooms), first.lists.all], [[one], { count: 3 }]);
    const waiting = alice.post(V4, { lists, pos: first.pos, timeout: 20_000 });
    await bob.sendText(one, 'hello');
    const second = await waiting;
    assert.deepEqual([bodies(second.rooms[one]), second.rooms[one].num_live], [['hello'], 1]);
    const third = await alice.post(V4, { lists: { all: list() }, pos: second.pos });
    assert.equal(third.rooms[three].name, 'three');
    assert.equal(Object.keys(third.rooms).length, 2);
    await refused(bob.post(V4, { pos: third.pos }), 400, 'M_UNKNOWN_POS');
  });

  it('speaks the dialect of before, with the position in the query', async () => {
    const alice = await server.register();
    const room = await alice.createRoom({ name: 'Old words' });
    const body = {
      lists: { all: { ranges: [[0, 5]], timeline_limit: 1, required_state: [['m.room.name', '']] } },
    };
    const first = await alice.post(OLDER, body);
    assert.deepEqual(first.lists.all.ops[0].room_ids, [room]);
    assert.equal(first.rooms[room].required_state[0].content.name, 'Old words');
    await alice.sendText(room, 'news');
    const second = await alice.api('POST', OLDER, body, { query: { pos: first.pos, timeout: 1_000 } });
    assert.deepEqual(bodies(second.rooms[room]), ['news']);
  });

  it('counts what is unread', async () => {
    const [alice, bob] = [await server.register(), await server.register()];
    const room = await alice.createRoom();
    await bob.join(room);
    await bob.sendText(room, `hi ${alice.localpart}`);
    await bob.sendText(room, 'ho');
    const { rooms } = await alice.post(OLDER, { lists: { all: { ranges: [[0, 5]] } } });
    assert.deepEqual([rooms[room].notification_count, rooms[room].highlight_count], [2, 1]);
  });

  it('gives up connections that it does not know, so that clients begin anew', async () => {
    const alice = await server.register();
    await alice.createRoom();
    const { pos } = await alice.post(V4, { lists: { all: list() } });
    await server.stop();
    await server.start();
    await refused(alice.post(V4, { lists: { all: list() }, pos }), 400, 'M_UNKNOWN_POS');
    assert.equal((await alice.post(V4, { lists: { all: list() } })).lists.all.count, 1);
  });

  it('hands out messages to devices once they are asked for further ones', async () => {
    const [alice, bob] = [await server.register(), await server.register()];
    const extensions = { to_device: { enabled: true }, e2ee: { enabled: true } };
    const first = await alice.post(V4, { extensions });
    assert.deepEqual(first.extensions.to_device.events, []);
    assert.deepEqual(first.extensions.e2ee.device_one_time_keys_count, { signed_curve25519: 0 });
    const waiting = alice.post(V4, { pos: first.pos, timeout: 20_000, extensions });
    await bob.put(path`/v3/sendToDevice/org.x/${'t1'}`, {
      messages: { [alice.userId]: { [alice.deviceId]: { n: 1 } } },
    });
    const second = await waiting;
    const got = second.extensions.to_device;
    assert.deepEqual(got.events, [{ type: 'org.x', sender: bob.userId, content: { n: 1 } }]);
    const again = await alice.post(V4, { extensions });
    assert.equal(again.extensions.to_device.events.length, 1);
    const since = { to_device: { enabled: true, since: got.next_batch } };
    assert.equal((await alice.post(V4, { extensions: since })).extensions.to_device.events.length, 0);
    assert.equal((await alice.post(V4, { extensions })).extensions.to_device.events.length, 0);
    await refused(
      alice.post(V4, { extensions: { to_device: { enabled: true, since: 'x' } } }),
      400,
      'M_INVALID_PARAM',
    );
  });

  it('notifies of threads that are followed, and of others no more', async () => {
    const [alice, bob] = [await server.register(), await server.register()];
    const room = await alice.createRoom();
    await bob.join(room);
    const [root, other] = [await alice.sendText(room, 'a'), await alice.sendText(room, 'b')];
    const reply = (thread: string) =>
      bob.send(room, 'm.room.message', {
        msgtype: 'm.text',
        body: 'reply',
        'm.relates_to': { rel_type: 'm.thread', event_id: thread },
      });
    const counts = async () => {
      const { rooms } = await alice.post(OLDER, { lists: { all: { ranges: [[0, 5]] } } });
      return rooms[room].notification_count;
    };
    await reply(other);
    assert.equal(await counts(), 1);
    await alice.put(path`/unstable/io.element.msc4306/rooms/${room}/thread/${root}/subscription`, {});
    await reply(other);
    assert.equal(await counts(), 1);
    await reply(root);
    assert.equal(await counts(), 2);
    const rules = await alice.get('/v3/pushrules/');
    assert.deepEqual(
      rules.global.postcontent.map((rule: Json) => rule.rule_id),
      ['.io.element.msc4306.rule.unsubscribed_thread', '.io.element.msc4306.rule.subscribed_thread'],
    );
  });
});

/** A matrix-js-sdk that syncs in no other way, with its Rust crypto in WebAssembly. */
async function sdkClient(account: Client): Promise<MatrixClient> {
  const client = createClient({
    baseUrl: server.url,
    userId: account.userId,
    deviceId: account.deviceId,
    accessToken: account.accessToken,
    store: new MemoryStore(),
    logger: quiet,
  });
  await client.initRustCrypto({ useIndexedDB: false });
  const requiredState = [
    ['*', '*'],
    ['m.room.member', '$LAZY'],
    ['m.room.member', '$ME'],
  ];
  const lists = new Map([['all', { ranges: [[0, 19]], timeline_limit: 10, required_state: requiredState }]]);
  const slidingSync = new SlidingSync(
    server.url,
    lists,
    { timeline_limit: 20, required_state: requiredState },
    client,
    2_000,
  );
  await client.startClient({ slidingSync });
  await eventually(`${account.userId} to sync`, async () => client.getSyncState() === SyncState.Syncing);
  return client;
}

describe('matrix-js-sdk on sliding sync', () => {
  let alice: MatrixClient;
  let bob: MatrixClient;
  before(async () => {
    calmSdk();
    alice = await sdkClient(await register(server.url, 'alice'));
    bob = await sdkClient(await register(server.url, 'bob'));
  });
  after(() => {
    for (const client of [alice, bob]) client?.stopClient();
  });

  it('is invited, joins, and talks encrypted, with receipts and typing', async () => {
    const [aliceId, bobId] = [alice.getSafeUserId(), bob.getSafeUserId()];
    const { room_id: roomId } = await alice.createRoom({
      name: 'Sliding',
      invite: [bobId],
      initial_state: [
        { type: 'm.room.encryption', state_key: '', content: { algorithm: 'm.megolm.v1.aes-sha2' } },
      ],
    });
    await eventually('the invite', async () => bob.getRoom(roomId)?.getMyMembership() === 'invite');
    assert.equal(bob.getRoom(roomId)?.name, 'Sliding');
    await bob.joinRoom(roomId);
    await eventually(
      'bob in the room',
      async () => alice.getRoom(roomId)?.getMember(bobId)?.membership === 'join',
    );

    const decrypted = new Promise<MatrixEvent>((done) => {
      bob.on(MatrixEventEvent.Decrypted, (event) => {
        if (event.getContent().body === 'secret') done(event);
      });
    });
    await alice.sendTextMessage(roomId, 'secret');
    const event = await decrypted;
    assert.ok(event.isEncrypted());

    await bob.sendReadReceipt(event);
    const read = () => alice.getRoom(roomId)?.hasUserReadEvent(bobId, event.getId()!);
    await eventually('the receipt', async () => read());

    const typing = new Promise<void>((done) => {
      alice.on(RoomMemberEvent.Typing, (_event, member) => {
        if (member.userId === bobId && member.typing) done();
      });
    });
    await bob.sendTyping(roomId, true, 10_000);
    await typing;

    const renamed = new Promise<void>((done) => {
      bob.on(RoomEvent.Name, (room) => {
        if (room.name === 'Slid') done();
      });
    });
    await alice.setRoomName(roomId, 'Slid');
    await renamed;

    const accountData = new Promise<void>((done) => {
      bob.on(ClientEvent.AccountData, (item) => {
        if (item.getType() === 'org.x') done();
      });
    });
    await bob.http.authedRequest(
      'PUT' as never,
      `/user/${encodeURIComponent(bobId)}/account_data/org.x`,
      undefined,
      { y: 1 },
    );
    await accountData;

    await alice.kick(roomId, bobId);
    await eventually('the kick', async () => bob.getRoom(roomId)?.getMember(bobId)?.membership === 'leave');
    assert.equal(alice.getRoom(roomId)?.getMember(aliceId)?.membership, 'join');
  });
});
