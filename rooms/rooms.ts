import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import type { SigningKey } from '@trellis/protocol/signing.ts';
import type { Database } from '@trellis/storage/database.ts';
import type { EventWriter } from '@trellis/storage/event-writer.ts';
import type { EventStore } from '@trellis/storage/events.ts';
import type { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { Snapshot, type StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Stream } from '@trellis/storage/streams.ts';
import type { ErasedUsers } from './erased-users.ts';
import { PartialRooms, type PartialState } from './partial-state/partial-rooms.ts';
import type { RoomPolicies } from './policy-servers.ts';
import type { RedactedOriginals } from './redacted-originals.ts';
import { type Member, Room } from './room.ts';
import { TimelineTail } from './timeline-tail.ts';

/** What the stream of events announces once an event is committed. */
export interface EventChange {
  readonly roomId: string;
  readonly event: StoredEvent;
  /**
   * A local user's membership in a room that this server is not in (an invite, a knock, a leave of either): only
   * that user hears of it.
   */
  readonly outOfBand: boolean;
  /**
   * The server that handed the event in by a handshake (`/send_join` and the like): it is for this server to pass it
   * on to the other servers of the room.
   */
  readonly relayFrom?: string | undefined;
  /** An event of a local user that the room's servers get from another server. */
  readonly passedOnByOthers?: boolean | undefined;
  /**
   * Other servers in the room before and after the event: one and the same array unless it changed them. Left out
   * where this server is not in the room.
   */
  readonly servers?: { readonly before: readonly string[]; readonly after: readonly string[] };
  /** The event is the join, which is old: the members that it left out are here now, as far as they are changes. */
  readonly resynced?: Resynced | undefined;
  /** Members of the room whose membership this event changed, with what it was before. */
  readonly memberships: ReadonlyArray<{
    userId: string;
    before: string | undefined;
    after: string | undefined;
  }>;
}

export interface Resynced {
  /** Servers that were in the room since the join and were not known to be: they have missed what was for them. */
  readonly missed: readonly string[];
  /** Where the stream of device lists was at the join. */
  readonly deviceListsPos: number;
}

/** What the engine works with; made once by the composition root. */
export interface EngineParts {
  readonly db: Database;
  readonly ids: IdAllocator;
  readonly events: EventStore;
  readonly snapshots: StateSnapshots;
  readonly writer: EventWriter;
  readonly stream: Stream<EventChange>;
  readonly serverName: string;
  readonly signingKey: SigningKey;
  readonly cluster: Cluster;
  /** Only where redacted events are kept for a while. */
  readonly redactedOriginals?: RedactedOriginals | undefined;
  /** Without it nobody is erased. */
  readonly erased?: ErasedUsers | undefined;
  /** Without it no policy server is asked. */
  readonly policies?: RoomPolicies | undefined;
}

/** Rooms kept live in memory at the most, besides those that are being written to. */
const MAX_LIVE_ROOMS = 10_000;
/** Events read with a room, so that the first syncs find them. */
const TAIL_ON_LOAD = 30;

interface RoomRow {
  nid: number;
  roomId: string;
  version: string;
  extremities: string[];
  state: number | null;
  depth: number;
  published: boolean;
  /** Position of the newest event some of whose predecessors are not here. */
  gap: number | null;
  completeSince: number | null;
  partial: PartialState | null;
}

/** The live rooms of this process: each is read once and then kept, the least used make room for others. */
export class Rooms {
  readonly parts: EngineParts;
  readonly partial = new PartialRooms();
  readonly #live = new Map<string, Room>();
  readonly #loading = new Map<string, Promise<Room | undefined>>();

  constructor(parts: EngineParts) {
    this.parts = parts;
  }

  /** The room when it is live already: for readers on hot paths that must not wait. */
  peek(roomId: string): Room | undefined {
    return this.#live.get(roomId);
  }

  /** The live room, or `undefined` when this server knows no such room. */
  async get(roomId: string): Promise<Room | undefined> {
    const room = this.#live.get(roomId);
    if (room) {
      this.#live.delete(roomId);
      this.#live.set(roomId, room);
      return room;
    }
    let loading = this.#loading.get(roomId);
    if (!loading) {
      loading = this.#load(roomId).finally(() => this.#loading.delete(roomId));
      this.#loading.set(roomId, loading);
    }
    return loading;
  }

  /** The live room; M_NOT_FOUND when there is none. */
  async require(roomId: string): Promise<Room> {
    const room = await this.get(roomId);
    if (!room) throw notFound('Unknown room');
    return room;
  }

  /** Runs `task` alone on the room, with its live state. */
  async exclusive<T>(roomId: string, task: (room: Room) => Promise<T>): Promise<T> {
    for (;;) {
      const room = await this.require(roomId);
      const outcome = await room.lock.run(async () =>
        room.dropped ? undefined : { value: await task(room) },
      );
      if (outcome) return outcome.value;
    }
  }

  /** Makes the row of a room that is new to this server, or returns the room when it is there already. */
  async create(roomId: string, version: RoomVersion): Promise<Room> {
    const existing = await this.get(roomId);
    if (existing) return existing;
    await this.createNew(roomId, version);
    return this.require(roomId);
  }

  /** Makes the row of a room. Returns false when there is one already. */
  async createNew(roomId: string, version: RoomVersion): Promise<boolean> {
    const { db, ids } = this.parts;
    const made = await db.query(
      'INSERT INTO rooms (nid, room_id, version) VALUES ($1, $2, $3) ON CONFLICT (room_id) DO NOTHING RETURNING nid',
      [ids.next(), roomId, version.id],
    );
    return made.length > 0;
  }

  /** Forgets the live state: after a failed commit, or when the database was changed beneath it. */
  drop(room: Room): void {
    room.dropped = true;
    if (this.#live.get(room.roomId) === room) this.#live.delete(room.roomId);
  }

  async #load(roomId: string): Promise<Room | undefined> {
    const { db, snapshots, events, serverName } = this.parts;
    const [row] = await db.query<RoomRow>(
      {
        name: 'room-load',
        text: `SELECT nid, room_id AS "roomId", version, extremities, state, depth, published,
                      complete_since AS "completeSince",
                      (SELECT json_build_object('joins', joins, 'server', server, 'servers', servers,
                                                'deviceListsPos', device_lists_pos)
                       FROM partial_rooms WHERE room = nid) AS partial,
                      (SELECT max(pos) FROM backward_extremities WHERE room = nid) AS gap
               FROM rooms WHERE room_id = $1`,
      },
      [roomId],
    );
    if (!row) return undefined;
    const version = roomVersion(row.version);
    if (!version)
      throw new MatrixError(
        400,
        'M_UNSUPPORTED_ROOM_VERSION',
        `The room has the unknown version ${row.version}`,
      );
    const [state, members, tail] = await Promise.all([
      row.state === null ? Snapshot.empty : snapshots.load(row.state),
      db.query<Member & { userId: string }>(
        {
          name: 'room-members',
          text: `SELECT user_id AS "userId", membership, event_id AS "eventId", sender, pos
                 FROM room_members WHERE room = $1`,
        },
        [row.nid],
      ),
      events.timeline(row.nid, { direction: 'backward', limit: TAIL_ON_LOAD }),
    ]);
    const read = tail.length < TAIL_ON_LOAD ? Number.NEGATIVE_INFINITY : tail.at(-1)!.pos! - 1;
    const from = row.gap === null ? read : Math.max(read, row.gap - 1);
    const room = new Room(
      row,
      version,
      state,
      members.map(({ userId, ...member }) => [userId, member]),
      new TimelineTail(
        from,
        tail.reverse().filter((event) => event.pos! > from),
      ),
      serverName,
    );
    if (row.partial) room.setPartial(row.partial);
    this.#live.set(roomId, room);
    this.#makeRoom();
    return room;
  }

  #makeRoom(): void {
    if (this.#live.size <= MAX_LIVE_ROOMS) return;
    for (const room of this.#live.values()) {
      if (room.uncommitted > 0 || room.lock.busy) continue;
      this.drop(room);
      if (this.#live.size <= MAX_LIVE_ROOMS) return;
    }
  }
}
