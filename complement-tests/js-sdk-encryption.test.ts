import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  ClientEvent,
  createClient,
  type IContent,
  type MatrixClient,
  type MatrixEvent,
  MatrixEventEvent,
  MemoryStore,
  RoomEvent,
  SyncState,
} from 'matrix-js-sdk';
import { checkedFetch } from './harness/conformance.ts';
import { calmSdk, quiet } from './harness/js-sdk.ts';
import { register, startServer, type TestServer } from './harness/server.ts';

const LIMIT_MS = 30_000;

/** A whole matrix-js-sdk with its Rust crypto in WebAssembly, its keys in memory. */
async function sdkClient(server: TestServer, localpart: string): Promise<MatrixClient> {
  const account = await register(server.url, localpart);
  const client = createClient({
    baseUrl: server.url,
    userId: account.userId,
    deviceId: account.deviceId,
    accessToken: account.accessToken,
    store: new MemoryStore(),
    logger: quiet,
    fetchFn: checkedFetch,
  });
  await client.initRustCrypto({ useIndexedDB: false });
  await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true });
  await new Promise<void>((ready) => {
    const check = (state: SyncState | null) => {
      if (state !== SyncState.Prepared && state !== SyncState.Syncing) return;
      client.off(ClientEvent.Sync, check);
      ready();
    };
    client.on(ClientEvent.Sync, check);
  });
  return client;
}

function within<T>(what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout;
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error(`waited ${LIMIT_MS} ms for ${what}`)), LIMIT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The content of the next message with this body, as the client decrypted it. */
function decrypted(client: MatrixClient, roomId: string, body: string): Promise<IContent> {
  const found = new Promise<IContent>((done) => {
    const look = (event: MatrixEvent) => {
      if (event.getRoomId() !== roomId || event.getContent().body !== body) return;
      assert.ok(event.isEncrypted(), 'the message went over the wire encrypted');
      client.off(MatrixEventEvent.Decrypted, look);
      done(event.getContent());
    };
    client.on(MatrixEventEvent.Decrypted, look);
  });
  return within(`${client.getUserId()} to decrypt "${body}"`, found);
}

function invited(client: MatrixClient, roomId: string): Promise<void> {
  if (client.getRoom(roomId)?.getMyMembership() === 'invite') return Promise.resolve();
  const found = new Promise<void>((done) => {
    client.on(RoomEvent.MyMembership, (room, membership) => {
      if (room.roomId === roomId && membership === 'invite') done();
    });
  });
  return within(`${client.getUserId()} to be invited`, found);
}

async function talk(alice: MatrixClient, bob: MatrixClient): Promise<void> {
  const { room_id: roomId } = await alice.createRoom({
    preset: 'private_chat' as never,
    invite: [bob.getSafeUserId()],
    initial_state: [
      { type: 'm.room.encryption', state_key: '', content: { algorithm: 'm.megolm.v1.aes-sha2' } },
      { type: 'm.room.history_visibility', state_key: '', content: { history_visibility: 'shared' } },
    ],
  });
  await invited(bob, roomId);
  await bob.joinRoom(roomId);
  await within(
    'the join to be seen',
    (async () => {
      while (alice.getRoom(roomId)?.getMember(bob.getSafeUserId())?.membership !== 'join') {
        await new Promise((wake) => setTimeout(wake, 50));
      }
    })(),
  );
  for (const [from, to, body] of [
    [alice, bob, 'the first secret'],
    [bob, alice, 'the answer'],
    [alice, bob, 'the second secret'],
  ] as const) {
    const heard = decrypted(to, roomId, body);
    await from.sendTextMessage(roomId, body);
    assert.equal((await heard).msgtype, 'm.text');
  }
}

describe('matrix-js-sdk with end-to-end encryption', () => {
  let one: TestServer;
  let two: TestServer;
  const clients: MatrixClient[] = [];
  const make = async (server: TestServer, localpart: string) => {
    const client = await sdkClient(server, localpart);
    clients.push(client);
    return client;
  };
  before(async () => {
    calmSdk();
    [one, two] = await Promise.all([startServer({ name: 'sdk-one' }), startServer({ name: 'sdk-two' })]);
  });
  after(async () => {
    for (const client of clients) client.stopClient();
    await Promise.all([one?.close(), two?.close()]);
  });

  it('two users on one server read each other', async () => {
    await talk(await make(one, 'alice'), await make(one, 'bob'));
  });

  it('users on two servers read each other', async () => {
    await talk(await make(one, 'carol'), await make(two, 'dora'));
  });

  it('sets up cross-signing and verifies its own device with it', async () => {
    const client = await make(one, 'erin');
    const crypto = client.getCrypto()!;
    await crypto.bootstrapCrossSigning({
      authUploadDeviceSigningKeys: async (request) => void (await request(null)),
    });
    const status = await within(
      'the device to be signed',
      (async () => {
        for (;;) {
          const found = await crypto.getDeviceVerificationStatus(
            client.getSafeUserId(),
            client.getDeviceId()!,
          );
          if (found?.crossSigningVerified) return found;
          await new Promise((wake) => setTimeout(wake, 50));
        }
      })(),
    );
    assert.ok(status.signedByOwner);
  });
});
