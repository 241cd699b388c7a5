import type { Queryable } from '@trellis/storage/database.ts';
import type { EventWrite } from '@trellis/storage/event-writer.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import { StoredEvent } from '@trellis/storage/stored-event.ts';
import { relationOf } from './append.ts';
import { arrivalOf, asArrived, settlement } from './arrival.ts';
import { placedEvents } from './place.ts';
import { applyRedaction } from './redactions.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** An outlier that is about to get its place in the past. */
export interface Backfilled {
  readonly event: StoredEvent;
  readonly stateBefore: Snapshot;
  readonly stateAfter: Snapshot;
  readonly rejected: boolean;
}

/** What is missing before a position in a room's order. */
export interface Gap {
  readonly pos: number;
  /** Events that are not here, and who names them as predecessors. */
  readonly missing: ReadonlyMap<string, readonly string[]>;
}

/**
 * Puts events, oldest first, into the positions right before a gap, and moves the gap before the oldest of them.
 * Where all that was missing has its place by now, the gap is closed.
 *
 * @returns whether the gap is another now
 */
export async function placeBackfilled(
  rooms: Rooms,
  room: Room,
  gap: Gap,
  backfilled: readonly Backfilled[],
): Promise<boolean> {
  const outcome = await rooms.exclusive(room.roomId, (current) => hand(rooms, current, gap, backfilled));
  await outcome.committed;
  return outcome.moved;
}

/** Under the room's lock: decides, and hands everything to the writer. */
async function hand(
  rooms: Rooms,
  room: Room,
  gap: Gap,
  backfilled: readonly Backfilled[],
): Promise<{ moved: boolean; committed: Promise<void> }> {
  const { db, events, writer } = rooms.parts;
  const ids = backfilled.map(({ event }) => event.eventId);
  const placed = await placedEvents(rooms, room, [...ids, ...gap.missing.keys()]);
  const fresh = backfilled.filter(({ event }) => !placed.has(event.eventId));
  const moved = fresh.length > 0 || [...gap.missing.keys()].some((id) => placed.has(id));
  if (!moved) return { moved, committed: Promise.resolve() };
  const oldest = gap.pos - fresh.length;
  const missing = await stillMissing(rooms, room, gap, fresh, placed);
  const move = (tx: Queryable) => moveGap(tx, room, gap.pos, oldest, missing);
  if (fresh.length === 0) return { moved, committed: db.transaction(move) };

  const plans: Planned[] = [];
  for (const [i, each] of fresh.entries()) plans.push(await plan(rooms, room, each, oldest + i));
  for (const { write } of plans) events.remember(write.event);
  const redactions = plans.flatMap(({ write, stateBefore }) =>
    write.event.rejected ? [] : (applyRedaction(rooms, room, write.event, stateBefore) ?? []),
  );
  const also = async (tx: Queryable) => {
    for (const { settle } of plans) await settle?.(tx);
    for (const redaction of redactions) await redaction.store(tx);
    await move(tx);
  };
  room.uncommitted++;
  const committed = writer
    .write(plans.map(({ write }, i) => (i === plans.length - 1 ? { ...write, also } : write)))
    .then(
      async () => {
        const emptied = redactions.flatMap((redaction) => redaction.applied() ?? []);
        room.timeline.backfilled();
        const eventIds = [...plans.map(({ write }) => write.event.eventId), ...emptied];
        await rooms.changed(room.roomId, { eventIds });
      },
      (error: unknown) => {
        for (const { write } of plans) events.forget(write.event.eventId);
        rooms.drop(room);
        throw error;
      },
    )
    .finally(() => {
      room.uncommitted--;
    });
  committed.catch(() => {});
  return { moved, committed };
}

interface Planned {
  readonly write: EventWrite;
  readonly stateBefore: Snapshot;
  readonly settle: ((tx: Queryable) => Promise<void>) | undefined;
}

async function plan(
  rooms: Rooms,
  room: Room,
  { event, stateBefore, rejected }: Backfilled,
  pos: number,
): Promise<Planned> {
  const arrival = await arrivalOf(rooms, room, event);
  const known = event.redactedBy ? { ...arrival, redactedBy: event.redactedBy } : arrival;
  const arrived = asArrived(event, known);
  const before = event.stateKey === undefined ? undefined : stateBefore.get(event.type, event.stateKey);
  const replaced = before && (await rooms.parts.events.get(before.eventId));
  const place = new StoredEvent(
    arrived,
    {
      nid: event.nid,
      pos,
      status: rejected ? 'rejected' : 'accepted',
      stateBefore: stateBefore.id,
      backfilled: true,
    },
    {
      replaces: replaced && {
        eventId: replaced.eventId,
        sender: replaced.sender,
        content: replaced.content,
      },
      redactedBy: known.redactedBy,
    },
  );
  return {
    write: {
      roomNid: room.nid,
      event: place,
      snapshots: [stateBefore],
      memberships: [],
      relation: rejected ? undefined : relationOf(place),
    },
    stateBefore,
    settle: settlement(room, arrived, known),
  };
}

interface MissingLink {
  readonly eventId: string;
  readonly successor: string;
}

/** What is missing before the oldest of the events: what they name that is not here, and what the server left out. */
async function stillMissing(
  rooms: Rooms,
  room: Room,
  gap: Gap,
  fresh: readonly Backfilled[],
  placed: ReadonlyMap<string, StoredEvent>,
): Promise<MissingLink[]> {
  const links: MissingLink[] = [];
  for (const [eventId, successors] of gap.missing)
    for (const successor of successors) links.push({ eventId, successor });
  for (const { event } of fresh)
    for (const eventId of event.prevEvents) links.push({ eventId, successor: event.eventId });
  const here = new Set(placed.keys());
  for (const { event } of fresh) here.add(event.eventId);
  const before = await placedEvents(
    rooms,
    room,
    links.map(({ eventId }) => eventId).filter((id) => !here.has(id)),
  );
  return links.filter(({ eventId }) => !here.has(eventId) && !before.has(eventId));
}

async function moveGap(
  tx: Queryable,
  room: Room,
  from: number,
  to: number,
  missing: readonly MissingLink[],
): Promise<void> {
  await tx.query('DELETE FROM backward_extremities WHERE room = $1 AND pos = $2', [room.nid, from]);
  if (missing.length === 0) return;
  await tx.query(
    `INSERT INTO backward_extremities (room, event_id, successor, pos)
     SELECT $1, event_id, successor, $4 FROM unnest($2::text[], $3::text[]) AS u(event_id, successor)
     ON CONFLICT (room, event_id, successor) DO UPDATE SET pos = EXCLUDED.pos`,
    [room.nid, missing.map(({ eventId }) => eventId), missing.map(({ successor }) => successor), to],
  );
}
