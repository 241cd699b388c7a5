import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Room } from './room.ts';
import type { EventChange, Rooms } from './rooms.ts';

/** What lists of rooms are filtered by. */
export interface Facts {
  readonly encrypted: boolean;
  /** From the create event; `null` for ordinary rooms. */
  readonly type: string | null;
  readonly name: string | undefined;
}

export const NO_FACTS: Facts = { encrypted: false, type: null, name: undefined };
/** Nearly all rooms are one of these two, but for their name. */
const ENCRYPTED: Facts = { ...NO_FACTS, encrypted: true };

/** Events that count as activity worth a place at the top (MSC4186, `bump_stamp`). */
const BUMP_TYPES = [
  'm.room.create',
  'm.room.message',
  'm.room.encrypted',
  'm.sticker',
  'm.call.invite',
  'm.poll.start',
  'm.beacon_info',
  'org.matrix.msc3381.poll.start',
  'org.matrix.msc3672.beacon_info',
];
const BUMPS: ReadonlySet<string> = new Set(BUMP_TYPES);

const FACT_TYPES: ReadonlySet<string> = new Set(['m.room.create', 'm.room.encryption', 'm.room.name']);
const FACT_KEYS = [...FACT_TYPES].map((type) => JSON.stringify([type, '']));

const MAX_ROOMS = 200_000;
/** Rooms looked up with one query. */
const BATCH = 2_000;
/** Events looked through for the newest that counts as activity. */
const BUMP_SCAN = 2_000;

/**
 * Little things about many rooms, without their live state: what sorts and filters the room list of a user in ten
 * thousand rooms. Read in bulk when first asked for, then kept up to date by the stream of events.
 */
export class RoomFacts {
  readonly #rooms: Rooms;
  /** Position of a room's newest event. */
  readonly #activity = new RecentlyUsed<string, number>(MAX_ROOMS);
  readonly #bumps = new RecentlyUsed<string, number>(MAX_ROOMS);
  readonly #facts = new RecentlyUsed<string, Facts>(MAX_ROOMS);
  #reading = 0;
  /** Gaps in what was heard: what was being read before one is not to be kept. */
  #gaps = 0;
  /** Rooms whose facts changed while some are being read. */
  readonly #changedMeanwhile = new Set<string>();

  constructor(rooms: Rooms) {
    this.#rooms = rooms;
    rooms.parts.stream.subscribe(
      (pos, change) => this.#follow(pos, change),
      () => this.#forget(),
    );
  }

  /** Position of the room's newest event, when it is in memory. */
  activity(roomId: string): number | undefined {
    return this.#activity.get(roomId);
  }

