import { stateKeyOf } from '@trellis/protocol/event.ts';
import { STATUS_CODES } from '@trellis/storage/events.ts';
import type { EventRef, Snapshot } from '@trellis/storage/state-snapshots.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { type Come, noteMember } from './partial-state/members.ts';
import { PduIntake } from './pdu-intake.ts';
import { MAX_CHAIN, type RemoteEvents, type RemoteEventsParts } from './remote-events.ts';
import type { Room } from './room.ts';
import { settled } from './state-at.ts';

/** Up to so many missing events are fetched one by one; beyond, when they are a good part of all, all come at once. */
const FETCHED_SINGLY = 50;
const GOOD_PART = 0.1;
/** Of a state that is to be whole, so much may be lost. */
const LOST_PART = 0.01;

/** For a state that has to be whole. */
export interface WholeState {
  /** Asked for what the first server has not. */
  readonly servers: readonly string[];
  /** Filled with members of the state that are new here. */
  readonly members: Come;
}

/** A state event that came: where it stands in a state, unless it is rejected. */
interface Placed {
  readonly nid: number;
  readonly place: string | undefined;
}

/**
 * States at places that this server knows nothing about, as another server tells them. Every event in them has been
 * signed by its sender's server and is allowed by its own auth events, but which of them stand in the state is the
 * other server's word: nothing may rest on such a state alone.
 */
export class RemoteStates {
  readonly #parts: RemoteEventsParts;
  readonly #events: RemoteEvents;

  constructor(parts: RemoteEventsParts, events: RemoteEvents) {
    this.#parts = parts;
    this.#events = events;
  }

  /**
   * The state before an event; `undefined` when the server does not tell it, or tells no state of this room.
   *
   * @param whole when given, the state has to be whole
   */
  async before(
    room: Room,
    server: string,
    eventId: string,
    whole?: WholeState,
  ): Promise<Snapshot | undefined> {
    const refs = await this.#refsBefore(room, server, eventId, whole);
    return refs && this.#snapshot(room, refs);
  }

  /** The state after an event, which is fetched too. */
  async after(
    room: Room,
    server: string,
    eventId: string,
    whole?: WholeState,
  ): Promise<Snapshot | undefined> {
    const refs = await this.#refsBefore(room, server, eventId, whole);
    const servers = [server, ...(whole?.servers ?? [])];
    const event = refs && (await this.#events.fetch(room, servers, [eventId])).get(eventId);
    if (!event) return undefined;
    if (event.stateKey !== undefined && !event.rejected)
      refs.set(stateKeyOf(event.type, event.stateKey), { eventId, nid: event.nid });
    return this.#snapshot(room, refs);
  }

  async #refsBefore(
    room: Room,
    server: string,
    eventId: string,
    whole?: WholeState,
  ): Promise<Map<string, EventRef> | undefined> {
    const { remote } = this.#parts;
    const ids = await remote.stateIds(server, room.roomId, eventId).catch(() => undefined);
    if (!ids) return undefined;
    const all = new Set([...ids.stateIds, ...ids.authChainIds]);
    if (all.size > MAX_CHAIN) return undefined;
    const missing = await this.#events.unknownIds([...all]);
    const come = new Map<string, Placed>();
    if (missing.length > FETCHED_SINGLY && missing.length > all.size * GOOD_PART) {
      const intake = new PduIntake(this.#parts, room, missing, (event) => note(event, come, whole?.members));
      // What came before it broke off is of use all the same.
      await remote.state(server, room.roomId, eventId, (pdus) => intake.take(pdus)).catch(() => {});
      await intake.finish();
    } else if (missing.length > 0) await this.#events.fetch(room, [server], missing);
    const others = ids.stateIds.filter((id) => !come.has(id));
    if (
      missing.length > 0 &&
      whole &&
      !(await this.#isWhole(room, others, ids.stateIds.length, whole.servers))
    )
      return undefined;
    const refs = await this.#refsOf(room, others);
    for (const id of ids.stateIds) {
      const { place, nid } = come.get(id) ?? {};
      if (place !== undefined) refs.set(place, { eventId: id, nid: nid! });
    }
    const create = stateKeyOf('m.room.create', '');
    return refs.get(create)?.eventId === room.state.getKey(create)?.eventId ? refs : undefined;
  }

  /** Whether the events of a state are here, but for a few that nobody has any more or nobody can verify. */
  async #isWhole(
    room: Room,
    ids: readonly string[],
    size: number,
    servers: readonly string[],
  ): Promise<boolean> {
    const missing = await this.#events.unknownIds(ids);
    if (missing.length === 0) return true;
    if (missing.length > Math.max(FETCHED_SINGLY, size * GOOD_PART)) return false;
    await this.#events.fetch(room, servers, missing);
    return (await this.#events.unknownIds(missing)).length <= Math.max(1, size * LOST_PART);
  }

  /**
   * Places in a state of those of the events that are here: of this room, state events, not rejected. That some may be
   * missing, since no server has them any more or nobody can verify them, is for state resolution to heal.
   */
  async #refsOf(room: Room, eventIds: readonly string[]): Promise<Map<string, EventRef>> {
    const { db, events } = this.#parts.rooms.parts;
    await settled(this.#parts.rooms, room);
    const rows = await db.query<{ nid: number; eventId: string; type: string; stateKey: string }>(
      {
        name: 'state-places',
        text: `SELECT nid, event_id AS "eventId", type, state_key AS "stateKey"
               FROM (SELECT DISTINCT id FROM unnest($1::text[]) AS u(id)) AS w JOIN events ON event_id = w.id
               WHERE room = $2 AND state_key IS NOT NULL AND status <> $3`,
      },
      [eventIds, room.nid, STATUS_CODES.rejected],
    );
    const refs = new Map<string, EventRef>();
    for (const { nid, eventId, ...names } of rows) {
      let { type, stateKey } = names;
      // The columns hold no U+0000; the event does.
      if (`${type}${stateKey}`.includes('\u2400')) {
        const event = await events.get(eventId);
        type = event?.type ?? type;
        stateKey = event?.stateKey ?? stateKey;
      }
      refs.set(stateKeyOf(type, stateKey), { eventId, nid });
    }
    return refs;
  }

  /** As a snapshot over the current state, with which it has most in common. */
  #snapshot(room: Room, refs: ReadonlyMap<string, EventRef>): Snapshot {
    const base = room.state;
    const delta = new Map<string, EventRef | undefined>();
    for (const [key, ref] of refs) if (base.getKey(key)?.eventId !== ref.eventId) delta.set(key, ref);
    for (const [key] of base.entries()) if (!refs.has(key)) delta.set(key, undefined);
    return delta.size === 0 ? base : this.#parts.rooms.parts.snapshots.derive(room.nid, base, delta);
  }
}

function note(event: StoredEvent, come: Map<string, Placed>, members: Come | undefined): void {
  const { nid, eventId, type, stateKey } = event;
  if (stateKey === undefined) return;
  come.set(eventId, { nid, place: event.rejected ? undefined : stateKeyOf(type, stateKey) });
  if (members) noteMember(members, event);
}
