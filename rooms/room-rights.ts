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
