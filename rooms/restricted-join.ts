import { powerLevels } from '@trellis/protocol/power-levels.ts';
import { type LoadedState, loadAuthState } from './auth-state.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/**
 * Whether a user may join under a `restricted` or `knock_restricted` rule (spec: "Restricted rooms").
 * - `not-needed`: the rule is another one, or the user is invited or joined: the auth rules alone decide
 * - `authorised`: the user is in a room that the rule names, and local user `by` may invite on their behalf
 * - `ask-others`: others may authorise it, this server can't: it is not in the rooms named (`unknown-rooms`), or nobody
 *   here has the power to invite (`no-authoriser`)
 * - `refused`: the user is in none of the rooms named
 */
export type RestrictedJoin =
  | { readonly kind: 'not-needed' | 'refused' }
  | { readonly kind: 'ask-others'; readonly reason: 'unknown-rooms' | 'no-authoriser' }
  | { readonly kind: 'authorised'; readonly by: string };

/** Rooms of a rule that are looked at. */
const MAX_ALLOW = 50;

export async function restrictedJoin(rooms: Rooms, room: Room, userId: string): Promise<RestrictedJoin> {
  const membership = room.membership(userId);
  if (membership === 'join' || membership === 'invite') return { kind: 'not-needed' };
  const state = await loadAuthState(rooms, room.state, [
    ['m.room.join_rules', ''],
    ['m.room.power_levels', ''],
    ['m.room.create', ''],
  ]);
  const rules = state.get('m.room.join_rules', '')?.content;
  const restricted =
    (rules?.join_rule === 'restricted' && room.version.restrictedJoins) ||
    (rules?.join_rule === 'knock_restricted' && room.version.knockRestricted);
  if (!restricted) return { kind: 'not-needed' };

  const best = mightiestHere(room, state);
  // Whatever is known here of the rooms that the rule names, who can let the user in may know more.
  if (best === undefined) return { kind: 'ask-others', reason: 'no-authoriser' };

  let unknownRoom = false;
  for (const allowedRoom of allowedRooms(rules)) {
    const live = await rooms.get(allowedRoom);
    // What is known of a room that this server has left is out of date.
    if (!live?.isResident) unknownRoom = true;
    else if (live.isJoined(userId)) return { kind: 'authorised', by: best };
  }
  return unknownRoom ? { kind: 'ask-others', reason: 'unknown-rooms' } : { kind: 'refused' };
}

/** The local member with the most power, of those who may invite. */
function mightiestHere(room: Room, state: LoadedState): string | undefined {
  const create = state.get('m.room.create', '');
  if (!create) return undefined;
  const levels = powerLevels(state.get('m.room.power_levels', '')?.content, create, room.version);
  let best: string | undefined;
  for (const candidate of room.joinedHere)
    if (
      levels.user(candidate) >= levels.toInvite &&
      (best === undefined || levels.user(candidate) > levels.user(best))
    )
      best = candidate;
  return best;
}

/** Ids of the rooms whose members may join, as far as the rule is well-formed. */
export function allowedRooms(rules: Record<string, unknown> | undefined): string[] {
  if (!Array.isArray(rules?.allow)) return [];
  return rules.allow
    .slice(0, MAX_ALLOW)
    .filter((entry) => entry?.type === 'm.room_membership' && typeof entry.room_id === 'string')
    .map((entry) => entry.room_id as string);
}
