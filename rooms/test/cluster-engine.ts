import assert from 'node:assert/strict';
import { alone, type Cluster } from '@trellis/cluster/cluster.ts';
import { type TestCluster, type TestMember, testCluster } from '@trellis/cluster/testing.ts';
import type { Database } from '@trellis/storage/database.ts';
import { EventWriter } from '@trellis/storage/event-writer.ts';
import { EventStore } from '@trellis/storage/events.ts';
import type { Fence } from '@trellis/storage/fence.ts';
import { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import { Stream } from '@trellis/storage/streams.ts';
import { testDatabase } from '@trellis/storage/testing.ts';
import { Aliases } from '../aliases.ts';
import { indexStateEvents } from '../auth-chain.ts';
import { createRoom } from '../create-room.ts';
import { eventChangeCodec } from '../event-change-codec.ts';
import { Membership, type RemoteMembership } from '../membership.ts';
import { Memberships } from '../memberships.ts';
import type { Room } from '../room.ts';
import { type EventChange, Rooms } from '../rooms.ts';
import { Transactions } from '../transactions.ts';
import { keyOf } from './engine.ts';

export const SERVER = 'one.test';

/** One process of several that work on one database. */
export interface MemberEngine {
  readonly member: TestMember;
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly membership: Membership;
  readonly transactions: Transactions;
  /** Positions of events in the order in which this process was told. */
  readonly seen: number[];
  createRoom(creator: string): Promise<string>;
}

export interface ClusterEngines {
  readonly db: Database;
  readonly cluster: TestCluster;
  readonly engines: MemberEngine[];
  /** A process comes, with everything it needs. */
  join(name?: string): Promise<MemberEngine>;
  /** A process is shut out in the middle of what it does. */
  kill(engine: MemberEngine): Promise<void>;
  leave(engine: MemberEngine): Promise<void>;
  /** A process without a past, which has to read everything. */
  fresh(): Promise<Rooms>;
  close(): Promise<void>;
}

/** @param serve has a process serve what more it is to serve, before it joins */
export async function clusterEngines(
  n: number,
  serve?: (engine: MemberEngine) => Promise<void> | void,
): Promise<ClusterEngines> {
  const { db, close } = await testDatabase();
  const cluster = await testCluster(0);
  const engines: MemberEngine[] = [];
  const writers: EventWriter[] = [];

  async function compose(member: TestMember): Promise<void> {
    await db.query(
      'INSERT INTO cluster_members (id, term, roles, address, started_ts) VALUES ($1, 1, $1, $1, 0)',
      [member.self],
    );
    const stream = member.stream<EventChange>('events', eventChangeCodec);
    const fence = { memberId: member.self, term: () => 1 };
    const parts = await partsOf(member, stream, fence);
    const rooms = new Rooms(parts);
    const seen: number[] = [];
    parts.stream.subscribe((pos) => seen.push(pos));
    const memberships = new Memberships(db, rooms);
    const membership = new Membership({ rooms, memberships, remote: noRemote, profile: async () => ({}) });
    const engine: MemberEngine = {
      member,
      rooms,
      memberships,
      membership,
      transactions: new Transactions(db, member),
      seen,
      createRoom: (creator) =>
        createRoom(
          {
            rooms,
            membership,
            aliases: new Aliases(db, rooms, async () => undefined),
            profile: async () => ({}),
            defaultVersion: '12',
          },
          creator,
          { preset: 'public_chat' },
        ),
    };
    engines.push(engine);
    await serve?.(engine);
  }

  async function partsOf(cluster: Cluster, stream: Stream<EventChange>, fence?: Fence) {
    const ids = await IdAllocator.create(db);
    const snapshots = new StateSnapshots(db, ids);
    const writer = new EventWriter(db, snapshots, indexStateEvents, fence);
    writers.push(writer);
    const signingKey = keyOf(SERVER);
    const events = new EventStore(db);
    return { db, ids, events, snapshots, writer, stream, serverName: SERVER, signingKey, cluster };
  }

  const join = async (name?: string) => {
    await cluster.join(compose, name);
    return engines.at(-1)!;
  };
  // As the coordinator does it: who waits for the row waits for the commits that are under way.
  const remove = ({ self }: TestMember) => db.query('DELETE FROM cluster_members WHERE id = $1', [self]);
  for (let i = 0; i < n; i++) await join();
  return {
    db,
    cluster,
    engines,
    join,
    async kill({ member }) {
      await remove(member);
      await cluster.kill(member);
    },
    leave: ({ member }) => cluster.leave(member, () => remove(member)),
    fresh: async () => new Rooms(await partsOf(alone(), new Stream('events', 0))),
    async close() {
      for (const writer of writers) await writer.idle();
      await close();
    },
  };
}

/** What two processes have to agree on about a room. */
export function summary(room: Room, from: number) {
  return {
    state: [...room.state.entries()].map(([key, { eventId, nid }]) => `${key} ${eventId} ${nid}`).sort(),
    stateId: room.state.id,
    members: [...room.members()]
      .map(
        ([userId, { membership, eventId, sender, pos }]) =>
          `${userId} ${membership} ${eventId} ${sender} ${pos}`,
      )
      .sort(),
    extremities: [...room.extremities],
    depth: room.depth,
    joined: [...room.joinedHere].sort(),
    servers: [...room.servers].sort(),
    published: room.published,
    upTo: room.upTo,
    timeline: room.timeline.events
      .filter(({ pos }) => pos! > from)
      .map((event) => `${event.pos} ${event.eventId} ${event.json} ${event.redactedBy?.eventId}`),
  };
}

/** Throws unless all processes that live know the room as the database does. */
export async function assertReplicas(all: ClusterEngines, roomId: string): Promise<void> {
  const fresh = await (await all.fresh()).require(roomId);
  for (const { member, rooms } of all.engines) {
    if (member.dead) continue;
    const room = await rooms.require(roomId);
    const from = Math.max(room.timeline.from, fresh.timeline.from);
    assert.deepEqual(summary(room, from), summary(fresh, from), `${member.self} differs`);
    assert.ok(room.lastMembershipChange >= fresh.lastMembershipChange);
    assert.equal(room.uncommitted, 0);
  }
}

/** Events of the room that were accepted, oldest first. */
export async function eventsOf(db: Database, roomId: string) {
  return db.query<{ pos: number; eventId: string; json: string }>(
    `SELECT e.pos, e.event_id AS "eventId", e.json FROM events e JOIN rooms r ON r.nid = e.room
     WHERE r.room_id = $1 AND e.status = 0 ORDER BY e.pos`,
    [roomId],
  );
}

/** Throws unless each event has one predecessor, which is the one before it in the room's order. */
export async function assertOneLine(db: Database, roomId: string): Promise<string[]> {
  const events = await eventsOf(db, roomId);
  for (const [i, { json }] of events.entries())
    assert.deepEqual(
      (JSON.parse(json) as { prev_events: string[] }).prev_events,
      i === 0 ? [] : [events[i - 1]!.eventId],
    );
  return events.map(({ eventId }) => eventId);
}

const unexpected = async (): Promise<never> => {
  throw new Error('no other server was to be asked');
};
const noRemote: RemoteMembership = {
  join: unexpected,
  leave: unexpected,
  knock: unexpected,
  invite: unexpected,
};
