import type { JsonObject } from '@trellis/protocol/event.ts';
import { restrictedJoin } from './restricted-join.ts';
import type { Rooms } from './rooms.ts';
import { appendDraft } from './send.ts';

/**
 * Joins a local user to a room without another server's help. Throws M_FORBIDDEN when the rules refuse.
 *
 * @returns false when it takes another server: this one is not in the room, or has nobody there who could authorise a
 *   restricted join while others may
 */
export async function joinFromHere(
  rooms: Rooms,
  roomId: string,
  userId: string,
  content: JsonObject,
): Promise<boolean> {
  const room = await rooms.get(roomId);
  if (!room?.isResident) return false;
  // Whether the user may join is not known here before all members are.
  if (room.partial && room.membership(userId) !== 'join') return false;
  const verdict = await restrictedJoin(rooms, room, userId);
  if (verdict.kind === 'ask-others' && room.servers.size > 1) return false;
  const authorised =
    verdict.kind === 'authorised' ? { ...content, join_authorised_via_users_server: verdict.by } : content;
  const { committed } = await rooms.exclusive(roomId, (current) =>
    appendDraft(rooms, current, {
      type: 'm.room.member',
      sender: userId,
      stateKey: userId,
      content: authorised,
    }),
  );
  await committed;
  return true;
}
