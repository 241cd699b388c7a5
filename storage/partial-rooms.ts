import { textArray } from './binary-arrays.ts';
import type { Queryable } from './database.ts';
import { column } from './event-writer.ts';

/** What is kept of a room whose members are still being fetched. */
export interface PartialRoomRow {
  readonly joins: readonly string[];
  readonly server: string;
  readonly servers: readonly string[];
  readonly deviceListsPos: number;
}

/** `undefined`: the room's state is complete. */
export async function storePartialRoom(
  tx: Queryable,
  roomNid: number,
  row: PartialRoomRow | undefined,
): Promise<void> {
  if (!row) {
    await tx.query('DELETE FROM partial_rooms WHERE room = $1', [roomNid]);
    return;
  }
  await tx.query(
    {
      name: 'partial-room-upsert',
      text: `INSERT INTO partial_rooms (room, joins, server, servers, device_lists_pos) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (room) DO UPDATE SET joins = EXCLUDED.joins, server = EXCLUDED.server,
               servers = EXCLUDED.servers`,
    },
    [roomNid, row.joins, row.server, row.servers, row.deviceListsPos],
  );
}

/** The rooms whose members are still being fetched, with the servers said to be in them. */
export function partialRooms(db: Queryable): Promise<Array<{ roomId: string; servers: string[] }>> {
  return db.query(
    'SELECT r.room_id AS "roomId", p.servers FROM partial_rooms p JOIN rooms r ON r.nid = p.room',
  );
}

export interface MemberRow {
  readonly userId: string;
  readonly membership: string;
  readonly eventId: string;
  readonly sender: string;
}

/** Members who nothing is known of so far; those who are known stay as they are. */
export async function insertMembers(
  db: Queryable,
  roomNid: number,
  pos: number,
  members: readonly MemberRow[],
): Promise<void> {
  await db.query(
    {
      name: 'members-insert',
      text: `INSERT INTO room_members (user_id, room, membership, event_id, sender, pos)
             SELECT user_id, $5, membership, event_id, sender, $6
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS u(user_id, membership, event_id, sender)
             ON CONFLICT DO NOTHING`,
    },
    [
      textArray(members.map(({ userId }) => userId)),
      textArray(members.map(({ membership }) => column(membership))),
      textArray(members.map(({ eventId }) => eventId)),
      textArray(members.map(({ sender }) => sender)),
      roomNid,
      pos,
    ],
  );
}

/** An event's place by a state that was not known when it came. */
export interface Replaced {
  readonly nid: number;
  readonly stateBefore: number;
  /** What the room's state was thought to be when it came. */
  readonly roomStateBefore: number;
  /** As in the column. */
  readonly status: number;
}

/** Moves events to the states that were before them. */
export async function replaceStates(tx: Queryable, events: readonly Replaced[]): Promise<void> {
  await tx.query(
    {
      name: 'events-replace-states',
      text: `UPDATE events e SET state_before = u.state, status = u.status,
               room_state_before = nullif(u.room_state, u.state)
             FROM unnest($1::bigint[], $2::bigint[], $3::smallint[], $4::bigint[]) AS u(nid, state, status, room_state)
             WHERE e.nid = u.nid`,
    },
    [
      events.map(({ nid }) => nid),
      events.map(({ stateBefore }) => stateBefore),
      events.map(({ status }) => status),
      events.map(({ roomStateBefore }) => roomStateBefore),
    ],
  );
}
