import type { JsonObject, JsonValue, Pdu } from './event.ts';
import type { RoomVersion } from './room-versions.ts';

/** Members of an event that a redaction leaves. */
const EVENT_KEYS_V1 = [
  'event_id',
  'type',
  'room_id',
  'sender',
  'state_key',
  'content',
  'hashes',
  'signatures',
  'depth',
  'prev_events',
  'prev_state',
  'auth_events',
  'origin',
  'origin_server_ts',
  'membership',
];
const EVENT_KEYS_V11 = EVENT_KEYS_V1.filter((key) => !['prev_state', 'origin', 'membership'].includes(key));

const POWER_LEVELS = [
  'ban',
  'events',
  'events_default',
  'kick',
  'redact',
  'state_default',
  'users',
  'users_default',
];

type ContentKeys = ReadonlyMap<string, readonly string[] | 'all'>;

/** Members of `content` that a redaction leaves, by event type, for each variant of the algorithm. */
const content6: ContentKeys = new Map([
  ['m.room.member', ['membership']],
  ['m.room.create', ['creator']],
  ['m.room.join_rules', ['join_rule']],
  ['m.room.power_levels', POWER_LEVELS],
  ['m.room.history_visibility', ['history_visibility']],
]);
const content1: ContentKeys = new Map([...content6, ['m.room.aliases', ['aliases']]]);
const content8: ContentKeys = new Map([...content6, ['m.room.join_rules', ['join_rule', 'allow']]]);
const content9: ContentKeys = new Map([
  ...content8,
  ['m.room.member', ['membership', 'join_authorised_via_users_server']],
]);
const content11: ContentKeys = new Map<string, readonly string[] | 'all'>([
  ...content9,
  ['m.room.create', 'all'],
  ['m.room.power_levels', [...POWER_LEVELS, 'invite']],
  ['m.room.redaction', ['redacts']],
]);
const CONTENT_KEYS = { '1': content1, '6': content6, '8': content8, '9': content9, '11': content11 } as const;

/**
 * What is left of an event by the redaction algorithm of its room version (spec: "Redactions" of each). Takes any
 * object, as event ids are made of what is left.
 */
export function redact(pdu: Pdu, version: RoomVersion): Pdu {
  const rules = version.redactionRules;
  const { type, content } = pdu;
  const kept = typeof type === 'string' ? CONTENT_KEYS[rules].get(type) : undefined;
  const redacted = pick(pdu, rules === '11' ? EVENT_KEYS_V11 : EVENT_KEYS_V1);
  if (!isObject(content) || kept === undefined) redacted.content = {};
  else redacted.content = kept === 'all' ? content : pick(content, kept);
  if (rules === '11' && type === 'm.room.member' && isObject(content)) {
    const { third_party_invite: invite } = content;
    // An invite without `signed` leaves an empty object: the spec leaves that open, Synapse decided it.
    if (isObject(invite)) (redacted.content as JsonObject).third_party_invite = pick(invite, ['signed']);
  }
  return redacted;
}

function pick(object: JsonObject, keys: readonly string[]): JsonObject {
  const picked: JsonObject = {};
  for (const key of keys) if (Object.hasOwn(object, key)) picked[key] = object[key]!;
  return picked;
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
