import type { JsonObject } from '@trellis/protocol/event.ts';
import { splitStateKey } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { insertMembers, type MemberRow } from '@trellis/storage/partial-rooms.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { memberFromEvent, type Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';

/** By event id: members who were stored a moment ago, and need not be read again. */
export type Come = Map<string, MemberRow>;

/** Notes a member of a state that may become the room's. */
export function noteMember(members: Come, event: StoredEvent): void {
  const { eventId, type, stateKey: userId, rejected } = event;
  if (userId === undefined || rejected || type !== 'm.room.member') return;
  const { membership, sender } = memberFromEvent(event, 0);
  members.set(eventId, { userId, membership, eventId, sender });
}

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
  const store = async (chunk: readonly MemberRow[]) => {
    for (const member of chunk) members.set(member.userId, member);
    const stored = insertMembers(rooms.parts.db, room.nid, pos, chunk);
    stored.catch(() => {});
    if (storing.push(stored) > AHEAD) await storing.shift();
  };
  let before: Promise<MemberRow[]> | undefined;
  for (const refs of chunksOf(state)) {
    const reading = membersOf(rooms, refs, come);
    // Whoever waits for it next hears of it.
    reading.catch(() => {});
    // While the next ones are read.
    if (before) await store(await before);
    before = reading;
  }
  if (before) await store(await before);
  await Promise.all(storing);
  return members;
}

async function membersOf(
  rooms: Rooms,
  refs: readonly EventRef[],
  come: ReadonlyMap<string, MemberRow>,
): Promise<MemberRow[]> {
  const known = refs.flatMap(({ eventId }) => come.get(eventId) ?? []);
  const unread = refs.filter(({ eventId }) => !come.has(eventId)).map(({ nid }) => nid);
  return unread.length === 0 ? known : [...known, ...(await readMembers(rooms, unread))];
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
    } = decodeJson(json) as Record<string, string> & {
      content: JsonObject;
    };
    const membership = typeof content.membership === 'string' ? content.membership : 'leave';
    return { userId: userId!, membership, eventId, sender: sender! };
  });
}
