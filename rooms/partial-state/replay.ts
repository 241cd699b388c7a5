import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { authorise } from '@trellis/protocol/auth-rules/index.ts';
import { stateKeyOf } from '@trellis/protocol/event.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { EventStatus, StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadState } from '../auth-state.ts';
import { ancestors } from '../gaps.ts';
import { dependencies, type Judged, rejectionByAuthEvents } from '../outliers.ts';
import { placedEvents } from '../place.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import type { StatesAt } from '../state-at.ts';

/** An event and what became of it. */
export interface Replayed {
  readonly event: StoredEvent;
  readonly status: EventStatus;
  readonly stateBefore: Snapshot;
  /** What the room's state was thought to be when the event came, with what was not known then added. */
  readonly roomStateBefore: Snapshot;
  readonly stateAfter: Snapshot;
}

export interface Replay {
  readonly events: ReadonlyMap<string, Replayed>;
  readonly extremities: readonly string[];
  readonly state: Snapshot;
}

/** Events read at a time. */
const CHUNK = 500;

/**
 * Works out anew what has happened in a room since a join that left the members out, now that the state before it is
 * known: for each event the state before it and whether that allows it, and the room's state that comes of it. To be
 * called under the room's lock.
 *
 * @param before the full state before each join that left members out
 */
export async function replay(
  rooms: Rooms,
  states: StatesAt,
  room: Room,
  before: ReadonlyMap<string, Snapshot>,
): Promise<Replay> {
  const replayed = new Map<string, Replayed>();
  const thought = new Map<string, Snapshot>();
  for (const event of await eventsSince(rooms, room, [...before.keys()][0]!)) {
    const stateBefore =
      before.get(event.eventId) ?? (await stateFromPredecessors(rooms, states, room, event, replayed));
    const status = await judge(rooms, room, event, stateBefore, replayed);
    const stateAfter = status === 'rejected' ? stateBefore : states.with(room, stateBefore, event, event.nid);
    const roomStateBefore = await thoughtBefore(rooms, room, event, stateBefore, thought);
    replayed.set(event.eventId, { event, status, stateBefore, roomStateBefore, stateAfter });
  }
  const extremities = endsOf(replayed);
  const state = await states.resolve(
    room,
    extremities.map((id) => replayed.get(id)!.stateAfter),
  );
  return { events: replayed, extremities, state };
}

/** All that came since the join, it included, each event after its predecessors. */
async function eventsSince(rooms: Rooms, room: Room, joinId: string): Promise<StoredEvent[]> {
  const { db, events } = rooms.parts;
  const rows = await db.query<{ nid: number }>(
    {
      name: 'events-since-join',
      text: `SELECT nid FROM events WHERE room = $1 AND pos >= (SELECT pos FROM events WHERE event_id = $2)
             ORDER BY pos`,
    },
    [room.nid, joinId],
  );
  const found = new Map<string, StoredEvent>();
  for (let i = 0; i < rows.length; i += CHUNK) {
    const chunk = await events.byNids(rows.slice(i, i + CHUNK).map(({ nid }) => nid));
    for (const event of chunk.sort((a, b) => a.pos! - b.pos!)) found.set(event.eventId, event);
  }
  return ancestors({ prevEvents: [...found.keys()] }, found) as StoredEvent[];
}

/**
 * The state by which clients were told of the room, for those who hold on to it: where it was wrong it stays so, and
 * the next sync puts it right; what it lacked, clients had not been told.
 */
async function thoughtBefore(
  rooms: Rooms,
  room: Room,
  event: StoredEvent,
  stateBefore: Snapshot,
  done: Map<string, Snapshot>,
): Promise<Snapshot> {
  const { snapshots } = rooms.parts;
  const pair = `${event.roomStateBefore} ${stateBefore.id}`;
  let thought = done.get(pair);
  if (!thought) {
    const wrong = new Map<string, EventRef>();
    for (const [key, ref] of (await snapshots.load(event.roomStateBefore ?? 0)).entries())
      if (stateBefore.getKey(key)?.eventId !== ref.eventId) wrong.set(key, ref);
    thought = wrong.size === 0 ? stateBefore : snapshots.derive(room.nid, stateBefore, wrong);
    done.set(pair, thought);
  }
  return thought;
}

/** Where predecessors are not here, what another server told of the state there has its say. */
async function stateFromPredecessors(
  rooms: Rooms,
  states: StatesAt,
  room: Room,
  event: StoredEvent,
  replayed: ReadonlyMap<string, Replayed>,
): Promise<Snapshot> {
  const ids = [...new Set(event.prevEvents)];
  const older = await placedEvents(
    rooms,
    room,
    ids.filter((id) => !replayed.has(id)),
  );
  const after: Snapshot[] = [];
  for (const id of ids) {
    const known = replayed.get(id)?.stateAfter;
    const event = older.get(id);
    if (known) after.push(known);
    else if (event) after.push(await states.after(room, event));
  }
  if (after.length < ids.length) after.unshift(await states.before(event));
  return states.resolve(room, after);
}

async function judge(
  rooms: Rooms,
  room: Room,
  event: StoredEvent,
  stateBefore: Snapshot,
  replayed: ReadonlyMap<string, Replayed>,
): Promise<EventStatus> {
  const { events } = rooms.parts;
  const auth = new Map<string, Judged>();
  for (const [id, known] of await events.getMany(dependencies(event, room.version))) {
    const status = replayed.get(id)?.status ?? known.status;
    auth.set(id, status === known.status ? known : withStatus(known, status));
  }
  if (rejectionByAuthEvents(event, auth, room.version) !== undefined) return 'rejected';
  const keys = [...authEventKeys(event, room.version), stateKeyOf('m.room.create', '')];
  const authState = await loadState(rooms, stateBefore, keys);
  if (authorise(event, authState, room.version) !== undefined) return 'rejected';
  return event.status === 'soft-failed' ? 'soft-failed' : 'accepted';
}

function withStatus(event: StoredEvent, status: EventStatus): Judged {
  const { pdu, content, redacts } = event;
  return { ...event, pdu, content, redacts, rejected: status === 'rejected' };
}

/** Accepted events that no accepted one builds on, not even by way of those that were refused. */
function endsOf(replayed: ReadonlyMap<string, Replayed>): string[] {
  const covered = new Set<string>();
  for (const { event, status } of [...replayed.values()].reverse())
    if (status === 'accepted' || covered.has(event.eventId))
      for (const id of event.prevEvents) covered.add(id);
  return [...replayed.values()]
    .filter(({ event, status }) => status === 'accepted' && !covered.has(event.eventId) && !event.backfilled)
    .map(({ event }) => event.eventId);
}
