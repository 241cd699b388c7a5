import { objectAt, thirdPartyToken } from '../auth-event-selection.ts';
import type { AuthView, JsonObject, JsonValue } from '../event.ts';
import { type PowerLevels, powerLevels } from '../power-levels.ts';
import type { RoomVersion } from '../room-versions.ts';
import { signableText, signaturesBy, verifyKey, verifySignature } from '../signing.ts';
import type { AuthState } from './auth-state.ts';

/** What every rule on membership looks at. */
interface Context {
  readonly event: AuthView;
  readonly create: AuthView;
  readonly state: AuthState;
  readonly version: RoomVersion;
  readonly levels: PowerLevels;
  readonly target: string;
  readonly senderMembership: JsonValue | undefined;
  readonly targetMembership: JsonValue | undefined;
  readonly joinRule: JsonValue | undefined;
}

/**
 * Rule 5: `m.room.member`. That the server of the authorising user has signed (5.2) is checked with the event's other
 * signatures.
 */
export function authoriseMembership(
  event: AuthView,
  create: AuthView,
  state: AuthState,
  version: RoomVersion,
): string | undefined {
  // 5.1
  if (event.stateKey === undefined) return 'm.room.member has no state_key';
  const { membership } = event.content;
  if (typeof membership !== 'string') return 'm.room.member has no membership';
  const context: Context = {
    event,
    create,
    state,
    version,
    levels: powerLevels(state.get('m.room.power_levels', '')?.content, create, version),
    target: event.stateKey,
    senderMembership: state.get('m.room.member', event.sender)?.content.membership,
    targetMembership: state.get('m.room.member', event.stateKey)?.content.membership,
    joinRule: joinRuleOf(state),
  };
  switch (membership) {
    case 'join':
      return join(context);
    case 'invite':
      return invite(context);
    case 'leave':
      return leave(context);
    case 'ban':
      return ban(context);
    case 'knock':
      return version.knocking ? knock(context) : 'this room version knows no knocking';
    default:
      return `unknown membership ${membership.slice(0, 64)}`;
  }
}

/** A room without the event is for the invited (`m.room.join_rules` in the Client-Server API). */
function joinRuleOf(state: AuthState): JsonValue | undefined {
  const rules = state.get('m.room.join_rules', '');
  return rules ? rules.content.join_rule : 'invite';
}

/** 5.3 */
function join({
  event,
  create,
  version,
  state,
  levels,
  target,
  targetMembership,
  joinRule,
}: Context): string | undefined {
  const [onlyPrevious] = event.prevEvents;
  if (
    event.prevEvents.length === 1 &&
    onlyPrevious === create.eventId &&
    isFirstCreator(target, create, version)
  )
    return undefined;
  if (event.sender !== target) return 'nobody can join for another';
  if (targetMembership === 'ban') return 'the user is banned';
  const isIn = targetMembership === 'join' || targetMembership === 'invite';
  const restricted =
    (joinRule === 'restricted' && version.restrictedJoins) ||
    (joinRule === 'knock_restricted' && version.knockRestricted);
  if (restricted) {
    if (isIn) return undefined;
    const authoriser = event.content.join_authorised_via_users_server;
    if (typeof authoriser !== 'string') return 'the join is not authorised by a user of the room';
    if (state.get('m.room.member', authoriser)?.content.membership !== 'join')
      return 'who authorised the join is not in the room';
    return levels.user(authoriser) >= levels.toInvite ? undefined : 'who authorised the join may not invite';
  }
  if (joinRule === 'public') return undefined;
  if (joinRule === 'invite' || (joinRule === 'knock' && version.knocking))
    return isIn ? undefined : 'the user is not invited';
  return 'the join rule lets nobody in';
}

/** 5.4 */
function invite(context: Context): string | undefined {
  const { event, levels, senderMembership, targetMembership } = context;
  if (event.content.third_party_invite !== undefined) return thirdPartyInvite(context);
  if (senderMembership !== 'join') return 'the sender is not in the room';
  if (targetMembership === 'join') return 'the user is in the room already';
  if (targetMembership === 'ban') return 'the user is banned';
  return levels.user(event.sender) >= levels.toInvite ? undefined : 'the sender has not the power to invite';
}

