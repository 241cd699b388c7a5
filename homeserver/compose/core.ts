import { alone, type Cluster } from '@trellis/cluster/cluster.ts';
import type { ClusterMember } from '@trellis/cluster/member.ts';
import type { SigningKey } from '@trellis/protocol/signing.ts';
import { indexStateEvents } from '@trellis/rooms/auth-chain.ts';
import { ErasedUsers } from '@trellis/rooms/erased-users.ts';
import { eventChangeCodec } from '@trellis/rooms/event-change-codec.ts';
import { Memberships } from '@trellis/rooms/memberships.ts';
import { Notifier } from '@trellis/rooms/notifier.ts';
import { RoomPolicies } from '@trellis/rooms/policy-servers.ts';
import { RedactedOriginals } from '@trellis/rooms/redacted-originals.ts';
import { type EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import { EventWriter } from '@trellis/storage/event-writer.ts';
import { EventStore } from '@trellis/storage/events.ts';
import { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import { eventStreamStart, reserveStreamPositions } from '@trellis/storage/stream-positions.ts';
import { type ChangeCodec, Stream, type Streams } from '@trellis/storage/streams.ts';
import type { FastifyBaseLogger } from 'fastify';
import type { Config } from '../config/schema.ts';

/** The engine that every area of the server is built on. */
export interface Core {
  readonly config: Config;
  readonly log: FastifyBaseLogger;
  readonly db: Database;
  /** For long looks back: replicas that know what the primary does, or the primary. */
  readonly history: Queryable;
  readonly serverName: string;
  readonly signingKey: SigningKey;
  readonly cluster: Cluster;
  readonly ids: IdAllocator;
  readonly events: EventStore;
  readonly streams: Streams;
  readonly rooms: Rooms;
  readonly memberships: Memberships;
  readonly notifier: Notifier;
  /** Runs when the server stops, the last registered first: after the listeners are closed, before the database is. */
  onClose(task: () => Promise<void> | void): void;
  /** Runs once everything is composed and before requests come: for work left over from the last run. */
  onReady(task: () => Promise<void> | void): void;
  /** Runs once requests are taken. */
  onServing(task: () => void): void;
}

export interface Lifecycle {
  readonly ready: Array<() => Promise<void> | void>;
  readonly serving: Array<() => void>;
  readonly close: Array<() => Promise<void> | void>;
}

const STREAMS = ['accountData', 'receipts', 'typing', 'toDevice', 'deviceLists', 'presence'] as const;

/** Streams of which the database may know more than was announced. */
const STORED = ['accountData', 'receipts', 'toDevice', 'deviceLists', 'presence'] as const;

/** Where every stream goes on: above all positions that were ever given. */
export async function streamStarts(db: Database): Promise<Map<string, number>> {
  const [events, others] = await Promise.all([eventStreamStart(db), reserveStreamPositions(db, STREAMS)]);
  return others.set('events', events);
}

/** @param parts.member where this process is one of several */
export async function composeCore(
  parts: {
    config: Config;
    log: FastifyBaseLogger;
    db: Database;
    history: Queryable;
    signingKey: SigningKey;
    member?: ClusterMember | undefined;
  },
  lifecycle: Lifecycle,
): Promise<Core> {
  const { config, db, history, signingKey, member } = parts;
  const serverName = config.server_name;
  const cluster = member ?? alone();
  const [ids, starts] = await Promise.all([IdAllocator.create(db), member ? undefined : streamStarts(db)]);
  const newStream = <Change>(name: string, codec?: ChangeCodec<Change>): Stream<Change> => {
    if (!member) return new Stream(name, starts!.get(name)!);
    const { sequencer } = member;
    const stream = new Stream(name, member.position(name), codec ? { sequencer, codec } : { sequencer });
    member.attach(stream);
    return stream;
  };
  const events = new EventStore(db, config.memory.event_cache_mb * 1024 * 1024, history);
  const snapshots = new StateSnapshots(db, ids);
  const fence = member && { memberId: member.self, term: () => member.term() };
  const writer = new EventWriter(db, snapshots, indexStateEvents, fence);
  const stream = newStream<EventChange>('events', eventChangeCodec);
  const streams = Object.fromEntries(STREAMS.map((name) => [name, newStream(name)])) as unknown as Streams;
  const { keep_redacted_ms: keepMs } = config.rooms;
  const rooms = new Rooms({
    db,
    ids,
    events,
    snapshots,
    writer,
    stream,
    serverName,
    signingKey,
    cluster,
    redactedOriginals: keepMs > 0 ? new RedactedOriginals(db, keepMs) : undefined,
    erased: new ErasedUsers(db, serverName, cluster),
    policies: new RoomPolicies(),
  });
  const memberships = new Memberships(db, rooms);
  const notifier = new Notifier(rooms, streams, memberships);
  db.onDoubt(() => {
    // Of events it is known what was stored, and typing is nowhere to be read.
    if (!member) for (const name of STORED) streams[name].skipTo(streams[name].current);
    cluster.doubt().catch((err: unknown) => parts.log.warn({ err }, 'not all could be told'));
  });
  lifecycle.close.push(() => writer.idle());
  return {
    ...parts,
    serverName,
    cluster,
    ids,
    events,
    streams,
    rooms,
    memberships,
    notifier,
    onClose: (task) => lifecycle.close.push(task),
    onReady: (task) => lifecycle.ready.push(task),
    onServing: (task) => lifecycle.serving.push(task),
  };
}
