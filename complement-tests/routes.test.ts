import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { after, before, describe, it } from 'node:test';
import { request } from './harness/client.ts';
import { startServer, type TestServer } from './harness/server.ts';

/** Every operation of the client-server and server-server APIs (v1.19); a line that ends in "absent" is not served. */
const LIST = new URL('./routes.txt', import.meta.url);
const EXAMPLES: Record<string, string> = {
  roomId: '!room:example.org',
  roomIdOrAlias: '!room:example.org',
  roomAlias: '#room:example.org',
  userId: '@user:example.org',
  eventId: '$event',
  serverName: 'example.org',
  mediaId: 'abc',
  limit: '1',
};

interface Route {
  method: string;
  path: string;
  absent: boolean;
}

describe('routes of the specification', () => {
  let server: TestServer;
  before(async () => {
    server = await startServer({ name: 'routes' });
  });
  after(() => server.close());

  /** Without token or signature a served route says what it misses; only an unknown one is unrecognised. */
  async function isServed({ method, path }: Route): Promise<boolean> {
    const target = path.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(EXAMPLES[name] ?? 'x'));
    const body = method === 'GET' ? undefined : {};
    const answer = await request(server.url, method, target, { body });
    const unrecognized = answer.body?.errcode === 'M_UNRECOGNIZED';
    assert.ok(answer.status < 500 || answer.body?.errcode, `${method} ${path}: ${answer.status}`);
    return !unrecognized;
  }

  it('are served, except those that the list says are not', async (t) => {
    const routes = readFileSync(LIST, 'utf8')
      .trim()
      .split('\n')
      .map((line): Route => {
        const [method, path, mark] = line.split(' ');
        return { method: method!, path: path!, absent: mark === 'absent' };
      });
    const served = new Map<Route, boolean>();
    for (const route of routes) served.set(route, await isServed(route));
    t.diagnostic(`${[...served.values()].filter(Boolean).length} of ${routes.length} are served`);
    if (process.env.TRELLIS_UPDATE_ROUTES) {
      const lines = routes.map((r) => `${r.method} ${r.path}${served.get(r) ? '' : ' absent'}`);
      writeFileSync(LIST, `${lines.join('\n')}\n`);
      return;
    }
    const wrong = routes.filter((route) => served.get(route) === route.absent);
    assert.deepEqual(
      wrong.map((r) => `${r.method} ${r.path} is ${r.absent ? 'served: take the mark away' : 'not served'}`),
      [],
    );
  });
});