  /** Makes sure of the activity of rooms; those unknown here have none. */
  async loadActivity(roomIds: Iterable<string>): Promise<void> {
    for (const batch of batches(roomIds, (roomId) => !this.#activity.has(roomId))) {
      const gaps = this.#gaps;
      const rows = await this.#rooms.parts.db.query<{ roomId: string; pos: number | null }>(
        {
          name: 'rooms-activity',
          text: `SELECT r.room_id AS "roomId",
                        (SELECT e.pos FROM events e WHERE e.room = r.nid AND e.pos IS NOT NULL
                         ORDER BY e.pos DESC LIMIT 1) AS pos
                 FROM rooms r WHERE r.room_id = ANY($1::text[])`,
        },
        [batch],
      );
      // What came since the query is newer.
      for (const { roomId, pos } of gaps === this.#gaps ? rows : [])
        if (pos !== null) this.#activity.set(roomId, Math.max(pos, this.#activity.get(roomId) ?? pos));
    }
  }

  /** The facts of rooms that are known here. */
  async of(roomIds: readonly string[]): Promise<Map<string, Facts>> {
    const found = new Map<string, Facts>();
    const take = (roomId: string) => {
      const facts = this.#facts.get(roomId);
      if (facts) found.set(roomId, facts);
      return facts === undefined;
    };
    for (const batch of batches(roomIds, take))
      for (const [roomId, facts] of await this.#read(batch)) found.set(roomId, facts);
    return found;
  }

  /** Position of the newest event in the room that counts as activity; `undefined` when none of late does. */
  async bump(room: Room): Promise<number | undefined> {
    const known = this.#bumps.get(room.roomId);
    if (known !== undefined) return known || undefined;
    const gaps = this.#gaps;
    const inMemory = room.timeline.events.findLast(({ type }) => BUMPS.has(type))?.pos;
    const pos = inMemory ?? (await this.#readBump(room));
    if (gaps === this.#gaps) this.#bumps.set(room.roomId, Math.max(pos, this.#bumps.get(room.roomId) ?? 0));
    return pos || undefined;
  }

  #forget(): void {
    this.#gaps++;
    for (const known of [this.#activity, this.#bumps, this.#facts]) known.clear();
  }

  #follow(pos: number, { roomId, event, outOfBand }: EventChange): void {
    if (outOfBand) return;
    this.#activity.set(roomId, pos);
    if (BUMPS.has(event.type)) this.#bumps.set(roomId, pos);
    if (event.stateKey === undefined) return;
    const room = this.#rooms.peek(roomId);
    if (!FACT_TYPES.has(event.type) && room !== undefined && room.lastStateJump < pos) return;
    this.#facts.delete(roomId);
    if (this.#reading > 0) this.#changedMeanwhile.add(roomId);
  }

  async #readBump(room: Room): Promise<number> {
    const [row] = await this.#rooms.parts.db.query<{ pos: number | null }>(
      {
        name: 'room-bump',
        text: `SELECT max(pos) AS pos FROM (
                 SELECT pos, type FROM events WHERE room = $1 AND pos IS NOT NULL AND status = 0
                 ORDER BY pos DESC LIMIT ${BUMP_SCAN}) newest
               WHERE type = ANY($2::text[])`,
      },
      [room.nid, BUMP_TYPES],
    );
    return row?.pos ?? 0;
  }

  async #read(roomIds: readonly string[]): Promise<Map<string, Facts>> {
    this.#reading++;
    const gaps = this.#gaps;
    try {
      const rows = await this.#rooms.parts.db.query<{ roomId: string; json: string | null }>(
        { name: 'rooms-facts', text: READ_FACTS },
        [roomIds, FACT_KEYS],
      );
      const contents = new Map<string, Array<{ type: string; content: JsonObject }>>();
      for (const { roomId, json } of rows) {
        const ofRoom = contents.get(roomId) ?? [];
        contents.set(roomId, ofRoom);
        if (json !== null) ofRoom.push(decodeJson(json) as { type: string; content: JsonObject });
      }
      const found = new Map<string, Facts>();
      for (const [roomId, events] of contents) {
        const facts = factsIn(events);
        found.set(roomId, facts);
        if (!this.#changedMeanwhile.has(roomId) && gaps === this.#gaps) this.#facts.set(roomId, facts);
      }
      return found;
    } finally {
      this.#reading--;
      if (this.#reading === 0) this.#changedMeanwhile.clear();
    }
  }
}

/** The facts that state events, or stripped ones, tell. */
export function factsIn(events: ReadonlyArray<{ type?: unknown; content?: JsonObject }>): Facts {
  let facts = NO_FACTS;
  for (const { type, content } of events) {
    if (type === 'm.room.encryption' && typeof content?.algorithm === 'string')
      facts = facts === NO_FACTS ? ENCRYPTED : { ...facts, encrypted: true };
    else if (type === 'm.room.create' && typeof content?.type === 'string')
      facts = { ...facts, type: content.type };
    else if (type === 'm.room.name' && typeof content?.name === 'string' && content.name !== '')
      facts = { ...facts, name: content.name };
  }
  return facts;
}

function* batches(roomIds: Iterable<string>, isMissing: (roomId: string) => boolean): Generator<string[]> {
  let batch: string[] = [];
  for (const roomId of roomIds) {
    if (!isMissing(roomId)) continue;
    batch.push(roomId);
    if (batch.length === BATCH) {
      yield batch;
      batch = [];
    }
  }
  if (batch.length > 0) yield batch;
}

// Of each room's chain of layers the newest that says something of a key counts.
const READ_FACTS = `
  WITH RECURSIVE wanted AS (
    SELECT nid FROM state_keys WHERE key = ANY($2::text[])
  ), chain AS (
    SELECT r.nid AS room, r.state AS id, 0 AS n FROM rooms r
    WHERE r.room_id = ANY($1::text[]) AND r.state IS NOT NULL
    UNION ALL
    SELECT c.room, s.base, c.n + 1 FROM chain c JOIN state_snapshots s ON s.id = c.id WHERE s.base IS NOT NULL
  ), found AS (
    SELECT DISTINCT ON (c.room, w.nid) c.room, s.events[array_position(s.keys, w.nid)] AS event
    FROM chain c JOIN state_snapshots s ON s.id = c.id JOIN wanted w ON w.nid = ANY(s.keys)
    ORDER BY c.room, w.nid, c.n
  )
  SELECT r.room_id AS "roomId", e.json FROM rooms r
  LEFT JOIN found f ON f.room = r.nid LEFT JOIN events e ON e.nid = f.event
  WHERE r.room_id = ANY($1::text[])`;
