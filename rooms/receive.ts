import type { RoomEvent } from '@trellis/protocol/event.ts';
import type { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { eventsBefore, missingPredecessors } from './gaps.ts';
import { dependencies, rejectionByAuthEvents, storeOutliers } from './outliers.ts';
import { type Placement, place, placedEvents, placeRun } from './place.ts';
import { RemoteEvents, type RemoteEventsParts } from './remote-events.ts';
import { RemoteStates } from './remote-state.ts';
import type { Room } from './room.ts';
import { StatesAt, settled } from './state-at.ts';

export interface ReceiveOptions {
  /** Set for events that came by a handshake: this server passes them on to the others of the room. */
  readonly relayFrom?: string;
}

/** Predecessors of one event that the state after is asked for from another server. */
const MAX_UNKNOWN_STATES = 5;
/** An event is tried again when others changed what it was to be resolved with. */
const MAX_TRIES = 3;

/**
 * Takes in events of other servers (spec: server-server API, "Checks performed on receipt of a PDU"):
 *
 *  1. Format and size, by room version; else dropped.     (`checkIncoming`)
 *  2. Signatures; else dropped.                            (`checkIncoming`)
 *  3. Content hash; else redacted.                         (`checkIncoming`)
 *  4. Predecessors that are not here are asked for, together with what lies between. Where even their predecessors
 *     are not here, the state there is asked for; where the event's own can't be had, it is dropped.
 *  5. Its `auth_events`, fetched where they are not here, must allow it; else rejected.
 *  6. The state before it is worked out: the states after its predecessors, resolved.
 *  7. That state must allow it; else rejected.
 *  8. The room's current state must allow it, and the room's policy server recommend it; else soft-failed.
 *  9. It takes the place of its predecessors among the ends of the graph, and the room's state becomes the states
 *     after these ends, resolved. Not so for rejected and soft-failed events.
 * 10. It is put at the end of the room's order and stored.
 *
 * Steps 1 to 5, and the policy server's word, may take other servers' time and hold no lock; 6 to 10 (`place.ts`) are one moment in the room.
 */
export interface ReceiverParts extends RemoteEventsParts {
  /** Told of each room that an event has come to. */
  readonly onPlaced?: (roomId: string) => void;
}

export class Receiver {
  readonly states: StatesAt;
  readonly remoteEvents: RemoteEvents;
  readonly remoteStates: RemoteStates;
  readonly #parts: ReceiverParts;

  constructor(parts: ReceiverParts) {
    this.#parts = parts;
    this.states = new StatesAt(parts.rooms);
    this.remoteEvents = new RemoteEvents(parts);
    this.remoteStates = new RemoteStates(parts, this.remoteEvents);
  }

  /**
   * Takes in an event that passed `checkIncoming`, in a room that this server is resident in. To be called again with
   * an event that is here already is cheap and changes nothing.
   *
   * @param origin the server to ask for what is missing
   * @returns the event with its `status` once it is safely stored, or `undefined` when what it builds on could not
   *   be had
   */
  async receive(
    origin: string,
    event: RoomEvent,
    options: ReceiveOptions = {},
  ): Promise<StoredEvent | undefined> {
    const { rooms } = this.#parts;
    const known = await this.#known(event);
    if (known) return known;
    const room = await rooms.get(event.roomId);
    if (!room?.isResident) return undefined;
    // 4.
    const missing = await missingPredecessors(this.#parts, room, event);
    if (missing.length > 0 && !(await this.#fillGap(origin, room, event))) return undefined;
    return this.#authoriseAndPlace(origin, room, { event, ...options });
  }

  /**
   * Takes in together as many of the first events as simply follow what is here: with one look at the database, and
   * one commit.
   *
   * @returns how many; the one after these is for `receive`
   */
  async receiveRun(roomId: string, events: readonly RoomEvent[]): Promise<number> {
    const { rooms } = this.#parts;
    // 4. to 10.
    const placed = await placeRun(rooms, this.states, roomId, events);
    await Promise.all(placed.map(({ committed }) => committed));
    if (placed.length > 0) this.#parts.onPlaced?.(roomId);
    return placed.length;
  }

  /** @returns whether all predecessors of the event are here now */
  async #fillGap(origin: string, room: Room, event: RoomEvent): Promise<boolean> {
    if (await this.#isSurelyRejected(room, event)) return false;
    for (const before of await eventsBefore(this.#parts, room, origin, event)) {
      if (await this.#known(before)) continue;
      const missing = await missingPredecessors(this.#parts, room, before);
      if (missing.length === 0) await this.#authoriseAndPlace(origin, room, { event: before });
      else await this.#placeBehindGap(origin, room, before, missing);
    }
    // An event whose own predecessors are withheld is not taken at another server's word for the state before it: it
    // would become an end of the graph with a state that nothing here vouches for.
    return (await missingPredecessors(this.#parts, room, event)).length === 0;
  }

  /** Places an event that leads to one that was sent, with the state behind the gap as the origin tells it. */
  async #placeBehindGap(
    origin: string,
    room: Room,
    event: RoomEvent,
    missing: readonly string[],
  ): Promise<void> {
    if (missing.length > MAX_UNKNOWN_STATES) return;
    const states: Snapshot[] = [];
    for (const id of missing) {
      const state = await this.remoteStates.after(room, origin, id);
      if (!state) return;
      states.push(state);
    }
    const here = await placedEvents(
      this.#parts.rooms,
      room,
      event.prevEvents.filter((id) => !missing.includes(id)),
    );
    for (const before of here.values()) states.push(await this.states.after(room, before));
    const stateBefore = await this.states.resolve(room, states);
    await this.#authoriseAndPlace(origin, room, { event, stateBefore, missing });
  }

  async #authoriseAndPlace(
    origin: string,
    room: Room,
    wanted: Omit<Placement, 'rejection'>,
  ): Promise<StoredEvent | undefined> {
    const { rooms } = this.#parts;
    const { event } = wanted;
    // 5.
    const auth = await this.remoteEvents.authEvents(room, origin, event);
    if (!auth) return undefined;
    const rejection = rejectionByAuthEvents(event, auth, room.version);
    const placement = { ...(await this.#withPolicy(room, wanted, rejection)), rejection };
    for (let tries = 0; tries < MAX_TRIES; tries++) {
      // 6. to 10.
      const placed = await place(rooms, this.states, placement);
      if (!placed) return undefined;
      if (placed !== 'store-first') {
        await placed.committed;
        this.#parts.onPlaced?.(room.roomId);
        return placed.event;
      }
      await storeOutliers(rooms, room, [placement.event]);
    }
    return undefined;
  }

  /** Asks the room's policy server for its signature, if the event has none. */
  async #withPolicy<T extends Omit<Placement, 'rejection'>>(
    room: Room,
    wanted: T,
    rejection: string | undefined,
  ): Promise<T> {
    const { rooms } = this.#parts;
    const { policies } = rooms.parts;
    if (!policies || rejection !== undefined) return wanted;
    const event = await policies.recommended(rooms, room, wanted.event);
    return event ? { ...wanted, event } : { ...wanted, isUnwanted: true };
  }

  /** The event if it has its place already, once that is safely stored. */
  async #known(event: RoomEvent): Promise<StoredEvent | undefined> {
    const { rooms } = this.#parts;
    const known = await rooms.parts.events.get(event.eventId);
    if (known?.pos === undefined || known.roomId !== event.roomId) return undefined;
    const room = rooms.peek(event.roomId);
    if (!room || room.uncommitted === 0) return known;
    await settled(rooms, room);
    return rooms.parts.events.get(event.eventId);
  }

  /** What will be rejected anyway is not worth asking other servers for. */
  async #isSurelyRejected(room: Room, event: RoomEvent): Promise<boolean> {
    const ids = new Set(dependencies(event, room.version));
    const known = await this.#parts.rooms.parts.events.getMany(ids);
    return known.size === ids.size && rejectionByAuthEvents(event, known, room.version) !== undefined;
  }
}
