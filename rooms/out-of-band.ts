import type { RoomEvent } from '@trellis/protocol/event.ts';
import { StoredEvent } from '@trellis/storage/stored-event.ts';
import { conclude } from './append.ts';
import { memberFromEvent } from './room.ts';
import type { RoomMove, Rooms } from './rooms.ts';
import { roomOfVersion } from './unjoined-room.ts';

/**
 * Stores the membership of a local user in a room that this server is not in: an invite from elsewhere, a knock, the
 * leave that ends either. The event is an outlier; only the user hears of it.
 *
 * @param strippedState JSON text of the array that came along, if any
 * @returns `undefined`, with nothing stored, when this server is in the room by now: there the event has to take its
 *   place like any other
 */
export async function storeOutOfBand(
  rooms: Rooms,
  event: RoomEvent,
  strippedState: string | null,
): Promise<StoredEvent | undefined> {
  const userId = event.stateKey!;
  await roomOfVersion(rooms, event.roomId, event.version);
  const outcome = await rooms.exclusive(event.roomId, async (room) => {
    if (room.isResident) return undefined;
    const { ids, events, writer } = rooms.parts;
    const known = await events.get(event.eventId);
    const pos = await rooms.nextPosition(room.roomId);
    const stored =
      known ??
      new StoredEvent(event, { nid: ids.next(), pos: undefined, status: 'accepted', stateBefore: undefined });
    const member = memberFromEvent(stored, pos);
    const before = room.membership(userId);
    room.setMember(userId, member);
    room.upTo = pos;
    const move: RoomMove = {
      stateBefore: room.state.id,
      stateAfter: room.state.id,
      changes: new Map(),
      extremities: room.extremities,
      depth: room.depth,
      members: [[userId, member]],
      isJump: false,
      isCut: false,
    };
    room.uncommitted++;
    const committed = writer
      .write([
        {
          roomNid: room.nid,
          event: stored,
          snapshots: [],
          memberships: [{ userId, ...member, strippedState }],
        },
      ])
      .then(
        async () => {
          events.remember(stored);
          await conclude(rooms, pos, [
            {
              roomId: room.roomId,
              event: stored,
              outOfBand: true,
              memberships: [{ userId, before, after: member.membership }],
              move,
            },
          ]);
        },
        async (error: unknown) => {
          rooms.drop(room);
          await conclude(rooms, pos, []);
          throw error;
        },
      )
      .finally(() => {
        room.uncommitted--;
      });
    committed.catch(() => {});
    return { stored, committed };
  });
  await outcome?.committed;
  return outcome?.stored;
}
