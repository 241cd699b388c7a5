import type { Queryable } from '@trellis/storage/database.ts';
import { STATUS_CODES } from '@trellis/storage/events.ts';
import { replaceStates } from '@trellis/storage/partial-rooms.ts';
import { conclude, membershipRow } from '../append.ts';
import type { Member, Room } from '../room.ts';
import type { EventChange, Rooms } from '../rooms.ts';
import type { Findings } from './check.ts';

/**
 * Puts what the graph says of a room in the place of what is kept of it: ends, state, members, and the states before
 * events. To be called under the room's lock. Clients and other processes hear of it as of a state that came late.
 */
export async function rebuild(rooms: Rooms, room: Room, findings: Findings): Promise<void> {
  const { events, writer, snapshots } = rooms.parts;
  const { fresh, wrong, gone } = findings;
  const newest = [...fresh.events.values()].at(-1)?.event;
  if (!newest || fresh.extremities.length === 0) throw new Error(`nothing is known of ${room.roomId}`);
  const moved = [...fresh.events.values()].filter(({ differs }) => differs);
  // What is large goes first, and holds nobody up.
  await snapshots.store(fresh.state);
  for (const { stateBefore } of moved) await snapshots.store(stateBefore);
  const pos = await rooms.nextPosition(room.roomId);
  try {
    const members = membersNow(room, findings, pos);
    await writer.write([
      {
        roomNid: room.nid,
        event: newest,
        snapshots: [fresh.state],
        room: { extremities: fresh.extremities, state: fresh.state.id, depth: fresh.depth },
        memberships: wrong.map((userId) => membershipRow(userId, members.get(userId)!)),
        also: async (tx) => {
          await replaceStates(
            tx,
            moved.map(({ event, stateBefore }) => ({
              nid: event.nid,
              status: STATUS_CODES[event.status],
              stateBefore: stateBefore.id,
              roomStateBefore: stateBefore.id,
            })),
          );
          await storeRest(tx, room, gone, pos);
        },
      },
    ]);
    for (const { event } of moved) events.forget(event.eventId);
    const change = applyToLive(room, findings, members, { event: newest, pos });
    await rooms.changed(room.roomId, { eventIds: moved.map(({ event }) => event.eventId) });
    await conclude(rooms, pos, [change]);
  } catch (error) {
    rooms.drop(room);
    await conclude(rooms, pos, []);
    throw error;
  }
}

/** Members as the fresh state has them; where the membership is what it was, it is so since then. */
function membersNow(room: Room, { members }: Findings, pos: number): Map<string, Member> {
  const now = new Map<string, Member>();
  for (const [userId, { membership, eventId, sender }] of members) {
    const known = room.member(userId);
    const since = known?.membership === membership ? known.pos : pos;
    now.set(userId, { membership, eventId, sender, pos: since });
  }
  return now;
}

async function storeRest(tx: Queryable, { nid }: Room, gone: readonly string[], pos: number): Promise<void> {
  if (gone.length > 0)
    await tx.query('DELETE FROM room_members WHERE room = $1 AND user_id = ANY($2)', [nid, gone]);
  // So that clients are told the state anew.
  await tx.query('UPDATE rooms SET complete_since = $2 WHERE nid = $1', [nid, pos]);
}

function applyToLive(
  room: Room,
  { fresh }: Findings,
  members: ReadonlyMap<string, Member>,
  { event, pos }: { event: EventChange['event']; pos: number },
): EventChange {
  const serversBefore = room.otherServers;
  const memberships: Array<EventChange['memberships'][number]> = [];
  const set = (userId: string, member: Member | undefined) => {
    const before = room.membership(userId);
    room.setMember(userId, member);
    if (before !== member?.membership) memberships.push({ userId, before, after: member?.membership });
  };
  for (const userId of [...room.members()].map(([id]) => id))
    if (!members.has(userId)) set(userId, undefined);
  for (const [userId, member] of members) set(userId, member);
  room.state = fresh.state;
  room.extremities = fresh.extremities;
  room.depth = fresh.depth;
  room.completeSince = pos;
  room.lastStateJump = pos;
  room.lastMembershipChange = Math.max(room.lastMembershipChange, pos);
  return {
    roomId: room.roomId,
    event,
    outOfBand: false,
    passedOnByOthers: true,
    servers: { before: serversBefore, after: room.otherServers },
    memberships,
    resynced: { missed: [], deviceListsPos: 0 },
  };
}
