import { type PowerLevels, powerLevels } from '@trellis/protocol/power-levels.ts';
import { loadAuthState } from './auth-state.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** The power levels in force in a room; `undefined` for a room that this server knows from outside only. */
export async function levelsInForce(rooms: Rooms, room: Room): Promise<PowerLevels | undefined> {
  const state = await loadAuthState(rooms, room.state, [
    ['m.room.create', ''],
    ['m.room.power_levels', ''],
  ]);
  const create = state.get('m.room.create', '');
  return create && powerLevels(state.get('m.room.power_levels', '')?.content, create, room.version);
}

/**
 * Whether a user may speak for the room in directories: take others' aliases away, publish it. The spec leaves it to
 * servers; who may name the room's canonical alias may do that.
 */
export async function mayListRoom(rooms: Rooms, room: Room, userId: string): Promise<boolean> {
  if (!room.isJoined(userId)) return false;
  const levels = await levelsInForce(rooms, room);
  return levels !== undefined && levels.user(userId) >= levels.toSend('m.room.canonical_alias', true);
}

/** Whether a user may redact an event (spec: "Redactions"): one of their own, or any with the power for it. */
export async function mayRedact(rooms: Rooms, room: Room, userId: string, eventId: string): Promise<boolean> {
  const target = await rooms.parts.events.get(eventId);
  if (target?.roomId === room.roomId && target.sender === userId) return true;
  const levels = await levelsInForce(rooms, room);
  return levels !== undefined && levels.user(userId) >= levels.toRedact;
}
