import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { HistorySource } from './history.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { serversByStay } from './servers-by-stay.ts';
import { visibleEvents } from './visibility.ts';

export interface ClosestEvent {
  readonly eventId: string;
  readonly originServerTs: number;
}

/** Asks another server for the event closest to a time. Part of what `remote-servers.ts` declares. */
export interface RemoteTimestamps {
  timestampToEvent(server: string, roomId: string, ts: number, dir: 'f' | 'b'): Promise<ClosestEvent>;
}

export interface TimestampParts {
  readonly rooms: Rooms;
  readonly remote: RemoteTimestamps;
  readonly backfill: HistorySource;
}

export interface TimestampQuery {
  readonly ts: number;
  readonly direction: 'forward' | 'backward';
  /** Nothing beyond this position. */
  readonly end: number;
}

/** Events looked at for one that the user may see. */
const CANDIDATES = 20;
const MAX_READS = 5;
const MAX_SERVERS = 3;
/** Pages of history fetched until the other server's event is here. */
const MAX_FILLS = 5;
const FILL = 100;

/**
 * The event closest to a time in one direction that a user may see. Where history is missing here, others are asked,
 * and what they find is fetched together with what lies between.
 */
export async function closestEvent(
  parts: TimestampParts,
  room: Room,
  userId: string,
  query: TimestampQuery,
): Promise<ClosestEvent | undefined> {
  const visible = (events: readonly StoredEvent[]) => visibleEvents(parts.rooms, room, userId, events);
  const local = await closestHere(parts.rooms, room, query, visible);
  if (local?.originServerTs === query.ts || !(await hasGaps(parts.rooms, room))) return local;
  const remote = await closestElsewhere(parts, room, query);
  if (!remote || (local && !isCloser(remote, local, query))) return local;
  await fetchHistory(parts, room, remote.eventId);
  const fetched = await parts.rooms.parts.events.get(remote.eventId);
  if (fetched?.pos !== undefined && (await visible([fetched])).length === 0) return local;
  return remote;
}

/** The closest of the events that are here. */
export async function closestHere(
  rooms: Rooms,
  room: Room,
  { ts, direction, end }: TimestampQuery,
  visible: (events: readonly StoredEvent[]) => Promise<readonly StoredEvent[]>,
): Promise<StoredEvent | undefined> {
  const forward = direction === 'forward';
  for (let reads = 0; reads < MAX_READS; reads++) {
    const rows = await rooms.parts.db.query<{ eventId: string }>(
      {
        name: `closest-event-${direction}`,
        text: `SELECT event_id AS "eventId" FROM events
               WHERE room = $1 AND origin_server_ts ${forward ? '>=' : '<='} $2 AND pos <= $3 AND status = 0
               ORDER BY origin_server_ts ${forward ? 'ASC' : 'DESC'}, pos ${forward ? 'ASC' : 'DESC'}
               LIMIT ${CANDIDATES} OFFSET $4`,
      },
      [room.nid, ts, Math.min(end, Number.MAX_SAFE_INTEGER), reads * CANDIDATES],
    );
    const events = await rooms.parts.events.getMany(rows.map(({ eventId }) => eventId));
    const [first] = await visible(rows.flatMap(({ eventId }) => events.get(eventId) ?? []));
    if (first || rows.length < CANDIDATES) return first;
  }
  return undefined;
}

async function hasGaps(rooms: Rooms, room: Room): Promise<boolean> {
  const rows = await rooms.parts.db.query(
    { name: 'room-gap', text: 'SELECT 1 FROM backward_extremities WHERE room = $1 LIMIT 1' },
    [room.nid],
  );
  return rows.length > 0;
}

async function closestElsewhere(
  { rooms, remote }: TimestampParts,
  room: Room,
  query: TimestampQuery,
): Promise<ClosestEvent | undefined> {
  const dir = query.direction === 'forward' ? 'f' : 'b';
  const others = serversByStay(room).filter((server) => server !== rooms.parts.serverName);
  for (const server of others.slice(0, MAX_SERVERS)) {
    try {
      const found = await remote.timestampToEvent(server, room.roomId, query.ts, dir);
      const ahead = found.originServerTs - query.ts;
      if (dir === 'f' ? ahead >= 0 : ahead <= 0) return found;
    } catch {
      // It has none, or does not answer: the next may.
    }
  }
  return undefined;
}

function isCloser(one: ClosestEvent, other: ClosestEvent, { ts }: TimestampQuery): boolean {
  return Math.abs(one.originServerTs - ts) < Math.abs(other.originServerTs - ts);
}

/** Fetches history page by page, until the event has its place or nothing more comes. */
async function fetchHistory({ rooms, backfill }: TimestampParts, room: Room, eventId: string): Promise<void> {
  for (let fills = 0; fills < MAX_FILLS; fills++) {
    if ((await rooms.parts.events.get(eventId))?.pos !== undefined) return;
    const [gap] = await rooms.parts.db.query<{ pos: number | null }>(
      { name: 'room-newest-gap', text: 'SELECT max(pos) AS pos FROM backward_extremities WHERE room = $1' },
      [room.nid],
    );
    if (gap?.pos == null || !(await backfill.before(room, gap.pos, FILL))) return;
  }
}
