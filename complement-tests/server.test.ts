import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, request } from './harness/client.ts';
import { startServer, type TestServer } from './harness/server.ts';

describe('server discovery and API standards', () => {
  let server: TestServer;
  let alice: Client;
  before(async () => {
    server = await startServer({ name: 'server' });
    alice = await server.register('alice');
  });
  after(() => server.close());
  const ask = (method: string, target: string, options = {}) => request(server.url, method, target, options);

  it('names the versions of the specification that it speaks', async () => {
    const { body } = await ask('GET', '/_matrix/client/versions');
    assert.ok(
      body.versions.includes('v1.1') && body.versions.includes('v1.11'),
      JSON.stringify(body.versions),
    );
    assert.equal(typeof body.unstable_features, 'object');
  });

  it('tells a client its capabilities', async () => {
    const { capabilities } = await alice.get('/v3/capabilities');
    assert.equal(capabilities['m.room_versions'].default, '12');
    for (let version = 1; version <= 12; version++)
      assert.equal(capabilities['m.room_versions'].available[version], 'stable');
    assert.equal(capabilities['m.change_password'].enabled, true);
  });

  it('answers unknown paths with 404 and unknown methods with 405', async () => {
    for (const [method, target, status] of [
      ['GET', '/_matrix/client/v3/no/such/thing', 404],
      ['GET', '/_matrix/unknown', 404],
      ['GET', '/_matrix/federation/v1/nothing', 404],
      ['DELETE', '/_matrix/client/v3/login', 405],
      ['PATCH', '/_matrix/client/v3/login', 405],
    ] as const) {
      const answer = await ask(method, target);
      assert.equal(answer.status, status, `${method} ${target}`);
      assert.equal(answer.body.errcode, 'M_UNRECOGNIZED', `${method} ${target}`);
    }
  });

  it('asks for a token and refuses one that it does not know', async () => {
    const missing = await ask('GET', '/_matrix/client/v3/account/whoami');
    assert.deepEqual([missing.status, missing.body.errcode], [401, 'M_MISSING_TOKEN']);
    const unknown = await ask('GET', '/_matrix/client/v3/account/whoami', { token: 'nobody' });
    assert.deepEqual([unknown.status, unknown.body.errcode], [401, 'M_UNKNOWN_TOKEN']);
  });

  it('takes the token from the query string too', async () => {
    const query = { access_token: alice.accessToken };
    const { status, body } = await ask('GET', '/_matrix/client/v3/account/whoami', { query });
    assert.deepEqual([status, body.user_id], [200, alice.userId]);
  });

  it('says which part of a body was wrong: not JSON, or not the JSON asked for', async () => {
    const notJson = await alice.request('POST', '/_matrix/client/v3/createRoom', { raw: '{"name": ' });
    assert.deepEqual([notJson.status, notJson.body.errcode], [400, 'M_NOT_JSON']);
    const badJson = await alice.request('POST', '/_matrix/client/v3/createRoom', { body: { name: 7 } });
    assert.deepEqual([badJson.status, badJson.body.errcode], [400, 'M_BAD_JSON']);
    for (const body of ['[]', '"x"', '12', 'null']) {
      const answer = await alice.request('POST', '/_matrix/client/v3/createRoom', { raw: body });
      assert.equal(answer.status, 400, body);
    }
  });

  it('answers in JSON, and says so without more', async () => {
    for (const target of ['/_matrix/client/v3/login', '/_matrix/client/v3/account/whoami']) {
      const { headers } = await ask('GET', target);
      assert.equal(headers.get('content-type'), 'application/json');
    }
  });

  it('refuses bodies that are not UTF-8', async () => {
    const raw = Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0x81]), Buffer.from('"}')]);
    const { status, body } = await ask('POST', '/_matrix/client/v3/register', { raw });
    assert.deepEqual([status, body.errcode], [400, 'M_NOT_JSON']);
  });

  it('reads JSON whatever content type it is said to be', async () => {
    const headers = { 'content-type': 'text/plain' };
    const answer = await alice.request('POST', '/_matrix/client/v3/createRoom', {
      raw: '{"name":"plain"}',
      headers,
    });
    assert.equal(answer.status, 200);
  });

  it('lets web pages of every origin use it', async () => {
    const preflight = await ask('OPTIONS', '/_matrix/client/v3/sync', {
      headers: {
        origin: 'https://app.example',
        'access-control-request-method': 'GET',
        'access-control-request-headers': 'authorization',
      },
    });
    assert.ok(preflight.status === 200 || preflight.status === 204);
    assert.equal(preflight.headers.get('access-control-allow-origin'), '*');
    assert.match(preflight.headers.get('access-control-allow-headers')!.toLowerCase(), /authorization/);
    assert.equal(
      (await ask('GET', '/_matrix/client/versions')).headers.get('access-control-allow-origin'),
      '*',
    );
    const failed = await ask('GET', '/_matrix/client/v3/account/whoami');
    assert.equal(failed.headers.get('access-control-allow-origin'), '*');
  });

  it('refuses bodies that are too large', async () => {
    const raw = JSON.stringify({ name: 'x'.repeat(12 * 1024 * 1024) });
    const answer = await alice
      .request('POST', '/_matrix/client/v3/createRoom', { raw })
      .catch(() => undefined);
    // A server may also hang up before it has read everything.
    if (answer) assert.deepEqual([answer.status, answer.body.errcode], [413, 'M_TOO_LARGE']);
  });
});
