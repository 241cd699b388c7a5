import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Client, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { PASSWORD, startServer, type TestServer } from './harness/server.ts';

describe('account registration', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ name: 'registration' });
  });
  after(() => server.close());
  const post = (body: Json, query = {}) =>
    request(server.url, 'POST', '/_matrix/client/v3/register', { body, query });
  const dummy = { type: 'm.login.dummy' };

  it('offers the stages of user-interactive authentication, then makes the account', async () => {
    const first = await post({ username: 'steps', password: PASSWORD });
    assert.equal(first.status, 401);
    assert.ok(first.body.flows.some((flow: Json) => flow.stages.includes('m.login.dummy')));
    assert.equal(typeof first.body.session, 'string');
    const second = await post({
      username: 'steps',
      password: PASSWORD,
      auth: { ...dummy, session: first.body.session },
    });
    assert.equal(second.status, 200);
    assert.equal(second.body.user_id, `@steps:${server.serverName}`);
    const me = await new Client(server.url, second.body).get('/v3/account/whoami');
    assert.deepEqual(
      [me.user_id, me.device_id, me.is_guest ?? false],
      [second.body.user_id, second.body.device_id, false],
    );
  });

  it('makes an account at once when the stage comes with the first request', async () => {
    const { status, body } = await post({ username: 'atonce', password: PASSWORD, auth: dummy });
    assert.equal(status, 200);
    assert.ok(body.access_token && body.device_id);
    assert.ok(!('refresh_token' in body));
  });

  it('thinks of a user name when none is given', async () => {
    const { body } = await post({ password: PASSWORD, auth: dummy });
    assert.match(body.user_id, new RegExp(`^@[a-z0-9._=/+-]+:${server.serverName}$`));
  });

  it('gives no token with inhibit_login', async () => {
    const { body } = await post({
      username: 'inhibit',
      password: PASSWORD,
      auth: dummy,
      inhibit_login: true,
    });
    assert.equal(body.user_id, `@inhibit:${server.serverName}`);
    assert.ok(!('access_token' in body) && !('device_id' in body));
  });

  it('takes the device id and name that it is given', async () => {
    const { body } = await post({
      username: 'device',
      password: PASSWORD,
      auth: dummy,
      device_id: 'KITCHEN',
      initial_device_display_name: 'The kitchen',
    });
    const { devices } = await new Client(server.url, body).get('/v3/devices');
    assert.deepEqual([devices[0].device_id, devices[0].display_name], ['KITCHEN', 'The kitchen']);
  });

  it('makes user names lower-case', async () => {
    const { body } = await post({ username: 'UpperCase', password: PASSWORD, auth: dummy });
    assert.equal(body.user_id, `@uppercase:${server.serverName}`);
  });

  it('refuses names that are taken, and says so before the authentication', async () => {
    await server.register('taken');
    for (const auth of [undefined, dummy]) {
      const { status, body } = await post({ username: 'taken', password: PASSWORD, auth });
      assert.deepEqual([status, body.errcode], [400, 'M_USER_IN_USE']);
    }
    assert.equal(
      (await post({ username: 'TAKEN', password: PASSWORD, auth: dummy })).body.errcode,
      'M_USER_IN_USE',
    );
  });

  it('refuses names outside the grammar', async () => {
    for (const username of ['a b', 'a:b', '@a', 'é', 'a"b', 'a,b', 'x'.repeat(300), '']) {
      const { status, body } = await post({ username, password: PASSWORD, auth: dummy });
      if (username === '') continue; // an empty name may count as none
      assert.deepEqual([status, body.errcode], [400, 'M_INVALID_USERNAME'], username);
    }
  });

  it('allows every character of the grammar', async () => {
    const { status, body } = await post({ username: 'q._=-/+9', password: PASSWORD, auth: dummy });
    assert.deepEqual([status, body.user_id], [200, `@q._=-/+9:${server.serverName}`]);
  });

  it('says whether a name is available', async () => {
    const ask = (username: string) =>
      request(server.url, 'GET', '/_matrix/client/v3/register/available', { query: { username } });
    assert.deepEqual((await ask('nobody.yet')).body, { available: true });
    await server.register('somebody');
    assert.deepEqual(
      [(await ask('somebody')).status, (await ask('somebody')).body.errcode],
      [400, 'M_USER_IN_USE'],
    );
    assert.equal((await ask('not allowed')).body.errcode, 'M_INVALID_USERNAME');
  });

  it('refuses stages that it did not offer and sessions that it does not know', async () => {
    const odd = await post({ username: 'odd', password: PASSWORD, auth: { type: 'm.login.magic' } });
    assert.ok(odd.status === 401 || odd.status === 400);
    const forged = await post({ username: 'odd', password: PASSWORD, auth: { ...dummy, session: 'forged' } });
    assert.ok(forged.status === 401 || forged.status === 400, JSON.stringify(forged.body));
  });

  it('refuses a kind of account that does not exist', async () => {
    const { status } = await post({ username: 'kind', password: PASSWORD, auth: dummy }, { kind: 'emperor' });
    assert.equal(status, 400);
  });
});
