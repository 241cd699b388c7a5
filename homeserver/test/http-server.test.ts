import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Database } from '@trellis/storage/database.ts';
import pino from 'pino';
import { healthRoutes } from '../health.ts';
import { createHttpServer } from '../http-server.ts';

describe('names of paths', () => {
  const app = createHttpServer(pino({ level: 'silent' }));
  for (const path of [
    '/_matrix/client/v3/keys/device_signing/upload',
    '/_matrix/client/v3/sync',
    '/_matrix/client/unstable/org.example.msc1/sync',
    '/_matrix/client/unstable/event_relationships',
  ])
    app.all(path, async () => ({ path }));

  const answers = async (url: string) => (await app.inject({ method: 'POST', url })).json();

  it('finds what clients call by the names before v3', async () => {
    const upload = { path: '/_matrix/client/v3/keys/device_signing/upload' };
    assert.deepEqual(await answers('/_matrix/client/r0/keys/device_signing/upload'), upload);
    assert.deepEqual(await answers('/_matrix/client/unstable/keys/device_signing/upload'), upload);
    assert.deepEqual(await answers('/_matrix/client/unstable/sync?since=a.b'), {
      path: '/_matrix/client/v3/sync',
    });
  });

  it('leaves paths alone that are unstable indeed', async () => {
    for (const path of [
      '/_matrix/client/unstable/org.example.msc1/sync',
      '/_matrix/client/unstable/event_relationships',
    ])
      assert.deepEqual(await answers(path), { path });
    const unknown = await answers('/_matrix/client/unstable/org.example.msc2/sync');
    assert.equal(unknown.errcode, 'M_UNRECOGNIZED');
  });
});

describe('a database that is away', () => {
  it('is no failure of the server: 503, and when to come back', async () => {
    const app = createHttpServer(pino({ level: 'silent' }));
    const away = new Database({
      connectionString: 'postgresql://trellis@/postgres?host=/nowhere/a,/nowhere/b',
    });
    app.get('/read', () => away.query('SELECT 1'));
    app.get('/store', () => away.transaction((tx) => tx.query('DELETE FROM events')));
    for (const url of ['/read', '/store']) {
      const answer = await app.inject({ method: 'GET', url });
      assert.equal(answer.statusCode, 503);
      assert.equal(answer.headers['retry-after'], '1');
      assert.deepEqual([answer.json().errcode, answer.json().retry_after_ms], ['M_UNKNOWN', 1000]);
    }
    await away.close();
  });
});

describe('health', () => {
  it('tells load balancers to go elsewhere, and lets answers close their connections', async () => {
    const app = createHttpServer(pino({ level: 'silent' }));
    healthRoutes(app);
    const ask = async (url: string) => {
      const { statusCode, headers } = await app.inject(url);
      return [statusCode, headers.connection];
    };
    assert.deepEqual(await ask('/health'), [200, 'keep-alive']);
    app.draining = true;
    assert.deepEqual(await ask('/health'), [503, 'close']);
    assert.deepEqual(await ask('/health/live'), [200, 'close']);
  });
});
