import { splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import { matchesEventFilter } from '@trellis/protocol/filters.ts';
import { roomStateBefore, stateAtPosition } from '@trellis/rooms/event-state.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { SyncView, Timeline } from './view.ts';

/** What of a room's state a section is to tell. */
export interface StateRequest {
  /** Position from which the client knows the room; `undefined`: it knows nothing. */
  readonly from: number | undefined;
  readonly timeline: Timeline;
  /** The state that the section leads to. */
  readonly end: () => Promise<Snapshot>;
  /** Users besides the senders of the timeline whose member events the client needs when it loads members lazily. */
  readonly needed: Iterable<string>;
}

type Refs = Map<string, EventRef>;

/** The room's state at both ends of a timeline, and what the events between them set. */
interface Span {
  readonly start: Snapshot;
  readonly end: Snapshot;
  readonly shown: ReadonlySet<string>;
}

/**
 * The state that a client must be told beside the timeline: all of it at first, later what changed in between. By
 * default up to the start of the timeline; what changes later without the timeline showing it (events that the filter
 * leaves out, what state resolution decides) is told too, as the client would never learn of it else. With
 * `use_state_after` (MSC4222) up to the timeline's end.
 */
export async function sectionState(
  view: SyncView,
  room: Room,
  request: StateRequest,
): Promise<StoredEvent[]> {
  const { rooms } = view.sources;
  const { timeline } = request;
  const filter = view.filter.room?.state;
  const from = view.fullState ? undefined : request.from;
  const lazy = filter?.lazy_load_members ? new Set(request.needed) : undefined;
  if (lazy) for (const { sender } of timeline.events) lazy.add(sender);
  const allShown = isAllShown(view, room, timeline, from);
  if (allShown && !lazy) return [];

  const span = await spanOf(view, request, allShown);
  const refs: Refs = new Map();
  if (!allShown) {
    const known = from === undefined ? undefined : await stateAtPosition(rooms, room, from);
    addChanges(refs, known, span, lazy);
  }
  if (lazy) addMembers(refs, span, missingMembers(view, room, lazy, from));
  if (lazy && room.partial) await addToldMembers(rooms, room, refs, timeline, lazy);
  const ids = [...refs.values()].map(({ eventId }) => eventId);
  const events = await rooms.parts.events.getMany(ids);
  const found = ids.flatMap((id) => events.get(id) ?? []);
  return filter ? found.filter((event) => matchesEventFilter(filter, event)) : found;
}

/** Whether all that changed since the client looked is in the timeline: nearly always so, and quickly seen. */
function isAllShown(view: SyncView, room: Room, timeline: Timeline, from: number | undefined): boolean {
  if (from === undefined || view.stateAfter !== 'state') return false;
  return !timeline.omitsState && room.lastStateJump <= from;
}

async function spanOf(
  view: SyncView,
  { timeline, end: endOf }: StateRequest,
  allShown: boolean,
): Promise<Span> {
  const first = view.stateAfter === 'state' ? timeline.events[0] : undefined;
  const start = first && (await roomStateBefore(view.sources.rooms, first));
  // Where all is shown, what the timeline does not set is the same at both ends.
  const end = allShown && start ? start : await endOf();
  const shown = new Set<string>();
  if (first)
    for (const { type, stateKey } of timeline.events)
      if (stateKey !== undefined) shown.add(stateKeyOf(type, stateKey));
  return { start: start ?? end, end, shown };
}

function addChanges(
  refs: Refs,
  known: Snapshot | undefined,
  { start, end, shown }: Span,
  lazy: ReadonlySet<string> | undefined,
): void {
  // Members who matter are added apart; changes of those whom a client may know are told in any case.
  if (known) for (const [key, ref] of start.changesSince(known)) set(refs, key, ref);
  else for (const [key, ref] of start.entries()) if (!lazy || !isMember(key)) refs.set(key, ref);
  for (const [key, ref] of end.changesSince(start)) {
    if (shown.has(key) || (!known && lazy && isMember(key))) continue;
    set(refs, key, known && known.getKey(key)?.eventId === ref?.eventId ? undefined : ref);
  }
}

function addMembers(refs: Refs, { start, end, shown }: Span, members: Iterable<string>): void {
  for (const member of members) {
    const key = stateKeyOf('m.room.member', member);
    if (!refs.has(key)) set(refs, key, (shown.has(key) ? start : end).getKey(key));
  }
}

/**
 * Senders whose member events are not known to be state, since the members are still being fetched: what their own
 * messages name as such is what there is to show.
 */
async function addToldMembers(
  rooms: Rooms,
  room: Room,
  refs: Refs,
  timeline: Timeline,
  lazy: ReadonlySet<string>,
): Promise<void> {
  const unknown = timeline.events.filter(
    ({ sender }) => lazy.has(sender) && !room.state.get('m.room.member', sender),
  );
  const told = await rooms.parts.events.getMany(unknown.flatMap(({ authEvents }) => authEvents));
  for (const { sender, authEvents } of unknown)
    for (const id of authEvents) {
      const event = told.get(id);
      const key = stateKeyOf('m.room.member', sender);
      if (event?.type === 'm.room.member' && event.stateKey === sender) refs.set(key, event);
    }
}

/** Those of the members who matter whose events the client has not got on this connection. */
function missingMembers(
  { userId, deviceId, eventsTo, filter, lazy: connections }: SyncView,
  { roomId }: Room,
  lazy: ReadonlySet<string>,
  from: number | undefined,
): string[] {
  const redundant = filter.room?.state?.include_redundant_members === true;
  const missing = [...lazy].filter(
    (member) => redundant || from === undefined || !connections.has(userId, deviceId, roomId, member, from),
  );
  if (missing.length > 0) connections.remember(userId, deviceId, roomId, missing, eventsTo);
  return missing;
}

function isMember(key: string): boolean {
  return splitStateKey(key)[0] === 'm.room.member';
}

/** State that is gone cannot be told. */
function set(refs: Refs, key: string, ref: EventRef | undefined): void {
  if (ref) refs.set(key, ref);
  else refs.delete(key);
}
