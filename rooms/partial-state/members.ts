import type { JsonObject } from '@trellis/protocol/event.ts';
import { splitStateKey } from '@trellis/protocol/event.ts';
import { insertMembers, type MemberRow } from '@trellis/storage/partial-rooms.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';

/** Members read and stored at a time: others' work goes on between. */
const CHUNK = 2000;

/**
 * The members of a state, by user. Read past the cache of events, in which a large room's members would leave nothing
 * else. Those who nothing was known of are stored on the way, so that less is left for the moment in which the room's
 * state is replaced.
 */
export async function storeMembers(
  rooms: Rooms,
  room: Room,
  state: Snapshot,
  pos: number,
): Promise<Map<string, MemberRow>> {
  const members = new Map<string, MemberRow>();
  const nids: number[] = [];
  for (const [key, { nid }] of state.entries()) if (splitStateKey(key)[0] === 'm.room.member') nids.push(nid);
  let storing = Promise.resolve();
  for (let i = 0; i < nids.length; i += CHUNK) {
    const chunk = await readMembers(rooms, nids.slice(i, i + CHUNK));
    for (const member of chunk) members.set(member.userId, member);
    await storing;
    // While the next ones are read.
    storing = insertMembers(rooms.parts.db, room.nid, pos, chunk);
    storing.catch(() => {});
  }
  await storing;
  return members;
}

export async function readMembers(rooms: Rooms, nids: readonly number[]): Promise<MemberRow[]> {
  const rows = await rooms.parts.db.query<{ eventId: string; json: string }>(
    {
      name: 'members-of-state',
      text: 'SELECT event_id AS "eventId", json FROM unnest($1::bigint[]) AS w(nid) JOIN events USING (nid)',
    },
    [nids],
  );
  return rows.map(({ eventId, json }) => {
    const {
      state_key: userId,
      sender,
      content,
    } = JSON.parse(json) as Record<string, string> & {
      content: JsonObject;
    };
    const membership = typeof content.membership === 'string' ? content.membership : 'leave';
    return { userId: userId!, membership, eventId, sender: sender! };
  });
}
