import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { accountsOn, databaseForFile, PASSWORD, sessionsOn } from './fixture.ts';

const db = await databaseForFile();
const accounts = accountsOn(db);
let users = 0;

async function newUser(): Promise<string> {
  users += 1;
  return (await accounts.create({ localpart: `user${users}`, password: PASSWORD })).userId;
}

const errcode = (code: string, softLogout?: boolean) => (error: unknown) => {
  const { errcode, extra } = error as { errcode: string; extra: { soft_logout?: boolean } };
  assert.equal(errcode, code);
  if (softLogout !== undefined) assert.equal(extra.soft_logout, softLogout);
  return true;
};

describe('log-in', () => {
  it('makes a device with an id of the server’s choice, and tells others of it', async () => {
    const { sessions, devices, announced } = sessionsOn(db);
    const userId = await newUser();
    const tokens = await sessions.logIn({ userId, deviceDisplayName: 'Phone' });
    assert.match(tokens.device_id, /^[A-Z]{10}$/);
    assert.equal((await devices.get(userId, tokens.device_id))?.displayName, 'Phone');
    assert.deepEqual(announced, [[userId, [tokens.device_id]]]);
    const session = await sessions.byAccessToken(tokens.access_token);
    assert.deepEqual([session?.userId, session?.deviceId], [userId, tokens.device_id]);
  });

  it('on a known device ends its earlier tokens and keeps its name', async () => {
    const { sessions, devices, announced } = sessionsOn(db);
    const userId = await newUser();
    const first = await sessions.logIn({ userId, deviceId: 'D', deviceDisplayName: 'First' });
    assert.ok(await sessions.byAccessToken(first.access_token));
    await new Promise((wake) => setTimeout(wake, 5));
    const second = await sessions.logIn({ userId, deviceId: 'D', deviceDisplayName: 'Second' });
    assert.equal(await sessions.byAccessToken(first.access_token), undefined);
    assert.ok(await sessions.byAccessToken(second.access_token));
    assert.equal((await devices.get(userId, 'D'))?.displayName, 'First');
    assert.equal(announced.length, 1);
  });

  it('is refused to locked and deactivated accounts', async () => {
    const { sessions } = sessionsOn(db);
    const userId = await newUser();
    await accounts.setLocked(userId, true);
    await assert.rejects(sessions.logIn({ userId }), errcode('M_USER_LOCKED', true));
    await accounts.setLocked(userId, false);
    await accounts.markDeactivated(userId, false);
    await assert.rejects(sessions.logIn({ userId }), errcode('M_USER_DEACTIVATED'));
  });

  it('refuses device ids that are none', async () => {
    const { sessions } = sessionsOn(db);
    const userId = await newUser();
    for (const deviceId of ['', 'x'.repeat(256), 'a\0b', '\ud800'])
      await assert.rejects(sessions.logIn({ userId, deviceId }), errcode('M_INVALID_PARAM'));
  });

  it('stores no token as it is', async () => {
    const { sessions } = sessionsOn(db);
    const userId = await newUser();
    const tokens = await sessions.logIn({ userId, refreshable: true });
    const rows = await db.query('SELECT * FROM sessions WHERE user_id = $1', [userId]);
    const stored = JSON.stringify(rows, (_key, value) =>
      value?.type === 'Buffer' ? Buffer.from(value).toString() : value,
    );
    for (const token of [tokens.access_token, tokens.refresh_token!])
      assert.ok(!stored.includes(token.slice(4)));
  });
});

