import { authEventKeys } from '../auth-event-selection.ts';
import { type AuthView, stateKeyOf } from '../event.ts';
import { parseUserId, serverNameOf } from '../identifiers.ts';
import { powerLevels } from '../power-levels.ts';
import { type RoomVersion, roomVersion } from '../room-versions.ts';
import type { AuthState } from './auth-state.ts';
import { authoriseMembership } from './membership.ts';
import { authorisePowerLevels } from './power-levels-change.ts';

/**
 * Checks an event against a state by the authorisation rules of its room version. The numbers in comments are those
 * of room version 12; earlier versions have the same rules, where a property of the version does not say otherwise.
 * https://spec.matrix.org/v1.18/rooms/v12/#authorisation-rules
 *
 * Rule 3, on the event's own `auth_events`, is that of `authoriseByAuthEvents`.
 *
 * @returns why the event is refused, or `undefined` when it is allowed
 */
export function authorise(event: AuthView, state: AuthState, version: RoomVersion): string | undefined {
  // 1.
  if (event.type === 'm.room.create') return authoriseCreate(event, version);
  const create = state.get('m.room.create', '');
  // 2. (before version 12: 2.4)
  if (!create) return 'the room has no create event';
  if (version.roomIdIsCreateHash && event.roomId !== roomIdOfCreate(create))
    return 'the create event is that of another room';
  // 4.
  if (create.content['m.federate'] === false && serverNameOf(event.sender) !== serverNameOf(create.sender))
    return 'the room is closed to other servers';
  // Versions 1 to 5: 4.
  if (version.aliasesAuth && event.type === 'm.room.aliases') {
    if (event.stateKey === undefined) return 'm.room.aliases has no state_key';
    return event.stateKey === serverNameOf(event.sender) ? undefined : 'the aliases are of another server';
  }
  // 5.
  if (event.type === 'm.room.member') return authoriseMembership(event, create, state, version);
  // 6.
  if (state.get('m.room.member', event.sender)?.content.membership !== 'join')
    return 'the sender is not in the room';
  return authoriseByPower(event, create, state, version);
}

/** Rules 7 to 11. */
function authoriseByPower(
  event: AuthView,
  create: AuthView,
  state: AuthState,
  version: RoomVersion,
): string | undefined {
  const current = state.get('m.room.power_levels', '')?.content;
  const levels = powerLevels(current, create, version);
  const power = levels.user(event.sender);
  // 7.
  if (event.type === 'm.room.third_party_invite')
    return power >= levels.toInvite ? undefined : 'the sender has not the power to invite';
  // 8.
  const required = levels.toSend(event.type, event.stateKey !== undefined);
  if (power < required) return `the sender has power level ${power}, ${event.type} needs ${required}`;
  // 9.
  const owner = stateOwner(event.stateKey, version);
  if (owner !== undefined && owner !== event.sender) {
    if (!version.ownedState) return 'the state_key is another user';
    // MSC3757: those who stand above the owner may set it too.
    if (!parseUserId(owner)) return 'the state_key does not begin with a user id';
    if (power <= levels.user(owner)) return 'the state_key belongs to another user';
  }
  // 10.
  if (event.type === 'm.room.power_levels')
    return authorisePowerLevels(event, current, power, create, version);
  // Versions 1 and 2: 11.
  if (version.redactionAuth && event.type === 'm.room.redaction') {
    if (power >= levels.toRedact) return undefined;
    if (event.redacts !== undefined && serverNameOf(event.redacts) === serverNameOf(event.eventId))
      return undefined;
    return 'the sender has not the power to redact';
  }
  return undefined;
}

/**
 * Checks an event against the events that it names itself in `auth_events`: which may be there (rule 3), and that
 * they allow it. That is step 4 of the checks on a received PDU.
 *
 * @param authEvents all of the event's auth events, in any order
 * @param create the room's create event, which since version 12 is not among them
 */
