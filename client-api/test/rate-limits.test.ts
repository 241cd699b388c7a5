import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { authenticateRequests } from '../authentication.ts';
import { limitRates, networkOf } from '../rate-limits.ts';
import { ask, testApp } from './api.ts';

function limitedApp() {
  const app = testApp();
  authenticateRequests(app, async (token) => ({
    userId: `@${token}:example.org`,
    deviceId: undefined,
    tokenId: token,
    isGuest: false,
    isAdmin: false,
    appserviceId: undefined,
    isUnlimited: token === 'bridge',
  }));
  const two = { perSecond: 0.1, burst: 2 };
  limitRates(app, {
    messages: two,
    joins: two,
    invites: two,
    room_creation: two,
    login: two,
    registration: two,
    other: two,
  });
  app.get('/messages', { config: { rateLimit: 'messages' } }, async () => ({}));
  app.get('/other', async () => ({}));
  app.get('/free', { config: { rateLimit: false } }, async () => ({}));
  app.get('/login', { config: { auth: 'none', rateLimit: 'login' } }, async () => ({}));
  return app;
}

describe('rate limits', () => {
  it('count each kind of request of each user for itself', async () => {
    const app = limitedApp();
    const statuses = async (url: string, token: string) => {
      const answers = [];
      for (let i = 0; i < 3; i++) answers.push((await ask(app, 'GET', url, { token })).status);
      return answers;
    };
    assert.deepEqual(await statuses('/messages', 'alice'), [200, 200, 429]);
    assert.deepEqual(await statuses('/other', 'alice'), [200, 200, 429]);
    assert.deepEqual(await statuses('/messages', 'bob'), [200, 200, 429]);
    assert.deepEqual(await statuses('/free', 'alice'), [200, 200, 200]);
    assert.deepEqual(await statuses('/messages', 'bridge'), [200, 200, 200]);
    const { body } = await ask(app, 'GET', '/messages', { token: 'alice' });
    assert.equal(body.errcode, 'M_LIMIT_EXCEEDED');
    assert.ok(body.retry_after_ms > 9000 && body.retry_after_ms <= 10_000);
  });

  it('count who has no account by address', async () => {
    const app = limitedApp();
    const from = async (ip: string) => (await ask(app, 'GET', '/login', { ip })).status;
    assert.deepEqual(
      [await from('192.0.2.1'), await from('192.0.2.1'), await from('192.0.2.1')],
      [200, 200, 429],
    );
    assert.equal(await from('192.0.2.2'), 200);
    await from('2001:db8::1');
    await from('2001:db8::2');
    assert.equal(await from('2001:db8:0:0:ffff::'), 429);
    assert.equal(await from('2001:db8:0:1::'), 200);
  });

  it('know the network of an address', () => {
    for (const [ip, network] of [
      ['192.0.2.1', '192.0.2.1'],
      ['::ffff:192.0.2.1', '::ffff:192.0.2.1'],
      ['2001:db8::1', '2001:db8:0:0::/64'],
      ['2001:0DB8:0:00A:1:2:3:4', '2001:db8:0:a::/64'],
      ['::1', '0:0:0:0::/64'],
      ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    ] as const)
      assert.equal(networkOf(ip), network);
  });
});
