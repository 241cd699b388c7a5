import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Client, request } from './harness/client.ts';
import { deviationOf, EXCEPTIONS } from './harness/conformance.ts';
import type { Json } from './harness/json.ts';
import { hasSpec, nameOf, type Operation, operationsOf, SPEC_FOLDER } from './harness/openapi.ts';
import { startServer, type TestServer } from './harness/server.ts';

/** Values for the parameters of paths, of the server itself: nothing here is to ask others. */
const examples = (serverName: string): Record<string, string> => ({
  roomId: `!room:${serverName}`,
  roomIdOrAlias: `!room:${serverName}`,
  roomAlias: `#room:${serverName}`,
  userId: `@user:${serverName}`,
  eventId: '$event',
  serverName,
  mediaId: 'abc',
});

const MAX_EXCEPTIONS = 10;

/** Every operation that the specification's OpenAPI documents have for clients, as they are read here. */
describe('the client-server API of the specification', {
  skip: hasSpec() ? false : `no specification at ${SPEC_FOLDER} (TRELLIS_SPEC_DIR)`,
}, () => {
  const operations = hasSpec() ? operationsOf('client-server') : [];
  let server: TestServer;
  let alice: Client;
  before(async () => {
    server = await startServer({ name: 'openapi' });
    alice = await server.register('alice');
  });
  after(() => server.close());

  const targetOf = ({ path }: Operation) =>
    path.replace(/\{(\w+)\}/g, (_, name: string) =>
      encodeURIComponent(examples(server.serverName)[name] ?? 'x'),
    );
  const bodyOf = ({ method }: Operation) => (method === 'GET' ? undefined : {});

  it('is served whole, and refuses what makes no sense by an error of the specification', async () => {
    const wrong: string[] = [];
    for (const operation of operations) {
      // Each with a session of its own: some end it.
      const { method } = operation;
      const client = /logout|deactivate|password/.test(operation.path) ? await server.register() : alice;
      const answer = await client.request(method, targetOf(operation), {
        body: bodyOf(operation),
        query: { timeout: 0 },
      });
      const unrecognized = answer.body?.errcode === 'M_UNRECOGNIZED' && !saysUnrecognized(operation);
      if (unrecognized || answer.status >= 500) wrong.push(`${nameOf(operation)}: ${answer.status}`);
    }
    assert.ok(operations.length > 150, `only ${operations.length} operations were found`);
    assert.deepEqual(wrong, []);
  });

  it('asks for an access token where the specification does', async () => {
    const wrong: string[] = [];
    for (const operation of operations.filter((one) => one.authenticated)) {
      const options = { body: bodyOf(operation) };
      const none = await request(server.url, operation.method, targetOf(operation), options);
      const invented = new Client(server.url, { user_id: '@x:x', access_token: 'invented', device_id: 'X' });
      const unknown = await invented.request(operation.method, targetOf(operation), options);
      const codes = [none.status, none.body?.errcode, unknown.status, unknown.body?.errcode].join(' ');
      if (codes !== '401 M_MISSING_TOKEN 401 M_UNKNOWN_TOKEN') wrong.push(`${nameOf(operation)}: ${codes}`);
    }
    assert.deepEqual(wrong, []);
  });

  it('is what answers are held to', () => {
    const deviation = (target: string, status: number, body: Json) =>
      deviationOf(new URL(target, 'http://server/_matrix/client/'), 'GET', { status, body });
    const joined = (joined_rooms: Json) => deviation('v3/joined_rooms', 200, { joined_rooms });
    assert.equal(joined(['!room:server']), undefined);
    assert.match(joined([7])!, /must be string/);
    assert.match(deviation('v3/joined_rooms', 200, {})!, /required property 'joined_rooms'/);
    assert.match(deviation('v3/joined_rooms', 200, Buffer.from('text'))!, /not JSON/);
    assert.match(deviation('v3/joined_rooms', 204, {})!, /not a status/);
    assert.equal(deviation('v3/joined_rooms', 403, { errcode: 'M_FORBIDDEN', error: 'no' }), undefined);
    for (const body of [{}, { errcode: 7 }, { errcode: 'M_FORBIDDEN', error: null }, Buffer.from('')])
      assert.match(deviation('v3/joined_rooms', 403, body)!, /no errcode/);
    // What is referred to across documents: an event of a sync's timeline.
    const sync = (event: Json) => {
      const room = { timeline: { events: [event] } };
      return deviation('v3/sync', 200, { next_batch: 's1', rooms: { join: { '!r:s': room } } });
    };
    const event = { type: 'x', sender: '@a:s', event_id: '$e', origin_server_ts: 1, content: {} };
    assert.equal(sync(event), undefined);
    assert.match(sync({ ...event, sender: 'a' })!, /sender must match pattern/);
    assert.match(deviation('unstable/org.example/x', 404, 'gone')!, /no errcode/);
  });

  it('is deviated from in few places, each for a reason', () => {
    assert.ok(EXCEPTIONS.length <= MAX_EXCEPTIONS);
    const names = new Set(operations.map(nameOf));
    for (const { operation, reason } of EXCEPTIONS) {
      assert.ok(names.has(operation), `${operation} is not in the specification`);
      assert.ok(reason.length > 20, operation);
    }
  });
});

/** Whether the operation's own description has M_UNRECOGNIZED, for servers without the feature. */
const saysUnrecognized = (operation: Operation) =>
  JSON.stringify(operation.responses.get('404')?.value ?? '').includes('M_UNRECOGNIZED');
