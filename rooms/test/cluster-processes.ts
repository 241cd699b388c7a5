import { setTimeout as sleep } from 'node:timers/promises';
import { type TestCluster, type TestMember, testCluster } from '@trellis/cluster/testing.ts';
import { EventWriter } from '@trellis/storage/event-writer.ts';
import { EventStore } from '@trellis/storage/events.ts';
import { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import type { Streams } from '@trellis/storage/streams.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { Aliases } from '../aliases.ts';
import { indexStateEvents } from '../auth-chain.ts';
import { createRoom } from '../create-room.ts';
import { ErasedUsers } from '../erased-users.ts';
import { eventChangeCodec } from '../event-change-codec.ts';
import { Membership, type RemoteMembership } from '../membership.ts';
import { Memberships } from '../memberships.ts';
import { Notifier } from '../notifier.ts';
import { type EventChange, Rooms } from '../rooms.ts';
import { keyOf, type TestEngine } from './engine.ts';

/** One process of several, with the engine that it has. */
export interface ProcessEngine extends TestEngine {
  readonly member: TestMember;
  readonly notifier: Notifier;
  readonly streams: Streams;
  readonly erased: ErasedUsers;
  readonly aliases: Aliases;
}

export interface EngineCluster {
  readonly cluster: TestCluster;
  readonly engines: ProcessEngine[];
  /** The process whose the room is, and one of the others. */
  homeOf(roomId: string): ProcessEngine;
  otherThanHome(roomId: string): ProcessEngine;
  /** Another process comes. `compose` makes what its engine is to have before it takes part. */
  /** @param name see `TestCluster.heir` */
  join(compose?: (engine: ProcessEngine) => void, name?: string): Promise<ProcessEngine>;
  close(): Promise<void>;
}

const STREAMS = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'] as const;

/** Several processes of one server on one database. */
export async function engineCluster(
  n: number,
  compose?: (engine: ProcessEngine) => void,
): Promise<EngineCluster> {
  const { db, close } = await testDatabase();
  const cluster = await testCluster(0);
  const engines: ProcessEngine[] = [];
  const writers: EventWriter[] = [];
  const alive = () => engines.filter(({ member }) => !member.dead);

  async function engineOf(member: TestMember): Promise<ProcessEngine> {
    const serverName = 'here';
    const ids = await IdAllocator.create(db);
    const snapshots = new StateSnapshots(db, ids);
    const writer = new EventWriter(db, snapshots, indexStateEvents);
    writers.push(writer);
    const stream = member.stream<EventChange>('events', eventChangeCodec);
    const streams = Object.fromEntries(
      STREAMS.map((name) => [name, member.stream(name)]),
    ) as unknown as Streams;
    const erased = new ErasedUsers(db, serverName, member);
    const signingKey = keyOf(serverName);
    const events = new EventStore(db);
    const parts = { db, ids, events, snapshots, writer, stream, serverName, cluster: member };
    const rooms = new Rooms({ ...parts, signingKey, erased });
    const memberships = new Memberships(db, rooms);
    const notifier = new Notifier(rooms, streams, memberships);
    const aliases = new Aliases(db, rooms, async () => undefined);
    const changes: EventChange[] = [];
    stream.subscribe((_pos, change) => changes.push(change));
    const profile = async () => ({});
    const membership = (remote?: RemoteMembership) =>
      new Membership({ rooms, memberships, remote: remote!, profile });
    return {
      ...{
        member,
        serverName,
        db,
        rooms,
        memberships,
        notifier,
        streams,
        erased,
        aliases,
        changes,
        membership,
      },
      createRoom: (creator, request = { preset: 'public_chat' }) =>
        createRoom(
          { rooms, membership: membership(), aliases, profile, defaultVersion: '12' },
          creator,
          request,
        ),
      close: () => writer.idle(),
    };
  }

  async function join(alsoCompose = compose, name?: string): Promise<ProcessEngine> {
    let engine: ProcessEngine | undefined;
    await cluster.join(async (member) => {
      engine = await engineOf(member);
      engines.push(engine);
      alsoCompose?.(engine);
    }, name);
    return engine!;
  }

  for (let i = 0; i < n; i++) await join();
  const homeOf = (roomId: string) => alive().find(({ member }) => member.owns('room', roomId))!;
  return {
    cluster,
    engines,
    homeOf,
    otherThanHome: (roomId) => alive().find((engine) => engine !== homeOf(roomId))!,
    join,
    async close() {
      await Promise.all(writers.map((writer) => writer.idle()));
      await close();
    },
  };
}

export async function until(condition: () => unknown, what = 'it'): Promise<void> {
  for (let tries = 0; !(await condition()); tries++) {
    if (tries > 500) throw new Error(`${what} did not come about`);
    await sleep(10);
  }
}
