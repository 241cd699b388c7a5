import type { RoomEvent } from '@trellis/protocol/event.ts';
import { checkIncoming } from './incoming-event.ts';
import { placedEvents } from './place.ts';
import type { RemoteEventsParts } from './remote-events.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Events asked for to close a gap. What is missing beyond is left to backfill. */
const MAX_MISSING_EVENTS = 50;

/** The newest position in (after, upTo] of an event some of whose predecessors are not here. */
export async function newestGap(
  rooms: Rooms,
  room: Room,
  after: number,
  upTo: number,
): Promise<number | undefined> {
  const [row] = await rooms.parts.db.query<{ pos: number | null }>(
    {
      name: 'newest-gap',
      text: 'SELECT max(pos) AS pos FROM backward_extremities WHERE room = $1 AND pos > $2 AND pos <= $3',
    },
    [room.nid, Math.max(after, Number.MIN_SAFE_INTEGER), Math.min(upTo, Number.MAX_SAFE_INTEGER)],
  );
  return row?.pos ?? undefined;
}

/** Those of the predecessors of an event that have no place here. */
export async function missingPredecessors(
  { rooms }: Pick<RemoteEventsParts, 'rooms'>,
  room: Room,
  event: RoomEvent,
): Promise<string[]> {
  const ids = [...new Set(event.prevEvents)];
  const placed = await placedEvents(rooms, room, ids);
  return ids.filter((id) => !placed.has(id));
}

/**
 * Asks the server that sent an event for what lies between the ends of the room's graph here and the event.
 *
 * @returns checked events that lead to the event, each after its predecessors
 */
export async function eventsBefore(
  parts: RemoteEventsParts,
  room: Room,
  server: string,
  event: RoomEvent,
): Promise<RoomEvent[]> {
  // What lies before all that is here is for backfill to fetch, and is no news.
  const minDepth = await oldestDepth(parts, room);
  if (event.depth <= minDepth) return [];
  const pdus = await parts.remote
    .missingEvents(server, room.roomId, {
      earliest: room.extremities,
      latest: [event.eventId],
      limit: MAX_MISSING_EVENTS,
      minDepth,
    })
    .catch(() => []);
  const checked = await checkIncoming(pdus.slice(0, MAX_MISSING_EVENTS), room.version, parts.verifier);
  const events = new Map<string, RoomEvent>();
  for (const { event: each } of checked)
    if (each?.roomId === room.roomId && each.depth >= minDepth) events.set(each.eventId, each);
  return ancestors(event, events);
}

/** Depth of the oldest event that has a place here. */
async function oldestDepth({ rooms }: RemoteEventsParts, room: Room): Promise<number> {
  const [row] = await rooms.parts.db.query<{ depth: number }>(
    {
      name: 'room-oldest-depth',
      text: 'SELECT depth FROM events WHERE room = $1 AND pos IS NOT NULL ORDER BY pos LIMIT 1',
    },
    [room.nid],
  );
  return row?.depth ?? 0;
}

/** Of the events those that precede `event` in the graph, each after its own predecessors. */
export function ancestors(
  event: Pick<RoomEvent, 'prevEvents'>,
  events: ReadonlyMap<string, RoomEvent>,
): RoomEvent[] {
  const ordered: RoomEvent[] = [];
  const entered = new Set<string>();
  // Depth first without recursion: an event comes out once all before it have.
  const stack: Array<{ event: Pick<RoomEvent, 'prevEvents'>; next: number }> = [{ event, next: 0 }];
  for (let top = stack.at(-1); top; top = stack.at(-1)) {
    const id = top.event.prevEvents[top.next++];
    if (id === undefined) {
      stack.pop();
      if (stack.length > 0) ordered.push(top.event as RoomEvent);
      continue;
    }
    const before = events.get(id);
    if (!before || entered.has(id)) continue;
    entered.add(id);
    stack.push({ event: before, next: 0 });
  }
  return ordered;
}
