import { Buffer } from 'node:buffer';
import { canonicalJson } from './canonical-json.ts';
import { badJson, type MatrixError, tooLarge } from './errors.ts';
import type { JsonObject, JsonValue, Pdu } from './event.ts';
import { isEventId, isRoomId, parseUserId } from './identifiers.ts';
import { hasOnlySafeNumbers } from './json.ts';
import type { RoomVersion } from './room-versions.ts';

/** Size of an event at the most, in bytes of canonical JSON (spec: "Size limits"). */
export const MAX_EVENT_BYTES = 65_536;
const MAX_FIELD_BYTES = 255;
const MAX_PREV_EVENTS = 20;
const MAX_AUTH_EVENTS = 10;

/**
 * Checks that a PDU has the event format of its room version and keeps within the size limits. Throws M_BAD_JSON,
 * M_TOO_LARGE. After this, members may be read without a further look at their types.
 */
export function checkPdu(pdu: JsonValue | undefined, version: RoomVersion): asserts pdu is Pdu {
  if (!isObject(pdu)) throw badJson('An event is an object');
  checkFields(pdu, version);
  if (version.strictCanonicalJson && !hasOnlySafeNumbers(pdu)) throw badJson('An event holds a number that is no integer');
  const size = Buffer.byteLength(canonicalJson(pdu, { lax: !version.strictCanonicalJson }));
  if (size > MAX_EVENT_BYTES) throw tooLarge(`The event has ${size} bytes, more than ${MAX_EVENT_BYTES}`);
}

function checkFields(pdu: Pdu, version: RoomVersion): void {
  requireString(pdu, 'type');
  requireString(pdu, 'sender');
  if (!parseUserId(pdu.sender as string)) throw badJson('sender is not a user id');
  if (pdu.state_key !== undefined) requireString(pdu, 'state_key');
  if (!isObject(pdu.content)) throw badJson('content is not an object');
  if (!isInteger(pdu.origin_server_ts)) throw badJson('origin_server_ts is not an integer');
  if (!isInteger(pdu.depth) || (pdu.depth as number) < 0) throw badJson('depth is not a positive integer');
  checkRoomId(pdu, version);
  if (version.eventIds === 'server' && !(typeof pdu.event_id === 'string' && isEventId(pdu.event_id)))
    throw badJson('event_id is not an event id');
  checkRefs(pdu, 'prev_events', MAX_PREV_EVENTS, version);
  checkRefs(pdu, 'auth_events', MAX_AUTH_EVENTS, version);
  if (!isObject(pdu.hashes) || typeof pdu.hashes.sha256 !== 'string') throw badJson('hashes.sha256 is missing');
  checkSignatures(pdu.signatures);
  if (pdu.unsigned !== undefined && !isObject(pdu.unsigned)) throw badJson('unsigned is not an object');
  if (pdu.redacts !== undefined && !version.redactsInContent && typeof pdu.redacts !== 'string')
    throw badJson('redacts is not an event id');
}

function checkRoomId(pdu: Pdu, version: RoomVersion): void {
  if (version.roomIdIsCreateHash && pdu.type === 'm.room.create' && pdu.state_key === '') {
    // The authorisation rules reject a create event with a room id; the format allows both.
    if (pdu.room_id === undefined) return;
  }
  if (typeof pdu.room_id !== 'string' || !isRoomId(pdu.room_id)) throw badJson('room_id is not a room id');
}

function checkRefs(pdu: Pdu, name: 'prev_events' | 'auth_events', max: number, version: RoomVersion): void {
  const refs = pdu[name];
  if (!Array.isArray(refs)) throw badJson(`${name} is not a list`);
  if (refs.length > max) throw badJson(`${name} holds more than ${max} events`);
  for (const ref of refs) {
    const id = version.eventIds === 'server' ? (Array.isArray(ref) ? ref[0] : undefined) : ref;
    if (typeof id !== 'string' || !isEventId(id)) throw badJson(`${name} holds what is no event id`);
  }
}

function checkSignatures(signatures: JsonValue | undefined): void {
  if (!isObject(signatures)) throw badJson('signatures is not an object');
  for (const bySigner of Object.values(signatures)) {
    if (!isObject(bySigner)) throw badJson('signatures holds what is no object');
    for (const signature of Object.values(bySigner))
      if (typeof signature !== 'string') throw badJson('signatures holds what is no string');
  }
}

function requireString(pdu: Pdu, name: 'type' | 'sender' | 'state_key'): void {
  const value = pdu[name];
  if (typeof value !== 'string') throw badJson(`${name} is not a string`);
  const error = fieldTooLong(name, value);
  if (error) throw error;
}

function fieldTooLong(name: string, value: string): MatrixError | undefined {
  if (value.length <= MAX_FIELD_BYTES / 3 || Buffer.byteLength(value) <= MAX_FIELD_BYTES) return undefined;
  return tooLarge(`${name} has more than ${MAX_FIELD_BYTES} bytes`);
}

function isInteger(value: JsonValue | undefined): boolean {
  return typeof value === 'number' && Number.isSafeInteger(value);
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