/** 5.4.1 */
function thirdPartyInvite({ event, version, state, target, targetMembership }: Context): string | undefined {
  if (targetMembership === 'ban') return 'the user is banned';
  const signed = objectAt(objectAt(event.content.third_party_invite)?.signed);
  if (!signed) return 'the third-party invite has no signed part';
  const token = thirdPartyToken(event.content);
  if (token === undefined || typeof signed.mxid !== 'string')
    return 'the third-party invite lacks mxid or token';
  if (signed.mxid !== target) return 'the third-party invite is for another user';
  const issued = state.get('m.room.third_party_invite', token);
  if (!issued) return 'no such third-party invite was issued';
  if (issued.sender !== event.sender) return 'the third-party invite was issued by another';
  return isSignedByKeyOf(issued.content, signed, version)
    ? undefined
    : 'the third-party invite is not signed by a key of the one issued';
}

/** Signatures tried for one invite at the most: others write both the keys and the signatures. */
const MAX_VERIFICATIONS = 400;

/** 5.4.1.7: any signature by any key. */
function isSignedByKeyOf(issued: JsonObject, signed: JsonObject, version: RoomVersion): boolean {
  const keys = [issued.public_key];
  if (Array.isArray(issued.public_keys))
    for (const entry of issued.public_keys) keys.push(objectAt(entry)?.public_key);
  const usable = new Set(keys.filter((key) => typeof key === 'string').map((key) => verifyKey(key)));
  usable.delete(undefined);
  if (usable.size === 0) return false;
  let text: string;
  try {
    text = signableText(signed, { lax: !version.strictCanonicalJson });
  } catch {
    return false;
  }
  let tried = 0;
  for (const signer of Object.keys(objectAt(signed.signatures) ?? {}))
    for (const signature of Object.values(signaturesBy(signed, signer))) {
      if (typeof signature !== 'string') continue;
      for (const key of usable) {
        if (++tried > MAX_VERIFICATIONS) return false;
        if (key && verifySignature(key, text, signature)) return true;
      }
    }
  return false;
}

/** 5.5 */
function leave({
  event,
  version,
  levels,
  target,
  senderMembership,
  targetMembership,
}: Context): string | undefined {
  if (event.sender === target) {
    const isIn = targetMembership === 'invite' || targetMembership === 'join';
    const knocked = version.knocking && targetMembership === 'knock';
    return isIn || knocked ? undefined : 'the user is not in the room';
  }
  if (senderMembership !== 'join') return 'the sender is not in the room';
  const power = levels.user(event.sender);
  if (targetMembership === 'ban' && power < levels.toBan) return 'the sender has not the power to unban';
  return power >= levels.toKick && levels.user(target) < power
    ? undefined
    : 'the sender has not the power to kick';
}

/** 5.6 */
function ban({ event, levels, target, senderMembership }: Context): string | undefined {
  if (senderMembership !== 'join') return 'the sender is not in the room';
  const power = levels.user(event.sender);
  return power >= levels.toBan && levels.user(target) < power
    ? undefined
    : 'the sender has not the power to ban';
}

/** 5.7 */
function knock({ event, version, target, senderMembership, joinRule }: Context): string | undefined {
  const open = joinRule === 'knock' || (joinRule === 'knock_restricted' && version.knockRestricted);
  if (!open) return 'the join rule allows no knocking';
  if (event.sender !== target) return 'nobody can knock for another';
  const settled = senderMembership === 'ban' || senderMembership === 'invite' || senderMembership === 'join';
  return settled ? `the user's membership is ${senderMembership} already` : undefined;
}

/** Who may join right after the create event: its creator, since version 11 its sender, never an additional one. */
function isFirstCreator(userId: string, create: AuthView, version: RoomVersion): boolean {
  return userId === (version.implicitCreator ? create.sender : create.content.creator);
}
