import { stateOwner } from '@trellis/protocol/auth-rules/index.ts';
import { badJson, invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { creatorsOf } from '@trellis/protocol/power-levels.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/**
 * Refuses a state key that claims to be somebody's and names no user, where users own state keys (MSC3757).
 *
 * @throws M_BAD_JSON
 */
export function checkStateKey({ version }: Room, stateKey: string): void {
  if (!version.ownedState) return;
  const owner = stateOwner(stateKey, version);
  if (owner !== undefined && !parseUserId(owner))
    throw badJson('The state_key does not begin with a user id');
}

/**
 * Refuses state that no user could ever set, whatever their power, as a wrong request rather than as a forbidden one: a
 * second create event, and power levels for who has all power anyhow (room version 12: "Event authorisation").
 *
 * @throws M_INVALID_PARAM
 */
export async function checkState(rooms: Rooms, room: Room, type: string, content: JsonObject): Promise<void> {
  if (type === 'm.room.create') throw invalidParam('A room is created once');
  if (type !== 'm.room.power_levels' || !room.version.privilegedCreators) return;
  const ref = room.state.get('m.room.create', '');
  const create = ref && (await rooms.parts.events.get(ref.eventId));
  const { users } = content;
  if (!create || typeof users !== 'object' || users === null) return;
  for (const userId of creatorsOf(create, room.version))
    if (Object.hasOwn(users, userId)) throw invalidParam(`${userId} is a creator and has no power level`);
}
