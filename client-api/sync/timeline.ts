import { type EventFilter, matchesEventFilter } from '@trellis/protocol/filters.ts';
import { newestGap } from '@trellis/rooms/gaps.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { SyncView, Timeline } from './view.ts';

export interface TimelineRange {
  readonly after: number;
  readonly upTo: number;
  /** The user's own leave, which they see whatever the room's history visibility says. */
  readonly always?: StoredEvent;
}

/** Timeline events asked for when the filter does not say, and at the most. */
const DEFAULT_LIMIT = 10;
const MAX_LIMIT = 100;
/** Pages of events looked through for a filter that lets few pass, and their size at the least. */
const MAX_PAGES = 5;
const PAGE_FOR_FILTER = 25;

/** The newest events of a room in a range that the user may see and the filter lets pass. */
export async function readTimeline(view: SyncView, room: Room, range: TimelineRange): Promise<Timeline> {
  const { rooms } = view.sources;
  const { after, upTo } = range;
  const filter: EventFilter | undefined = view.filter.room?.timeline;
  const limit = Math.min(filter?.limit ?? DEFAULT_LIMIT, MAX_LIMIT);
  const selective = filter !== undefined && Object.keys(filter).some((name) => name !== 'limit');
  const size = Math.max(limit, selective ? PAGE_FOR_FILTER : 1);
  const all: StoredEvent[] = [];
  let events: StoredEvent[] = [];
  let before = upTo;
  for (let page = 1; ; page++) {
    const { events: found, limited, atGap } = await pageOf(rooms, room, after, before, size);
    all.push(...found);
    const visible = await visibleTo(view, room, found, range.always);
    const passed = visible.filter((event) => isWanted(view, filter, event));
    events = [...passed, ...events];
    const first = found[0];
    before = first ? first.pos! - 1 : after;
    // Whoever may not see the older half of a page may not see what is older still: the client need not page back.
    const hidden = visible.length === 0;
    if (events.length > limit) return cutTo(limit, events, upTo, after === Number.NEGATIVE_INFINITY);
    // What is missing between is for the client to page back to, and for us to fetch then.
    if (limited && !hidden && !atGap && events.length < limit && page < MAX_PAGES) continue;
    return {
      events,
      limited: limited && !hidden,
      omitsState: limited || omitsState(all, events),
      start: Number.isFinite(before) ? before : upTo,
    };
  }
}

/**
 * The newest `limit` of the events found. A client that knows nothing of the room yet gets those nearest to its end: what
 * came late, by way of an old fork, is not to take their places. It finds that by paging back.
 */
function cutTo(limit: number, events: StoredEvent[], upTo: number, isNew: boolean): Timeline {
  const ranked = isNew ? events.toSorted((a, b) => a.depth - b.depth || a.pos! - b.pos!) : events;
  const dropped = new Set(ranked.slice(0, ranked.length - limit));
  const shown = events.filter((event) => !dropped.has(event));
  const newest = Math.max(...[...dropped].map(({ pos }) => pos!));
  const start = shown[0] ? Math.max(newest, shown[0].pos! - 1) : upTo;
  return { events: shown, limited: true, omitsState: true, start };
}

function omitsState(found: readonly StoredEvent[], shown: readonly StoredEvent[]): boolean {
  if (found.length === shown.length) return false;
  const visible = new Set(shown.map(({ eventId }) => eventId));
  return found.some((event) => event.stateKey !== undefined && !visible.has(event.eventId));
}

async function visibleTo(
  { sources, userId }: SyncView,
  room: Room,
  events: readonly StoredEvent[],
  always: StoredEvent | undefined,
): Promise<StoredEvent[]> {
  const visible = await visibleEvents(sources.rooms, room, userId, events);
  if (!always || visible.some(({ eventId }) => eventId === always.eventId)) return visible;
  const seen = new Map(visible.map((event) => [event.eventId, event]));
  return events.flatMap(
    (event) => seen.get(event.eventId) ?? (event.eventId === always.eventId ? event : []),
  );
}

function isWanted({ ignored }: SyncView, filter: EventFilter | undefined, event: StoredEvent): boolean {
  if (filter && !matchesEventFilter(filter, event)) return false;
  return event.stateKey !== undefined || !ignored.has(event.sender);
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
