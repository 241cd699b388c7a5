import { splitStateKey } from '@trellis/protocol/event.ts';
import type { MemberRow } from '@trellis/storage/partial-rooms.ts';
import { readMembers } from '../partial-state/members.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import { type StatesAt, settled } from '../state-at.ts';
import { type FreshGraph, freshGraph } from './fresh-graph.ts';

const MAX_LISTED = 100;
const CHUNK = 2000;

/** What is kept of a room beside what its graph says. */
export interface GraphReport {
  readonly room_id: string;
  readonly sound: boolean;
  readonly events_looked_at: number;
  /** Whether these are all events of the room; else what is before them was taken as it is stored. */
  readonly whole: boolean;
  readonly extremities: { readonly stored: readonly string[]; readonly fresh: readonly string[] };
  readonly state: {
    readonly differing: number;
    readonly entries: ReadonlyArray<{ type: string; state_key: string; stored?: string; fresh?: string }>;
  };
  readonly members: {
    readonly differing: number;
    readonly users: ReadonlyArray<{ user_id: string; stored?: string; fresh?: string }>;
  };
  /** Events that have another state stored before them. */
  readonly states_before: { readonly differing: number; readonly events: readonly string[] };
  /** Events before which no state could be found. */
  readonly unreadable: readonly string[];
}

export interface Findings {
  readonly report: GraphReport;
  readonly fresh: FreshGraph;
  /** By user, as the fresh state has them. */
  readonly members: ReadonlyMap<string, MemberRow>;
  /** Users with a row in the database that says something else, or without one. */
  readonly wrong: readonly string[];
  /** Users with a row who are not in the fresh state. */
  readonly gone: readonly string[];
}

/** Compares what is kept of a room with what its graph says. To be called under the room's lock. */
export async function examine(rooms: Rooms, states: StatesAt, room: Room): Promise<Findings> {
  await settled(rooms, room);
  const fresh = await freshGraph(rooms, states, room);
  const [members, rows] = await Promise.all([membersOf(rooms, fresh), storedMembers(rooms, room)]);
  const wrong = [...members.values()]
    .filter(({ userId, eventId, membership }) => {
      const row = rows.get(userId);
      return row?.eventId !== eventId || row.membership !== membership;
    })
    .map(({ userId }) => userId);
  const gone = [...rows.keys()].filter((userId) => !members.has(userId));
  const changes = [...fresh.state.changesSince(room.state)];
  const moved = [...fresh.events.values()].filter(({ differs }) => differs).map(({ event }) => event.eventId);
  const report: GraphReport = {
    room_id: room.roomId,
    sound:
      changes.length + wrong.length + gone.length + moved.length + fresh.unreadable.length === 0 &&
      sameSet(fresh.extremities, room.extremities),
    events_looked_at: fresh.events.size,
    whole: fresh.isWhole,
    extremities: { stored: room.extremities, fresh: fresh.extremities },
    state: {
      differing: changes.length,
      entries: changes.slice(0, MAX_LISTED).map(([key, ref]) => {
        const [type, state_key] = splitStateKey(key);
        const stored = room.state.getKey(key)?.eventId;
        return { type, state_key, ...(stored && { stored }), ...(ref && { fresh: ref.eventId }) };
      }),
    },
    members: {
      differing: wrong.length + gone.length,
      users: [...wrong, ...gone].slice(0, MAX_LISTED).map((user_id) => {
        const stored = rows.get(user_id)?.membership;
        const now = members.get(user_id)?.membership;
        return { user_id, ...(stored && { stored }), ...(now && { fresh: now }) };
      }),
    },
    states_before: { differing: moved.length, events: moved.slice(0, MAX_LISTED) },
    unreadable: fresh.unreadable.slice(0, MAX_LISTED),
  };
  return { report, fresh, members, wrong, gone };
}

async function membersOf(rooms: Rooms, { state }: FreshGraph): Promise<Map<string, MemberRow>> {
  const nids: number[] = [];
  for (const [key, { nid }] of state.entries()) if (splitStateKey(key)[0] === 'm.room.member') nids.push(nid);
  const members = new Map<string, MemberRow>();
  for (let i = 0; i < nids.length; i += CHUNK)
    for (const member of await readMembers(rooms, nids.slice(i, i + CHUNK)))
      members.set(member.userId, member);
  return members;
}

async function storedMembers(
  { parts }: Rooms,
  room: Room,
): Promise<Map<string, { membership: string; eventId: string }>> {
  const rows = await parts.db.query<{ userId: string; membership: string; eventId: string }>(
    `SELECT user_id AS "userId", membership, event_id AS "eventId" FROM room_members WHERE room = $1`,
    [room.nid],
  );
  return new Map(rows.map(({ userId, ...row }) => [userId, row]));
}

function sameSet(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && new Set([...a, ...b]).size === a.length;
}
