import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { ancestors } from '../gaps.ts';
import { placedEvents } from '../place.ts';
import type { Room } from '../room.ts';
import type { Rooms } from '../rooms.ts';
import type { StatesAt } from '../state-at.ts';

/** Events looked at, from the newest back: what is before them is taken as it is stored. */
export const MAX_LOOKED_AT = 10_000;
/** Events read at a time. */
const CHUNK = 500;

export interface FreshEvent {
  readonly event: StoredEvent;
  readonly stateBefore: Snapshot;
  /** The state stored with the event is another, or can't be read. */
  readonly differs: boolean;
}

/** A room as its graph says. */
export interface FreshGraph {
  readonly events: ReadonlyMap<string, FreshEvent>;
  /** Whether all events of the room were looked at. */
  readonly isWhole: boolean;
  readonly extremities: readonly string[];
  readonly depth: number;
  readonly state: Snapshot;
  /** Events before which no state could be found. */
  readonly unreadable: readonly string[];
}

/**
 * Works out from the events of a room, and what they build on, what its ends are and its state there, without a look at
 * what is kept of that. Whether events were accepted is not questioned.
 */
export async function freshGraph(
  rooms: Rooms,
  states: StatesAt,
  room: Room,
  limit = MAX_LOOKED_AT,
): Promise<FreshGraph> {
  const { newest, stored } = await newestEvents(rooms, room, limit);
  const walk = new Walk(rooms, states, room, stored);
  for (const event of ancestors({ prevEvents: [...newest.keys()] }, newest) as StoredEvent[])
    await walk.take(event);
  const older = newest.size < limit ? [] : await endsBefore(rooms, room, walk.events);
  return walk.end(older, newest.size < limit);
}

interface Newest {
  /** By id, the oldest first. */
  readonly newest: Map<string, StoredEvent>;
  /** The states before them as the database has them, whatever memory says. */
  readonly stored: Map<number, number>;
}

async function newestEvents(rooms: Rooms, room: Room, limit: number): Promise<Newest> {
  const { db, events } = rooms.parts;
  const rows = await db.query<{ nid: number; state: number | null }>(
    {
      name: 'room-newest-events',
      text: `SELECT nid, state_before AS state FROM events WHERE room = $1 AND pos IS NOT NULL AND NOT backfilled
             ORDER BY pos DESC LIMIT $2`,
    },
    [room.nid, limit],
  );
  const found = new Map<string, StoredEvent>();
  for (let i = rows.length; i > 0; i -= CHUNK) {
    const nids = rows.slice(Math.max(0, i - CHUNK), i).map(({ nid }) => nid);
    const chunk = await events.byNids(nids);
    for (const event of chunk.sort((a, b) => a.pos! - b.pos!)) found.set(event.eventId, event);
  }
  const stored = new Map(rows.flatMap(({ nid, state }) => (state === null ? [] : [[nid, state] as const])));
  return { newest: found, stored };
}

/** Ends that are older than all that is looked at, as far as nothing of that builds on them. */
async function endsBefore(
  rooms: Rooms,
  room: Room,
  looked: ReadonlyMap<string, FreshEvent>,
): Promise<StoredEvent[]> {
  const covered = new Set([...looked.values()].flatMap(({ event }) => event.prevEvents));
  const ids = room.extremities.filter((id) => !looked.has(id) && !covered.has(id));
  return [...(await placedEvents(rooms, room, ids)).values()].filter((event) => mayBeEnd(rooms, event));
}

/** What joins ends of the graph by our own hand is an end, though nobody hears of it (`merge-ends.ts`). */
function mayBeEnd(rooms: Rooms, { status, sender }: StoredEvent): boolean {
  if (status === 'accepted') return true;
  return status === 'soft-failed' && serverNameOf(sender) === rooms.parts.serverName;
}

export function isMissingSnapshot(error: unknown): boolean {
  return error instanceof Error && /^state snapshot \d+ is not in the database$/.test(error.message);
}

class Walk {
  readonly events = new Map<string, FreshEvent>();
  readonly #rooms: Rooms;
  readonly #states: StatesAt;
  readonly #room: Room;
  readonly #storedBefore: ReadonlyMap<number, number>;
  readonly #after = new Map<string, Snapshot>();
  readonly #unreadable: string[] = [];

  constructor(rooms: Rooms, states: StatesAt, room: Room, storedBefore: ReadonlyMap<number, number>) {
    this.#storedBefore = storedBefore;
    this.#rooms = rooms;
    this.#states = states;
    this.#room = room;
  }

  async take(event: StoredEvent): Promise<void> {
    const stored = await this.#stored(this.#storedBefore.get(event.nid));
    const found = await this.#before(event, stored);
    if (!found) this.#unreadable.push(event.eventId);
    const fresh = found ?? Snapshot.empty;
    const differs = !stored || fresh.changesSince(stored).size > 0;
    // The same state by another name would only have to be stored again.
    const stateBefore = differs ? fresh : stored;
    this.events.set(event.eventId, { event, stateBefore, differs });
    const after = event.rejected ? stateBefore : this.#states.with(this.#room, stateBefore, event, event.nid);
    this.#after.set(event.eventId, after);
  }

  async end(older: readonly StoredEvent[], isWhole: boolean): Promise<FreshGraph> {
    const ends = [...this.#ends(), ...older];
    const after = await Promise.all(
      ends.map((event) => this.#after.get(event.eventId) ?? this.#states.after(this.#room, event)),
    );
    return {
      events: this.events,
      isWhole,
      extremities: ends.map(({ eventId }) => eventId),
      depth: Math.max(0, ...ends.map(({ depth }) => depth)),
      state: await this.#states.resolve(this.#room, after),
      unreadable: this.#unreadable,
    };
  }

  /** The states after the predecessors, resolved; where some are not here, with what was told of the state there. */
  async #before(event: StoredEvent, stored: Snapshot | undefined): Promise<Snapshot | undefined> {
    const ids = [...new Set(event.prevEvents)];
    const older = await placedEvents(
      this.#rooms,
      this.#room,
      ids.filter((id) => !this.#after.has(id)),
    );
    const after: Snapshot[] = [];
    for (const id of ids) {
      const known = this.#after.get(id) ?? (await this.#afterOlder(older.get(id)));
      if (known) after.push(known);
    }
    if (after.length < ids.length && stored) after.unshift(stored);
    if (ids.length > 0 && after.length === 0) return undefined;
    return this.#states.resolve(this.#room, after);
  }

  async #afterOlder(event: StoredEvent | undefined): Promise<Snapshot | undefined> {
    const before = event && (await this.#stored(event.stateBefore));
    if (!event || !before || event.rejected) return before;
    return this.#states.with(this.#room, before, event, event.nid);
  }

  async #stored(id: number | undefined): Promise<Snapshot | undefined> {
    if (id === undefined) return undefined;
    return this.#rooms.parts.snapshots.load(id).catch((error: unknown) => {
      if (isMissingSnapshot(error)) return undefined;
      throw error;
    });
  }

  /** Events that no accepted one builds on, not even by way of those that were refused. */
  #ends(): StoredEvent[] {
    const covered = new Set<string>();
    const ends: StoredEvent[] = [];
    for (const { event } of [...this.events.values()].reverse()) {
      const isCovered = covered.has(event.eventId);
      const isEnd = mayBeEnd(this.#rooms, event);
      if (isEnd || isCovered) for (const id of event.prevEvents) covered.add(id);
      if (isEnd && !isCovered) ends.push(event);
    }
    return ends;
  }
}
