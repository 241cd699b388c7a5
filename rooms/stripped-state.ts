import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadAuthState } from './auth-state.ts';
import { idOfPdu } from './incoming-event.ts';
import type { Rooms } from './rooms.ts';

/** What helps to recognise a room from outside (spec: "Stripped state"). */
const STRIPPED_TYPES = [
  'm.room.create',
  'm.room.name',
  'm.room.avatar',
  'm.room.topic',
  'm.room.join_rules',
  'm.room.canonical_alias',
  'm.room.encryption',
] as const;

/** The events behind the room's stripped state now, and the member event of `userId`, say the inviter's. */
export async function strippedStateEvents(
  rooms: Rooms,
  room: { readonly state: Snapshot },
  ...userIds: string[]
): Promise<StoredEvent[]> {
  const loaded = await loadAuthState(rooms, room.state, [
    ...STRIPPED_TYPES.map((type) => [type, ''] as const),
    ...userIds.map((userId) => ['m.room.member', userId] as const),
  ]);
  return [...loaded.values()];
}

/** What stripping looks at. */
export interface Strippable {
  readonly eventId: string;
  readonly roomId: string;
  readonly sender: string;
  readonly type: string;
  readonly stateKey: string | undefined;
  readonly content: JsonObject;
  readonly originServerTs: number;
}

/** An event with only what stripped state may show; the create event is shown whole, as rooms are known by it. */
export function strip(event: Strippable): JsonObject {
  const { sender, type, stateKey, content } = event;
  const stripped = { sender, type, state_key: stateKey ?? '', content };
  if (type !== 'm.room.create') return stripped;
  return {
    ...stripped,
    event_id: event.eventId,
    room_id: event.roomId,
    origin_server_ts: event.originServerTs,
  };
}

/** Entries of stripped state from another server that are kept, and the size of each and of all together. */
const MAX_ENTRIES = 100;
const MAX_ENTRY_LENGTH = 65_536;
const MAX_LENGTH = 512 * 1024;

/**
 * Stripped state as another server sent it, cut down to what clients get, as JSON text. Nobody answers for it. Full
 * events, which the spec asks for, and stripped ones, which older servers send, are taken alike.
 */
export function stripForeign(entries: readonly JsonValue[], roomId: string, version: RoomVersion): string {
  const texts: string[] = [];
  let length = 0;
  for (const entry of entries.slice(0, MAX_ENTRIES)) {
    const stripped = stripEntry(entry, roomId, version);
    const text = stripped && JSON.stringify(stripped);
    if (text === undefined || text.length > MAX_ENTRY_LENGTH || length + text.length > MAX_LENGTH) continue;
    length += text.length;
    texts.push(text);
  }
  return `[${texts.join(',')}]`;
}

function stripEntry(entry: JsonValue, roomId: string, version: RoomVersion): JsonObject | undefined {
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) return undefined;
  const { sender, type, state_key: stateKey, content, origin_server_ts: ts } = entry;
  if (typeof sender !== 'string' || typeof type !== 'string' || typeof stateKey !== 'string')
    return undefined;
  if (typeof content !== 'object' || content === null || Array.isArray(content)) return undefined;
  const stripped: JsonObject = { sender, type, state_key: stateKey, content };
  if (type !== 'm.room.create' || typeof ts !== 'number') return stripped;
  const eventId = idOfPdu(entry, version);
  return {
    ...stripped,
    ...(eventId === undefined ? {} : { event_id: eventId }),
    room_id: roomId,
    origin_server_ts: ts,
  };
}
