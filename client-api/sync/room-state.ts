import { type EventFilter, matchesEventFilter } from '@trellis/protocol/filters.ts';
import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { type EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';

/** State events that a room's section shows at the most when members are not loaded lazily. */
export interface StateRequest {
  /** Position from which the client knows the room; `undefined`: it knows nothing. */
  readonly from: number | undefined;
  /** State up to where: before the first timeline event, or with MSC4222 at the end of the timeline. */
  readonly until: Snapshot;
  readonly filter: EventFilter | undefined;
  /** Users whose member events the client needs, with lazy loading; `undefined`: everybody's. */
  readonly lazyMembers: ReadonlySet<string> | undefined;
  /** Member events that the client has got already on this connection. */
  readonly knownMembers: ReadonlySet<string> | undefined;
}

/**
 * The state that a client must be told beside the timeline: all of it at first, later what changed in between.
 * With lazy loading of members (spec: "Lazy-loading room members") only of those that matter.
 */
export async function roomState(rooms: Rooms, room: Room, request: StateRequest): Promise<StoredEvent[]> {
  const { until, lazyMembers, filter } = request;
  const refs = new Map<string, EventRef>();
  if (request.from === undefined) {
    if (lazyMembers) addLazily(refs, until, lazyMembers);
    else for (const [key, ref] of until.entries()) refs.set(key, ref);
  } else {
    const known = await stateAt(rooms, room, request.from);
    for (const [key, ref] of until.changesSince(known)) if (ref) refs.set(key, ref);
  }
  if (lazyMembers) {
    for (const userId of lazyMembers) {
      if (request.knownMembers?.has(userId)) continue;
      const key = stateKeyOf('m.room.member', userId);
      const ref = until.getKey(key);
      if (ref) refs.set(key, ref);
    }
  }
  const events = await rooms.parts.events.getMany([...refs.values()].map(({ eventId }) => eventId));
  const found = [...refs.values()].flatMap(({ eventId }) => events.get(eventId) ?? []);
  return filter ? found.filter((event) => matchesEventFilter(filter, event)) : found;
}

/** The state of the room once everything up to and including a position had happened. */
export async function stateAt(rooms: Rooms, room: Room, pos: number): Promise<Snapshot> {
  const newest = room.timeline.newest;
  if (newest === undefined || newest.pos! <= pos) return room.state;
  const next = room.timeline.events.find((event) => event.pos! > pos);
  const first =
    pos >= room.timeline.from
      ? next
      : (await rooms.parts.events.timeline(room.nid, { after: pos, direction: 'forward', limit: 1 }))[0];
  return stateBefore(rooms, room, first);
}

/** The state before an event, or the room's own when there is none. */
export async function stateBefore(rooms: Rooms, room: Room, event: StoredEvent | undefined): Promise<Snapshot> {
  if (!event) return room.state;
  return event.stateBefore === undefined ? Snapshot.empty : rooms.parts.snapshots.load(event.stateBefore);
}

function addLazily(refs: Map<string, EventRef>, state: Snapshot, members: ReadonlySet<string>): void {
  for (const [key, ref] of state.entries()) {
    const [type, stateKey] = splitStateKey(key);
    if (type !== 'm.room.member' || members.has(stateKey)) refs.set(key, ref);
  }
}
