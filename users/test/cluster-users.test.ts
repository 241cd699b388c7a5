import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type TestCluster, type TestMember, testCluster } from '@trellis/cluster/testing.ts';
import { putRule } from '@trellis/protocol/push-rules/index.ts';
import type {
  AccountDataChange,
  DeviceListChange,
  PresenceChange,
  ReceiptChange,
  ToDeviceChange,
  TypingChange,
} from '@trellis/storage/streams.ts';
import { AccountData } from '../account-data.ts';
import { Deactivation } from '../deactivation.ts';
import { DeviceListChanges } from '../device-lists.ts';
import { Devices } from '../devices.ts';
import { DeviceKeys } from '../e2ee/device-keys.ts';
import { Presence } from '../presence.ts';
import { Profiles } from '../profiles.ts';
import { PushRules } from '../push-rules.ts';
import { ReadThroughCache } from '../read-through-cache.ts';
import { Receipts } from '../receipts.ts';
import { RegistrationTokens } from '../registration-tokens.ts';
import { ReportedBuckets } from '../reported-buckets.ts';
import { Sessions } from '../sessions.ts';
import { ThreadSubscriptions } from '../thread-subscriptions.ts';
import { ToDevice } from '../to-device.ts';
import { Typing } from '../typing.ts';
import { UserDirectory } from '../user-directory.ts';
import { accountsOn, databaseForFile, PASSWORD, SERVER } from './fixture.ts';

const db = await databaseForFile();
const ROOM = '!room:example.org';

function processOf(member: TestMember) {
  const cluster = member;
  const accounts = accountsOn(db, { cluster, failedLogins: { perSecond: 0.001, burst: 4 } });
  const lists = new DeviceListChanges({
    db,
    stream: member.stream<DeviceListChange>('deviceLists'),
    serverName: SERVER,
  });
  const devices = new Devices({ db, deviceLists: lists, flushIntervalMs: 3_600_000 });
  const profiles = new Profiles({ db, accounts, cluster, remote: { query: async () => ({}) } });
  const visibility = { visibleTo: async () => new Set<string>() } as never;
  const directory = new UserDirectory({ db, serverName: SERVER, visibility });
  const accountStream = member.stream<AccountDataChange>('accountData');
  const pushRules = new PushRules({ db, stream: accountStream, cluster });
  const receiptStream = member.stream<ReceiptChange>('receipts');
  const toDeviceStream = member.stream<ToDeviceChange>('toDevice');
  const presenceStream = member.stream<PresenceChange>('presence');
  return {
    member,
    accounts,
    lists,
    devices,
    profiles,
    pushRules,
    receiptStream,
    toDeviceStream,
    presenceStream,
    accountStream,
    sessions: new Sessions({ db, devices, cluster }),
    deactivation: new Deactivation({ db, accounts, devices, profiles, directory }),
    accountData: new AccountData({ db, stream: accountStream, pushRules, cluster }),
    threads: new ThreadSubscriptions({ db, stream: accountStream, cluster }),
    receipts: new Receipts({ db, stream: receiptStream, cluster }),
    deviceKeys: new DeviceKeys(db, lists, devices, cluster),
    toDevice: new ToDevice({
      db,
      stream: toDeviceStream,
      serverName: SERVER,
      remote: { store: async () => {}, wake: () => {} },
      devices,
    }),
    presence: new Presence({ db, stream: presenceStream, enabled: true, cluster }),
    typing: new Typing(member.stream<TypingChange>('typing'), cluster),
  };
}

