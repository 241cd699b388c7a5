import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { Client, eventually, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, PASSWORD, startServer, type TestServer } from './harness/server.ts';

const SECRET = 'a secret shared with scripts';
const SUPPORT = { contacts: [{ email_address: 'help@example.org', role: 'm.role.admin' }] };

describe('accounts', () => {
  let server: TestServer;
  let admin: Client;
  let alice: Client;
  before(async () => {
    server = await startServer({
      name: 'accounts',
      config: {
        registration: { open: true, guests: true, shared_secret: SECRET },
        well_known: {
          server: 'matrix.example.org:443',
          client: { 'org.example.setting': 7 },
          support: SUPPORT,
        },
        turn: { uris: ['turn:turn.example.org'], shared_secret: 'turn', lifetime_ms: 3_600_000 },
      },
    });
    admin = new Client(server.url, (await registerBySecret('root', { admin: true })).body);
    alice = await server.register('alice');
  });
  after(() => server.close());

  const ask = (method: string, target: string, options = {}) => request(server.url, method, target, options);
  const auth = (user: string) => ({
    type: 'm.login.password',
    identifier: { type: 'm.id.user', user },
    password: PASSWORD,
  });

  async function registerBySecret(username: string, extra: Json = {}, secret = SECRET) {
    const target = '/_synapse/admin/v1/register';
    const { nonce } = (await ask('GET', target)).body;
    const parts = [nonce, username, PASSWORD, extra.admin ? 'admin' : 'notadmin'];
    const mac = createHmac('sha1', secret).update(parts.join('\0')).digest('hex');
    return ask('POST', target, { body: { nonce, username, password: PASSWORD, mac, ...extra } });
  }

  describe('made by a shared secret', () => {
    it('are refused without the secret, for odd names, and a second time by the same request', async () => {
      const wrong = await registerBySecret('nosecret', {}, 'guessed');
      assert.deepEqual([wrong.status, wrong.body.errcode], [403, 'M_FORBIDDEN']);
      const odd = await registerBySecret('us,er');
      assert.deepEqual([odd.status, odd.body.errcode], [400, 'M_INVALID_USERNAME']);
      const upper = await registerBySecret('Upper-CASE', { displayname: 'Upper' });
      assert.equal(upper.body.user_id, `@upper-case:${server.serverName}`);
      const profile = path`/_matrix/client/v3/profile/${upper.body.user_id}`;
      assert.deepEqual((await ask('GET', profile)).body, { displayname: 'Upper' });
      const again = await ask('POST', '/_synapse/admin/v1/register', {
        body: { nonce: 'used', username: 'again', password: PASSWORD, mac: 'a'.repeat(40) },
      });
      assert.equal(again.status, 400);
    });
  });

  describe('of guests', () => {
    const registerGuest = async () => {
      const { body } = await ask('POST', '/_matrix/client/v3/register', {
        query: { kind: 'guest' },
        body: { device_id: 'IGNORED', username: 'ignored' },
      });
      return new Client(server.url, body);
    };

    it('have the endpoints for guests only', async () => {
      const guest = await registerGuest();
      assert.notEqual(guest.deviceId, 'IGNORED');
      assert.equal((await guest.get('/v3/account/whoami')).is_guest, true);
      await guest.put(path`/v3/profile/${guest.userId}/displayname`, { displayname: 'Guest' });
      const avatar = { avatar_url: 'mxc://example.org/x' };
      await refused(
        guest.put(path`/v3/profile/${guest.userId}/avatar_url`, avatar),
        403,
        'M_GUEST_ACCESS_FORBIDDEN',
      );
      await refused(guest.post('/v3/createRoom'), 403, 'M_GUEST_ACCESS_FORBIDDEN');
    });

    it('are in rooms only that admit them', async () => {
      const guest = await registerGuest();
      const closed = await alice.createRoom();
      await refused(guest.post(path`/v3/rooms/${closed}/join`), 403, 'M_GUEST_ACCESS_FORBIDDEN');
      const access = { type: 'm.room.guest_access', content: { guest_access: 'can_join' } };
      const open = await alice.createRoom({ preset: 'public_chat', initial_state: [access] });
      await guest.post(path`/v3/rooms/${open}/join`);
      await alice.setState(open, 'm.room.guest_access', { guest_access: 'forbidden' });
      await eventually('the guest to be gone', async () => {
        const { joined_rooms } = await guest.get('/v3/joined_rooms');
        return joined_rooms.length === 0;
      });
    });

    it('become full accounts', async () => {
      const guest = await registerGuest();
      const { status, body } = await ask('POST', '/_matrix/client/v3/register', {
        body: {
          username: guest.localpart,
          password: PASSWORD,
          guest_access_token: guest.accessToken,
          auth: { type: 'm.login.dummy' },
        },
      });
      assert.deepEqual([status, body.user_id], [200, guest.userId]);
      const user = await login(server.url, guest.localpart);
      assert.equal((await user.get('/v3/account/whoami')).is_guest, false);
    });
  });

  describe('under administration', () => {
    it('get notices of the server in a room of their own, whose invite they cannot refuse', async () => {
      const dora = await server.register();
      const target = '/_synapse/admin/v1/send_server_notice';
      const body = { user_id: dora.userId, content: { msgtype: 'm.text', body: 'Closed on Sunday' } };
      const notify = (sender: Client, more: Json = {}) =>
        sender.request('POST', target, { body: { ...body, ...more } });
      assert.equal((await dora.request('POST', target)).body.errcode, 'M_FORBIDDEN');
      assert.equal((await notify(admin, { user_id: '@nobody:else.where' })).status, 400);
      assert.equal((await notify(admin, { user_id: `@nobody:${server.serverName}` })).status, 404);
      const sent = await Promise.all([notify(admin), notify(admin)]);
      const [room = '', ...others] = Object.keys((await dora.sync()).rooms.invite);
      assert.deepEqual(others, [], 'one room for all notices');
      await refused(dora.leave(room), 403, 'M_CANNOT_LEAVE_SERVER_NOTICE_ROOM');
      await dora.join(room);
      const joined = (await dora.sync()).rooms.join[room];
      const shown = joined.timeline.events.filter((event: Json) => event.type === 'm.room.message');
      assert.deepEqual(
        shown.map((event: Json) => event.event_id).sort(),
        sent.map((answer) => answer.body.event_id).sort(),
      );
      const { tags } = joined.account_data.events.find((event: Json) => event.type === 'm.tag').content;
      assert.deepEqual(Object.keys(tags), ['m.server_notice']);
      await refused(dora.sendText(room, 'an answer'), 403, 'M_FORBIDDEN');
      await dora.leave(room);
      const again = async () => (await admin.request('PUT', `${target}/one`, { body })).body.event_id;
      assert.equal(await again(), await again());
      assert.deepEqual(Object.keys((await dora.sync()).rooms.invite), [room]);
    });

    it('tell administrators, and their own users, from where they were used', async () => {
      // Of several processes each knows at once what came by itself; what came by others, once they have stored it.
      const connection = await eventually('the connection', async () => {
        const { devices } = await admin.get(path`/v3/admin/whois/${alice.userId}`);
        return devices[alice.deviceId].sessions[0].connections[0] as Json | undefined;
      });
      assert.equal(connection.ip, '127.0.0.1');
      await alice.get(path`/v3/admin/whois/${alice.userId}`);
      await refused(alice.get(path`/v3/admin/whois/${admin.userId}`), 403, 'M_FORBIDDEN');
    });

    it('are locked, and unlocked with their sessions intact', async () => {
      const bob = await server.register('bob');
      const lock = path`/v1/admin/lock/${bob.userId}`;
      await bob.join(await alice.createRoom());
      const isFound = async () =>
        (await alice.post('/v3/user_directory/search', { search_term: 'bob' })).results.length > 0;
      assert.ok(await isFound());
      await refused(alice.put(lock, { locked: true }), 403, 'M_FORBIDDEN');
      assert.deepEqual(await admin.put(lock, { locked: true }), { locked: true });
      const answer = await bob.request('GET', '/_matrix/client/v3/account/whoami');
      assert.deepEqual(
        [answer.status, answer.body.errcode, answer.body.soft_logout],
        [401, 'M_USER_LOCKED', true],
      );
      const logIn = { type: 'm.login.password', user: 'bob', password: PASSWORD };
      assert.equal((await ask('POST', '/_matrix/client/v3/login', { body: logIn })).status, 401);
      const change = { new_password: 'another password', auth: auth('bob') };
      const changed = await ask('POST', '/_matrix/client/v3/account/password', { body: change });
      assert.deepEqual([changed.status, changed.body.errcode], [401, 'M_USER_LOCKED']);
      assert.deepEqual(await admin.get(lock), { locked: true });
      assert.ok(!(await isFound()));
      await admin.put(lock, { locked: false });
      await bob.get('/v3/account/whoami');
      await admin.put(lock, { locked: true });
      await bob.post('/v3/logout');
    });

    it('are suspended: they read and leave, but change nothing', async () => {
      const carol = await server.register('carol');
      const room = await alice.createRoom();
      await carol.join(room);
      const own = await carol.sendText(room, 'before');
      const foreign = await alice.sendText(room, 'hello');
      const suspend = path`/v1/admin/suspend/${carol.userId}`;
      assert.deepEqual(await admin.put(suspend, { suspended: true }), { suspended: true });
      assert.deepEqual(await admin.get(suspend), { suspended: true });
      const denied = (promise: Promise<Json>) => refused(promise, 403, 'M_USER_SUSPENDED');
      await denied(carol.sendText(room, 'after'));
      await denied(carol.put(path`/v3/profile/${carol.userId}/displayname`, { displayname: 'C' }));
      await denied(carol.put(path`/v3/rooms/${room}/redact/${foreign}/t1`, {}));
      await denied(carol.createRoom());
      await denied(carol.invite(room, admin.userId));
      await carol.put(path`/v3/rooms/${room}/redact/${own}/t2`, {});
      await carol.sync();
      await carol.leave(room);
      await denied(carol.join(room));
    });

    it('are out of reach when they are of administrators, of other servers, or not there', async () => {
      await refused(admin.put(path`/v1/admin/lock/${admin.userId}`, { locked: true }), 403, 'M_FORBIDDEN');
      const other = (await registerBySecret('root2', { admin: true })).body.user_id;
      await refused(admin.put(path`/v1/admin/suspend/${other}`, { suspended: true }), 403, 'M_FORBIDDEN');
      await refused(admin.get(path`/v1/admin/lock/${'@x:elsewhere.example'}`), 400, 'M_INVALID_PARAM');
      await refused(admin.get(path`/v1/admin/lock/${`@nobody:${server.serverName}`}`), 404, 'M_NOT_FOUND');
      await refused(alice.get(path`/v1/admin/lock/${`@nobody:${server.serverName}`}`), 403, 'M_FORBIDDEN');
      await refused(admin.put(path`/v1/admin/lock/${alice.userId}`, {}), 400, 'M_BAD_JSON');
    });
  });

  it('log in another client by a token, once', async () => {
    const target = '/_matrix/client/v1/login/get_token';
    const asked = await alice.request('POST', target, { body: {} });
    assert.equal(asked.status, 401);
    const body = { auth: { ...auth('alice'), session: asked.body.session } };
    const { login_token: token, expires_in_ms: lifetime } = (await alice.request('POST', target, { body }))
      .body;
    assert.equal(lifetime, 120_000);
    const logIn = () => ask('POST', '/_matrix/client/v3/login', { body: { type: 'm.login.token', token } });
    assert.equal((await logIn()).body.user_id, alice.userId);
    assert.deepEqual([(await logIn()).status, (await logIn()).body.errcode], [403, 'M_FORBIDDEN']);
  });

  it('prove to other services whose they are', async () => {
    const token = await alice.post(path`/v3/user/${alice.userId}/openid/request_token`);
    assert.deepEqual(
      [token.token_type, token.matrix_server_name, token.expires_in],
      ['Bearer', server.serverName, 3600],
    );
    const info = '/_matrix/federation/v1/openid/userinfo';
    const query = { access_token: token.access_token };
    assert.deepEqual((await ask('GET', info, { query })).body, { sub: alice.userId });
    const unknown = await ask('GET', info, { query: { access_token: 'x' } });
    assert.deepEqual([unknown.status, unknown.body.errcode], [401, 'M_UNKNOWN_TOKEN']);
    await refused(alice.post(path`/v3/user/${admin.userId}/openid/request_token`), 403, 'M_FORBIDDEN');
    const asAccess = new Client(server.url, { ...query, user_id: alice.userId, device_id: '' });
    await refused(asAccess.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
  });

  it('say that they have no third-party identifiers', async () => {
    assert.deepEqual(await alice.get('/v3/account/3pid'), { threepids: [] });
    const email = { client_secret: 's', email: 'a@example.org', send_attempt: 1 };
    const phone = { client_secret: 's', country: 'GB', phone_number: '7700900001', send_attempt: 1 };
    for (const [target, body, status, errcode] of [
      ['register/email/requestToken', email, 403, 'M_THREEPID_DENIED'],
      ['account/password/msisdn/requestToken', phone, 403, 'M_THREEPID_DENIED'],
      ['account/3pid/email/requestToken', email, 400, 'M_THREEPID_MEDIUM_NOT_SUPPORTED'],
      ['account/3pid/email/requestToken', { ...email, email: 'nonsense' }, 400, 'M_INVALID_PARAM'],
      ['account/3pid/email/requestToken', {}, 400, 'M_BAD_JSON'],
    ] as const) {
      const answer = await ask('POST', `/_matrix/client/v3/${target}`, { body });
      assert.deepEqual([answer.status, answer.body.errcode], [status, errcode], target);
    }
    const gone = await alice.post('/v3/account/3pid/delete', { medium: 'email', address: 'a@example.org' });
    assert.deepEqual(gone, { id_server_unbind_result: 'no-support' });
  });

  it('have profile fields of all kinds, within limits', async () => {
    const field = (name: string) => path`/v3/profile/${alice.userId}/${name}`;
    await alice.put(field('m.tz'), { 'm.tz': 'Europe/London' });
    await alice.put(field('org.example.job'), {
      'org.example.job': { title: 'Gardener', since: [2019, null] },
    });
    await alice.put(field('org.example.nothing'), { 'org.example.nothing': null });
    assert.deepEqual(await admin.get(path`/v3/profile/${alice.userId}`), {
      'm.tz': 'Europe/London',
      'org.example.job': { title: 'Gardener', since: [2019, null] },
      'org.example.nothing': null,
    });
    assert.deepEqual(await admin.get(field('m.tz')), { 'm.tz': 'Europe/London' });
    await refused(alice.put(field('org.example.job'), { other: 1 }), 400, 'M_MISSING_PARAM');
    await refused(alice.put(field('Bad Key'), { 'Bad Key': 1 }), 400, 'M_INVALID_PARAM');
    const long = `a.${'b'.repeat(255)}`;
    await refused(alice.put(field(long), { [long]: 1 }), 400, 'M_KEY_TOO_LARGE');
    const big = 'x'.repeat(65_536);
    await refused(
      alice.put(field('org.example.big'), { 'org.example.big': big }),
      400,
      'M_PROFILE_TOO_LARGE',
    );
    await alice.delete(field('org.example.job'));
    await refused(alice.get(field('org.example.job')), 404, 'M_NOT_FOUND');
  });

  it('share rooms with others', async () => {
    const dora = await server.register('dora');
    const rooms = [await alice.createRoom(), await alice.createRoom()];
    for (const room of rooms) await dora.join(room);
    await dora.createRoom();
    const answer = await alice.get('/v1/mutual_rooms', { user_id: dora.userId });
    assert.deepEqual([answer.joined, answer.count], [rooms.toSorted(), 2]);
    await refused(alice.get('/v1/mutual_rooms', { user_id: alice.userId }), 400, 'M_INVALID_PARAM');
    await refused(alice.get('/v1/mutual_rooms'), 400, 'M_INVALID_PARAM');
    const query = { user_id: dora.userId, from: 'nonsense' };
    await refused(alice.get('/v1/mutual_rooms', query), 400, 'M_INVALID_PARAM');
  });

  it('are reported, whether they exist or not', async () => {
    await alice.post(path`/v3/users/${'@spam:elsewhere.example'}/report`, { reason: 'spam' });
    await refused(alice.post(path`/v3/users/${'@spam:elsewhere.example'}/report`, {}), 400, 'M_BAD_JSON');
  });

  it('report rooms and events', async () => {
    const room = await alice.createRoom();
    const event = await alice.sendText(room, 'spam');
    await alice.post(path`/v3/rooms/${room}/report/${event}`, { reason: 'spam' });
    await alice.post(path`/v3/rooms/${room}/report`, { reason: 'more spam' });
    const target = path`/v3/rooms/${room}/report/${event}`;
    await refused(admin.post(target, { reason: 'from outside' }), 404, 'M_NOT_FOUND');
    await refused(alice.post(path`/v3/rooms/${'!no:room'}/report`, { reason: 'x' }), 404, 'M_NOT_FOUND');
  });

  it('get credentials for calls', async () => {
    const { username, password, uris, ttl } = await alice.get('/v3/voip/turnServer');
    assert.deepEqual([uris, ttl], [['turn:turn.example.org'], 3600]);
    const [until, userId] = username.split(/:(.*)/);
    assert.equal(userId, alice.userId);
    assert.ok(Math.abs(Number(until) - Date.now() / 1000 - 3600) < 10);
    assert.equal(password, createHmac('sha1', 'turn').update(username).digest('base64'));
  });

  it('know no bridges where none are configured', async () => {
    assert.deepEqual(await alice.get('/v3/thirdparty/protocols'), {});
    await refused(alice.get('/v3/thirdparty/protocol/irc'), 404, 'M_NOT_FOUND');
    await refused(alice.get('/v3/thirdparty/user', { userid: alice.userId }), 404, 'M_NOT_FOUND');
    await refused(alice.get('/v3/thirdparty/location'), 400, 'M_MISSING_PARAM');
  });

  it('are told where the server is', async () => {
    const known = await ask('GET', '/.well-known/matrix/client');
    assert.deepEqual(known.body, { 'm.homeserver': { base_url: server.url }, 'org.example.setting': 7 });
    assert.deepEqual((await ask('GET', '/.well-known/matrix/server')).body, {
      'm.server': 'matrix.example.org:443',
    });
    assert.deepEqual((await ask('GET', '/.well-known/matrix/support')).body, SUPPORT);
    assert.equal((await ask('GET', '/.well-known/matrix/policy_server')).status, 404);
  });
});

describe('registration by token', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ name: 'tokens', config: { registration: { open: false, tokens: true } } });
  });
  after(() => server.close());

  it('asks for the token and refuses wrong ones', async () => {
    const post = (body: Json) => request(server.url, 'POST', '/_matrix/client/v3/register', { body });
    const first = await post({ username: 'x', password: PASSWORD });
    assert.deepEqual(first.body.flows, [{ stages: ['m.login.registration_token'] }]);
    const { session } = first.body;
    const auth = { type: 'm.login.registration_token', token: 'invented', session };
    const wrong = await post({ username: 'x', password: PASSWORD, auth });
    assert.deepEqual(
      [wrong.status, wrong.body.errcode, wrong.body.session],
      [401, 'M_UNAUTHORIZED', session],
    );
    const dummy = await post({ username: 'x', password: PASSWORD, auth: { type: 'm.login.dummy', session } });
    assert.equal(dummy.status, 401);
    const validity = '/_matrix/client/v1/register/m.login.registration_token/validity';
    const { body } = await request(server.url, 'GET', validity, { query: { token: 'invented' } });
    assert.deepEqual(body, { valid: false });
    const guest = await request(server.url, 'POST', '/_matrix/client/v3/register', {
      query: { kind: 'guest' },
      body: {},
    });
    assert.deepEqual([guest.status, guest.body.errcode], [403, 'M_FORBIDDEN']);
  });
});

