import type { ListRequest, SlidingRequest } from './request.ts';
import { combined, type RoomConfig } from './required-state.ts';
import type { UserRooms } from './user-rooms.ts';

/** What a client wants to know of a room. */
export interface Wanted {
  readonly config: RoomConfig;
  /** Lists that have the room in their window. */
  readonly lists: readonly string[];
}

export interface ListWindow {
  /** Rooms that pass the filters. */
  readonly count: number;
  /** The rooms within each range. */
  readonly ranges: ReadonlyArray<{ range: readonly [number, number]; roomIds: readonly string[] }>;
}

export interface Interest {
  readonly lists: ReadonlyMap<string, ListWindow>;
  readonly rooms: ReadonlyMap<string, Wanted>;
  readonly subscribed: ReadonlySet<string>;
}

/** Which rooms a request is about (MSC4186, "Lists and subscriptions"). */
export async function findInterest(request: SlidingRequest, rooms: UserRooms): Promise<Interest> {
  const wanted = new Map<string, Wanted>();
  const combine = combiner();
  const subscribed = new Set<string>();
  for (const [roomId, config] of request.subscriptions) {
    const membership = rooms.memberships.get(roomId);
    if (!membership || membership.forgotten) continue;
    subscribed.add(roomId);
    wanted.set(roomId, combine(undefined, config, undefined));
  }
  const lists = new Map<string, ListWindow>();
  for (const list of request.lists) {
    const window = windowOf(list, rooms, await rooms.matching(list.filters));
    lists.set(list.key, window);
    const seen = new Set<string>();
    for (const { roomIds } of window.ranges)
      for (const roomId of roomIds) {
        if (seen.has(roomId)) continue;
        seen.add(roomId);
        wanted.set(roomId, combine(wanted.get(roomId), list.config, list.key));
      }
  }
  return { lists, rooms: wanted, subscribed };
}

/** Combines what is wanted of a room; rooms of which the same is wanted share one object. */
function combiner() {
  const made = new Map<Wanted | undefined, Map<RoomConfig, Wanted>>();
  return (before: Wanted | undefined, config: RoomConfig, list: string | undefined): Wanted => {
    let next = made.get(before);
    if (!next) {
      next = new Map();
      made.set(before, next);
    }
    // Each list and each subscription has a config of its own.
    let wanted = next.get(config);
    if (!wanted) {
      wanted = {
        config: before ? combined([before.config, config]) : config,
        lists: [...(before?.lists ?? []), ...(list === undefined ? [] : [list])],
      };
      next.set(config, wanted);
    }
    return wanted;
  };
}

function windowOf(list: ListRequest, rooms: UserRooms, passing: ReadonlySet<string> | undefined): ListWindow {
  const count = passing?.size ?? rooms.size;
  const ranges = (list.ranges ?? [[0, Math.max(0, count - 1)] as const]).map((range) => ({
    range,
    roomIds: [] as string[],
  }));
  const end = Math.max(...ranges.map(({ range }) => range[1]));
  let index = 0;
  for (const roomId of rooms.newestFirst()) {
    if (index > end || index >= count) break;
    if (passing && !passing.has(roomId)) continue;
    for (const { range, roomIds } of ranges) if (index >= range[0] && index <= range[1]) roomIds.push(roomId);
    index++;
  }
  return { count, ranges };
}
