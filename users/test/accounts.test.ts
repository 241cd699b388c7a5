import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Deactivation } from '../deactivation.ts';
import { createLoginTokens } from '../expiring-tokens.ts';
import { Passwords } from '../passwords.ts';
import { Profiles } from '../profiles.ts';
import { RegistrationTokens } from '../registration-tokens.ts';
import { Threepids } from '../threepids.ts';
import { UserDirectory } from '../user-directory.ts';
import { accountOf } from '../user-identifier.ts';
import { accountsOn, CHEAP, databaseForFile, PASSWORD, sessionsOn } from './fixture.ts';

const db = await databaseForFile();

describe('accounts', () => {
  it('have lower-case names within the grammar, each once', async () => {
    const accounts = accountsOn(db);
    const made: string[] = [];
    accounts.onCreated(async ({ userId }) => void made.push(userId));
    assert.equal(
      (await accounts.create({ localpart: 'Alice.B-_=/+9' })).userId,
      '@alice.b-_=/+9:example.org',
    );
    assert.deepEqual(made, ['@alice.b-_=/+9:example.org']);
    for (const localpart of ['', 'a b', 'ä', '@a', 'a:b', 'a\0', 'x'.repeat(250)])
      await assert.rejects(accounts.create({ localpart }), { errcode: 'M_INVALID_USERNAME' }, localpart);
    const tries = [1, 2, 3].map(() => accounts.create({ localpart: 'race' }));
    const refused = (await Promise.allSettled(tries)).filter((result) => result.status === 'rejected');
    assert.deepEqual(
      refused.map(({ reason }) => reason.errcode),
      ['M_USER_IN_USE', 'M_USER_IN_USE'],
    );
  });

  it('leave the names of application services to them', async () => {
    const bridge = {
      id: 'bridge',
      senderUserId: '@bot:example.org',
      rateLimited: false,
      isInterested: (userId: string) => userId.startsWith('@irc_'),
    };
    const accounts = accountsOn(db, {
      appservices: {
        byToken: () => bridge,
        exclusiveOwner: (userId) => (bridge.isInterested(userId) ? bridge : undefined),
      },
    });
    await assert.rejects(accounts.checkAvailable('irc_x'), { errcode: 'M_EXCLUSIVE' });
    await assert.rejects(accounts.checkAvailable('irc_x', 'other'), { errcode: 'M_EXCLUSIVE' });
    assert.equal(await accounts.checkAvailable('irc_x', 'bridge'), '@irc_x:example.org');
    await assert.rejects(accounts.checkAvailable('_y'), { errcode: 'M_INVALID_USERNAME' });
    assert.equal(await accounts.checkAvailable('_y', 'bridge'), '@_y:example.org');
  });

  it('are found by name or id in any case, or by a third-party identifier', async () => {
    const accounts = accountsOn(db);
    const { userId } = await accounts.create({ localpart: 'findme' });
    await db.query("INSERT INTO account_threepids VALUES ('email', 'find@example.org', $1, 1, 2)", [userId]);
    const identifier = { type: 'm.id.thirdparty', medium: 'email', address: 'FIND@example.org' };
    for (const request of [
      { user: 'findme' },
      { user: 'FindMe' },
      { identifier: { type: 'm.id.user', user: '@FINDME:example.org' } },
      { identifier },
      { medium: 'email', address: 'find@example.org' },
    ])
      assert.equal((await accountOf(accounts, request)).userId, userId, JSON.stringify(request));
    const threepids = new Threepids(db);
    assert.equal(await threepids.remove('@other:example.org', 'email', 'find@example.org'), false);
    assert.equal(await threepids.remove(userId, 'email', 'Find@example.org'), true);
    assert.notEqual((await accountOf(accounts, { identifier })).userId, userId);
  });

  it('refuse passwords after too many wrong ones, also the right one', async () => {
    const accounts = accountsOn(db, { failedLogins: { perSecond: 0.001, burst: 3 } });
    const { userId } = await accounts.create({ localpart: 'guessed', password: PASSWORD });
    assert.equal(await accounts.checkPassword(userId, PASSWORD), true);
    for (let i = 0; i < 3; i++) assert.equal(await accounts.checkPassword(userId, 'wrong'), false);
    await assert.rejects(accounts.checkPassword(userId, PASSWORD), { errcode: 'M_LIMIT_EXCEEDED' });
    assert.equal(await accounts.checkPassword('@nobody:example.org', PASSWORD), false);
    assert.equal(await accounts.checkPassword('@no\0body:example.org', PASSWORD), false);
  });

  it('renew the hash of a password when settings have changed', async () => {
    const { userId } = await accountsOn(db).create({ localpart: 'rehash', password: PASSWORD });
    const later = accountsOn(db, { passwords: new Passwords({ ...CHEAP, passes: 2 }) });
    assert.equal(await later.checkPassword(userId, PASSWORD), true);
    const [row] = await db.query<{ hash: string }>(
      'SELECT password_hash AS hash FROM accounts WHERE user_id = $1',
      [userId],
    );
    assert.match(row!.hash, /t=2/);
    assert.equal(await later.checkPassword(userId, PASSWORD), true);
  });

  it('of guests become full ones once', async () => {
    const accounts = accountsOn(db);
    const { userId, isGuest } = await accounts.create({ guest: true });
    assert.ok(isGuest);
    assert.match(userId, /^@guest-/);
    await accounts.upgradeGuest(userId, PASSWORD);
    const account = await accounts.get(userId);
    assert.deepEqual([account?.isGuest, account?.hasPassword], [false, true]);
    await assert.rejects(accounts.upgradeGuest(userId, PASSWORD), { errcode: 'M_NOT_FOUND' });
  });
});

