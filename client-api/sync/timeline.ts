import { type EventFilter, matchesEventFilter } from '@trellis/protocol/filters.ts';
import { newestGap } from '@trellis/rooms/gaps.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { SyncView } from './room-sections.ts';

export interface Timeline {
  /** Oldest first. */
  readonly events: StoredEvent[];
  /** There are more events between the start of the interval and the first of these. */
  readonly limited: boolean;
  /** Everything in the interval, filtered out or not, is at or after this position; where paging back goes on. */
  readonly start: number;
}

/** Timeline events asked for when the filter does not say, and at the most. */
const DEFAULT_LIMIT = 10;
const MAX_LIMIT = 100;
/** Pages of events looked through for a filter that lets few pass. */
const MAX_PAGES = 5;

/** The newest events of a room in (after, upTo] that the user may see and the filter lets pass. */
export async function readTimeline(
  view: SyncView,
  room: Room,
  after: number,
  upTo: number,
): Promise<Timeline> {
  const { rooms } = view.sources;
  const filter: EventFilter | undefined = view.filter.room?.timeline;
  const limit = Math.min(filter?.limit ?? DEFAULT_LIMIT, MAX_LIMIT);
  let events: StoredEvent[] = [];
  let before = upTo;
  for (let page = 0; page < MAX_PAGES; page++) {
    const size = Math.max(limit, 1);
    const { events: found, limited, atGap } = await pageOf(rooms, room, after, before, size);
    const visible = await visibleEvents(rooms, room, view.userId, found);
    const passed = visible.filter(
      (event) =>
        (!filter || matchesEventFilter(filter, event)) &&
        (event.stateKey !== undefined || !view.ignored.has(event.sender)),
    );
    events = [...passed, ...events];
    const first = found[0];
    const enough = events.length >= limit;
    // Whoever may not see the older half of a page may not see what is older still: the client need not page back.
    const done = !limited || first === undefined || visible.length === 0;
    // What is missing between is for the client to page back to, and for us to fetch then.
    if (enough || done || atGap) {
      const cut = events.length > limit;
      if (cut) events = limit === 0 ? [] : events.slice(-limit);
      const start = cut && events[0] ? events[0].pos! - 1 : (first?.pos ?? after + 1) - 1;
      return { events, limited: cut || (limited && !(done && !enough && visible.length === 0)), start: limit === 0 ? upTo : start };
    }
    before = first!.pos! - 1;
  }
  return { events, limited: true, start: before };
}

/**
 * The newest `limit` events in (after, upTo], from memory when it reaches back far enough. Ends at a gap, before which
 * events are missing here.
 */
async function pageOf(rooms: Rooms, room: Room, after: number, upTo: number, limit: number) {
  const recent = room.timeline.between(after, upTo, limit);
  if (recent) return { ...recent, atGap: false };
  const gap = await newestGap(rooms, room, after, upTo);
  const read = await rooms.parts.events.timeline(room.nid, {
    after: gap === undefined ? after : gap - 1,
    before: upTo + 1,
    direction: 'backward',
    limit: limit + 1,
  });
  const more = read.length > limit;
  const atGap = gap !== undefined && !more;
  return { events: read.slice(0, limit).reverse(), limited: more || atGap, atGap };
}