describe('refreshing', () => {
  it('keeps the old tokens until one of the new ones is used', async () => {
    const { sessions } = sessionsOn(db);
    const userId = await newUser();
    const old = await sessions.logIn({ userId, refreshable: true });
    assert.equal(old.expires_in_ms, 300_000);
    const lost = await sessions.refresh(old.refresh_token!);
    // The answer got lost: the client asks again, and what it never saw is no good any more.
    const fresh = await sessions.refresh(old.refresh_token!);
    assert.equal(await sessions.byAccessToken(lost.access_token), undefined);
    assert.ok(await sessions.byAccessToken(old.access_token));

    const session = await sessions.byAccessToken(fresh.access_token);
    assert.equal(await sessions.confirm(session!), true);
    assert.equal(await sessions.byAccessToken(old.access_token), undefined);
    await assert.rejects(sessions.refresh(old.refresh_token!), errcode('M_UNKNOWN_TOKEN', false));
    assert.equal((await sessions.byAccessToken(fresh.access_token))?.replaces, null);
  });

  it('with a new refresh token ends the old tokens too', async () => {
    const { sessions } = sessionsOn(db);
    const userId = await newUser();
    const first = await sessions.logIn({ userId, refreshable: true });
    const second = await sessions.refresh(first.refresh_token!);
    const third = await sessions.refresh(second.refresh_token!);
    assert.equal(await sessions.byAccessToken(first.access_token), undefined);
    await assert.rejects(sessions.refresh(first.refresh_token!), errcode('M_UNKNOWN_TOKEN'));
    assert.ok(await sessions.byAccessToken(third.access_token));
  });

  it('at the same time leaves one pair of new tokens', async () => {
    const { sessions } = sessionsOn(db);
    const userId = await newUser();
    const old = await sessions.logIn({ userId, refreshable: true });
    await Promise.all(Array.from({ length: 5 }, () => sessions.refresh(old.refresh_token!)));
    const rows = await db.query('SELECT 1 FROM sessions WHERE user_id = $1', [userId]);
    assert.equal(rows.length, 2);
  });

  it('is refused after the refresh token has expired, or its device was deleted', async () => {
    const { sessions, devices } = sessionsOn(db, { refreshTokenLifetimeMs: 1 });
    const userId = await newUser();
    const { refresh_token: expired } = await sessions.logIn({ userId, refreshable: true });
    await new Promise((wake) => setTimeout(wake, 10));
    await assert.rejects(sessions.refresh(expired!), errcode('M_UNKNOWN_TOKEN', true));
    const { refresh_token: gone } = await sessions.logIn({ userId, deviceId: 'GONE', refreshable: true });
    await devices.delete(userId, ['GONE']);
    await assert.rejects(sessions.refresh(gone!), errcode('M_UNKNOWN_TOKEN', false));
  });

  it('is not for clients that did not ask for it', async () => {
    const { sessions } = sessionsOn(db);
    const tokens = await sessions.logIn({ userId: await newUser() });
    assert.ok(!('refresh_token' in tokens) && !('expires_in_ms' in tokens));
  });
});

describe('devices', () => {
  it('take their tokens and what listeners keep with them when they are deleted', async () => {
    const { sessions, devices, announced } = sessionsOn(db);
    const userId = await newUser();
    const tokens = await sessions.logIn({ userId, deviceId: 'A' });
    await sessions.logIn({ userId, deviceId: 'B' });
    await sessions.byAccessToken(tokens.access_token);
    const order: string[] = [];
    devices.onDeviceDeleted(async (_tx, user, ids) => {
      order.push(`in ${user} ${ids}`);
      return () => order.push('after');
    });
    announced.length = 0;
    await devices.delete(userId, ['A', 'UNKNOWN', '']);
    assert.equal(await sessions.byAccessToken(tokens.access_token), undefined);
    assert.deepEqual(order, [`in ${userId} A`, 'after']);
    assert.deepEqual(announced, [[userId, ['A']]]);
    assert.deepEqual(
      (await devices.list(userId)).map(({ deviceId }) => deviceId),
      ['B'],
    );
  });

  it('stay when a listener fails', async () => {
    const { sessions, devices } = sessionsOn(db);
    const userId = await newUser();
    const tokens = await sessions.logIn({ userId, deviceId: 'A' });
    devices.onDeviceDeleted(async () => {
      throw new Error('no');
    });
    await assert.rejects(devices.delete(userId, ['A']), /no/);
    assert.ok(await devices.get(userId, 'A'));
    assert.ok(await sessions.byAccessToken(tokens.access_token));
  });

  it('all go but the one that is spared', async () => {
    const { sessions, devices } = sessionsOn(db);
    const userId = await newUser();
    for (const deviceId of ['A', 'B', 'C']) await sessions.logIn({ userId, deviceId });
    await devices.deleteAll(userId, 'B');
    assert.deepEqual(
      (await devices.list(userId)).map(({ deviceId }) => deviceId),
      ['B'],
    );
    await devices.deleteAll(userId);
    assert.deepEqual(await devices.list(userId), []);
  });

  it('say when they were last seen, before and after it is written', async () => {
    const { devices } = sessionsOn(db);
    const userId = await newUser();
    await devices.create(userId, 'A', undefined);
    assert.equal((await devices.get(userId, 'A'))?.lastSeenTs, null);
    devices.seen(userId, 'A', '192.0.2.7', 'x'.repeat(1000));
    const before = await devices.get(userId, 'A');
    await devices.flush();
    assert.deepEqual(await devices.get(userId, 'A'), before);
    assert.deepEqual([before?.lastSeenIp, before?.lastSeenUserAgent?.length], ['192.0.2.7', 400]);
  });
});
