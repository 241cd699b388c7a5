import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  ClientEvent,
  createClient,
  type ICreateClientOpts,
  type MatrixClient,
  type MatrixEvent,
  MemoryStore,
  SyncState,
} from 'matrix-js-sdk';
import { CryptoEvent } from 'matrix-js-sdk/lib/crypto-api/index.js';
import { MSC4108RendezvousSession } from 'matrix-js-sdk/lib/rendezvous/index.js';
import { eventually } from './harness/client.ts';
import { checkedFetch } from './harness/conformance.ts';
import { calmSdk, quiet } from './harness/js-sdk.ts';
import { login, register, startServer, type TestServer } from './harness/server.ts';

interface Account {
  readonly userId: string;
  readonly deviceId: string;
  readonly accessToken: string;
}

async function sdkClient(
  server: TestServer,
  account: Account,
  more: Partial<ICreateClientOpts> = {},
): Promise<MatrixClient> {
  const client = createClient({
    baseUrl: server.url,
    userId: account.userId,
    deviceId: account.deviceId,
    accessToken: account.accessToken,
    store: new MemoryStore(),
    logger: quiet,
    fetchFn: checkedFetch,
    ...more,
  });
  await client.initRustCrypto({ useIndexedDB: false });
  await client.startClient({ initialSyncLimit: 20 });
  await new Promise<void>((ready) => {
    client.on(ClientEvent.Sync, (state) => {
      if (state === SyncState.Prepared || state === SyncState.Syncing) ready();
    });
  });
  return client;
}

describe('matrix-js-sdk, beyond the specification', () => {
  let server: TestServer;
  const running: MatrixClient[] = [];
  before(async () => {
    calmSdk();
    server = await startServer({ name: 'sdk-extensions' });
  });
  after(async () => {
    for (const client of running) client.stopClient();
    await server.close();
  });

  it('reads what came while no device was there by way of a dehydrated one (MSC3814)', async () => {
    let secretKey: [string, Uint8Array<ArrayBuffer>] | undefined;
    const cryptoCallbacks = {
      getSecretStorageKey: async () => secretKey ?? null,
      cacheSecretStorageKey: (id: string, _info: unknown, key: Uint8Array) => {
        secretKey = [id, new Uint8Array(key)];
      },
    };
    const alice = await sdkClient(server, await register(server.url, 'alice'), { cryptoCallbacks });
    const bob = await sdkClient(server, await register(server.url, 'bob'));
    running.push(alice, bob);
    const crypto = alice.getCrypto()!;
    await crypto.bootstrapCrossSigning({
      authUploadDeviceSigningKeys: (upload) => upload(null) as Promise<void>,
    });
    await crypto.bootstrapSecretStorage({
      setupNewSecretStorage: true,
      createSecretStorageKey: () => crypto.createRecoveryKeyFromPassphrase(),
    });
    assert.equal(await crypto.isDehydrationSupported(), true);
    await crypto.startDehydration();

    const { room_id: room } = await bob.createRoom({
      invite: [alice.getUserId()!],
      initial_state: [
        { type: 'm.room.encryption', state_key: '', content: { algorithm: 'm.megolm.v1.aes-sha2' } },
      ],
    });
    await alice.joinRoom(room);
    await eventually(
      'bob to see alice',
      async () => bob.getRoom(room)?.getMember(alice.getUserId()!)?.membership === 'join',
    );
    alice.stopClient();
    await alice.logout(true);
    await bob.sendTextMessage(room, 'while you were out');

    const again = await sdkClient(server, await login(server.url, 'alice'), { cryptoCallbacks });
    running.push(again);
    const progress: Array<[keys: number, messages: number]> = [];
    again.on(CryptoEvent.RehydrationProgress, (...counts) => progress.push(counts));
    // Brings the keys over from secret storage, once the public ones are known.
    await again.getCrypto()!.userHasCrossSigningKeys(again.getUserId()!, true);
    await again.getCrypto()!.bootstrapCrossSigning({});
    await again.getCrypto()!.startDehydration();
    assert.ok(
      progress.some(([keys]) => keys > 0),
      'no room key came with the dehydrated device',
    );
    const text = await eventually('the message to be read', async () => {
      const events = again.getRoom(room)?.getLiveTimeline().getEvents() ?? [];
      for (const event of events) if (event.isDecryptionFailure()) await again.decryptEventIfNeeded(event);
      return events.find((event: MatrixEvent) => event.getContent().body === 'while you were out');
    });
    assert.ok(text.isEncrypted());
  });

  it('exchanges messages for signing in by a QR code (MSC4108)', async () => {
    const account = await register(server.url, 'carol');
    const client = createClient({
      baseUrl: server.url,
      userId: account.userId,
      accessToken: account.accessToken,
      logger: quiet,
    });
    const here = new MSC4108RendezvousSession({ client });
    await here.send('from here');
    const there = new MSC4108RendezvousSession({ url: here.url! });
    assert.equal(await there.receive(), 'from here');
    await there.send('from there');
    assert.equal(await here.receive(), 'from there');
    await here.close();
    assert.equal((await fetch(here.url!)).status, 404);
  });

  it('asks for the transports of calls', async () => {
    const account = await register(server.url, 'dave');
    const client = createClient({ baseUrl: server.url, accessToken: account.accessToken, logger: quiet });
    assert.deepEqual(await client._unstable_getRTCTransports(), []);
  });
});
