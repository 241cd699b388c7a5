import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { type Client, path, refused } from './harness/client.ts';
import { login, PASSWORD, startServer, type TestServer } from './harness/server.ts';

describe('device management', () => {
  let server: TestServer;
  let alice: Client;
  before(async () => {
    server = await startServer({ name: 'devices' });
    alice = await server.register('alice', { device_id: 'FIRST', initial_device_display_name: 'First' });
  });
  after(() => server.close());
  const auth = {
    type: 'm.login.password',
    identifier: { type: 'm.id.user', user: 'alice' },
    password: PASSWORD,
  };

  it('lists, shows and renames devices', async () => {
    const { devices } = await alice.get('/v3/devices');
    assert.deepEqual(
      devices.map((d: { device_id: string }) => d.device_id),
      ['FIRST'],
    );
    assert.equal((await alice.get('/v3/devices/FIRST')).display_name, 'First');
    await alice.put('/v3/devices/FIRST', { display_name: 'Renamed' });
    const device = await alice.get('/v3/devices/FIRST');
    assert.equal(device.display_name, 'Renamed');
    assert.equal(typeof device.last_seen_ts, 'number');
    await alice.put('/v3/devices/FIRST', {});
    assert.equal((await alice.get('/v3/devices/FIRST')).display_name, 'Renamed');
  });

  it('knows nothing of devices of others or unknown ones', async () => {
    const bob = await server.register('bob');
    await refused(bob.get('/v3/devices/FIRST'), 404, 'M_NOT_FOUND');
    await refused(bob.put('/v3/devices/FIRST', { display_name: 'x' }), 404, 'M_NOT_FOUND');
    await refused(alice.get('/v3/devices/NOTHERE'), 404, 'M_NOT_FOUND');
    assert.equal((await alice.get('/v3/devices/FIRST')).display_name, 'Renamed');
  });

  it('deletes a device after the password was given again', async () => {
    const second = await login(server.url, 'alice', { device_id: 'SECOND' });
    const target = '/_matrix/client/v3/devices/SECOND';
    const asked = await alice.request('DELETE', target, { body: {} });
    assert.equal(asked.status, 401);
    const session = asked.body.session;
    const wrong = await alice.request('DELETE', target, {
      body: { auth: { ...auth, password: 'no', session } },
    });
    assert.equal(wrong.status, 401);
    const done = await alice.request('DELETE', target, { body: { auth: { ...auth, session } } });
    assert.equal(done.status, 200);
    await refused(second.get('/v3/account/whoami'), 401, 'M_UNKNOWN_TOKEN');
    await refused(alice.get('/v3/devices/SECOND'), 404);
  });

  it("does not accept another user's password", async () => {
    await server.register('mallory');
    await login(server.url, 'alice', { device_id: 'THIRD' });
    const other = { ...auth, identifier: { type: 'm.id.user', user: 'mallory' } };
    const answer = await alice.request('DELETE', '/_matrix/client/v3/devices/THIRD', {
      body: { auth: other },
    });
    assert.ok(answer.status === 401 || answer.status === 403);
    await alice.get('/v3/devices/THIRD');
  });

  it('deletes several at once', async () => {
    await login(server.url, 'alice', { device_id: 'X1' });
    await login(server.url, 'alice', { device_id: 'X2' });
    await alice.post('/v3/delete_devices', { devices: ['X1', 'X2'], auth });
    for (const id of ['X1', 'X2']) await refused(alice.get(path`/v3/devices/${id}`), 404);
  });
});
