import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { notFound } from '@trellis/protocol/errors.ts';
import { storePartialRoom } from '@trellis/storage/partial-rooms.ts';
import { JoinsUnderWay } from '../joins-under-way.ts';
import { Resync } from '../partial-state/resync.ts';
import type { RemoteHandshakes } from '../remote-handshakes.ts';
import { RemoteMembershipByHandshake } from '../remote-membership.ts';
import { ServerNotices } from '../server-notices.ts';
import { type EngineCluster, engineCluster, type ProcessEngine, until } from './cluster-processes.ts';
import { testVerifier } from './engine.ts';
import { RemoteGraph, receiverOf } from './remote-graph.ts';

const ALICE = '@alice:here';

interface Services {
  readonly resync: Resync;
  readonly remote: RemoteMembershipByHandshake;
  readonly notices: ServerNotices;
}

let processes: EngineCluster;
const graph = new RemoteGraph();
const services = new Map<ProcessEngine, Services>();
let mayBeHad = false;
const asked: string[] = [];
const joining = { now: 0, most: 0, at: new Set<string>() };

before(async () => {
  processes = await engineCluster(3, (engine) => void services.set(engine, compose(engine)));
});
after(async () => {
  for (const { resync } of services.values()) resync.close();
  await processes?.close();
});

function compose(engine: ProcessEngine): Services {
  const { rooms, memberships, member } = engine;
  const remote = new Proxy(graph, {
    get(target, name) {
      if (name === 'stateIds')
        return (...query: Parameters<RemoteGraph['stateIds']>) => {
          asked.push(member.self);
          if (!mayBeHad) throw new Error('no answer');
          return target.stateIds(...query);
        };
      const value = Reflect.get(target, name, target) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  const receiver = receiverOf(engine, remote);
  const handshakes = {
    async makeJoin() {
      joining.at.add(member.self);
      joining.most = Math.max(joining.most, ++joining.now);
      await sleep(50);
      joining.now--;
      throw notFound('no such room');
    },
  } as unknown as RemoteHandshakes;
  const log = { info: () => {}, warn: () => {} };
  return {
    resync: new Resync({ rooms, receiver, deviceListsPosition: () => 0, log, retryMs: 20 }),
    remote: new RemoteMembershipByHandshake({
      ...{ rooms, memberships, handshakes, receiver, verifier: testVerifier, joins: new JoinsUnderWay() },
    }),
    notices: new ServerNotices({
      rooms,
      memberships,
      membership: engine.membership(),
      sender: '@notices:here',
      roomName: 'Notices',
      createRoom: (creator, request) => engine.createRoom(creator, request),
      setTag: async () => {},
    }),
  };
}

test('members that a join left out are fetched by one process, by the next when it dies; all know of it', async () => {
  const [first] = processes.engines as [ProcessEngine];
  const room = await graph.joinFrom(first);
  const [joinId] = room.extremities;
  const { roomId, nid } = room;
  const servers = ['far'];
  await first.rooms.exclusive(roomId, async (current) => {
    await storePartialRoom(first.db, nid, { joins: [joinId!], server: 'far', servers, deviceListsPos: 0 });
    first.rooms.drop(current);
    await first.rooms.changed(roomId);
  });
  const home = processes.homeOf(roomId);
  const others = processes.engines.filter((engine) => engine !== home);
  await services.get(others[0]!)!.resync.begin(roomId);
  for (const { rooms } of processes.engines) {
    assert.ok(rooms.partial.includes('far'));
    assert.ok((await rooms.require(roomId)).partial);
  }
  await until(() => asked.length > 2, 'a question');
  assert.deepEqual([...new Set(asked)], [home.member.self]);

  await processes.cluster.kill(home.member);
  services.get(home)!.resync.close();
  const next = processes.homeOf(roomId).member.self;
  await until(() => asked.includes(next), 'a question of another process');
  const waiting = others.map(({ rooms }) => rooms.partial.wait(roomId));
  mayBeHad = true;
  await Promise.all(waiting);
  for (const { rooms } of others) {
    assert.equal(rooms.partial.isAny, false);
    const complete = await rooms.require(roomId);
    assert.equal(complete.partial, undefined);
    assert.ok(complete.isJoined('@founder:far'));
  }
});

test('of joins of one room that come to several processes one is under way at a time', async () => {
  const roomId = '!nowhere:far';
  const alive = processes.engines.filter(({ member }) => !member.dead);
  const joins = alive.map((engine) => services.get(engine)!.remote.join(roomId, ALICE, ['far'], {}));
  for (const outcome of await Promise.allSettled(joins)) {
    assert.equal(outcome.status, 'rejected');
    assert.equal(outcome.reason.errcode, 'M_NOT_FOUND');
  }
  assert.equal(joining.most, 1);
  assert.equal(joining.at.size, 1);
});

test('notices for one user that two processes send at once come to one room', async () => {
  const alive = processes.engines.filter(({ member }) => !member.dead);
  const content = { msgtype: 'm.text', body: 'mind the gap' };
  const send = (engine: ProcessEngine) =>
    services.get(engine)!.notices.send('@bob:here', { type: 'm.room.message', content });
  await Promise.all([...alive, ...alive].map(send));
  assert.equal((await alive[0]!.memberships.of('@bob:here')).size, 1);
});
