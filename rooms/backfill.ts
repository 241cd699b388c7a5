import { authEventKeys } from '@trellis/protocol/auth-event-selection.ts';
import { authorise } from '@trellis/protocol/auth-rules/index.ts';
import { type Pdu, type RoomEvent, stateKeyOf } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import { Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { loadState } from './auth-state.ts';
import { ancestors } from './gaps.ts';
import { checkIncoming } from './incoming-event.ts';
import { storeOutliers } from './outliers.ts';
import { placedEvents } from './place.ts';
import { type Backfilled, type Gap, placeBackfilled } from './place-backfilled.ts';
import type { Receiver } from './receive.ts';
import type { RemoteEventsParts } from './remote-events.ts';
import type { Room } from './room.ts';
import { serversByStay } from './servers-by-stay.ts';

/** Events asked for at a time: at least, so that scrolling on needs no further request, and at the most. */
const MIN_LIMIT = 50;
const MAX_LIMIT = 200;
const MAX_SERVERS = 10;
/** Of these, such as are asked since they wrote what the gap lies between. */
const MAX_WRITERS = 5;
/** Ends of the graph that one request goes back from. */
const MAX_FROM = 20;
/** States asked for in one backfill: one for each branch that it begins with. */
const MAX_STATES = 5;
/** What a reader waits for it; it goes on without them. In milliseconds. */
const PATIENCE = 25_000;
/** A gap that nobody could fill is left alone for so long, twice as long each time, up to the last. In milliseconds. */
const FIRST_REST = 60_000;
const LAST_REST = 24 * 60 * 60_000;
/** The same as long as somebody who may have it did not answer: that may be a restart, or our side of a broken network. */
const FIRST_REST_UNANSWERED = 5_000;
const LAST_REST_UNANSWERED = 10 * 60_000;
const MAX_FRUITLESS = 10_000;

/** What came of it: `unanswered` if nothing did, and not all of those asked answered. */
type Outcome = 'came' | 'nothing' | 'unanswered';

interface Fruitless {
  readonly rest: number;
  readonly until: number;
}

/**
 * Fetches history from before an event whose predecessors are not here, and puts it into the room's order before that
 * event. It becomes part of the room's past only: neither the current state nor what clients are told as news changes.
 *
 * Each backfilled event gets the state before it, worked out from the states after its predecessors; where these are
 * not here, it is what the server tells. So history visibility is judged by the state that was in force.
 */
export class Backfill {
  readonly #parts: RemoteEventsParts;
  readonly #receiver: Receiver;
  readonly #clock: () => number;
  readonly #running = new Map<string, Promise<Outcome>>();
  readonly #fruitless = new RecentlyUsed<string, Fruitless>(MAX_FRUITLESS);

  constructor(parts: RemoteEventsParts, receiver: Receiver, clock: () => number = Date.now) {
    this.#parts = parts;
    this.#receiver = receiver;
    this.#clock = clock;
    parts.rooms.parts.cluster.serve(
      'room.backfill',
      async ({ pos, limit }: { pos: number; limit: number }, roomId) =>
        this.#before(await parts.rooms.require(roomId), pos, limit),
      { drained: false },
    );
  }

  /**
   * Fetches about `limit` events from before the gap at position `pos`.
   *
   * @returns whether anything came; also `false` when it takes too long, though it may come later, and when the
   *   servers had nothing lately: readers pass by a gap often
   */
  before(room: Room, pos: number, limit: number): Promise<boolean> {
    const { cluster } = this.#parts.rooms.parts;
    // Where the room is, so that servers are asked once, and rest, for all processes.
    return cluster.owns('room', room.roomId)
      ? this.#before(room, pos, limit)
      : cluster.call<boolean>('room', room.roomId, 'room.backfill', { pos, limit });
  }

  async #before(room: Room, pos: number, limit: number): Promise<boolean> {
    const key = `${room.roomId} ${pos}`;
    if ((this.#fruitless.get(key)?.until ?? 0) > this.#clock()) return false;
    let running = this.#running.get(key);
    if (!running) {
      running = this.#fill(room, pos, Math.min(Math.max(limit, MIN_LIMIT), MAX_LIMIT)).finally(() =>
        this.#running.delete(key),
      );
      this.#running.set(key, running);
      running.then(
        (came) => this.#note(key, came),
        () => this.#note(key, 'unanswered'),
      );
    }
    const { promise: tooLong, resolve } = Promise.withResolvers<Outcome>();
    const timer = setTimeout(resolve, PATIENCE, 'unanswered');
    try {
      return (await Promise.race([running, tooLong])) === 'came';
    } finally {
      clearTimeout(timer);
    }
  }

  #note(key: string, outcome: Outcome): void {
    if (outcome === 'came') {
      this.#fruitless.delete(key);
      return;
    }
    const [first, longest] =
      outcome === 'nothing' ? [FIRST_REST, LAST_REST] : [FIRST_REST_UNANSWERED, LAST_REST_UNANSWERED];
    const rest = Math.min(Math.max((this.#fruitless.get(key)?.rest ?? 0) * 2, first), longest);
    this.#fruitless.set(key, { rest, until: this.#clock() + rest });
  }

  async #fill(room: Room, pos: number, limit: number): Promise<Outcome> {
    const gap = await this.#gapAt(room, pos);
    if (gap.missing.size === 0) return 'nothing';
    const from = [...gap.missing.keys()].slice(0, MAX_FROM);
    let outcome: Outcome = 'nothing';
    for (const server of await this.#servers(room, gap)) {
      const pdus = await this.#parts.remote.backfill(server, room.roomId, from, limit).catch(() => undefined);
      if (pdus === undefined) outcome = 'unanswered';
      else if (pdus.length > 0 && (await this.#take(room, server, gap, pdus.slice(0, MAX_LIMIT))))
        return 'came';
    }
    return outcome;
  }

  async #gapAt(room: Room, pos: number): Promise<Gap> {
    const rows = await this.#parts.rooms.parts.db.query<{ eventId: string; successor: string }>(
      {
        name: 'gap-at',
        text: `SELECT event_id AS "eventId", successor FROM backward_extremities
               WHERE room = $1 AND pos = $2 ORDER BY event_id LIMIT 1000`,
      },
      [room.nid, pos],
    );
    const missing = new Map<string, string[]>();
    for (const { eventId, successor } of rows)
      missing.set(eventId, [...(missing.get(eventId) ?? []), successor]);
    return { pos, missing };
  }

  /**
   * Those who are likely to have the history: who wrote what is missing, where that is known as part of a state, or
   * what follows it, then who has been in the room the longest. Those who came later have the same gap.
   */
  async #servers(room: Room, gap: Gap): Promise<string[]> {
    const { events, serverName } = this.#parts.rooms.parts;
    const ids = [...gap.missing.keys(), ...[...gap.missing.values()].flat()];
    const known = await events.getMany(ids);
    const writers = ids.flatMap((id) => known.get(id) ?? []).map(({ sender }) => serverNameOf(sender));
    const servers = new Set([...writers.slice(0, MAX_WRITERS), ...serversByStay(room)]);
    servers.delete(serverName);
    return [...servers].slice(0, MAX_SERVERS);
  }

  /** Takes in what a server gave for a gap; whether anything of it was of use. */
  async #take(room: Room, server: string, gap: Gap, pdus: readonly Pdu[]): Promise<boolean> {
    const { rooms, verifier } = this.#parts;
    const checked = await checkIncoming(pdus, room.version, verifier);
    const events = new Map<string, RoomEvent>();
    for (const { event } of checked) if (event?.roomId === room.roomId) events.set(event.eventId, event);
    const ordered = ancestors({ prevEvents: [...gap.missing.keys()] }, events);
    const known = await placedEvents(rooms, room, [...gap.missing.keys(), ...events.keys()]);
    const fresh = ordered.filter(({ eventId }) => !known.has(eventId));

    // Auth events that are neither here nor in the answer are fetched by the first event that lacks them.
    await storeOutliers(rooms, room, fresh);
    for (const event of fresh)
      if (!(await rooms.parts.events.get(event.eventId))) {
        await this.#receiver.remoteEvents.authEvents(room, server, event);
        await storeOutliers(rooms, room, [event]);
      }
    const backfilled = await this.#withStates(room, server, fresh);
    return placeBackfilled(rooms, room, gap, backfilled);
  }

  /** Works out the state before each event, oldest first; those for which there is none are left out. */
  async #withStates(room: Room, server: string, events: readonly RoomEvent[]): Promise<Backfilled[]> {
    const { rooms } = this.#parts;
    const backfilled = new Map<string, Backfilled>();
    let asked = 0;
    for (const { eventId } of events) {
      const event = await rooms.parts.events.get(eventId);
      if (!event || event.pos !== undefined) continue;
      let state = await this.#stateAfterPredecessors(room, event, backfilled);
      if (!state && asked++ < MAX_STATES)
        state = await this.#receiver.remoteStates.before(room, server, eventId);
      if (!state) continue;
      const rejected = event.rejected || (await this.#refuses(room, event, state));
      const after = rejected ? state : this.#receiver.states.with(room, state, event, event.nid);
      backfilled.set(eventId, { event, stateBefore: state, stateAfter: after, rejected });
    }
    return [...backfilled.values()];
  }

  /** `undefined` when a predecessor has no state. */
  async #stateAfterPredecessors(
    room: Room,
    event: StoredEvent,
    backfilled: ReadonlyMap<string, Backfilled>,
  ): Promise<Snapshot | undefined> {
    if (event.type === 'm.room.create') return Snapshot.empty;
    const { states } = this.#receiver;
    const ids = [...new Set(event.prevEvents)];
    const here = await placedEvents(this.#parts.rooms, room, ids);
    const after: Snapshot[] = [];
    for (const id of ids) {
      const before = here.get(id);
      const state = backfilled.get(id)?.stateAfter ?? (before && (await states.after(room, before)));
      if (!state) return undefined;
      after.push(state);
    }
    return after.length === 0 ? undefined : states.resolve(room, after);
  }

  async #refuses(room: Room, event: StoredEvent, state: Snapshot): Promise<boolean> {
    const keys = [...authEventKeys(event, room.version), stateKeyOf('m.room.create', '')];
    const authState = await loadState(this.#parts.rooms, state, keys);
    return authorise(event, authState, room.version) !== undefined;
  }
}
