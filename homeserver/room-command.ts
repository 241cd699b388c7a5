import { alone } from '@trellis/cluster/cluster.ts';
import { SigningKey } from '@trellis/protocol/signing.ts';
import { indexStateEvents } from '@trellis/rooms/auth-chain.ts';
import { RoomInspector } from '@trellis/rooms/room-graph/room-inspector.ts';
import { type EventChange, Rooms } from '@trellis/rooms/rooms.ts';
import type { Database } from '@trellis/storage/database.ts';
import { EventWriter } from '@trellis/storage/event-writer.ts';
import { EventStore } from '@trellis/storage/events.ts';
import { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import { eventStreamStart } from '@trellis/storage/stream-positions.ts';
import { Stream } from '@trellis/storage/streams.ts';
import { ConfigError } from './config/load.ts';
import type { Config } from './config/schema.ts';
import { instanceHolder } from './instance-lock.ts';

export interface RoomCommand {
  readonly roomId: string | undefined;
  readonly check: boolean;
  readonly rebuild: boolean;
}

/** Looks at a room, and at the same time checks or rebuilds what is kept of it. A server need not run. */
export async function inspectRoom(
  config: Config,
  db: Database,
  { roomId, check, rebuild }: RoomCommand,
): Promise<object> {
  if (!roomId?.startsWith('!')) throw new ConfigError('say which room: an id like "!abc:example.org"');
  // A running server keeps in memory what would be changed beneath it.
  if (rebuild && (config.redis || (await instanceHolder(config.data_dir)) !== undefined))
    throw new ConfigError(
      'while the server runs, rooms are rebuilt by POST /_trellis/admin/v1/rooms/ROOM_ID/graph/rebuild',
    );
  const inspector = new RoomInspector(await engine(config, db));
  if (rebuild) return inspector.rebuild(roomId);
  return check ? inspector.check(roomId) : inspector.describe(roomId);
}

async function engine({ server_name: serverName }: Config, db: Database): Promise<Rooms> {
  const ids = await IdAllocator.create(db);
  const snapshots = new StateSnapshots(db, ids);
  return new Rooms({
    db,
    ids,
    snapshots,
    events: new EventStore(db),
    writer: new EventWriter(db, snapshots, indexStateEvents),
    stream: new Stream<EventChange>('events', await eventStreamStart(db)),
    serverName,
    cluster: alone(),
    // Nothing is signed.
    signingKey: SigningKey.generate(),
  });
}
