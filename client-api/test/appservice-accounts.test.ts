import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { testDatabase } from '@trellis/storage/testing.ts';
import { AcceptedTerms } from '@trellis/users/accepted-terms.ts';
import { Accounts } from '@trellis/users/accounts.ts';
import type { AppserviceIdentity, AppserviceTokens } from '@trellis/users/appservice-users.ts';
import { Devices } from '@trellis/users/devices.ts';
import { createLoginTokens } from '@trellis/users/expiring-tokens.ts';
import { Passwords } from '@trellis/users/passwords.ts';
import { RegistrationTokens } from '@trellis/users/registration-tokens.ts';
import { Sessions } from '@trellis/users/sessions.ts';
import { ThreepidSessions } from '@trellis/users/threepid-sessions.ts';
import { Threepids } from '@trellis/users/threepids.ts';
import { Uia } from '@trellis/users/uia.ts';
import { authenticateRequests } from '../authentication.ts';
import { createAuthenticator } from '../authenticator.ts';
import { devicesRoutes } from '../devices.ts';
import { loginRoutes } from '../login.ts';
import { logoutRoutes } from '../logout.ts';
import { limitRates } from '../rate-limits.ts';
import { registerRoutes } from '../register.ts';
import { whoamiRoutes } from '../whoami.ts';
import { ask, testApp } from './api.ts';

const PASSWORD = 'correct horse';
const bridge: AppserviceIdentity = {
  id: 'bridge',
  senderUserId: '@bridgebot:example.org',
  rateLimited: true,
  isInterested: (userId) => /^@(irc_.*|bridgebot):example\.org$/.test(userId),
};
const appservices: AppserviceTokens = {
  byToken: (token) => (token === 'as_token' ? bridge : undefined),
  exclusiveOwner: (userId) => (bridge.isInterested(userId) ? bridge : undefined),
};

const { db, close } = await testDatabase();
after(close);
const passwords = new Passwords({ memoryKib: 64, passes: 1 });
const accounts = new Accounts({ db, serverName: 'example.org', passwords, appservices });
const devices = new Devices({ db, deviceLists: { changed: async () => {} } });
after(() => devices.close());
const sessions = new Sessions({ db, devices });
const registrationTokens = new RegistrationTokens(db);
const uia = new Uia({ db, accounts, registrationTokens });
const authenticate = createAuthenticator({ accounts, sessions, devices, appservices });

const app = testApp();
authenticateRequests(app, authenticate);
const plenty = { perSecond: 1000, burst: 1000 };
limitRates(app, {
  messages: plenty,
  joins: plenty,
  invites: plenty,
  room_creation: plenty,
  login: plenty,
  registration: plenty,
  other: { perSecond: 0.01, burst: 8 },
});
const policy = { open: false, tokens: false, guests: false, require_email: false, require_phone: false };
registerRoutes(app, {
  accounts,
  sessions,
  uia,
  registrationTokens,
  appservices,
  policy,
  authenticate,
  threepids: new Threepids(db),
  threepidSessions: new ThreepidSessions({ db, accounts, senders: {}, rate: plenty }),
  conditions: {},
  acceptedTerms: new AcceptedTerms(db, new Map()),
});
loginRoutes(app, {
  accounts,
  sessions,
  uia,
  loginTokens: createLoginTokens(db),
  appservices,
  discovery: undefined,
  isCrossSigningKey: async (_userId, keyId) => keyId === 'CROSS',
});
logoutRoutes(app, { devices });
devicesRoutes(app, { devices, uia });
whoamiRoutes(app);

const v3 = '/_matrix/client/v3';
const token = 'as_token';
const type = 'm.login.application_service';
const errorOf = ({ status, body }: { status: number; body: { errcode?: string } }) => [status, body.errcode];
const whoami = (as: string) => ask(app, 'GET', `${v3}/account/whoami${as}`, { token });

