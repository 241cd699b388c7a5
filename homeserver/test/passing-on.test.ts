import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import type { Role } from '@trellis/cluster/cluster.ts';
import { onHurry } from '@trellis/cluster/owned-routes.ts';
import { type TestCluster, type TestMember, testCluster } from '@trellis/cluster/testing.ts';
import type { FastifyInstance } from 'fastify';
import pino from 'pino';
import { createHttpServer } from '../http-server.ts';
import { PassingOn } from '../passing-on.ts';
import { roleGate, workOf } from '../role-gate.ts';

const BINARY = Buffer.from([0, 1, 0xff, 0xfe]);

interface Process {
  readonly member: TestMember;
  readonly app: FastifyInstance;
  readonly passingOn: PassingOn;
}

async function startProcess(member: TestMember): Promise<Process> {
  const app = createHttpServer(pino({ level: 'silent' }));
  const passingOn = new PassingOn(member);
  passingOn.connect(app);
  app.addHook('onRequest', async (request) => {
    if (request.headers.authorization === 'wrong') throw new Error('not authenticated');
  });
  const config = {
    duty: 'user',
    key: (request: { params: unknown }) => (request.params as { user: string }).user,
  };
  app.post('/whose/:user', { config: config as never }, async (request, reply) => {
    reply.code(201).header('x-one', ['a', 'b']);
    const { authorization, 'x-trellis-passed-on': mark } = request.headers;
    return { by: member.self, ip: request.ip, body: request.body, authorization, marked: mark !== undefined };
  });
  app.get('/whose/:user/bytes', { config: config as never }, async (_request, reply) => reply.send(BINARY));
  app.get('/whose/:user/waits', { config: config as never }, async (_request, reply) => {
    await new Promise<void>((gone) => reply.raw.once('close', gone));
    hungUp.resolve(member.self);
  });
  app.get('/whose/:user/late', { config: config as never }, async (request, reply) => {
    await new Promise<void>((hurry) => onHurry(request, reply, hurry));
    return { by: member.self };
  });
  app.post('/_matrix/client/v3/anything', async (request) => ({ by: member.self, body: request.body }));
  await app.ready();
  return { member, app, passingOn };
}

let hungUp = Promise.withResolvers<string>();

async function listen(server: Server): Promise<string> {
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

describe('requests that meet another process than the owner', () => {
  let cluster: TestCluster;
  let processes: Process[];
  before(async () => {
    cluster = await testCluster(3);
    processes = await Promise.all(cluster.members.map(startProcess));
  });
  const owner = (user: string) => cluster.view.owner('user', user);
  const others = (user: string) => processes.filter(({ member }) => member.self !== owner(user));

  it('are answered by the owner, as they came', async () => {
    for (const user of ['@a:x', '@b:x', '@c:x', '@d:x', '@é:x'])
      for (const { app } of processes) {
        const answer = await app.inject({
          method: 'POST',
          url: `/whose/${encodeURIComponent(user)}`,
          headers: { 'x-forwarded-for': '192.0.2.7', authorization: 'Bearer token' },
          remoteAddress: '127.0.0.9',
          payload: '{"a":["\\u0000",1.5]}',
        });
        assert.equal(answer.statusCode, 201, answer.body);
        const { by, ip, body, authorization } = answer.json();
        assert.equal(by, owner(user));
        assert.deepEqual([ip, body, authorization], ['192.0.2.7', { a: ['\0', 1.5] }, 'Bearer token']);
        assert.deepEqual(answer.headers['x-one'], ['a', 'b']);
        assert.equal(answer.headers['content-type'], 'application/json');
      }
  });

  it('bring bytes back', async () => {
    for (const { app } of processes) {
      const { rawPayload } = await app.inject('/whose/a/bytes');
      assert.deepEqual(rawPayload, BINARY);
    }
  });

  it('are authenticated before', async () => {
    for (const { app } of processes) {
      const headers = { authorization: 'wrong' };
      assert.equal((await app.inject({ method: 'POST', url: '/whose/a', headers })).statusCode, 500);
    }
  });

  it('cannot pretend to have been passed on', async () => {
    for (const { app } of others('a')) {
      const headers = { 'x-trellis-passed-on': 'yes' };
      const answer = await app.inject({ method: 'POST', url: '/whose/a', headers });
      assert.equal(answer.json().by, owner('a'));
    }
  });

  it('end there when the client hangs up', async () => {
    for (const { app } of others('a')) {
      hungUp = Promise.withResolvers();
      const server = createServer(app.routing);
      const url = await listen(server);
      const hangUp = new AbortController();
      const asked = fetch(`${url}/whose/a/waits`, { signal: hangUp.signal });
      setTimeout(() => hangUp.abort(), 50);
      await assert.rejects(asked);
      assert.equal(await hungUp.promise, owner('a'));
      server.close();
    }
  });

  it('are answered at once when the process that passed them on stops', async () => {
    const [{ app, passingOn }] = others('a') as [Process];
    const asked = app.inject('/whose/a/late');
    await new Promise((wake) => setTimeout(wake, 50));
    passingOn.hurry();
    assert.equal((await asked).json().by, owner('a'));
    assert.equal((await app.inject('/whose/a/late')).json().by, owner('a'));
  });

  describe('by its role', () => {
    const servers: Server[] = [];
    after(() => {
      for (const server of servers) server.close();
    });
    const gated = async ({ app, passingOn }: Process, roles: Role[]) => {
      const server = createServer(roleGate(roles, passingOn, app));
      servers.push(server);
      return listen(server);
    };
    const ask = async (url: string, body: string | Buffer) => {
      const answer = await fetch(`${url}/_matrix/client/v3/anything`, { method: 'POST', body });
      return { status: answer.status, body: (await answer.json()) as { by: string; errcode: string } };
    };

    it('are passed on', async () => {
      const [first] = processes;
      const own = await ask(await gated(first!, ['client']), '{"a":1}');
      assert.equal(own.body.by, first!.member.self);
      const url = await gated(first!, ['sync']);
      const seen = new Set<string>();
      for (let i = 0; i < 40; i++) seen.add((await ask(url, '{"a":1}')).body.by);
      assert.deepEqual([...seen].sort(), processes.map(({ member }) => member.self).sort());
    });

    it('are refused as they are elsewhere', async () => {
      const url = await gated(processes[0]!, ['sync']);
      assert.equal((await ask(url, '{"a":')).body.errcode, 'M_NOT_JSON');
      const large = await ask(url, `"${'x'.repeat(5 * 1024 * 1024)}"`);
      assert.deepEqual([large.status, large.body.errcode], [413, 'M_TOO_LARGE']);
    });

    it('are told from each other by their paths', () => {
      for (const [url, role] of [
        ['/_matrix/client/v3/sync?since=a', 'sync'],
        ['/_matrix/client/r0/events', 'sync'],
        ['/_matrix/client/unstable/org.matrix.simplified_msc3575/sync', 'sync'],
        ['/_matrix/client/v3/rooms/!a/sync', 'client'],
        ['/_matrix/client/v3/rooms/!a/messages', 'client'],
        ['/_synapse/admin/v1/register', 'client'],
        ['/_matrix/federation/v1/send/1', 'federation-in'],
        ['/_matrix/key/v2/server', 'federation-in'],
        ['/_matrix/federation/v1/media/download/a', undefined],
        ['/_matrix/client/v1/media/download/a/b', undefined],
        ['/_matrix/media/v3/upload', undefined],
        ['/health', undefined],
        ['/.well-known/matrix/client', undefined],
      ] as const)
        assert.equal(workOf(url)?.role, role, url);
    });
  });
});
