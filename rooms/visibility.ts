import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

type HistoryVisibility = 'world_readable' | 'shared' | 'invited' | 'joined';
const VISIBILITIES: readonly string[] = ['world_readable', 'shared', 'invited', 'joined'];

/**
 * Those of a room's events that a user may see (spec: "Room history visibility"), by the state before each of them.
 * Nearly always everything since the user joined is asked for, which takes no look at any state.
 */
export async function visibleEvents(
  rooms: Rooms,
  room: Room,
  userId: string,
  events: readonly StoredEvent[],
): Promise<StoredEvent[]> {
  const member = room.member(userId);
  if (member?.membership === 'join' && events.every((event) => seenWhileJoined(event, member.pos))) return [...events];
  const lastPresent = await lastPresentPosition(rooms, room, userId);
  const visible: StoredEvent[] = [];
  for (const event of events) {
    if (member?.membership === 'join' && seenWhileJoined(event, member.pos)) visible.push(event);
    else if (await isVisible(rooms, userId, event, lastPresent)) visible.push(event);
  }
  return visible;
}

/** Whether a user may see the room as it is now: joined, or readable by all. */
export async function mayRead(rooms: Rooms, room: Room, userId: string): Promise<boolean> {
  return room.isJoined(userId) || (await visibilityIn(rooms, room.state)) === 'world_readable';
}

/** The setting in force in a state; `shared` where nothing sensible is set. */
export async function visibilityIn(rooms: Rooms, state: Snapshot): Promise<HistoryVisibility> {
  const ref = state.get('m.room.history_visibility', '');
  const event = ref && (await rooms.parts.events.get(ref.eventId));
  return asVisibility(event?.content.history_visibility) ?? 'shared';
}

function seenWhileJoined(event: StoredEvent, joinedAt: number): boolean {
  return event.pos !== undefined && event.pos >= joinedAt && !event.backfilled;
}

async function isVisible(rooms: Rooms, userId: string, event: StoredEvent, lastPresent: number): Promise<boolean> {
  if (event.pos === undefined || event.stateBefore === undefined) return false;
  const state = await rooms.parts.snapshots.load(event.stateBefore);
  let visibility = await visibilityIn(rooms, state);
  // Setting the visibility counts as sent under the laxer of the two.
  if (event.type === 'm.room.history_visibility' && event.stateKey === '') {
    const next = asVisibility(event.content.history_visibility);
    if (next && VISIBILITIES.indexOf(next) < VISIBILITIES.indexOf(visibility)) visibility = next;
  }
  if (visibility === 'world_readable') return true;
  const ref = state.get('m.room.member', userId);
  const memberships = [ref && (await rooms.parts.events.get(ref.eventId))?.content.membership];
  // One's own change of membership is seen when either side of it allows.
  if (event.type === 'm.room.member' && event.stateKey === userId) memberships.push(event.content.membership);
  if (memberships.includes('join')) return true;
  const joinedLater = event.pos < lastPresent;
  if (visibility === 'shared') return joinedLater;
  if (visibility === 'invited') return memberships.includes('invite') && joinedLater;
  return false;
}

/** Up to where the user is known to have been joined: without end now, else their leaving; -Infinity if never. */
async function lastPresentPosition(rooms: Rooms, room: Room, userId: string): Promise<number> {
  const member = room.member(userId);
  if (!member) return Number.NEGATIVE_INFINITY;
  if (member.membership === 'join') return Number.POSITIVE_INFINITY;
  let event = await rooms.parts.events.get(member.eventId);
  // A kick after leaving, an invite after a kick…: walk back to what ended the last stay.
  for (let steps = 0; event?.stateBefore !== undefined && steps < 20; steps++) {
    const before = (await rooms.parts.snapshots.load(event.stateBefore)).get('m.room.member', userId);
    const previous = before && (await rooms.parts.events.get(before.eventId));
    if (previous?.content.membership === 'join') return event.pos ?? member.pos;
    event = previous;
  }
  return Number.NEGATIVE_INFINITY;
}

function asVisibility(value: unknown): HistoryVisibility | undefined {
  return typeof value === 'string' && VISIBILITIES.includes(value) ? (value as HistoryVisibility) : undefined;
}