describe('application services', () => {
  it('register users of their namespaces, though nobody else may register', async () => {
    const register = (body: object, as: string | undefined = token) =>
      ask(app, 'POST', `${v3}/register`, { token: as, body });
    const made = await register({ type, username: 'irc_alice' });
    assert.equal(made.body.user_id, '@irc_alice:example.org');
    assert.ok(made.body.access_token && made.body.device_id);
    const quiet = await register({ type, username: 'irc_bob', inhibit_login: true });
    assert.deepEqual(quiet.body, { user_id: '@irc_bob:example.org' });
    await register({ type, username: 'bridgebot', inhibit_login: true });
    assert.deepEqual(errorOf(await register({ type, username: 'irc_alice' })), [400, 'M_USER_IN_USE']);
    assert.deepEqual(errorOf(await register({ type, username: 'mallory' })), [400, 'M_EXCLUSIVE']);
    assert.deepEqual(errorOf(await register({ type })), [400, 'M_MISSING_PARAM']);
    assert.deepEqual(errorOf(await register({ type, username: 'irc_x' }, 'forged')), [
      401,
      'M_UNKNOWN_TOKEN',
    ]);
    const nameless = await ask(app, 'POST', `${v3}/register`, { body: { type, username: 'irc_x' } });
    assert.deepEqual(errorOf(nameless), [401, 'M_MISSING_TOKEN']);
    assert.deepEqual(errorOf(await register({ username: 'x', password: PASSWORD })), [403, 'M_FORBIDDEN']);
  });

  it('act as their users, and their devices', async () => {
    assert.equal((await whoami('')).body.user_id, '@bridgebot:example.org');
    assert.deepEqual((await whoami('?user_id=@irc_bob:example.org')).body, {
      user_id: '@irc_bob:example.org',
      is_guest: false,
    });
    assert.deepEqual(errorOf(await whoami('?user_id=@mallory:example.org')), [403, 'M_FORBIDDEN']);
    assert.deepEqual(errorOf(await whoami('?user_id=@irc_unknown:example.org')), [403, 'M_FORBIDDEN']);
    const unknown = await whoami('?user_id=@irc_bob:example.org&device_id=NONE');
    assert.deepEqual(errorOf(unknown), [400, 'M_UNKNOWN_DEVICE']);
  });

  it('make and delete devices of their users without a password', async () => {
    const bob = 'user_id=@irc_bob:example.org';
    const device = `${v3}/devices/BRIDGE?${bob}`;
    const put = (display_name: string) => ask(app, 'PUT', device, { token, body: { display_name } });
    assert.equal((await put('One')).status, 201);
    assert.equal((await put('Two')).status, 200);
    assert.equal((await whoami(`?${bob}&device_id=BRIDGE`)).body.device_id, 'BRIDGE');
    assert.equal((await ask(app, 'DELETE', device, { token })).status, 200);
    assert.equal((await ask(app, 'GET', device, { token })).status, 404);
  });

  it('log in as their users', async () => {
    const logIn = (user: string, more: object = {}, as: string = token) =>
      ask(app, 'POST', `${v3}/login`, {
        token: as,
        body: { type, identifier: { type: 'm.id.user', user }, ...more },
      });
    for (const user of ['irc_bob', '@irc_bob:example.org'])
      assert.equal((await logIn(user)).body.user_id, '@irc_bob:example.org');
    assert.deepEqual(errorOf(await logIn('mallory')), [400, 'M_EXCLUSIVE']);
    assert.deepEqual(errorOf(await logIn('irc_unknown')), [403, 'M_FORBIDDEN']);
    assert.deepEqual(errorOf(await logIn('irc_bob', {}, 'forged')), [401, 'M_UNKNOWN_TOKEN']);
    assert.deepEqual(errorOf(await logIn('irc_bob', { device_id: 'CROSS' })), [403, 'M_FORBIDDEN']);
  });

  it('are limited in what their users do, not in what their own user does', async () => {
    const { body } = await ask(app, 'POST', `${v3}/register`, {
      token,
      body: { type, username: 'irc_fast' },
    });
    const statuses = async (as: string) => {
      const answers = [];
      for (let i = 0; i < 10; i++) answers.push((await whoami(as)).status);
      return answers.filter((status) => status === 429).length;
    };
    assert.equal(await statuses(`?user_id=${body.user_id}`), 2);
    assert.equal(await statuses(''), 0);
  });
});

describe('log-in', () => {
  it('says what is wrong with a request', async () => {
    const logIn = (body: object) => ask(app, 'POST', `${v3}/login`, { body, ip: '192.0.2.1' });
    const password = PASSWORD;
    const by = (identifier: object) => ({ type: 'm.login.password', identifier, password });
    await accounts.create({ localpart: 'carol', password });
    for (const [body, status, errcode] of [
      [by({ type: 'm.id.user', user: 'carol' }), 200, undefined],
      [by({ user: 'carol' }), 200, undefined],
      [by({ type: 'm.id.user' }), 400, 'M_INVALID_PARAM'],
      [by({ type: 'm.id.user', user: 7 }), 400, 'M_INVALID_PARAM'],
      [by({ type: 'm.id.phone', country: 'GB', phone: '1' }), 403, 'M_FORBIDDEN'],
      [by({ type: 'm.id.thirdparty', medium: 'email', address: 'x@example.org' }), 403, 'M_FORBIDDEN'],
      [by({ type: 'm.id.soul', user: 'carol' }), 400, 'M_UNKNOWN'],
      [{ type: 'm.login.password', user: 'carol' }, 400, 'M_MISSING_PARAM'],
      [{ type: 'm.login.password', user: 'carol', password: 7 }, 400, 'M_BAD_JSON'],
      [{ type: 'm.login.token' }, 400, 'M_MISSING_PARAM'],
      [{ type: 'm.login.token', token: 'x' }, 403, 'M_FORBIDDEN'],
    ] as const)
      assert.deepEqual(errorOf(await logIn(body)), [status, errcode], JSON.stringify(body));
  });
});
