import type { JsonObject } from '@trellis/protocol/event.ts';
import { splitStateKey } from '@trellis/protocol/event.ts';
import { insertMembers, type MemberRow } from '@trellis/storage/partial-rooms.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';

/** Members read and stored at a time: others' work goes on between. */
const CHUNK = 1000;
/** Chunks being stored while the next one is read. */
const AHEAD = 2;

/**
 * The members of a state, by user. Read past the cache of events, in which a large room's members would leave nothing
 * else. Those who nothing was known of are stored on the way, so that less is left for the moment in which the room's
 * state is replaced.
 *
 * @param come by event id: members who need not be read
 */
export async function storeMembers(
  rooms: Rooms,
  room: Room,
  { state, pos, come }: { state: Snapshot; pos: number; come: ReadonlyMap<string, MemberRow> },
): Promise<Map<string, MemberRow>> {
  const members = new Map<string, MemberRow>();
  const storing: Array<Promise<void>> = [];
  for (const refs of chunksOf(state)) {
    const known = refs.flatMap(({ eventId }) => come.get(eventId) ?? []);
    const unread = refs.filter(({ eventId }) => !come.has(eventId)).map(({ nid }) => nid);
    const chunk = unread.length === 0 ? known : [...known, ...(await readMembers(rooms, unread))];
    for (const member of chunk) members.set(member.userId, member);
    // While the next ones are read.
    const stored = insertMembers(rooms.parts.db, room.nid, pos, chunk);
    stored.catch(() => {});
    if (storing.push(stored) > AHEAD) await storing.shift();
  }
  await Promise.all(storing);
  return members;
}

function* chunksOf(state: Snapshot): Generator<EventRef[]> {
  let chunk: EventRef[] = [];
  for (const [key, ref] of state.entries()) {
    if (splitStateKey(key)[0] !== 'm.room.member') continue;
    if (chunk.push(ref) < CHUNK) continue;
    yield chunk;
    chunk = [];
  }
  if (chunk.length > 0) yield chunk;
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
