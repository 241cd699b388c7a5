import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import { parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { buildEvent } from '@trellis/protocol/make-event.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

const MAX_SERVERS = 10;

/** Servers by which a user may leave a room that this server is not in: whose invite it was, and who it is known from. */
export function serversBehind(room: Room, userId: string, strippedState: string | undefined): string[] {
  const servers = new Set<string>();
  const member = room.member(userId);
  if (member) servers.add(serverNameOf(member.sender));
  const stripped = strippedState === undefined ? [] : (decodeJson(strippedState) as JsonObject[]);
  for (const { sender } of stripped) {
    const server = typeof sender === 'string' ? parseUserId(sender)?.serverName : undefined;
    if (server !== undefined) servers.add(server);
  }
  if (room.roomId.includes(':')) servers.add(serverNameOf(room.roomId));
  return [...servers].slice(0, MAX_SERVERS);
}

/**
 * A leave that no other server has accepted, for the user alone to see: there is nobody left who could be told, or
 * nobody who answers.
 */
export async function lonelyLeave(
  rooms: Rooms,
  room: Room,
  userId: string,
  content: JsonObject,
): Promise<RoomEvent> {
  const { events, signingKey, serverName } = rooms.parts;
  const { version, roomId } = room;
  const left = room.member(userId)?.eventId;
  const before = left === undefined ? undefined : await events.get(left);
  const references = left === undefined ? [] : [left];
  return buildEvent(
    {
      room_id: roomId,
      sender: userId,
      type: 'm.room.member',
      state_key: userId,
      content: { ...content, membership: 'leave' },
      prev_events: references,
      auth_events: references,
      depth: Math.min((before?.depth ?? 0) + 1, Number.MAX_SAFE_INTEGER),
      origin_server_ts: Date.now(),
    },
    { version, key: signingKey, serverName },
  );
}
