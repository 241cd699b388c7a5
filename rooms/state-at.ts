import { type RoomEvent, stateKeyOf } from '@trellis/protocol/event.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { resolveAsync } from '@trellis/protocol/state-resolution/index.ts';
import { type EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { stateResLoader } from './auth-chain.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Results that are kept: forks are mostly followed by several events on the same fork. */
const KEPT = 2000;

/** States around the events of rooms. Every event that is asked about must have its place, and so its state before. */
export class StatesAt {
  readonly #rooms: Rooms;
  /** By numeric ids, the event's too: one whose storing failed gets another the next time. */
  readonly #after = new RecentlyUsed<string, Snapshot>(KEPT);
  readonly #resolved = new RecentlyUsed<string, Promise<Snapshot>>(KEPT);

  constructor(rooms: Rooms) {
    this.#rooms = rooms;
  }

  async before(event: StoredEvent): Promise<Snapshot> {
    if (event.stateBefore === undefined) throw new Error(`${event.eventId} has no place in its room`);
    return this.#rooms.parts.snapshots.load(event.stateBefore);
  }

  /** The state that an event leaves behind: a rejected one changes nothing, a soft-failed one does. */
  async after(room: Room, event: StoredEvent): Promise<Snapshot> {
    const before = await this.before(event);
    return event.rejected ? before : this.with(room, before, event, event.nid);
  }

  /** The state `before` with an event. */
  with(room: Room, before: Snapshot, event: RoomEvent, nid: number): Snapshot {
    const { eventId, type, stateKey } = event;
    if (stateKey === undefined) return before;
    const made = `${before.id} ${nid}`;
    let after = this.#after.get(made);
    if (!after) {
      after = this.#rooms.parts.snapshots.derive(
        room.nid,
        before,
        new Map([[stateKeyOf(type, stateKey), { eventId, nid }]]),
      );
      this.#after.set(made, after);
    }
    return after;
  }

  /** The state after several events, resolved: the state before an event that names them as predecessors. */
  async afterAll(room: Room, events: readonly StoredEvent[]): Promise<Snapshot> {
    return this.resolve(room, await Promise.all(events.map((event) => this.after(room, event))));
  }

  /** Resolves states by the room version's algorithm. Their events must be stored or handed to the writer. */
  async resolve(room: Room, states: readonly Snapshot[]): Promise<Snapshot> {
    const distinct = new Map(states.map((state) => [state.id, state]));
    const [first, ...others] = distinct.values();
    if (!first) return Snapshot.empty;
    if (others.every((state) => state.changesSince(first).size === 0)) return first;
    const key = [...distinct.keys()].sort((a, b) => a - b).join(' ');
    let resolved = this.#resolved.get(key);
    if (!resolved) {
      resolved = this.#resolve(room, [first, ...others]);
      this.#resolved.set(key, resolved);
      resolved.catch(() => this.#resolved.delete(key));
    }
    return resolved;
  }

  async #resolve(room: Room, states: readonly Snapshot[]): Promise<Snapshot> {
    const { db, events, snapshots } = this.#rooms.parts;
    // The index of auth chains holds what is committed only.
    await settled(this.#rooms, room);
    const resolved = await resolveAsync(
      room.version,
      states.map((state) => state.toMap()),
      stateResLoader(db, events),
    );
    const base = states[0]!;
    const delta = new Map<string, EventRef | undefined>();
    const unknown: Array<[key: string, eventId: string]> = [];
    for (const [key, eventId] of resolved) {
      if (base.getKey(key)?.eventId === eventId) continue;
      const ref = states.map((state) => state.getKey(key)).find((other) => other?.eventId === eventId);
      if (ref) delta.set(key, ref);
      else unknown.push([key, eventId]);
    }
    // What came in from the auth chains stands in none of the states.
    const found = await events.getMany(unknown.map(([, eventId]) => eventId));
    for (const [key, eventId] of unknown) delta.set(key, { eventId, nid: found.get(eventId)!.nid });
    for (const [key] of base.entries()) if (!resolved.has(key)) delta.set(key, undefined);
    return delta.size === 0 ? base : snapshots.derive(room.nid, base, delta);
  }
}

/** Waits until everything of the room that was handed to the writer is in the database, or never will be. */
export async function settled(rooms: Rooms, room: Room): Promise<void> {
  // The writer keeps to the order of what it is given.
  if ((rooms.peek(room.roomId) ?? room).uncommitted > 0) await rooms.parts.writer.write([]);
}
