import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { authorise } from '@trellis/protocol/auth-rules/index.ts';
import { type RoomEvent, splitStateKey, stateKeyOf } from '@trellis/protocol/event.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { EventStatus, StoredEvent } from '@trellis/storage/stored-event.ts';
import { type Append, type Appended, append } from './append.ts';
import { type Arrival, arrivalOf, arrivalsOf, asArrived, settlement } from './arrival.ts';
import { loadState } from './auth-state.ts';
import { withToldState } from './partial-state/told-state.ts';
import { leadingRun } from './receive-run.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { type StatesAt, settled } from './state-at.ts';

export interface Placement {
  readonly event: RoomEvent;
  /** Why the event's own auth events refuse it. */
  readonly rejection: string | undefined;
  /** The state before the event, where it can't be worked out from predecessors that are here. */
  readonly stateBefore?: Snapshot;
  /** Predecessors that are not here. */
  readonly missing?: readonly string[];
  readonly relayFrom?: string;
  /** The room's policy server does not recommend it. */
  readonly isUnwanted?: boolean;
}

/** How far back is looked for extremities behind rejected and soft-failed predecessors. */
const MAX_BEHIND = 100;

/**
 * Steps 6 to 10 of the receipt of an event (`receive.ts`): authorises it by the state before it and by the current
 * state, and puts it into the room's order. Everything is decided under the room's lock; no other server is asked.
 *
 * @returns `undefined` when a predecessor has no place; `store-first` when the event has to be stored as an outlier
 *   before its state can be resolved with others'
 */
export async function place(
  rooms: Rooms,
  states: StatesAt,
  placement: Placement,
): Promise<Appended | 'store-first' | undefined> {
  return rooms.exclusive(placement.event.roomId, async (room) => {
    return new Placing(rooms, states, room, placement).run();
  });
}

/**
 * Places the first events that simply follow what is here (`leadingRun`), with one look at the database for all of
 * them.
 */
export async function placeRun(
  rooms: Rooms,
  states: StatesAt,
  roomId: string,
  events: readonly RoomEvent[],
): Promise<Appended[]> {
  return rooms.exclusive(roomId, async (room) => {
    const run = await leadingRun(rooms, room, events);
    if (run.length < 2) return [];
    const arrivals = await arrivalsOf(
      rooms,
      room,
      run.map(({ event }) => event),
    );
    const all: Appended[] = [];
    for (const placement of run) {
      if (arrivals.known.has(placement.event.eventId)) break;
      const arrival = arrivals.of(placement.event);
      const placed = await new Placing(rooms, states, room, placement, arrival).run();
      if (!placed || placed === 'store-first') break;
      all.push(placed);
    }
    return all;
  });
}

class Placing {
  readonly #rooms: Rooms;
  readonly #states: StatesAt;
  readonly #room: Room;
  readonly #placement: Placement;
  readonly #event: RoomEvent;
  readonly #fresh: Arrival | undefined;

  /** @param fresh given for an event that is not in the database in any way */
  constructor(rooms: Rooms, states: StatesAt, room: Room, placement: Placement, fresh?: Arrival) {
    this.#rooms = rooms;
    this.#states = states;
    this.#room = room;
    this.#placement = placement;
    this.#event = placement.event;
    this.#fresh = fresh;
  }

