import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { isErasable } from './erased-users.ts';
import { redactedCopy } from './redacted-copy.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

type HistoryVisibility = 'world_readable' | 'shared' | 'invited' | 'joined';
const VISIBILITIES: readonly string[] = ['world_readable', 'shared', 'invited', 'joined'];

/** Changes of a membership that are followed back to the end of the last stay: a kick after leaving, an invite… */
const MAX_STEPS = 20;

/**
 * Those of a room's events that a user may see (spec: "Room history visibility"), by the state before each of them.
 * Nearly always everything since the user joined is asked for, which takes no look at any state. Of what erased users
 * sent there may be redacted copies.
 */
export async function visibleEvents(
  rooms: Rooms,
  room: Room,
  userId: string,
  events: readonly StoredEvent[],
): Promise<StoredEvent[]> {
  const joinedAt = joinedSince(room, userId);
  if (events.every((event) => seenWhileJoined(event, joinedAt))) return [...events];
  const lastPresent = await lastPresentPosition(rooms, room, userId);
  const visible: StoredEvent[] = [];
  for (const event of events) {
    if (seenWhileJoined(event, joinedAt)) visible.push(event);
    else if (await isVisible(rooms, userId, event, lastPresent)) visible.push(event);
  }
  return withoutErased(rooms, room, userId, visible);
}

/** Erased users' events stay whole for those who were in the room with them, or before they were erased. */
async function withoutErased(
  rooms: Rooms,
  room: Room,
  userId: string,
  events: StoredEvent[],
): Promise<StoredEvent[]> {
  const erased = await rooms.parts.erased?.among(room, events);
  if (!erased || erased.size === 0) return events;
  const joinedAt = joinedSince(room, userId);
  const shown: StoredEvent[] = [];
  for (const event of events) {
    const erasedAt = erased.get(event.sender);
    const whole =
      erasedAt === undefined ||
      joinedAt <= erasedAt ||
      seenWhileJoined(event, joinedAt) ||
      !isErasable(event) ||
      (await membershipAfter(rooms, event, userId)) === 'join';
    shown.push(whole ? event : redactedCopy(event));
  }
  return shown;
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

/**
 * The user's membership once each of the events had happened (spec: `unsigned.membership`), by event id; one text
 * where it is the same for all of them.
 */
export async function membershipsAt(
  rooms: Rooms,
  room: Room,
  userId: string,
  events: readonly StoredEvent[],
): Promise<string | ReadonlyMap<string, string>> {
  const joinedAt = joinedSince(room, userId);
  if (events.every((event) => seenWhileJoined(event, joinedAt))) return 'join';
  const memberships = new Map<string, string>();
  for (const event of events) {
    if (seenWhileJoined(event, joinedAt)) memberships.set(event.eventId, 'join');
    else if (event.stateBefore !== undefined)
      memberships.set(event.eventId, (await membershipAfter(rooms, event, userId)) ?? 'leave');
  }
  return memberships;
}

/**
 * The event that ended a user's last stay in the room: their leave, or a kick or ban. `undefined` when they are in
 * the room now, or never were.
 */
export async function endOfLastStay(
  rooms: Rooms,
  room: Room,
  userId: string,
): Promise<StoredEvent | undefined> {
  const member = room.member(userId);
  if (!member || member.membership === 'join') return undefined;
  return endOfStayBefore(rooms, await rooms.parts.events.get(member.eventId), userId);
}

/** The event that ended the stay which came before a member event that is no join, or which that event ended. */
export async function endOfStayBefore(
  rooms: Rooms,
  memberEventOfUser: StoredEvent | undefined,
  userId: string,
): Promise<StoredEvent | undefined> {
  let event = memberEventOfUser;
  for (let steps = 0; event?.stateBefore !== undefined && steps < MAX_STEPS; steps++) {
    const previous = await memberEvent(rooms, event.stateBefore, userId);
    if (previous?.content.membership === 'join') return event;
    event = previous;
  }
  return undefined;
}

/** From which position on the user is in the room without a break; without end when they are not. */
function joinedSince(room: Room, userId: string): number {
  const member = room.member(userId);
  return member?.membership === 'join' ? member.pos : Number.POSITIVE_INFINITY;
}

function seenWhileJoined(event: StoredEvent, joinedAt: number): boolean {
  return event.pos !== undefined && event.pos >= joinedAt && !event.backfilled;
}

async function isVisible(
  rooms: Rooms,
  userId: string,
  event: StoredEvent,
  lastPresent: number,
): Promise<boolean> {
  if (event.pos === undefined || event.stateBefore === undefined) return false;
  const state = await rooms.parts.snapshots.load(event.stateBefore);
  let visibility = await visibilityIn(rooms, state);
  // Setting the visibility counts as sent under the laxer of the two.
  if (event.type === 'm.room.history_visibility' && event.stateKey === '') {
    const next = asVisibility(event.content.history_visibility);
    if (next && VISIBILITIES.indexOf(next) < VISIBILITIES.indexOf(visibility)) visibility = next;
  }
  if (visibility === 'world_readable') return true;
  const memberships = [(await memberEvent(rooms, event.stateBefore, userId))?.content.membership];
  // One's own change of membership is seen when either side of it allows.
  if (event.type === 'm.room.member' && event.stateKey === userId) memberships.push(event.content.membership);
  if (memberships.includes('join')) return true;
  const joinedLater = event.pos < lastPresent;
  if (visibility === 'shared') return joinedLater;
  if (visibility === 'invited') return memberships.includes('invite') && joinedLater;
  return false;
}

async function memberEvent(rooms: Rooms, snapshot: number, userId: string): Promise<StoredEvent | undefined> {
  const ref = (await rooms.parts.snapshots.load(snapshot)).get('m.room.member', userId);
  return ref && rooms.parts.events.get(ref.eventId);
}

async function membershipAfter(
  rooms: Rooms,
  event: StoredEvent,
  userId: string,
): Promise<string | undefined> {
  const own = event.type === 'm.room.member' && event.stateKey === userId;
  const member = own ? event : await memberEvent(rooms, event.stateBefore!, userId);
  const membership = member?.content.membership;
  return typeof membership === 'string' ? membership : undefined;
}

/** Up to where the user is known to have been joined: without end now, else their leaving; -Infinity if never. */
async function lastPresentPosition(rooms: Rooms, room: Room, userId: string): Promise<number> {
  if (room.isJoined(userId)) return Number.POSITIVE_INFINITY;
  return (await endOfLastStay(rooms, room, userId))?.pos ?? Number.NEGATIVE_INFINITY;
}

function asVisibility(value: unknown): HistoryVisibility | undefined {
  return typeof value === 'string' && VISIBILITIES.includes(value) ? (value as HistoryVisibility) : undefined;
}
