import { setTimeout as delay } from 'node:timers/promises';
import type { Cluster } from '@trellis/cluster/cluster.ts';
import { MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { type RoomVersion, roomVersion } from '@trellis/protocol/room-versions.ts';
import type { SigningKey } from '@trellis/protocol/signing.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { EventWriter } from '@trellis/storage/event-writer.ts';
import type { EventStore } from '@trellis/storage/events.ts';
import { fitIntoHeap } from '@trellis/storage/heap-share.ts';
import type { IdAllocator } from '@trellis/storage/id-allocator.ts';
import { Snapshot, type StateDelta, type StateSnapshots } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Stream } from '@trellis/storage/streams.ts';
import { Commits } from './commits.ts';
import type { ErasedUsers } from './erased-users.ts';
import { Homes } from './homes.ts';
import { PartialRooms, type PartialState } from './partial-state/partial-rooms.ts';
import type { RoomPolicies } from './policy-servers.ts';
import { Positions } from './positions.ts';
import type { RedactedOriginals } from './redacted-originals.ts';
import { applyChange, touchOthers } from './replicas.ts';
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
  /** What became of the room, for its replicas in other processes. Left out where they have to read it again. */
  readonly move?: RoomMove | undefined;
  /** Another process has made the change. */
  readonly isFromElsewhere?: boolean;
  /** Members of the room whose membership this event changed, with what it was before. */
  readonly memberships: ReadonlyArray<{
    userId: string;
    before: string | undefined;
    after: string | undefined;
  }>;
}

/** What an append did to the live room. */
export interface RoomMove {
  /** Ids of the room's state before and after. */
  readonly stateBefore: number;
  readonly stateAfter: number;
  /** What leads from the one to the other. */
  readonly changes: StateDelta;
  readonly extremities: readonly string[];
  readonly depth: number;
  /** Members that were set, and those that are none any more. */
  readonly members: ReadonlyArray<readonly [userId: string, member: Member | undefined]>;
  /** Other state than the event's own has changed. */
  readonly isJump: boolean;
  /** Predecessors of the event are not here. */
  readonly isCut: boolean;
  /** The event that it has emptied. */
  readonly redacted?: string | undefined;
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
  /** Members of all live rooms, the one used last aside, at the most: as many as fit into a part of the heap. */
  readonly maxLiveMembers?: number;
}

/** Rooms kept live in memory at the most, besides those that are being written to. */
const MAX_LIVE_ROOMS = 10_000;
/** What a member of a live room takes, in bytes, and the part of the heap that all of them may have. */
const MEMBER_BYTES = 300;
const MEMBERS_SHARE = 0.25;
const MAX_LIVE_MEMBERS = fitIntoHeap(MEMBERS_SHARE, MEMBER_BYTES);
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
  /** Position of the newest event, accepted or not. */
  newest: number | null;
  completeSince: number | null;
  partial: PartialState | null;
}

interface Loading {
  readonly done: Promise<Room | undefined>;
  /** What was announced of the room since its reading began. */
  readonly changes: Array<readonly [pos: number, change: EventChange]>;
  /** What is being read may be older than what others know. */
  isStale: boolean;
}

/** How often others are told of a change, with a pause in between, when the processes have just to agree anew. */
const MAX_TRIES = 20;
const RETRY_MS = 100;

/**
 * The live rooms of this process: each is read once and then kept, the least used make room for others. With several
 * processes each has its own, which follow what the others append.
 */
export class Rooms {
  readonly parts: EngineParts;
  readonly partial = new PartialRooms();
  readonly #live = new Map<string, Room>();
  readonly #loading = new Map<string, Loading>();
  readonly #commits = new Commits();
  readonly #homes: Homes;
  /** Only where another process gives them. */
  readonly #positions: Positions | undefined;

