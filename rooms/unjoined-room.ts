import { invalidParam } from '@trellis/protocol/errors.ts';
import type { RoomVersion } from '@trellis/protocol/room-versions.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/**
 * The row of a room that this server is about to join, or hears of from outside; made when there is none.
 *
 * While the server has never been in the room, its version is only what an inviter said of it, and gives way.
 * Throws M_INVALID_PARAM when the room is known to have another version.
 */
export async function roomOfVersion(rooms: Rooms, roomId: string, version: RoomVersion): Promise<Room> {
  const room = await rooms.create(roomId, version);
  if (room.version.id === version.id) return room;
  await rooms.exclusive(roomId, async (current) => {
    if (current.version.id === version.id) return;
    if (current.extremities.length > 0) throw invalidParam(`The room is of version ${current.version.id}`);
    await rooms.parts.db.query('UPDATE rooms SET version = $2 WHERE nid = $1', [current.nid, version.id]);
    rooms.drop(current);
    await rooms.changed(roomId);
  });
  return rooms.require(roomId);
}

/** Removes the row of a room of which there is nothing: that was made for a join which did not come to be. */
export async function forgetUnjoined(rooms: Rooms, roomId: string): Promise<void> {
  if ((await rooms.get(roomId))?.isResident !== false) return;
  await rooms.exclusive(roomId, async (room) => {
    const gone = await rooms.parts.db.query(
      `DELETE FROM rooms r WHERE nid = $1 AND NOT EXISTS (SELECT FROM events WHERE room = r.nid)
         AND NOT EXISTS (SELECT FROM room_members WHERE room = r.nid) RETURNING 1`,
      [room.nid],
    );
    if (gone.length === 0) return;
    rooms.drop(room);
    await rooms.changed(roomId);
  });
}