describe('registration tokens', () => {
  it('are good for as many uses as were allowed', async () => {
    const tokens = new RegistrationTokens(db);
    await tokens.create({ token: 'twice', usesAllowed: 2 });
    const results = await Promise.allSettled([1, 2, 3, 4].map((n) => tokens.use('twice', async () => n)));
    assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 2);
    assert.equal(await tokens.isValid('twice'), false);
  });

  it('are not used up by what fails', async () => {
    const tokens = new RegistrationTokens(db);
    const { token } = await tokens.create({ usesAllowed: 1 });
    await assert.rejects(
      tokens.use(token, async () => {
        throw new Error('taken');
      }),
      /taken/,
    );
    assert.equal(await tokens.isValid(token), true);
    assert.equal(await tokens.use(token, async () => 'made'), 'made');
    await assert.rejects(
      tokens.use(token, async () => 'again'),
      { status: 403 },
    );
  });

  it('expire, and have a grammar', async () => {
    const tokens = new RegistrationTokens(db);
    const { token } = await tokens.create({ expiresTs: Date.now() - 1 });
    assert.equal(await tokens.isValid(token), false);
    for (const odd of ['', 'a b', 'x'.repeat(65), 'a\0'])
      await assert.rejects(tokens.create({ token: odd }), { errcode: 'M_INVALID_PARAM' });
    await assert.rejects(tokens.create({ token }), { errcode: 'M_INVALID_PARAM' });
  });
});

describe('login tokens', () => {
  it('are good for one log-in, and not for long', async () => {
    const tokens = createLoginTokens(db);
    const token = await tokens.issue('@a:example.org');
    const taken = await Promise.all([tokens.take(token), tokens.take(token)]);
    assert.deepEqual(taken.filter(Boolean), ['@a:example.org']);
    const brief = createLoginTokens(db, -1);
    assert.equal(await brief.take(await brief.issue('@a:example.org')), undefined);
  });
});

describe('deactivation', () => {
  it('takes everything along, and goes on after it was cut off', async () => {
    const accounts = accountsOn(db);
    const { sessions, devices } = sessionsOn(db);
    const profiles = new Profiles({ db, accounts, remote: { query: async () => ({}) } });
    const visibility = { visibleTo: async (_by: string, ids: readonly string[]) => new Set(ids) };
    const directory = new UserDirectory({ db, serverName: 'example.org', visibility });
    const deps = { db, accounts, devices, profiles, directory };
    const { userId } = await accounts.create({ localpart: 'leaving', password: PASSWORD });
    const { access_token: token } = await sessions.logIn({ userId });
    await profiles.set(userId, 'displayname', 'Leaving');
    await directory.setLocal(userId, 'Leaving', undefined);

    const deactivation = new Deactivation(deps);
    deactivation.onDeactivated(async () => {
      throw new Error('power cut');
    });
    await assert.rejects(deactivation.deactivate(userId, true), /power cut/);
    assert.equal(await sessions.byAccessToken(token), undefined);
    assert.equal(await accounts.checkPassword(userId, PASSWORD), false);

    const left: unknown[] = [];
    const next = new Deactivation(deps);
    next.onDeactivated(async (user, options) => void left.push([user, options]));
    await next.resume();
    assert.deepEqual(left, [[userId, { erase: true }]]);
    await next.resume();
    assert.equal(left.length, 1);
    await assert.rejects(profiles.get(userId), { errcode: 'M_NOT_FOUND' });
    assert.deepEqual(await profiles.visible(userId), {});
    assert.deepEqual((await directory.search('@x:example.org', 'leaving', 10)).results, []);
    await assert.rejects(accounts.create({ localpart: 'leaving' }), { errcode: 'M_USER_IN_USE' });
  });
});