  async run(): Promise<Appended | 'store-first' | undefined> {
    const { events, ids } = this.#rooms.parts;
    const event = this.#event;
    const known = this.#fresh ? undefined : await events.get(event.eventId);
    if (known?.pos !== undefined) return { event: known, committed: this.#committed(known.eventId) };
    const prev = await this.#predecessors();
    if (!prev) return undefined;

    const stateBefore = await this.#stateBefore(prev);
    const status = await this.#judge(stateBefore);
    const nid = known?.nid ?? ids.next();
    const arrival = this.#fresh ?? (await arrivalOf(this.#rooms, this.#room, event));
    const after =
      status === 'accepted' ? await this.#after(prev, stateBefore, nid, known, arrival) : undefined;
    if (after === 'store-first') return after;

    // For `unsigned.prev_content`, which is made from what is in memory.
    if (event.stateKey !== undefined)
      await loadState(this.#rooms, stateBefore, [stateKeyOf(event.type, event.stateKey)]);
    // An outlier may have been redacted already.
    const redaction = known?.redactedBy ? { ...arrival, redactedBy: known.redactedBy } : arrival;
    const arrived = asArrived(event, redaction);
    const appended = await append(this.#rooms, this.#room, {
      event: arrived,
      status,
      stateBefore,
      after,
      nid,
      missing: this.#placement.missing?.length ? this.#placement.missing : undefined,
      relayFrom: this.#placement.relayFrom,
      passedOnByOthers: this.#placement.relayFrom === undefined,
      also: settlement(this.#room, arrived, redaction),
    });
    appended.event.redactedBy = redaction.redactedBy;
    return appended;
  }

  /** Someone else placed it; it may still be on its way into the database. */
  async #committed(eventId: string): Promise<void> {
    await settled(this.#rooms, this.#room);
    if (!(await this.#rooms.parts.events.get(eventId))) throw new Error(`${eventId} could not be stored`);
  }

  /** Those predecessors that are here; `undefined` when one is not that should be. */
  async #predecessors(): Promise<StoredEvent[] | undefined> {
    const missing = new Set(this.#placement.missing);
    const ids = this.#event.prevEvents.filter((id) => !missing.has(id));
    const found = await placedEvents(this.#rooms, this.#room, ids);
    return found.size === new Set(ids).size ? [...found.values()] : undefined;
  }

  async #stateBefore(prev: readonly StoredEvent[]): Promise<Snapshot> {
    if (this.#placement.stateBefore) return this.#placement.stateBefore;
    const ends = new Set(this.#room.extremities);
    // What the current state was resolved from need not be resolved again.
    if (prev.length === ends.size && prev.every(({ eventId }) => ends.has(eventId))) return this.#room.state;
    return this.#states.afterAll(this.#room, prev);
  }

  async #judge(stateBefore: Snapshot): Promise<EventStatus> {
    if (this.#placement.rejection !== undefined) return 'rejected';
    if ((await this.#refusal(stateBefore)) !== undefined) return 'rejected';
    if (this.#placement.isUnwanted) return 'soft-failed';
    // A state without most members is no measure for what others, who know them, let through.
    if (stateBefore.id === this.#room.state.id || this.#room.partial) return 'accepted';
    return (await this.#refusal(this.#room.state)) === undefined ? 'accepted' : 'soft-failed';
  }

  async #refusal(stateBefore: Snapshot): Promise<string | undefined> {
    const state = this.#room.partial
      ? await withToldState(this.#rooms, this.#states, this.#room, this.#event, stateBefore)
      : stateBefore;
    const { version } = this.#room;
    const create = stateKeyOf('m.room.create', '');
    // The rules look at a create event alone; but a room begins once.
    if (this.#event.type === 'm.room.create') return 'the room has a create event already';
    const authState = await loadState(this.#rooms, state, [...authEventKeys(this.#event, version), create]);
    return authorise(this.#event, authState, version);
  }

  /** The room after an accepted event. */
  async #after(
    prev: readonly StoredEvent[],
    stateBefore: Snapshot,
    nid: number,
    known: StoredEvent | undefined,
    arrival: Arrival,
  ): Promise<Append['after'] | 'store-first'> {
    const { eventId, stateKey } = this.#event;
    const covered = await this.#covered(prev);
    const others = this.#room.extremities.filter((id) => !covered.has(id));
    // What arrives after its successors is no end of the graph.
    const isEnd = !arrival.followed || others.length === 0;
    if (!isEnd && others.length === this.#room.extremities.length) return undefined;
    // State resolution finds events in the database only.
    if (others.length > 0 && stateKey !== undefined && !known) return 'store-first';
    const ends = await placedEvents(this.#rooms, this.#room, others);
    const states = await Promise.all([...ends.values()].map((end) => this.#states.after(this.#room, end)));
    if (isEnd) states.push(this.#states.with(this.#room, stateBefore, this.#event, nid));
    const state = await this.#states.resolve(this.#room, states);
    const changes = state.changesSince(this.#room.state);
    return {
      extremities: isEnd ? [eventId, ...others] : others,
      state,
      changes,
      changedEvents: await this.#changedMembers(changes),
    };
  }

  /**
   * What an accepted event makes an inner part of the graph: its predecessors, and what stands behind those of them
   * that never were ends since they were rejected or soft-failed.
   */
  async #covered(prev: readonly StoredEvent[]): Promise<Set<string>> {
    const covered = new Set(this.#event.prevEvents);
    let behind = prev.filter(({ status }) => status !== 'accepted').flatMap(({ prevEvents }) => prevEvents);
    while (behind.length > 0 && covered.size < MAX_BEHIND) {
      const next = behind.filter((id) => !covered.has(id));
      for (const id of next) covered.add(id);
      const found = await this.#rooms.parts.events.getMany(next);
      behind = [...found.values()]
        .filter(({ status }) => status !== 'accepted')
        .flatMap((event) => event.prevEvents);
    }
    return covered;
  }

  /** Events behind changed memberships, which the live room is told by. */
  async #changedMembers(
    changes: ReadonlyMap<string, EventRef | undefined>,
  ): Promise<Map<string, StoredEvent> | undefined> {
    const ids: string[] = [];
    for (const [key, ref] of changes)
      if (ref && ref.eventId !== this.#event.eventId && splitStateKey(key)[0] === 'm.room.member')
        ids.push(ref.eventId);
    return ids.length === 0 ? undefined : this.#rooms.parts.events.getMany(ids);
  }
}

/** Those of the events that have their place in the room, and so a state before them. */
export async function placedEvents(
  rooms: Rooms,
  room: Room,
  ids: readonly string[],
): Promise<Map<string, StoredEvent>> {
  const found = await rooms.parts.events.getMany(ids);
  for (const [id, event] of found)
    if (event.stateBefore === undefined || event.roomId !== room.roomId) found.delete(id);
  return found;
}
