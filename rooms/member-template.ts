import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { authorise } from '@trellis/protocol/auth-rules/index.ts';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import {
  type JsonObject,
  type JsonValue,
  type Pdu,
  type RoomEvent,
  stateKeyOf,
} from '@trellis/protocol/event.ts';
import { checkPdu } from '@trellis/protocol/event-format.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import { buildEvent, type Signer, viewOf } from '@trellis/protocol/make-event.ts';
import { loadState } from './auth-state.ts';
import { badAnswer, type MemberTemplate } from './remote-handshakes.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { MAX_PREV_EVENTS, nextDepth } from './send.ts';

export type OwnMembership = 'join' | 'knock' | 'leave';

/**
 * A template of a user's own member event on the room's state now, for their server to complete and sign.
 * Throws M_FORBIDDEN when the auth rules would refuse the event.
 */
export async function memberTemplate(
  rooms: Rooms,
  room: Room,
  userId: string,
  content: JsonObject & { membership: OwnMembership },
): Promise<Pdu> {
  const { version } = room;
  const draft = { type: 'm.room.member', sender: userId, stateKey: userId, content };
  const keys = authEventKeys(draft, version);
  const reference = (eventId: string) =>
    version.eventIds === 'server' ? [eventId, { sha256: '' }] : eventId;
  const pdu: Pdu = {
    room_id: room.roomId,
    type: draft.type,
    sender: userId,
    state_key: userId,
    content,
    prev_events: room.extremities.slice(0, MAX_PREV_EVENTS).map(reference),
    auth_events: keys.flatMap((key) => room.state.getKey(key)?.eventId ?? []).map(reference),
    depth: nextDepth(room),
    origin: rooms.parts.serverName,
    origin_server_ts: Date.now(),
  };
  const state = await loadState(rooms, room.state, [...keys, stateKeyOf('m.room.create', '')]);
  // The event has no id before its server has signed it; no rule on memberships looks at it.
  const reason = authorise(viewOf(pdu, '', version), state, version);
  if (reason !== undefined) throw forbidden(reason);
  return pdu;
}

/** The member event that a template was asked for. */
export interface WantedEvent {
  readonly roomId: string;
  readonly userId: string;
  readonly membership: OwnMembership;
  readonly content: JsonObject;
}

/**
 * Makes and signs our user's member event by another server's template. Of the template only the place in the room is
 * taken (predecessors, auth events, depth), and the user who authorises a restricted join; what the event says is
 * ours, so that no server can have us sign something else.
 *
 * @param server which gave the template
 */
export function eventFromTemplate(
  { event: template }: MemberTemplate,
  wanted: WantedEvent,
  server: string,
  signer: Signer,
): RoomEvent {
  const { version } = signer;
  checkTemplate(template, wanted, server);
  const content: JsonObject = { ...wanted.content, membership: wanted.membership };
  delete content.join_authorised_via_users_server;
  const authoriser = authoriserOf(template, wanted, server);
  if (authoriser !== undefined && version.restrictedJoins)
    content.join_authorised_via_users_server = authoriser;
  const hashes = new Map<string, string>();
  const previous = references(template.prev_events, hashes);
  const auth = references(template.auth_events, hashes);
  if (!previous || previous.length === 0 || !auth)
    throw badAnswer(server, 'the template has no place in the room');
  const event = buildEvent(
    {
      room_id: wanted.roomId,
      sender: wanted.userId,
      type: 'm.room.member',
      state_key: wanted.userId,
      content,
      prev_events: previous,
      auth_events: auth,
      depth: template.depth as number,
      origin_server_ts: Date.now(),
    },
    { ...signer, referenceHashOf: (eventId) => hashes.get(eventId) },
  );
  try {
    checkPdu(event.pdu, version);
  } catch (error) {
    if (error instanceof MatrixError) throw badAnswer(server, `with its template ${error.message}`);
    throw error;
  }
  return event;
}

/** What the spec has the joining server look at ("Joining Rooms", "Leaving Rooms", `/make_knock`). */
function checkTemplate(template: Pdu, { roomId, userId, membership }: WantedEvent, server: string): void {
  if (template.type !== 'm.room.member') throw badAnswer(server, 'the template is of another type');
  if (template.room_id !== roomId) throw badAnswer(server, 'the template is for another room');
  if (template.sender !== userId || template.state_key !== userId)
    throw badAnswer(server, 'the template is for another user');
  if ((template.content as JsonObject | undefined)?.membership !== membership)
    throw badAnswer(server, `the template is no ${membership}`);
  if (!Number.isSafeInteger(template.depth)) throw badAnswer(server, 'the template has no depth');
}

function authoriserOf(template: Pdu, { membership }: WantedEvent, server: string): string | undefined {
  const authoriser = (template.content as JsonObject).join_authorised_via_users_server;
  if (membership !== 'join' || authoriser === undefined) return undefined;
  // The authoriser's server answers for the join with its signature. It must not be ours that does.
  if (typeof authoriser !== 'string' || parseUserId(authoriser)?.serverName !== server)
    throw badAnswer(server, 'the template names an authorising user of another server');
  return authoriser;
}

/** Event ids of a list of references; room versions 1 and 2 give a hash with each. */
function references(list: JsonValue | undefined, hashes: Map<string, string>): string[] | undefined {
  if (!Array.isArray(list)) return undefined;
  const ids: string[] = [];
  for (const reference of list) {
    const [id, hash] = Array.isArray(reference) ? reference : [reference, undefined];
    if (typeof id !== 'string') return undefined;
    const sha256 = (hash as JsonObject | null | undefined)?.sha256;
    if (typeof sha256 === 'string') hashes.set(id, sha256);
    ids.push(id);
  }
  return ids;
}