export function authoriseByAuthEvents(
  event: AuthView,
  authEvents: readonly AuthView[],
  version: RoomVersion,
  create?: AuthView,
): string | undefined {
  if (event.type === 'm.room.create') return authoriseCreate(event, version);
  const allowed = new Set(authEventKeys(event, version));
  const state = new Map<string, AuthView>();
  for (const auth of authEvents) {
    if (auth.stateKey === undefined) return 'an auth event is no state event';
    const key = stateKeyOf(auth.type, auth.stateKey);
    // 3.1
    if (state.has(key)) return `two auth events for ${auth.type}`;
    // 3.2
    if (!allowed.has(key)) return `an auth event of type ${auth.type} does not belong there`;
    // 3.3
    if (auth.rejected) return 'an auth event was rejected';
    // 3.5
    if (auth.roomId !== event.roomId) return 'an auth event is of another room';
    state.set(key, auth);
  }
  // 2. (before version 12: 2.4, by `authorise`)
  if (version.roomIdIsCreateHash) {
    if (!create || create.rejected) return 'no accepted create event has the id of the room';
    state.set(stateKeyOf('m.room.create', ''), create);
  }
  return authorise(event, { get: (type, stateKey) => state.get(stateKeyOf(type, stateKey)) }, version);
}

/**
 * Whether an accepted redaction empties its target (since room version 3, "Handling redactions"; before, the auth
 * rules have decided it already).
 *
 * @param state before the redaction
 */
export function mayApplyRedaction(
  redaction: AuthView,
  target: AuthView,
  state: AuthState,
  version: RoomVersion,
): boolean {
  // Without its contents a create event would no longer say which version the room has.
  if (target.roomId !== redaction.roomId || target.type === 'm.room.create') return false;
  if (version.redactionAuth || serverNameOf(redaction.sender) === serverNameOf(target.sender)) return true;
  const create = state.get('m.room.create', '');
  if (!create) return false;
  const levels = powerLevels(state.get('m.room.power_levels', '')?.content, create, version);
  return levels.user(redaction.sender) >= levels.toRedact;
}

/**
 * The user to whom a state key that starts with `@` belongs. With MSC3757 it may go on behind `_`; what is returned
 * then need not be a user id.
 */
export function stateOwner(stateKey: string | undefined, version: RoomVersion): string | undefined {
  if (!stateKey?.startsWith('@')) return undefined;
  if (!version.ownedState) return stateKey;
  const colon = stateKey.indexOf(':');
  // Only behind the colon: localparts may hold the separator, server names never do.
  const end = colon === -1 ? -1 : stateKey.indexOf('_', colon);
  return end === -1 ? stateKey : stateKey.slice(0, end);
}

/** Since room version 12 (MSC4291). */
function roomIdOfCreate(create: AuthView): string {
  return `!${create.eventId.slice(1)}`;
}

/** Rule 1. */
function authoriseCreate(event: AuthView, version: RoomVersion): string | undefined {
  // 1.1
  if (event.prevEvents.length > 0) return 'the create event has prev_events';
  if (event.stateKey !== '') return 'the create event is not in the place of one';
  // 1.2. A room id written in the event would have to be a hash of itself.
  if (version.roomIdIsCreateHash) {
    if (event.roomId !== roomIdOfCreate(event)) return 'the create event has a room_id';
  } else if (serverNameOf(event.roomId) !== serverNameOf(event.sender))
    return 'the room id is of another server than the sender';
  const { room_version: id, creator, additional_creators: additional } = event.content;
  // 1.3
  if (id !== undefined && (typeof id !== 'string' || !roomVersion(id))) return 'the room version is unknown';
  // 1.4
  if (version.privilegedCreators && additional !== undefined) {
    if (!Array.isArray(additional)) return 'additional_creators is not a list';
    if (!additional.every((user) => typeof user === 'string' && parseUserId(user)))
      return 'additional_creators holds what is no user id';
  }
  // Before version 11: 1.4
  if (!version.implicitCreator && creator === undefined) return 'the create event has no creator';
  return undefined;
}