describe('rate limits', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({
      name: 'limits',
      config: {
        rate_limits: {
          enabled: true,
          messages: { per_second: 0.1, burst: 3 },
          failed_login: { per_second: 0.1, burst: 2 },
        },
      },
    });
  });
  after(() => server.close());

  it('refuse what comes too fast, and say when to come again', async () => {
    const alice = await server.register('alice');
    const bob = await server.register('bob');
    const room = await alice.createRoom();
    for (let i = 0; i < 3; i++) await alice.sendText(room, `${i}`);
    const target = path`/_matrix/client/v3/rooms/${room}/send/m.room.message/late`;
    const late = await alice.request('PUT', target, { body: { msgtype: 'm.text', body: 'late' } });
    assert.deepEqual([late.status, late.body.errcode], [429, 'M_LIMIT_EXCEEDED']);
    assert.ok(late.body.retry_after_ms > 5000 && late.body.retry_after_ms <= 10_000);
    assert.equal(late.headers.get('retry-after'), String(Math.ceil(late.body.retry_after_ms / 1000)));
    await bob.join(room);
    await bob.sendText(room, 'in time');
  });

  it('stop those who guess a password, whoever they are', async () => {
    await server.register('carol');
    const logIn = (password: string) =>
      request(server.url, 'POST', '/_matrix/client/v3/login', {
        body: { type: 'm.login.password', user: 'carol', password },
      });
    for (let i = 0; i < 2; i++) assert.equal((await logIn(`guess ${i}`)).status, 403);
    assert.equal((await logIn('guess 3')).status, 429);
    assert.equal((await logIn(PASSWORD)).status, 429);
  });
});
