import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Client, path, refused, request } from './harness/client.ts';
import type { Json } from './harness/json.ts';
import { login, PASSWORD, startServer, type TestServer } from './harness/server.ts';

describe('login and logout', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ name: 'login' });
    await server.register('alice');
  });
  after(() => server.close());
  const post = (body: Json) => request(server.url, 'POST', '/_matrix/client/v3/login', { body });

  it('offers password login', async () => {
    const { body } = await request(server.url, 'GET', '/_matrix/client/v3/login');
    assert.ok(body.flows.some((flow: Json) => flow.type === 'm.login.password'));
  });

  it('takes a user name, a whole user id, and the old form', async () => {
    const userId = `@alice:${server.serverName}`;
    for (const who of [
      { identifier: { type: 'm.id.user', user: 'alice' } },
      { identifier: { type: 'm.id.user', user: userId } },
      { identifier: { type: 'm.id.user', user: 'Alice' } },
      { user: 'alice' },
    ]) {
      const { status, body } = await post({ type: 'm.login.password', password: PASSWORD, ...who });
      assert.deepEqual([status, body.user_id], [200, userId], JSON.stringify(who));
      assert.ok(body.access_token && body.device_id);
    }
  });

  it('refuses a wrong password, an unknown user and another server with the same words', async () => {
    const answers = [];
    for (const [user, password] of [
      ['alice', 'wrong'],
      ['nobody', PASSWORD],
      ['@alice:elsewhere.example', PASSWORD],
    ] as const) {
      const { status, body } = await post({
        type: 'm.login.password',
        identifier: { type: 'm.id.user', user },
        password,
      });
      assert.deepEqual([status, body.errcode], [403, 'M_FORBIDDEN'], user);
      answers.push(body.error);
    }
    assert.equal(answers[0], answers[1]);
  });

  it('refuses login types that it did not offer, and bodies without one', async () => {
    assert.equal((await post({ type: 'm.login.crystal_ball' })).status, 400);
    assert.equal((await post({})).status, 400);
    const answer = await post({ type: 'm.login.password', password: PASSWORD });
    assert.equal(answer.status, 400);
  });

  it('replaces the token of a device that logs in again', async () => {
    const first = await login(server.url, 'alice', { device_id: 'PHONE' });
    const second = await login(server.url, 'alice', { device_id: 'PHONE' });
    assert.equal(second.deviceId, 'PHONE');
    await refused(first.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    assert.equal((await second.get('/v3/account/whoami')).device_id, 'PHONE');
  });

  it('logs out one device, or all', async () => {
    const bob = await server.register('bob');
    const other = await login(server.url, 'bob');
    const third = await login(server.url, 'bob');
    await other.post('/v3/logout');
    await refused(other.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    assert.equal((await bob.get('/v3/devices')).devices.length, 2);
    await bob.post('/v3/logout/all');
    await refused(bob.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    await refused(third.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
  });

  it('gives and renews short-lived tokens to clients that can refresh', async () => {
    const { body } = await post({
      type: 'm.login.password',
      identifier: { type: 'm.id.user', user: 'alice' },
      password: PASSWORD,
      refresh_token: true,
    });
    assert.ok(body.refresh_token && body.expires_in_ms > 0);
    const refresh = (refresh_token: string) =>
      request(server.url, 'POST', '/_matrix/client/v3/refresh', { body: { refresh_token } });
    const renewed = await refresh(body.refresh_token);
    assert.equal(renewed.status, 200);
    assert.notEqual(renewed.body.access_token, body.access_token);
    const client = new Client(server.url, { ...body, access_token: renewed.body.access_token });
    assert.equal((await client.get('/v3/account/whoami')).device_id, body.device_id);
    // The first use of the new token ends the old refresh token.
    const again = await refresh(body.refresh_token);
    assert.deepEqual([again.status, again.body.errcode], [401, 'M_UNKNOWN_TOKEN']);
    assert.equal((await refresh('invented')).status, 401);
  });

  it('changes the password with the old one, and logs the other devices out', async () => {
    const carol = await server.register('carol');
    const other = await login(server.url, 'carol');
    const target = '/_matrix/client/v3/account/password';
    const asked = await carol.request('POST', target, { body: { new_password: 'a new one 1234' } });
    assert.equal(asked.status, 401);
    assert.ok(asked.body.flows.some((flow: Json) => flow.stages.includes('m.login.password')));
    const auth = (password: string) => ({
      type: 'm.login.password',
      identifier: { type: 'm.id.user', user: 'carol' },
      password,
      session: asked.body.session,
    });
    const wrong = await carol.request('POST', target, {
      body: { new_password: 'a new one 1234', auth: auth('wrong') },
    });
    assert.deepEqual([wrong.status, wrong.body.errcode], [401, 'M_FORBIDDEN']);
    const right = await carol.request('POST', target, {
      body: { new_password: 'a new one 1234', auth: auth(PASSWORD) },
    });
    assert.equal(right.status, 200);
    assert.equal((await carol.get('/v3/account/whoami')).user_id, carol.userId);
    await refused(other.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    const old = await post({ type: 'm.login.password', user: 'carol', password: PASSWORD });
    assert.equal(old.status, 403);
    await login(server.url, 'carol', { password: 'a new one 1234' });
  });

  it('deactivates an account for good', async () => {
    const dora = await server.register('dora');
    const room = await dora.createRoom();
    const alice = await login(server.url, 'alice');
    await alice.join(room);
    const auth = {
      type: 'm.login.password',
      identifier: { type: 'm.id.user', user: 'dora' },
      password: PASSWORD,
    };
    await dora.post('/v3/account/deactivate', { auth });
    await refused(dora.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    const { status, body } = await post({ type: 'm.login.password', user: 'dora', password: PASSWORD });
    assert.equal(status, 403);
    assert.ok(['M_FORBIDDEN', 'M_USER_DEACTIVATED'].includes(body.errcode));
    const retaken = await request(server.url, 'POST', '/_matrix/client/v3/register', {
      body: { username: 'dora', password: PASSWORD, auth: { type: 'm.login.dummy' } },
    });
    assert.equal(retaken.body.errcode, 'M_USER_IN_USE');
    await alice.seesMember(room, dora.userId, 'leave');
  });

  it('erases what an account sent, for all who come later', async () => {
    const gina = await server.register('gina');
    const [alice, late] = [await login(server.url, 'alice'), await server.register('late')];
    const room = await gina.createRoom({ preset: 'public_chat', name: 'Kept' });
    await alice.join(room);
    const said = await gina.sendText(room, 'regrettable');
    await alice.sendText(room, 'unregrettable');
    const auth = { type: 'm.login.password', user: 'gina', password: PASSWORD };
    await gina.post('/v3/account/deactivate', { auth, erase: true });
    await late.join(room);
    assert.equal((await alice.event(room, said)).content.body, 'regrettable');
    assert.deepEqual((await late.event(room, said)).content, {});
    const { chunk } = await late.get(path`/v3/rooms/${room}/messages`, { dir: 'b', limit: 50 });
    const shown = chunk.map(({ content }: Json) => content.body).filter(Boolean);
    assert.deepEqual(shown, ['unregrettable']);
    const timeline = (await late.sync()).rooms.join[room].timeline.events;
    assert.deepEqual(timeline.find((event: Json) => event.event_id === said)?.content, {});
    assert.equal((await late.getState(room, 'm.room.name')).name, 'Kept');
    const criteria = { search_categories: { room_events: { search_term: 'regrettable' } } };
    const hits = async (who: Client) =>
      (await who.post('/v3/search', criteria)).search_categories.room_events.results.length;
    assert.deepEqual([await hits(alice), await hits(late)], [1, 0]);
  });
});
