import type { AuthState } from '@trellis/protocol/auth-rules/auth-state.ts';
import { type RoomEvent, stateKeyOf } from '@trellis/protocol/event.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import type { StatesAt } from '../state-at.ts';

/**
 * A state that lacks most members, for the authorisation of one event: a member of whom it says nothing is what the
 * event's own auth events say. Whether that was true is seen when the members are here (`replay.ts`).
 */
export function withToldMembers(state: AuthState, authEvents: Iterable<RoomEvent>): AuthState {
  const told = new Map<string, RoomEvent>();
  for (const event of authEvents)
    if (event.type === 'm.room.member' && event.stateKey !== undefined) told.set(event.stateKey, event);
  return {
    get: (type, stateKey) =>
      state.get(type, stateKey) ?? (type === 'm.room.member' ? told.get(stateKey) : undefined),
  };
}

/** The same for a state in the room; where it says something else than the auth events, both are resolved. */
export async function withToldState(
  rooms: Rooms,
  states: StatesAt,
  room: Room,
  event: RoomEvent,
  state: Snapshot,
): Promise<Snapshot> {
  const told = new Map<string, EventRef>();
  let isDisputed = false;
  for (const auth of (await rooms.parts.events.getMany(event.authEvents)).values()) {
    if (auth.type !== 'm.room.member' || auth.stateKey === undefined || auth.rejected) continue;
    const key = stateKeyOf(auth.type, auth.stateKey);
    const known = state.getKey(key)?.eventId;
    if (known === auth.eventId) continue;
    told.set(key, { eventId: auth.eventId, nid: auth.nid });
    isDisputed ||= known !== undefined;
  }
  if (told.size === 0) return state;
  if (!isDisputed) return state.overlaid(told);
  return states.resolve(room, [state, rooms.parts.snapshots.derive(room.nid, state, told)]);
}
