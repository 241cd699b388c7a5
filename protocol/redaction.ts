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

const POWER_LEVELS = ['ban', 'events', 'events_default', 'kick', 'redact', 'state_default', 'users', 'users_default'];

type ContentKeys = Readonly<Record<string, readonly string[] | 'all'>>;

/** Members of `content` that a redaction leaves, by event type, for each variant of the algorithm. */
const content1: ContentKeys = {
  'm.room.member': ['membership'],
  'm.room.create': ['creator'],
  'm.room.join_rules': ['join_rule'],
  'm.room.power_levels': POWER_LEVELS,
  'm.room.aliases': ['aliases'],
  'm.room.history_visibility': ['history_visibility'],
};
const { 'm.room.aliases': _gone, ...content6 } = content1;
const content8: ContentKeys = { ...content6, 'm.room.join_rules': ['join_rule', 'allow'] };
const content9: ContentKeys = { ...content8, 'm.room.member': ['membership', 'join_authorised_via_users_server'] };
const content11: ContentKeys = {
  ...content9,
  'm.room.create': 'all',
  'm.room.power_levels': [...POWER_LEVELS, 'invite'],
  'm.room.redaction': ['redacts'],
};
const CONTENT_KEYS = { '1': content1, '6': content6, '8': content8, '9': content9, '11': content11 } as const;

/** What is left of an event by the redaction algorithm of its room version (spec: "Redactions" of each). */
export function redact(pdu: Pdu, version: RoomVersion): Pdu {
  const rules = version.redactionRules;
  const redacted = pick(pdu, rules === '11' ? EVENT_KEYS_V11 : EVENT_KEYS_V1);
  const content = isObject(pdu.content) ? pdu.content : {};
  const kept = typeof pdu.type === 'string' && Object.hasOwn(CONTENT_KEYS[rules], pdu.type) ? CONTENT_KEYS[rules][pdu.type] : undefined;
  redacted.content = kept === 'all' ? content : pick(content, kept ?? []);
  if (rules === '11' && pdu.type === 'm.room.member' && isObject(content.third_party_invite)) {
    const signed = content.third_party_invite.signed;
    if (signed !== undefined) redacted.content = { ...(redacted.content as JsonObject), third_party_invite: { signed } };
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
