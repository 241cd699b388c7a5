import { Buffer } from 'node:buffer';
import { badJson, tooLarge } from './errors.ts';
import type { JsonObject, JsonValue, Pdu } from './event.ts';
import { canonicalEvent } from './hashes.ts';
import { isEventId, isHashRoomId, isRoomId, isServerName, parseUserId, serverNameOf } from './identifiers.ts';
import type { RoomVersion } from './room-versions.ts';

/** Size of an event at the most, in bytes of canonical JSON (spec: client-server API, "Size limits"). */
export const MAX_EVENT_BYTES = 65_536;
const MAX_PREV_EVENTS = 20;
const MAX_AUTH_EVENTS = 10;
const MAX_FIELD_BYTES = 255;

/**
 * Checks that a PDU has the event format of its room version (spec: "Event format" of each) and keeps within the
 * size limits. Throws M_BAD_JSON, M_TOO_LARGE. After this, members may be read without a further look at their types.
 *
 * Integers beyond ±(2^53−1), which room versions 1 to 5 do not forbid, are refused where the format asks for an
 * integer: `JSON.parse` has rounded them, so that no hash over them could be right.
 *
 * @param options.others the event was made by another server: rooms of old versions hold events whose `type` and
 *   `state_key` have 255 characters and more bytes, and whoever refused them would lose what builds on them
 */
export function checkPdu(
  pdu: JsonValue | undefined,
  version: RoomVersion,
  { others = false }: { others?: boolean } = {},
): asserts pdu is Pdu {
  if (!isObject(pdu)) throw badJson('An event is an object');
  checkNames(pdu, version, others);
  if (!isObject(pdu.content)) throw badJson('content is not an object');
  checkAuthoriser(pdu.type, pdu.content, version);
  if (!Number.isSafeInteger(pdu.origin_server_ts)) throw badJson('origin_server_ts is not an integer');
  if (!Number.isSafeInteger(pdu.depth) || (pdu.depth as number) < 0)
    throw badJson('depth is not an integer from 0 to 2^53−1');
  checkReferences(pdu, 'prev_events', MAX_PREV_EVENTS, version);
  checkReferences(pdu, 'auth_events', MAX_AUTH_EVENTS, version);
  if (!isObject(pdu.hashes) || typeof pdu.hashes.sha256 !== 'string')
    throw badJson('hashes.sha256 is missing');
  checkSignatures(pdu.signatures);
  if (pdu.unsigned !== undefined && !isObject(pdu.unsigned)) throw badJson('unsigned is not an object');
  const size = Buffer.byteLength(canonicalEvent(pdu, version));
  if (size > MAX_EVENT_BYTES) throw tooLarge(`The event has ${size} bytes, more than ${MAX_EVENT_BYTES}`);
}

function checkNames(pdu: Pdu, version: RoomVersion, others: boolean): void {
  const { type, state_key, sender, redacts, event_id } = pdu;
  if (typeof type !== 'string') throw badJson('type is not a string');
  const inCharacters = others && !version.sizesInBytes;
  checkLength('type', type, inCharacters);
  if (state_key !== undefined) {
    if (typeof state_key !== 'string') throw badJson('state_key is not a string');
    checkLength('state_key', state_key, inCharacters);
  }
  if (typeof sender !== 'string') throw badJson('sender is not a string');
  checkLength('sender', sender);
  if (!parseUserId(sender)) throw badJson('sender is not a user id');
  checkRoomId(pdu, version);
  if (redacts !== undefined && !version.redactsInContent && typeof redacts !== 'string')
    throw badJson('redacts is not a string');
  if (version.eventIds !== 'server') return;
  if (typeof event_id !== 'string') throw badJson('event_id is not a string');
  checkLength('event_id', event_id);
  if (!isEventId(event_id) || !isServerName(serverNameOf(event_id)))
    throw badJson('event_id is not an event id');
}

function checkRoomId({ type, state_key, room_id }: Pdu, version: RoomVersion): void {
  // The create event has no room id since version 12. That it may have none is for the auth rules to say.
  if (room_id === undefined && version.roomIdIsCreateHash && type === 'm.room.create' && state_key === '')
    return;
  if (typeof room_id !== 'string') throw badJson('room_id is not a string');
  checkLength('room_id', room_id);
  const isOne = version.roomIdIsCreateHash
    ? isHashRoomId(room_id)
    : isRoomId(room_id) && !isHashRoomId(room_id);
  if (!isOne) throw badJson('room_id is not a room id of this room version');
}

/** Who authorised a restricted join has to have signed it (auth rules, "m.room.member"): only a user's server can. */
function checkAuthoriser(type: JsonValue | undefined, content: JsonObject, version: RoomVersion): void {
  const authoriser = content.join_authorised_via_users_server;
  if (authoriser === undefined || !version.restrictedJoins || type !== 'm.room.member') return;
  if (typeof authoriser !== 'string' || !parseUserId(authoriser))
    throw badJson('join_authorised_via_users_server is not a user id');
}

/** Lists of event ids; in room versions 1 and 2 of pairs of event id and hashes. */
function checkReferences(
  pdu: Pdu,
  name: 'prev_events' | 'auth_events',
  max: number,
  version: RoomVersion,
): void {
  const references = pdu[name];
  if (!Array.isArray(references)) throw badJson(`${name} is not a list`);
  if (references.length > max) throw badJson(`${name} holds more than ${max} events`);
  for (const reference of references) {
    const id = version.eventIds === 'server' ? idOfPair(reference) : reference;
    if (typeof id !== 'string' || !isEventId(id))
      throw badJson(`${name} holds what is no reference to an event`);
  }
}

function idOfPair(pair: JsonValue): JsonValue | undefined {
  return Array.isArray(pair) && pair.length === 2 && isObject(pair[1]) ? pair[0] : undefined;
}

function checkSignatures(signatures: JsonValue | undefined): void {
  if (!isObject(signatures)) throw badJson('signatures is not an object');
  for (const byKey of Object.values(signatures)) {
    if (!isObject(byKey)) throw badJson('signatures holds what is no object');
    for (const key in byKey)
      if (typeof byKey[key] !== 'string') throw badJson('signatures holds what is no string');
  }
}

function checkLength(name: string, value: string, inCharacters = false): void {
  if (inCharacters && value.length <= 2 * MAX_FIELD_BYTES && [...value].length <= MAX_FIELD_BYTES) return;
  // A UTF-16 unit is at most three bytes, so short ones need no counting.
  if (value.length > MAX_FIELD_BYTES / 3 && Buffer.byteLength(value) > MAX_FIELD_BYTES)
    throw tooLarge(`${name} has more than ${MAX_FIELD_BYTES} bytes`);
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