  constructor(parts: EngineParts) {
    this.parts = parts;
    const { cluster, stream, writer } = parts;
    if (cluster.shared) {
      this.#positions = new Positions(stream, writer);
      // Before all others that follow: they ask the rooms.
      stream.subscribe((pos, change) => this.#follow(pos, change));
      cluster.onAnnounce('room', (changed: RoomChanged) => this.#changed(changed));
      cluster.onGap(() => this.#forgetAll());
    }
    this.#homes = new Homes({
      cluster,
      commits: this.#commits,
      upTo: async (roomId) => (await this.get(roomId))?.upTo ?? null,
      match: async (roomId, upTo) => {
        const room = await this.get(roomId);
        if (room && room.upTo !== upTo) this.drop(room);
      },
      done: (roomId) => {
        if (this.#homes.waiting(roomId) <= 1) this.#positions?.giveBack(roomId);
      },
    });
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
    return (this.#loading.get(roomId) ?? this.#beginLoading(roomId)).done;
  }

  /** The live room; M_NOT_FOUND when there is none. */
  async require(roomId: string): Promise<Room> {
    const room = await this.get(roomId);
    if (!room) throw notFound('Unknown room');
    return room;
  }

  /** Runs `task` alone on the room, with its live state. */
  exclusive<T>(roomId: string, task: (room: Room) => Promise<T>): Promise<T> {
    return this.#homes.run(roomId, async () => task(await this.require(roomId)));
  }

  /** Makes the row of a room that is new to this server, or returns the room when it is there already. */
  async create(roomId: string, version: RoomVersion): Promise<Room> {
    const live = this.peek(roomId);
    if (live) return live;
    await this.createNew(roomId, version);
    // Whoever looked for it just before may still be finding none.
    return (await this.get(roomId)) ?? this.require(roomId);
  }

  /** Makes the row of a room. Returns false when there is one already. */
  async createNew(roomId: string, version: RoomVersion): Promise<boolean> {
    const { db, ids, cluster, serverName } = this.parts;
    const nid = ids.next();
    const made = await db.query(
      {
        name: 'room-create',
        text: `INSERT INTO rooms (nid, room_id, version) VALUES ($1, $2, $3)
               ON CONFLICT (room_id) DO NOTHING RETURNING nid`,
      },
      [nid, roomId, version.id],
    );
    if (made.length === 0) return false;
    // Nobody else can have written to it, so that it need not be read; unless somebody is at that already.
    if (!cluster.shared && !this.#live.has(roomId) && !this.#loading.has(roomId)) {
      const row = { nid, roomId, extremities: [], depth: 0, published: false, upTo: 0 };
      const tail = new TimelineTail(Number.NEGATIVE_INFINITY, []);
      this.#live.set(roomId, new Room(row, version, Snapshot.empty, [], tail, serverName, this.#commits));
      this.#makeRoom();
    }
    return true;
  }

  /**
   * The position for the room's next event. To be called under its lock.
   *
   * @param gapBefore positions that stay free before it
   */
  nextPosition(roomId: string, gapBefore = 0): number | Promise<number> {
    if (!this.#positions) return this.parts.stream.reserve(gapBefore);
    return this.#positions.next(roomId, gapBefore, this.#homes.waiting(roomId));
  }

  /** So many events are about to be appended under the lock. */
  expect(roomId: string, events: number): void {
    this.#positions?.expect(roomId, events);
  }

  /** Forgets the live state: after a failed commit, or when the database was changed beneath it. */
  drop(room: Room): void {
    room.dropped = true;
    if (this.#live.get(room.roomId) === room) this.#live.delete(room.roomId);
  }

  /**
   * Something about a room, or events of it, is another in the database, and no event is announced that would tell it:
   * other processes read it again. To be called under the room's lock, or before its commit counts as done.
   *
   * @param change `eventIds` that were stored in another way before; with `keep` it is only about these
   */
  async changed(
    roomId: string,
    change: { readonly eventIds?: readonly string[]; readonly keep?: boolean } = {},
  ): Promise<void> {
    const { cluster } = this.parts;
    if (!cluster.shared) return;
    const told: RoomChanged = {
      by: cluster.self,
      roomId,
      events: change.eventIds ?? [],
      keep: change.keep ?? false,
    };
    for (let tries = 1; ; tries++)
      try {
        return await cluster.announce('room', { ...told });
      } catch (error) {
        if (tries === MAX_TRIES) throw error;
        await delay(RETRY_MS);
      }
  }

  #changed({ by, roomId, events, keep }: RoomChanged): void {
    if (by === this.parts.cluster.self) return;
    for (const eventId of events) this.parts.events.forget(eventId);
    if (!keep) this.#forget(roomId);
  }

  /** What is being written here is known better here than anywhere. */
  #forget(roomId: string): void {
    const loading = this.#loading.get(roomId);
    if (loading) loading.isStale = true;
    const room = this.#live.get(roomId);
    if (room && !this.#isInUse(roomId)) this.drop(room);
  }

  #forgetAll(): void {
    for (const roomId of [...this.#live.keys(), ...this.#loading.keys()]) this.#forget(roomId);
    this.parts.events.clear(({ roomId }) => this.#isInUse(roomId));
  }

  #isInUse(roomId: string): boolean {
    return this.#commits.of(roomId) > 0 || this.#homes.isWriting(roomId);
  }

  #follow(pos: number, change: EventChange): void {
    const { roomId, event } = change;
    this.#loading.get(roomId)?.changes.push([pos, change]);
    const room = this.#live.get(roomId);
    if (!change.isFromElsewhere) {
      if (room && change.resynced) room.upTo = Math.max(room.upTo, pos);
      return;
    }
    this.parts.events.told(event, room !== undefined);
    if (!room) touchOthers(this.parts.events, undefined, event, change.move?.redacted);
    else if (!applyChange(this.parts, room, pos, change)) this.#forget(roomId);
  }

  #beginLoading(roomId: string): Loading {
    const loading: Loading = {
      done: Promise.resolve()
        .then(() => this.#load(roomId, loading))
        .finally(() => this.#loading.delete(roomId)),
      changes: [],
      isStale: false,
    };
    this.#loading.set(roomId, loading);
    return loading;
  }

  async #load(roomId: string, loading: Loading): Promise<Room | undefined> {
    for (;;) {
      // What is on its way belongs to the room, or was built on what failed.
      await this.#commits.idle(roomId);
      loading.isStale = false;
      const room = await this.#read(roomId);
      if (loading.isStale) continue;
      // What was announced meanwhile is in what was read, or comes after it.
      const changes = loading.changes.splice(0);
      const isWhole = room
        ? changes.every(([pos, change]) => applyChange(this.parts, room, pos, change))
        : changes.length === 0;
      if (!isWhole) continue;
      if (!room) return undefined;
      this.#live.set(roomId, room);
      this.#makeRoom();
      return room;
    }
  }

  async #read(roomId: string): Promise<Room | undefined> {
    const { db, cluster, snapshots, events } = this.parts;
    // Of one moment, where others may be writing.
    const found = cluster.shared
      ? await db.transaction(async (tx) => {
          await tx.query('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY');
          const row = await readRow(tx, roomId);
          return row && { row, members: await readMembers(tx, row.nid) };
        })
      : await readRow(db, roomId).then((row) => row && { row, members: readMembers(db, row.nid) });
    if (!found) return undefined;
    const { row } = found;
    const version = roomVersion(row.version);
    if (!version)
      throw new MatrixError(
        400,
        'M_UNSUPPORTED_ROOM_VERSION',
        `The room has the unknown version ${row.version}`,
      );
    const newest = row.newest ?? 0;
    const [members, state, tail] = await Promise.all([
      found.members,
      row.state === null ? Snapshot.empty : snapshots.load(row.state),
      events.timeline(row.nid, { direction: 'backward', before: newest + 1, limit: TAIL_ON_LOAD }),
    ]);
    const upTo = members.reduce(
      (max, { pos }) => Math.max(max, pos),
      Math.max(newest, row.completeSince ?? 0),
    );
    const read = tail.length < TAIL_ON_LOAD ? Number.NEGATIVE_INFINITY : tail.at(-1)!.pos! - 1;
    const from = row.gap === null ? read : Math.max(read, row.gap - 1);
    const room = new Room(
      { ...row, upTo },
      version,
      state,
      members.map(({ userId, ...member }) => [userId, member]),
      new TimelineTail(
        from,
        tail.reverse().filter((event) => event.pos! > from),
      ),
      this.parts.serverName,
      this.#commits,
    );
    if (row.partial) room.setPartial(row.partial);
    return room;
  }

  /** Drops the rooms used least; never the one used last, however large it is. */
  #makeRoom(): void {
    const { maxLiveMembers = MAX_LIVE_MEMBERS } = this.parts;
    let rooms = this.#live.size;
    let members = 0;
    for (const room of this.#live.values()) members += room.memberCount;
    let others = rooms - 1;
    for (const room of this.#live.values()) {
      if (others-- === 0 || (rooms <= MAX_LIVE_ROOMS && members <= maxLiveMembers)) return;
      if (room.uncommitted > 0 || this.#homes.waiting(room.roomId) > 0) continue;
      rooms--;
      members -= room.memberCount;
      this.drop(room);
    }
  }
}

/** What `changed` tells. */
interface RoomChanged {
  readonly by: string;
  readonly roomId: string;
  readonly events: readonly string[];
  readonly keep: boolean;
}

type MemberRow = Member & { userId: string };

async function readRow(db: Queryable, roomId: string): Promise<RoomRow | undefined> {
  const [row] = await db.query<RoomRow>(
    {
      name: 'room-load',
      text: `SELECT nid, room_id AS "roomId", version, extremities, state, depth, published,
                    complete_since AS "completeSince",
                    (SELECT json_build_object('joins', joins, 'server', server, 'servers', servers,
                                              'deviceListsPos', device_lists_pos)
                     FROM partial_rooms p WHERE p.room = r.nid) AS partial,
                    (SELECT max(b.pos) FROM backward_extremities b WHERE b.room = r.nid) AS gap,
                    (SELECT max(e.pos) FROM events e WHERE e.room = r.nid) AS newest
             FROM rooms r WHERE room_id = $1`,
    },
    [roomId],
  );
  return row;
}

function readMembers(db: Queryable, roomNid: number): Promise<MemberRow[]> {
  return db.query<MemberRow>(
    {
      name: 'room-members',
      text: `SELECT user_id AS "userId", membership, event_id AS "eventId", sender, pos
             FROM room_members WHERE room = $1`,
    },
    [roomNid],
  );
}
