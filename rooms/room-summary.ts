import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadAuthState } from './auth-state.ts';
import { allowedRooms } from './restricted-join.ts';
import type { Rooms } from './rooms.ts';

/** A room as its state describes it to those who are not in it (spec: `RoomSummary`). */
export interface RoomSummary {
  room_id: string;
  num_joined_members: number;
  name?: string;
  topic?: string;
  canonical_alias?: string;
  avatar_url?: string;
  world_readable: boolean;
  guest_can_join: boolean;
  join_rule?: string;
  room_type?: string;
  allowed_room_ids?: string[];
  encryption?: string;
  room_version?: string;
}

/** State events that a summary is made of. */
export const SUMMARY_TYPES = [
  'm.room.create',
  'm.room.name',
  'm.room.topic',
  'm.room.canonical_alias',
  'm.room.avatar',
  'm.room.history_visibility',
  'm.room.guest_access',
  'm.room.join_rules',
  'm.room.encryption',
] as const;

/** All of a room's summary but the number of its members. */
export type StateSummary = Omit<RoomSummary, 'num_joined_members'>;

export async function summariseState(rooms: Rooms, roomId: string, state: Snapshot): Promise<StateSummary> {
  const loaded = await loadAuthState(
    rooms,
    state,
    SUMMARY_TYPES.map((type) => [type, ''] as const),
  );
  const content = (type: (typeof SUMMARY_TYPES)[number]): JsonObject => loaded.get(type, '')?.content ?? {};
  const rules = content('m.room.join_rules');
  const create = loaded.get('m.room.create', '');
  const restricted = rules.join_rule === 'restricted' || rules.join_rule === 'knock_restricted';
  return withoutUndefined({
    room_id: roomId,
    name: textOf(content('m.room.name').name),
    topic: topicOf(content('m.room.topic')),
    canonical_alias: textOf(content('m.room.canonical_alias').alias),
    avatar_url: textOf(content('m.room.avatar').url),
    world_readable: content('m.room.history_visibility').history_visibility === 'world_readable',
    guest_can_join: content('m.room.guest_access').guest_access === 'can_join',
    join_rule: textOf(rules.join_rule) ?? 'invite',
    room_type: roomTypeOf(create),
    allowed_room_ids: restricted ? allowedRooms(rules) : undefined,
    encryption: textOf(content('m.room.encryption').algorithm),
    room_version: create?.version.id,
  });
}

export function roomTypeOf(create: StoredEvent | undefined): string | undefined {
  return textOf(create?.content.type);
}

/** The plain text of a topic: the `text/plain` form of `m.topic` (spec: m.room.topic), else `topic`. */
export function topicOf(content: JsonObject): string | undefined {
  const rich = content['m.topic'];
  const forms =
    typeof rich === 'object' && rich !== null && !Array.isArray(rich) ? rich['m.text'] : undefined;
  if (Array.isArray(forms))
    for (const form of forms.slice(0, 20)) {
      if (typeof form !== 'object' || form === null || Array.isArray(form)) continue;
      if (form.mimetype === undefined || form.mimetype === 'text/plain') {
        const body = textOf(form.body);
        if (body !== undefined) return body;
      }
    }
  return textOf(content.topic);
}

function textOf(value: JsonValue | undefined): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function withoutUndefined<T extends object>(members: T): T {
  for (const name of Object.keys(members) as Array<keyof T>)
    if (members[name] === undefined) delete members[name];
  return members;
}
