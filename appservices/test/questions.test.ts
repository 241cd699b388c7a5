import assert from 'node:assert/strict';
import { after, afterEach, beforeEach, describe, it } from 'node:test';
import { MatrixError } from '@trellis/protocol/errors.ts';
import Fastify from 'fastify';
import { AppserviceClient } from '../client.ts';
import { pingRoutes } from '../ping.ts';
import { Queries } from '../queries.ts';
import type { Registration } from '../registration.ts';
import { Appservices } from '../registry.ts';
import { AppserviceNetworks } from '../third-party.ts';
import { Bridge } from './bridge.ts';

const client = new AppserviceClient();
after(() => client.close());
let bridge: Bridge;
beforeEach(async () => {
  bridge = new Bridge();
  await bridge.start();
});
afterEach(() => bridge.stop());

const services = (...more: Array<Partial<Registration>>) =>
  new Appservices(
    more.map((each) => bridge.registration(each)),
    'here',
  );
const paths = () => bridge.requests.map(({ path }) => path);

describe('queries', () => {
  it('go to services that may have the user or the room, once at a time', async () => {
    const queries = new Queries(services({ aliases: [{ regex: '#irc_', exclusive: true }] }), client);
    bridge.answer = ({ path }) => ({ status: path.includes('carol') ? 200 : 404, body: { errcode: 'NONE' } });
    assert.deepEqual(
      await Promise.all(
        ['@irc_carol:here', '@irc_carol:here', '@alice:here'].map((id) => queries.madeUser(id)),
      ),
      [true, true, false],
    );
    assert.equal(await queries.madeAlias('#irc_a:here'), false);
    assert.equal(await queries.madeAlias('#irc_a:here'), false);
    assert.equal(await queries.madeAlias('#other:here'), false);
    assert.deepEqual(paths(), ['/_matrix/app/v1/users/@irc_carol:here', '/_matrix/app/v1/rooms/#irc_a:here']);
    assert.equal(bridge.requests[0]!.token, 'Bearer hs');
  });

  it('are told apart from a service that does not answer', async () => {
    const queries = new Queries(services({ aliases: [{ regex: '#irc_', exclusive: true }] }), client);
    bridge.stop();
    await assert.rejects(queries.madeAlias('#irc_a:here'), { status: 408 });
    assert.equal(await queries.madeUser('@irc_carol:here'), false);
  });
});

describe('third-party networks', () => {
  it('of several services go together', async () => {
    const networks = new AppserviceNetworks(
      services({ id: 'a', protocols: ['irc'] }, { id: 'b', asToken: 'b', protocols: ['irc', 'xmpp'] }),
      client,
    );
    bridge.answer = ({ path }) =>
      path.endsWith('irc')
        ? {
            status: 200,
            body: { user_fields: ['nick'], instances: [{ network_id: 'n', desc: 'N', fields: {} }] },
          }
        : { status: 404, body: { errcode: 'NONE' } };
    const protocols = await networks.protocols();
    assert.deepEqual(Object.keys(protocols), ['irc']);
    assert.deepEqual(
      (protocols.irc!.instances as Array<{ instance_id: string }>).map(({ instance_id: id }) => id),
      ['a|n', 'b|n'],
    );
    assert.deepEqual(protocols.irc!.user_fields, ['nick']);
    const asked = bridge.requests.length;
    await networks.protocols();
    assert.equal(bridge.requests.length, asked, 'what was told a moment ago is not asked again');
  });

  it('find what is well-formed, by the older path too', async () => {
    const networks = new AppserviceNetworks(services({ protocols: ['irc'] }), client);
    const user = { userid: '@irc_x:here', protocol: 'irc', fields: { nick: 'x' } };
    bridge.answer = ({ path }) =>
      path.startsWith('/_matrix/app/unstable')
        ? { status: 200, body: [user, 'rubbish', {}] }
        : { status: 404 };
    assert.deepEqual(await networks.users('irc', { nick: 'x' }), [user]);
    assert.equal(bridge.requests.at(-1)!.query.get('nick'), 'x');
    assert.deepEqual(await networks.usersById('@irc_x:here'), [user]);
    assert.equal(bridge.requests.at(-1)!.query.get('userid'), '@irc_x:here');
    assert.deepEqual(await networks.users('xmpp', {}), []);
    bridge.stop();
    assert.deepEqual(await networks.locationsByAlias('#a:here'), []);
  });
});

describe('a ping', () => {
  const app = Fastify();
  after(() => app.close());
  app.setErrorHandler((error, _request, reply) =>
    error instanceof MatrixError
      ? reply.code(error.status).send(error.toBody())
      : reply.code(500).send(`${error}`),
  );
  let registered: Appservices;
  const answering: string[] = [];
  pingRoutes(app, {
    services: { get: (id: string) => registered.get(id) } as Appservices,
    client,
    appserviceOf: ({ headers }) => headers.authorization,
    onAnswer: ({ id }) => answering.push(id),
  });
  const ping = async (as: string, id = 'irc') => {
    const url = `/_matrix/client/v1/appservice/${id}/ping`;
    const headers = { authorization: as };
    const answer = await app.inject({ method: 'POST', url, headers, payload: { transaction_id: 'meow' } });
    return { status: answer.statusCode, ...answer.json() };
  };

  it('goes to the service and back', async () => {
    registered = services({}, { id: 'mute', asToken: 'm', url: undefined });
    const { status, duration_ms: duration } = await ping('irc');
    assert.equal(status, 200);
    assert.ok(Number.isInteger(duration));
    assert.deepEqual(answering, ['irc']);
    const { method, path, body, token } = bridge.requests[0]!;
    assert.deepEqual(
      [method, path, body, token],
      ['POST', '/_matrix/app/v1/ping', { transaction_id: 'meow' }, 'Bearer hs'],
    );
    assert.equal((await ping('mute')).errcode, 'M_FORBIDDEN');
    assert.equal((await ping('mute', 'mute')).errcode, 'M_URL_NOT_SET');
    assert.equal((await ping('stranger')).errcode, 'M_FORBIDDEN');
    bridge.answer = () => ({ status: 403, body: { errcode: 'M_FORBIDDEN' } });
    const { error: _, ...refused } = await ping('irc');
    assert.deepEqual(refused, {
      status: 403,
      errcode: 'M_BAD_STATUS',
      body: '{"errcode":"M_FORBIDDEN"}',
    });
    bridge.stop();
    const failed = await ping('irc');
    assert.deepEqual([failed.status, failed.errcode], [502, 'M_CONNECTION_FAILED']);
  });
});