describe('several processes', () => {
  let net: TestCluster;
  let processes: Array<ReturnType<typeof processOf>>;
  const nth = (i: number) => processes[i % processes.length]!;
  let users = 0;
  const newUser = async () => {
    const { userId } = await nth(0).accounts.create({ localpart: `user${++users}`, password: PASSWORD });
    return userId;
  };

  before(async () => {
    net = await testCluster(3);
    processes = net.members.map(processOf);
    await db.query('INSERT INTO rooms (nid, room_id, version) VALUES (1, $1, $2)', [ROOM, '10']);
  });
  after(async () => {
    for (const { devices, presence, typing } of processes) {
      typing.close();
      await Promise.all([devices.close(), presence.close()]);
    }
  });

  it('refuse a token everywhere once its end is answered', async () => {
    const userId = await newUser();
    const { access_token: token, device_id } = await nth(0).sessions.logIn({ userId });
    for (const { sessions } of processes) assert.ok(await sessions.byAccessToken(token));
    await nth(1).devices.delete(userId, [device_id]);
    for (const { sessions } of processes) assert.equal(await sessions.byAccessToken(token), undefined);
  });

  it('know of a deactivation and of locks everywhere once they are answered', async () => {
    const userId = await newUser();
    const { access_token: token } = await nth(0).sessions.logIn({ userId });
    for (const { accounts, sessions } of processes) {
      assert.equal((await accounts.get(userId))?.deactivated, false);
      await sessions.byAccessToken(token);
    }
    await nth(2).accounts.setLocked(userId, true);
    for (const { accounts } of processes) assert.equal((await accounts.get(userId))?.locked, true);
    await nth(1).deactivation.deactivate(userId, false);
    for (const { accounts, sessions } of processes) {
      assert.equal((await accounts.get(userId))?.deactivated, true);
      assert.equal(await sessions.byAccessToken(token), undefined);
    }
  });

  it('keep nothing that was read before it was forgotten elsewhere', async () => {
    let value = 'old';
    const reading = Promise.withResolvers<void>();
    const caches = net.members.map(
      (cluster) =>
        new ReadThroughCache<{ value: string }>(
          10,
          async () => {
            const read = { value };
            await reading.promise;
            return read;
          },
          { cluster, name: 'test' },
        ),
    );
    const before = caches[0]!.get('k');
    value = 'new';
    await caches[1]!.forget('k');
    reading.resolve();
    assert.deepEqual(await before, { value: 'old' });
    assert.deepEqual(await caches[0]!.get('k'), { value: 'new' });
  });

  it('refresh one token once, and know which of the new ones counts', async () => {
    const userId = await newUser();
    const { refresh_token } = await nth(0).sessions.logIn({ userId, refreshable: true });
    const answers = await Promise.all(processes.map(({ sessions }) => sessions.refresh(refresh_token!)));
    const good = new Set<string>();
    for (const { access_token } of answers)
      for (const { sessions } of processes)
        if (await sessions.byAccessToken(access_token)) good.add(access_token);
    assert.equal(good.size, 1);
    const [token] = good;
    const session = await nth(1).sessions.byAccessToken(token!);
    assert.equal(await nth(1).sessions.confirm(session!), true);
    await assert.rejects(async () => nth(2).sessions.refresh(refresh_token!), { errcode: 'M_UNKNOWN_TOKEN' });
  });

  it('register a name once, and use a registration token as often as it may be', async () => {
    const made = await Promise.allSettled(
      processes.map(({ accounts }) => accounts.create({ localpart: 'taken' })),
    );
    assert.equal(made.filter(({ status }) => status === 'fulfilled').length, 1);
    const tokens = processes.map(() => new RegistrationTokens(db));
    const { token } = await tokens[0]!.create({ usesAllowed: 2 });
    const used = await Promise.allSettled(tokens.map((each) => each.use(token, async () => {})));
    assert.equal(used.filter(({ status }) => status === 'fulfilled').length, 2);
  });

  it('count wrong passwords together', async () => {
    const userId = await newUser();
    const outcomes: string[] = [];
    for (let i = 0; i < 9; i++)
      outcomes.push(
        await nth(i)
          .accounts.checkPassword(userId, 'wrong')
          .then(String, ({ errcode }) => errcode),
      );
    assert.equal(outcomes.filter((outcome) => outcome === 'false').length, 4);
    assert.equal(outcomes.at(-1), 'M_LIMIT_EXCEEDED');
  });

  it('count ordinary requests where they come, and together in the long run', async () => {
    const rate = { perSecond: 0.001, burst: 40 };
    const buckets = net.members.map((cluster) => new ReportedBuckets(rate, 'test', cluster));
    let taken = 0;
    for (let i = 0; i < 200; i++) {
      if (buckets[i % 3]!.take('@busy:example.org') === 0) taken++;
      if (i % 10 === 0) await sleep(5);
    }
    assert.ok(taken >= 40 && taken <= 40 + 3 * 10, `${taken} were let through`);
  });

  it('give out each one-time key once', async () => {
    const userId = await newUser();
    await nth(0).devices.create(userId, 'D', undefined);
    const oneTimeKeys = Object.fromEntries(
      Array.from({ length: 30 }, (_, i) => [`signed_curve25519:${i}`, { key: String(i) }]),
    );
    await nth(0).deviceKeys.upload(userId, 'D', { oneTimeKeys });
    for (const { deviceKeys } of processes)
      assert.equal((await deviceKeys.counts(userId, 'D')).oneTimeKeys.signed_curve25519, 30);
    const wanted = [{ userId, deviceId: 'D', algorithm: 'signed_curve25519' }];
    const given = await Promise.all(Array.from({ length: 24 }, (_, i) => nth(i).deviceKeys.claim(wanted)));
    assert.equal(new Set(given.flat().map(({ keyId }) => keyId)).size, 24);
    for (const { deviceKeys } of processes)
      assert.equal((await deviceKeys.counts(userId, 'D')).oneTimeKeys.signed_curve25519, 6);
  });

  it('deliver a message to a device once, whichever of them is asked again', async () => {
    const userId = await newUser();
    await nth(0).devices.create(userId, 'D', undefined);
    const pending = async (i: number) => {
      const { toDevice, toDeviceStream } = nth(i);
      return (await toDevice.pending(userId, 'D', 0, toDeviceStream.current, 10)).events.length;
    };
    for (let i = 0; i < 3; i++) assert.equal(await pending(i), 0);
    const sender = { userId: '@s:example.org', deviceId: 'S' };
    await Promise.all(
      [0, 1, 2].map((i) => nth(i).toDevice.send(sender, 'm.x', 'txn', { [userId]: { D: { a: 1 } } })),
    );
    for (let i = 0; i < 3; i++) assert.equal(await pending(i), 1);
    await nth(1).toDevice.received(userId, 'D', nth(1).toDeviceStream.current);
    for (let i = 0; i < 3; i++) assert.equal(await pending(i), 0);
  });

  it('lose no change of account data, push rules and thread subscriptions', async () => {
    const userId = await newUser();
    for (const { accountData } of processes) await accountData.get(userId, ROOM, 'm.tag');
    await Promise.all(
      Array.from({ length: 9 }, async (_, i) => {
        const { accountData, pushRules, threads } = nth(i);
        await accountData.update(userId, ROOM, 'm.tag', (current = {}) => ({ ...current, [`t${i}`]: i }));
        await pushRules.change(userId, (rules) => putRule(rules, 'room', `!r${i}:x`, { actions: [] }));
        await threads.subscribe(userId, ROOM, `$t${i}`, undefined);
      }),
    );
    for (const { accountData, threads, pushRules, accountStream } of processes) {
      assert.equal((await pushRules.of(userId)).changes.rules.room.length, 9);
      assert.equal(Object.keys((await accountData.get(userId, ROOM, 'm.tag'))!).length, 9);
      for (let i = 0; i < 9; i++) assert.ok(await threads.get(userId, ROOM, `$t${i}`));
      const changes = await accountData.changes(userId, 0, accountStream.current);
      assert.ok(changes.some(({ type }) => type === 'm.tag'));
    }
    await nth(0).accountData.set(userId, null, 'm.ignored_user_list', { ignored_users: { '@x:y': {} } });
    for (const { accountData } of processes) assert.ok((await accountData.ignoredUsers(userId)).has('@x:y'));
  });

  it('agree on receipts, of which none goes back', async () => {
    const userId = await newUser();
    const set = (i: number, eventPos: number) =>
      nth(i).receipts.set({
        roomId: ROOM,
        userId,
        eventId: `$e${eventPos}`,
        type: 'm.read',
        threadId: null,
        ts: 1,
        eventPos,
      });
    for (const { receipts } of processes) {
      await receipts.contentFor(ROOM, userId, undefined, 0);
      await receipts.readUpTo(userId, ROOM);
    }
    const from = nth(0).receiptStream.current;
    await Promise.all([set(0, 5), set(1, 9), set(2, 7)]);
    for (const { receipts, receiptStream } of processes) {
      assert.equal((await receipts.readUpTo(userId, ROOM)).unthreaded, 9);
      const content = await receipts.contentFor(ROOM, userId, from, receiptStream.current);
      assert.deepEqual(Object.keys(content!), ['$e9']);
    }
    const [row] = await db.query('SELECT event_pos FROM receipts WHERE user_id = $1', [userId]);
    assert.deepEqual(row, { event_pos: 9 });
  });

  it('tell who types, whichever of them is told', async () => {
    const roomId = '!typing:example.org';
    await Promise.all(
      processes.map(({ typing }, i) => typing.start(roomId, `@typist${i}:example.org`, 60_000)),
    );
    for (const { typing } of processes) assert.equal(typing.in(roomId).length, 3);
    await nth(1).typing.stop(roomId, '@typist0:example.org');
    for (const { typing } of processes) assert.equal(typing.in(roomId).length, 2);
  });

  it('hand typists over to a process that comes, which has never heard of them', async () => {
    const rooms = Array.from({ length: 60 }, (_, i) => `!moved-${i * 7919}:example.org`);
    await Promise.all(rooms.map((roomId) => nth(0).typing.start(roomId, '@mover:example.org', 1_000)));
    let late: ReturnType<typeof processOf> | undefined;
    await net.join((member) => {
      late = processOf(member);
    });
    processes.push(late!);
    assert.ok(rooms.some((roomId) => late!.member.owns('room', roomId)));
    await sleep(1_500);
    for (const { typing } of processes)
      for (const roomId of rooms) assert.deepEqual(typing.in(roomId), [], roomId);
  });

  it('know of the presence of who begins to sync, before that is answered', async () => {
    for (const { presence } of processes) {
      const userId = await newUser();
      const { told, done } = presence.sync(userId, 'D', 'online');
      await told;
      for (const other of processes) assert.equal((await other.presence.get(userId))?.presence, 'online');
      done();
    }
  });

  it('agree on presence and typing, also after the death of the process that knew', async () => {
    const userId = await newUser();
    const done = processes.map(({ presence }, i) => presence.sync(userId, `D${i}`, 'online'));
    await sleep(50);
    for (const { presence } of processes) assert.equal((await presence.get(userId))?.presence, 'online');
    await nth(1).presence.set(userId, 'D1', 'unavailable', 'away');
    for (const { presence, presenceStream } of processes) {
      assert.equal((await presence.get(userId))?.statusMsg, 'away');
      assert.ok(presence.changes(0, presenceStream.current).some((change) => change.userId === userId));
    }
    const owner = processes.find(({ member }) => member.owns('user', userId))!;
    const roomId = Array.from({ length: 50 }, (_, i) => `!t${i}:example.org`).find((id) =>
      owner.member.owns('room', id),
    )!;
    const other = processes.find((each) => each !== owner)!;
    await other.typing.start(roomId, userId, 60_000);
    await net.kill(owner.member);
    await sleep(50);
    for (const { presence, typing } of processes.filter((each) => each !== owner)) {
      assert.equal((await presence.get(userId))?.presence, 'online');
      assert.deepEqual(typing.in(roomId), [userId]);
    }
    await other.typing.stop(roomId, userId);
    for (const { typing } of processes.filter((each) => each !== owner))
      assert.deepEqual(typing.in(roomId), []);
    for (const sync of done) sync.done();
  });
});
