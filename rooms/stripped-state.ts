import type { JsonObject } from '@trellis/protocol/event.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadAuthState } from './auth-state.ts';
import type { Room } from './room.ts';
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
export async function strippedStateEvents(rooms: Rooms, room: Room, ...userIds: string[]): Promise<StoredEvent[]> {
  const loaded = await loadAuthState(rooms, room.state, [
    ...STRIPPED_TYPES.map((type) => [type, ''] as const),
    ...userIds.map((userId) => ['m.room.member', userId] as const),
  ]);
  return [...loaded.values()];
}

/** An event with only what stripped state may show. */
export function strip(event: { sender: string; type: string; stateKey: string | undefined; content: JsonObject }) {
  return { sender: event.sender, type: event.type, state_key: event.stateKey ?? '', content: event.content };
}
