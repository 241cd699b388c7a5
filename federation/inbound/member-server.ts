import { forbidden } from '@trellis/protocol/errors.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { residentRoom } from './handshake.ts';

/** A room for a server that has members in it and is not denied by its access list: for all that is read of a room. */
export async function roomOfMember(rooms: Rooms, roomId: string, origin: string): Promise<Room> {
  const room = await residentRoom(rooms, roomId, origin);
  if (!room.servers.has(origin)) throw forbidden('Your server is not in the room');
  return room;
}

/** A list of events as JSON text, each of them serialised once and for all. */
export function jsonList(texts: readonly string[]): string {
  return `[${texts.join(',')}]`;
}

export function jsonOf(events: Iterable<StoredEvent>): string {
  return jsonList(Array.from(events, ({ json }) => json));
}
