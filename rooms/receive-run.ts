import type { RoomEvent } from '@trellis/protocol/event.ts';
import { REDACTION } from './append.ts';
import { dependencies, rejectionByAuthEvents } from './outliers.ts';
import type { Placement } from './place.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Events placed in one go: for so many the room's lock is held. */
const MAX_RUN = 100;

/**
 * The first of some events that need nothing but to be placed one after the other: their predecessors are here or
 * among them, what authorises them is here, and none changes by what the others are judged, or how they arrive.
 * Steps 4 and 5 of `receive.ts` are done for them, without a word from other servers. Whether they are in the database
 * themselves is for the caller to look at.
 */
export async function leadingRun(
  rooms: Rooms,
  room: Room,
  events: readonly RoomEvent[],
): Promise<Placement[]> {
  if (!room.isResident || room.partial || room.state.get('m.room.policy', '')) return [];
  const candidates = leadingPlain(events);
  if (candidates.length < 2) return [];
  const own = new Set(candidates.map(({ eventId }) => eventId));
  const around = candidates.flatMap((event) => [...event.prevEvents, ...dependencies(event, room.version)]);
  const known = await rooms.parts.events.getMany(around.filter((id) => !own.has(id)));
  const run: Placement[] = [];
  const ahead = new Set<string>();
  for (const event of candidates) {
    const isHere = (id: string) => {
      const before = known.get(id);
      return ahead.has(id) || (before?.stateBefore !== undefined && before.roomId === room.roomId);
    };
    if (
      rooms.parts.events.cached(event.eventId) ||
      event.prevEvents.length === 0 ||
      !event.prevEvents.every(isHere)
    )
      break;
    if (!dependencies(event, room.version).every((id) => known.has(id))) break;
    run.push({ event, rejection: rejectionByAuthEvents(event, known, room.version) });
    ahead.add(event.eventId);
  }
  return run;
}

function leadingPlain(events: readonly RoomEvent[]): readonly RoomEvent[] {
  const end = events.findIndex(({ type, stateKey }) => stateKey !== undefined || type === REDACTION);
  return events.slice(0, Math.min(end < 0 ? events.length : end, MAX_RUN));
}
