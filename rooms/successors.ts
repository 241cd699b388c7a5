import { followMissed } from './missed-events.ts';
import type { EventChange, Rooms } from './rooms.ts';

/** Takes a user's settings along from a room to the one that replaces it: push rules, tags, `m.direct`. */
export type CarryOver = (userId: string, fromRoomId: string, toRoomId: string) => Promise<void>;

/**
 * Follows local users who join a room that names a predecessor which they are or were in: what they set up there is
 * to hold in the new room too (spec: "Room Upgrades").
 */
export function followUpgrades(
  rooms: Rooms,
  ours: (userId: string) => boolean,
  carryOver: CarryOver,
  failed: (error: unknown) => void,
): void {
  rooms.parts.stream.subscribe((_pos, change) => {
    for (const userId of joining(change))
      if (ours(userId)) follow(rooms, change.roomId, userId, carryOver).catch(failed);
  });
  followMissed(
    rooms,
    async ({ roomId, type, stateKey, content }) => {
      if (type === 'm.room.member' && content.membership === 'join' && ours(stateKey!))
        await follow(rooms, roomId, stateKey!, carryOver);
    },
    failed,
  );
}

/** The process that has stored the join takes the settings along: what is there is not done again. */
function joining({ outOfBand, memberships, isFromElsewhere }: EventChange): string[] {
  if (outOfBand || isFromElsewhere) return [];
  return memberships
    .filter(({ before, after }) => after === 'join' && before !== 'join')
    .map(({ userId }) => userId);
}

async function follow(rooms: Rooms, roomId: string, userId: string, carryOver: CarryOver): Promise<void> {
  const room = await rooms.get(roomId);
  const ref = room?.state.get('m.room.create', '');
  const create = ref && (await rooms.parts.events.get(ref.eventId));
  const predecessor = create?.content.predecessor;
  if (typeof predecessor !== 'object' || predecessor === null || Array.isArray(predecessor)) return;
  const { room_id: oldRoomId } = predecessor;
  if (typeof oldRoomId !== 'string' || oldRoomId === roomId) return;
  const old = await rooms.get(oldRoomId);
  if (old?.membership(userId) === undefined) return;
  await carryOver(userId, oldRoomId, roomId);
}
