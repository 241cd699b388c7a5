import { type EventFilter, matchesEventFilter } from '@trellis/protocol/filters.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { visibleEvents } from './visibility.ts';

/** Fetches history that is not here from other servers. Implemented by `backfill.ts`. */
export interface HistorySource {
  /** Fetches about `limit` events from before the gap at position `pos`; whether anything came. */
  before(room: Room, pos: number, limit: number): Promise<boolean>;
}

export interface HistoryParts {
  readonly rooms: Rooms;
  readonly backfill: HistorySource;
}

export interface HistoryQuery {
  readonly userId: string;
  readonly direction: 'forward' | 'backward';
  /** A place between events: everything at or before it lies behind it. */
  readonly from: number;
  /** Where to stop, a place too; to the end when left out. */
  readonly to?: number;
  readonly limit: number;
  readonly filter?: EventFilter;
  /** Users whose messages are left out; their state events are not. */
  readonly ignored?: ReadonlySet<string>;
}

export interface HistoryPage {
  readonly events: StoredEvent[];
  /** Where the next page begins; `undefined` when there is nothing beyond. */
  readonly end: number | undefined;
}

/** Reads of one request, for filters that let little pass: what is left is for the next. */
const MAX_READS = 10;
const READ_AT_LEAST = 50;
const READ_AT_MOST = 500;
/** Gaps that one request has filled. */
const MAX_FILLS = 3;

/** A page of a room's history as the user may see it, gaps filled from other servers. */
export async function readHistory(
  parts: HistoryParts,
  room: Room,
  query: HistoryQuery,
): Promise<HistoryPage> {
  const backward = query.direction === 'backward';
  const selective = query.filter !== undefined || (query.ignored?.size ?? 0) > 0;
  const fills = { left: MAX_FILLS, tried: new Set<number>() };
  const found: StoredEvent[] = [];
  let place = query.from;
  if (query.limit === 0) return { events: [], end: place };
  for (let reads = 0; reads < MAX_READS; reads++) {
    const wanted = query.limit - found.length;
    const size = Math.min(selective ? Math.max(wanted * 2, READ_AT_LEAST) : wanted, READ_AT_MOST) + 1;
    const { raw, cut } = await readRaw(parts, room, query, place, size, fills);
    const passed = new Map<string, StoredEvent>();
    for (const event of await passing(parts.rooms, room, query, raw)) passed.set(event.eventId, event);
    for (const [i, event] of raw.entries()) {
      place = backward ? event.pos! - 1 : event.pos!;
      const shown = passed.get(event.eventId);
      if (!shown) continue;
      found.push(shown);
      if (found.length < query.limit) continue;
      return { events: found, end: cut || i < raw.length - 1 || raw.length === size ? place : undefined };
    }
    if (cut) return { events: found, end: place };
    // Behind a filter only an empty page is the end: there are clients that want a place to go on at with every other.
    if (raw.length < size) return { events: found, end: selective && found.length > 0 ? place : undefined };
  }
  return { events: found, end: place };
}

interface Fills {
  left: number;
  readonly tried: Set<number>;
}

/**
 * Up to `size` events beyond a place, whoever may see them. Backward, gaps between them are filled as far as that
 * goes; `cut`: the page ends at a gap that may be filled by the next request.
 */
async function readRaw(
  { rooms, backfill }: HistoryParts,
  room: Room,
  query: HistoryQuery,
  place: number,
  size: number,
  fills: Fills,
): Promise<{ raw: StoredEvent[]; cut: boolean }> {
  const { events } = rooms.parts;
  if (query.direction === 'forward') {
    const before = query.to === undefined ? undefined : Math.min(query.to + 1, Number.MAX_SAFE_INTEGER);
    return {
      raw: await events.timeline(room.nid, {
        after: place,
        before,
        direction: 'forward',
        limit: size,
        history: true,
      }),
      cut: false,
    };
  }
  for (;;) {
    const raw = await events.timeline(room.nid, {
      after: query.to,
      before: Math.min(place + 1, Number.MAX_SAFE_INTEGER),
      direction: 'backward',
      limit: size,
      history: true,
    });
    const oldest = raw.length === size ? raw.at(-1)!.pos! + 1 : query.to;
    const gap = await newestGap(rooms, room, oldest, place, fills.tried);
    if (gap === undefined) return { raw, cut: false };
    if (fills.left === 0) return { raw: raw.filter((event) => event.pos! >= gap), cut: true };
    fills.left--;
    // Nothing to be had: what lies beyond the gap is shown as it is.
    if (!(await backfill.before(room, gap, size))) fills.tried.add(gap);
  }
}

/** The newest event in a stretch of the room's order some of whose predecessors are not here. */
async function newestGap(
  rooms: Rooms,
  room: Room,
  oldest: number | undefined,
  place: number,
  tried: ReadonlySet<number>,
): Promise<number | undefined> {
  // A page before may have ended right at the gap.
  const newest = Math.min(place + 1, Number.MAX_SAFE_INTEGER);
  const [row] = await rooms.parts.db.query<{ pos: number | null }>(
    {
      name: 'history-gap',
      text: `SELECT max(pos) AS pos FROM backward_extremities
             WHERE room = $1 AND pos >= $2 AND pos <= $3 AND pos <> ALL($4::bigint[])`,
    },
    [room.nid, oldest ?? Number.MIN_SAFE_INTEGER, newest, [...tried]],
  );
  return row?.pos ?? undefined;
}

async function passing(
  rooms: Rooms,
  room: Room,
  { userId, filter, ignored }: HistoryQuery,
  raw: readonly StoredEvent[],
): Promise<StoredEvent[]> {
  const wanted = raw.filter(
    (event) =>
      (!filter || matchesEventFilter(filter, event)) &&
      (event.stateKey !== undefined || !ignored?.has(event.sender)),
  );
  return visibleEvents(rooms, room, userId, wanted);
}
