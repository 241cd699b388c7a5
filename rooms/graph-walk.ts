import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { placedEvents } from './place.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Events that are looked at for each one that is wanted: rejected ones are passed over. */
const LOOKED_AT_FOR_ONE = 5;

/**
 * The events that precede `latest` and do not precede `earliest`, breadth first from the latest on, up to `limit`
 * (spec: `/get_missing_events`). Rejected events are left out, not so what stands behind them.
 *
 * @returns the oldest first
 */
export async function eventsBetween(
  rooms: Rooms,
  room: Room,
  query: {
    readonly earliest: readonly string[];
    readonly latest: readonly string[];
    readonly limit: number;
    readonly minDepth: number;
  },
): Promise<StoredEvent[]> {
  const seen = new Set([...query.earliest, ...query.latest]);
  const latest = await placedEvents(rooms, room, query.latest);
  const found: StoredEvent[] = [];
  let layer = [...latest.values()];
  let looks = query.limit * LOOKED_AT_FOR_ONE;
  while (layer.length > 0 && found.length < query.limit && looks > 0) {
    const ids = layer.flatMap(({ prevEvents }) => prevEvents).filter((id) => !seen.has(id));
    const next = [...new Set(ids)].slice(0, looks);
    looks -= next.length;
    for (const id of next) seen.add(id);
    const events = await placedEvents(rooms, room, next);
    layer = [...events.values()].filter(({ depth }) => depth >= query.minDepth);
    found.push(...layer.filter(({ rejected }) => !rejected));
  }
  return found.slice(0, query.limit).reverse();
}

/**
 * Events and what precedes them, the newest first, up to `limit` (spec: `/backfill`). Where branches run beside each
 * other the deeper event comes first.
 */
export async function eventsUpTo(
  rooms: Rooms,
  room: Room,
  from: readonly string[],
  limit: number,
): Promise<StoredEvent[]> {
  const seen = new Set(from);
  const ends = new Map(await placedEvents(rooms, room, from));
  const found: StoredEvent[] = [];
  for (let looks = limit * LOOKED_AT_FOR_ONE; ends.size > 0 && found.length < limit && looks > 0; looks--) {
    const deepest = [...ends.values()].reduce((a, b) => (b.depth > a.depth ? b : a));
    ends.delete(deepest.eventId);
    if (!deepest.rejected) found.push(deepest);
    const next = deepest.prevEvents.filter((id) => !seen.has(id));
    for (const id of next) seen.add(id);
    for (const [id, event] of await placedEvents(rooms, room, next)) ends.set(id, event);
  }
  return found;
}
