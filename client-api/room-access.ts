import { forbidden } from '@trellis/protocol/errors.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { visibilityIn } from '@trellis/rooms/visibility.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';

/** What a user may see of a room: as it is, or as it was when they left. */
export interface RoomView {
  readonly room: Room;
  readonly state: Snapshot;
  /** Where the view ends in the room's order; everything to `Infinity` for who is in it. */
  readonly end: number;
  readonly joined: boolean;
}

/** @throws M_FORBIDDEN when the user is not and never was in the room, and it is not readable by all */
export async function viewRoom(rooms: Rooms, roomId: string, userId: string): Promise<RoomView> {
  const room = await rooms.get(roomId);
  const member = room?.member(userId);
  if (!room || room.extremities.length === 0) throw forbidden('You are not in that room');
  if (member?.membership === 'join')
    return { room, state: room.state, end: Number.POSITIVE_INFINITY, joined: true };
  if ((await visibilityIn(rooms, room.state)) === 'world_readable')
    return { room, state: room.state, end: Number.POSITIVE_INFINITY, joined: false };
  if (member?.membership === 'leave' || member?.membership === 'ban') {
    const left = await rooms.parts.events.get(member.eventId);
    if (left?.pos !== undefined && left.stateBefore !== undefined) {
      const before = await rooms.parts.snapshots.load(left.stateBefore);
      const ref = before.get('m.room.member', userId);
      const previous = ref && (await rooms.parts.events.get(ref.eventId));
      if (previous?.content.membership === 'join') {
        const own = new Map([[`m.room.member\0${userId}`, { eventId: left.eventId, nid: left.nid }]]);
        return { room, state: before.overlaid(own), end: left.pos, joined: false };
      }
    }
  }
  throw forbidden('You are not in that room');
}
