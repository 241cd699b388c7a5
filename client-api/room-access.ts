import { forbidden } from '@trellis/protocol/errors.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import { completeRoom } from '@trellis/rooms/partial-state/partial-rooms.ts';
import type { Room } from '@trellis/rooms/room.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { endOfLastStay, visibilityIn } from '@trellis/rooms/visibility.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';

/** What it takes to find out what a user may see of a room. */
export interface RoomAccess {
  readonly rooms: Rooms;
  readonly memberships: Memberships;
}

/** What a user may see of a room: as it is, or as it was when they left. */
export interface RoomView {
  readonly room: Room;
  readonly state: Snapshot;
  /** Where the view ends in the room's order; everything to `Infinity` for who is in it. */
  readonly end: number;
  readonly joined: boolean;
}

/**
 * @throws M_FORBIDDEN when the user is not and never was in the room, or has forgotten it, and it is not readable by
 *   all
 */
export async function viewRoom(
  { rooms, memberships }: RoomAccess,
  roomId: string,
  userId: string,
): Promise<RoomView> {
  const room = await rooms.get(roomId);
  if (!room || room.extremities.length === 0) throw forbidden('You are not in that room');
  const whole = { room, state: room.state, end: Number.POSITIVE_INFINITY };
  if (room.isJoined(userId)) return { ...whole, joined: true };
  if ((await visibilityIn(rooms, room.state)) === 'world_readable') return { ...whole, joined: false };
  const left = await endOfLastStay(rooms, room, userId);
  const forgotten = (await memberships.of(userId)).get(roomId)?.forgotten === true;
  if (left?.pos === undefined || left.stateBefore === undefined || forgotten)
    throw forbidden('You are not in that room');
  const before = await rooms.parts.snapshots.load(left.stateBefore);
  const own = new Map([[`m.room.member\0${userId}`, { eventId: left.eventId, nid: left.nid }]]);
  return { room, state: before.overlaid(own), end: left.pos, joined: false };
}

/** The same, once all members are known: while they are being fetched after a join, this waits. */
export async function viewCompleteRoom(
  access: RoomAccess,
  roomId: string,
  userId: string,
): Promise<RoomView> {
  const view = await viewRoom(access, roomId, userId);
  if (!view.room.partial) return view;
  await completeRoom(access.rooms, roomId);
  return viewRoom(access, roomId, userId);
}
