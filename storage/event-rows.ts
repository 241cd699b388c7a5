import { textArray } from './binary-arrays.ts';
import type { Queryable } from './database.ts';
import type { EventWrite } from './event-writer.ts';
import { STATUS_CODES } from './events.ts';
import { type Fence, fenced } from './fence.ts';
import { column } from './text-column.ts';

export interface InsertOptions {
  readonly fence?: Fence | undefined;
  /** Kept in the same transaction, so that one can see whether it was committed. */
  readonly mark?: { readonly id: string; readonly batch: number };
}

/** Stores events, their relations and their rooms' rows in one statement. */
export async function insertEvents(
  target: Queryable,
  writes: readonly EventWrite[],
  { fence, mark }: InsertOptions = {},
): Promise<void> {
  const events = writes.map((write) => write.event);
  // Only a room's last write of the batch decides its row.
  const rooms = new Map<number, NonNullable<EventWrite['room']>>();
  for (const write of writes) if (write.room) rooms.set(write.roomNid, write.room);
  const related = writes.filter((write) => write.relation !== undefined);
  const params: unknown[] = [
    events.map((event) => event.nid),
    textArray(events.map((event) => event.eventId)),
    writes.map((write) => write.roomNid),
    events.map((event) => event.pos ?? null),
    events.map((event) => event.backfilled),
    events.map((event) => STATUS_CODES[event.status]),
    events.map((event) => event.stateBefore ?? null),
    events.map((event) => (event.roomStateBefore === event.stateBefore ? null : event.roomStateBefore)),
    events.map((event) => event.depth),
    events.map((event) => event.originServerTs),
    textArray(events.map((event) => event.sender)),
    textArray(events.map((event) => column(event.type))),
    textArray(events.map((event) => (event.stateKey === undefined ? null : column(event.stateKey)))),
    events.map((event) => event.replaces?.eventId ?? null),
    events.map((event) => event.transaction?.deviceId ?? null),
    events.map((event) => event.transaction?.txnId ?? null),
    textArray(events.map((event) => event.json)),
    [...rooms.keys()],
    [...rooms.values()].map((room) => arrayLiteral(room.extremities)),
    [...rooms.values()].map((room) => room.state),
    [...rooms.values()].map((room) => room.depth),
    related.map((write) => write.roomNid),
    related.map((write) => column(write.relation!.target)),
    related.map((write) => write.event.eventId),
    related.map((write) => write.event.pos ?? 0),
    related.map((write) => column(write.relation!.relType)),
    related.map((write) => column(write.event.type)),
    related.map((write) => write.event.sender),
    related.map((write) =>
      write.relation!.aggregationKey === null ? null : column(write.relation!.aggregationKey),
    ),
  ];
  if (mark) params.push(mark.id, mark.batch);
  if (fence) params.push(fence.memberId, fence.term());
  await fenced(target.query(statement(mark !== undefined, fence !== undefined), params));
}

/** Whether all of the events are stored as `insertEvents` would have it. */
export async function areStored(db: Queryable, writes: readonly EventWrite[]): Promise<boolean> {
  const [row] = await db.query<{ stored: number }>(
    `SELECT count(*) AS stored FROM unnest($1::text[], $2::bigint[]) AS u(event_id, pos)
     JOIN events e ON e.event_id = u.event_id AND e.pos IS NOT DISTINCT FROM u.pos`,
    [writes.map(({ event }) => event.eventId), writes.map(({ event }) => event.pos ?? null)],
  );
  return row!.stored === writes.length;
}

const statements = new Map<string, { name: string; text: string }>();

function statement(isMarked: boolean, isFenced: boolean): { name: string; text: string } {
  const name = `events-insert${isMarked ? '-marked' : ''}${isFenced ? '-fenced' : ''}`;
  let known = statements.get(name);
  if (!known) {
    const next = isMarked ? 32 : 30;
    known = {
      name,
      text: insertStatement(
        isMarked ? MARK : '',
        // Asked for once, before the first row, in the same round trip.
        isFenced ? `WHERE (SELECT require_member($${next}, $${next + 1}))` : '',
      ),
    };
    statements.set(name, known);
  }
  return known;
}

const MARK = `, mark AS (
    INSERT INTO event_writers (id, batch) VALUES ($30, $31)
    ON CONFLICT (id) DO UPDATE SET batch = EXCLUDED.batch, at = now()
  )`;

// An event that is known as an outlier gets its place and keeps its nid, which state refers to.
const insertStatement = (more: string, condition: string) => `
  WITH room AS (
    UPDATE rooms SET extremities = u.extremities::text[], state = u.state, depth = u.depth
    FROM unnest($18::bigint[], $19::text[], $20::bigint[], $21::bigint[]) AS u(nid, extremities, state, depth)
    WHERE rooms.nid = u.nid
  ), relation AS (
    INSERT INTO relations (room, target, event_id, pos, rel_type, type, sender, aggregation_key)
    SELECT * FROM unnest($22::bigint[], $23::text[], $24::text[], $25::bigint[], $26::text[], $27::text[], $28::text[], $29::text[])
    ON CONFLICT DO NOTHING
  )${more}
  INSERT INTO events (nid, event_id, room, pos, backfilled, status, state_before, room_state_before, depth, origin_server_ts,
                      sender, type, state_key, replaces, txn_device, txn_id, json)
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::boolean[], $6::smallint[], $7::bigint[],
                       $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[],
                       $16::text[], $17::text[]) ${condition}
  ON CONFLICT (event_id) DO UPDATE SET pos = EXCLUDED.pos, backfilled = EXCLUDED.backfilled, status = EXCLUDED.status,
    state_before = EXCLUDED.state_before, room_state_before = EXCLUDED.room_state_before, replaces = EXCLUDED.replaces
  WHERE events.pos IS NULL AND EXCLUDED.pos IS NOT NULL`;

/** A text[] literal: arrays of arrays of different lengths can't be passed otherwise. */
function arrayLiteral(items: readonly string[]): string {
  return `{${items.map((item) => `"${item.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`).join(',')}}`;
}
