import { invalidParam } from '@trellis/protocol/errors.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Database } from '@trellis/storage/database.ts';
import { type RoomSummary, type StateSummary, SUMMARY_TYPES, summariseState } from './room-summary.ts';
import type { Rooms } from './rooms.ts';

/** Which part of the directory is asked for (spec: `/publicRooms`). */
export interface PublicRoomsQuery {
  readonly limit?: number;
  readonly since?: string;
  readonly searchTerm?: string;
  /** `null` stands for rooms without a type. */
  readonly roomTypes?: ReadonlyArray<string | null>;
  /** The rooms of one network of an application service, or of all and our own. */
  readonly network?: { readonly appserviceId: string; readonly networkId: string } | 'all';
}

export interface PublicRoomsPage {
  readonly chunk: RoomSummary[];
  readonly next_batch?: string;
  readonly prev_batch?: string;
  readonly total_room_count_estimate: number;
}

interface Listed {
  nid: number;
  roomId: string;
  state: number;
  members: number;
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 500;
const MAX_CACHED = 20_000;
/** States that are read at a time, where a search needs them all. */
const READS_AT_A_TIME = 16;

const SUMMARY: ReadonlySet<string> = new Set(SUMMARY_TYPES);

/** This server's published room directory, the rooms with the most members first. */
export class PublicRooms {
  readonly #db: Database;
  readonly #rooms: Rooms;
  /** What rooms look like, by the snapshot of their state: no live room is needed. */
  readonly #summaries = new RecentlyUsed<string, { state: number; summary: StateSummary }>(MAX_CACHED);

  /** Changes of any of them that were heard of. */
  #changes = 0;

  constructor(db: Database, rooms: Rooms) {
    this.#db = db;
    this.#rooms = rooms;
    rooms.parts.stream.subscribe(
      (_pos, { roomId, event }) => {
        if (!SUMMARY.has(event.type)) return;
        this.#changes++;
        this.#summaries.delete(roomId);
      },
      () => {
        this.#changes++;
        this.#summaries.clear();
      },
    );
  }

  async list(query: PublicRoomsQuery): Promise<PublicRoomsPage> {
    const limit = Math.min(query.limit || DEFAULT_LIMIT, MAX_LIMIT);
    const cursor = query.since === undefined || query.since === '' ? undefined : parseCursor(query.since);
    const all = await this.#listed(query.network);
    const matching = await this.#matching(all, query);
    const { from, to } = window(matching, cursor, limit);
    const page = matching.slice(from, to);
    const chunk: RoomSummary[] = [];
    for (const room of page) {
      const {
        allowed_room_ids: _rooms,
        encryption: _algorithm,
        room_version: _version,
        ...entry
      } = await this.#summary(room);
      chunk.push({ ...entry, num_joined_members: room.members });
    }
    return {
      chunk,
      ...(to < matching.length && { next_batch: cursorText('n', page.at(-1)!) }),
      ...(from > 0 && page[0] && { prev_batch: cursorText('p', page[0]) }),
      total_room_count_estimate: all.length,
    };
  }

  /** Lists a room in a network of an application service, or takes it out there. */
  async publishInNetwork(
    appserviceId: string,
    networkId: string,
    roomNid: number,
    published: boolean,
  ): Promise<void> {
    await this.#db.query(
      published
        ? 'INSERT INTO network_rooms (appservice_id, network_id, room) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING'
        : 'DELETE FROM network_rooms WHERE appservice_id = $1 AND network_id = $2 AND room = $3',
      [appserviceId, networkId, roomNid],
    );
  }

  async #listed(network: PublicRoomsQuery['network']): Promise<Listed[]> {
    const [appserviceId, networkId] =
      network === undefined || network === 'all' ? [null, null] : [network.appserviceId, network.networkId];
    return this.#db.query<Listed>(
      {
        name: 'public-rooms',
        text: `SELECT r.nid, r.room_id AS "roomId", r.state, count(*)::int AS members
               FROM rooms r JOIN room_members m ON m.room = r.nid AND m.membership = 'join'
               WHERE r.state IS NOT NULL AND CASE
                 WHEN $1::text IS NOT NULL THEN r.nid IN (
                   SELECT room FROM network_rooms WHERE appservice_id = $1 AND network_id = $2)
                 WHEN $3 THEN r.published OR r.nid IN (SELECT room FROM network_rooms)
                 ELSE r.published END
               GROUP BY r.nid ORDER BY members DESC, r.room_id COLLATE "C"`,
      },
      [appserviceId, networkId, network === 'all'],
    );
  }

  async #matching(all: Listed[], { searchTerm, roomTypes }: PublicRoomsQuery): Promise<Listed[]> {
    const term = searchTerm?.normalize('NFKC').toLowerCase();
    if (!term && roomTypes === undefined) return all;
    const matches: boolean[] = [];
    let next = 0;
    const work = async () => {
      for (let i = next++; i < all.length; i = next++) {
        const summary = await this.#summary(all[i]!);
        matches[i] =
          (!term || mentions(summary, term)) &&
          (roomTypes === undefined || roomTypes.includes(summary.room_type ?? null));
      }
    };
    await Promise.all(Array.from({ length: Math.min(READS_AT_A_TIME, all.length) }, work));
    return all.filter((_, i) => matches[i]);
  }

  async #summary({ roomId, state }: Listed): Promise<StateSummary> {
    const known = this.#summaries.get(roomId);
    if (known) return known.summary;
    const changes = this.#changes;
    const snapshot = await this.#rooms.parts.snapshots.load(state);
    const summary = await summariseState(this.#rooms, roomId, snapshot);
    // A change that was announced meanwhile has made this old.
    const live = this.#rooms.peek(roomId);
    if (live ? live.state.id === state : this.#changes === changes)
      this.#summaries.set(roomId, { state, summary });
    return summary;
  }
}

function mentions(summary: StateSummary, term: string): boolean {
  return [summary.name, summary.topic, summary.canonical_alias, summary.room_id].some((value) =>
    value?.normalize('NFKC').toLowerCase().includes(term),
  );
}

interface Cursor {
  readonly direction: 'n' | 'p';
  readonly members: number;
  readonly roomId: string;
}

/** Where in the list a page begins and ends: after the cursor's room, or before it. */
function window(rooms: readonly Listed[], cursor: Cursor | undefined, limit: number) {
  if (!cursor) return { from: 0, to: Math.min(limit, rooms.length) };
  const isBefore = ({ members, roomId }: Listed) =>
    members > cursor.members || (members === cursor.members && roomId < cursor.roomId);
  let at = rooms.findIndex((room) => !isBefore(room));
  if (at < 0) at = rooms.length;
  if (cursor.direction === 'p') return { from: Math.max(0, at - limit), to: at };
  const from = rooms[at]?.roomId === cursor.roomId && rooms[at]?.members === cursor.members ? at + 1 : at;
  return { from, to: Math.min(from + limit, rooms.length) };
}

function cursorText(direction: 'n' | 'p', { members, roomId }: Listed): string {
  return `${direction}${members}_${roomId}`;
}

function parseCursor(text: string): Cursor {
  const [, direction, members, roomId] = /^([np])(\d{1,9})_(.+)$/.exec(text) ?? [];
  if (roomId === undefined) throw invalidParam('Unknown pagination token');
  return { direction: direction as 'n' | 'p', members: Number(members), roomId };
}
