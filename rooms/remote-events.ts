import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { checkIncoming, type EventVerifier, idOfPdu } from './incoming-event.ts';
import { dependencies, storeOutliers } from './outliers.ts';
import type { RemoteServers } from './remote-servers.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

export interface RemoteEventsParts {
  readonly rooms: Rooms;
  readonly remote: RemoteServers;
  readonly verifier: EventVerifier;
}

/** Events of a room that are fetched one by one for one purpose, those that authorise them included. */
const MAX_FETCHED = 500;
/** Events asked for at a time. */
const AT_A_TIME = 8;
/** Events of an auth chain, or a state with its auth chain, that are looked at. */
export const MAX_CHAIN = 200_000;
/** PDUs that are read at once while their ids are worked out. */
const IDS_A_TURN = 200;

/** Brings events of other servers here, as outliers. */
export class RemoteEvents {
  readonly #parts: RemoteEventsParts;

  constructor(parts: RemoteEventsParts) {
    this.#parts = parts;
  }

  /** Checks and stores PDUs as outliers, as far as they can be authorised. Those known already cost little. */
  async admit(room: Room, pdus: readonly Pdu[]): Promise<void> {
    const { rooms } = this.#parts;
    const unknown = await this.#unknown(room, pdus.slice(0, MAX_CHAIN));
    if (unknown.length > 0) await storeOutliers(rooms, room, await this.#check(room, unknown));
  }

  /**
   * Fetches those of the events that are not known, and what authorises them, from the servers in turn.
   *
   * @returns those of the events that are known now, as far as they are of the room
   */
  async fetch(
    room: Room,
    servers: readonly string[],
    eventIds: readonly string[],
  ): Promise<Map<string, StoredEvent>> {
    const { rooms } = this.#parts;
    const fetched = new Map<string, RoomEvent>();
    const asked = new Set<string>();
    let wanted = await this.unknownIds(eventIds);
    while (wanted.length > 0 && asked.size < MAX_FETCHED) {
      wanted = wanted.slice(0, MAX_FETCHED - asked.size);
      for (const id of wanted) asked.add(id);
      const next = new Set<string>();
      for (const event of await this.#fetchEach(room, servers, wanted)) {
        fetched.set(event.eventId, event);
        for (const id of dependencies(event, room.version)) if (!asked.has(id)) next.add(id);
      }
      wanted = await this.unknownIds([...next]);
    }
    if (fetched.size > 0) await storeOutliers(rooms, room, [...fetched.values()]);
    const known = await rooms.parts.events.getMany(eventIds);
    for (const event of known.values()) if (event.roomId !== room.roomId) known.delete(event.eventId);
    return known;
  }

  /**
   * The auth events of an event, fetched where they are not known: by its whole auth chain first, then one by one.
   * `undefined` when some could not be had.
   */
  async authEvents(
    room: Room,
    server: string,
    event: RoomEvent,
  ): Promise<ReadonlyMap<string, StoredEvent> | undefined> {
    const { rooms, remote } = this.#parts;
    const ids = [...new Set(dependencies(event, room.version))];
    let known = await rooms.parts.events.getMany(ids);
    if (known.size === ids.length) return known;
    const chain = await remote.eventAuth(server, room.roomId, event.eventId).catch(() => []);
    if (chain.length > 0) {
      await this.admit(room, chain);
      known = await rooms.parts.events.getMany(ids);
    }
    // Auth events of other rooms are for the auth rules to refuse, so they stay in.
    if (known.size < ids.length) {
      await this.fetch(room, [server], ids);
      known = await rooms.parts.events.getMany(ids);
    }
    return known.size === ids.length ? known : undefined;
  }

  async #fetchEach(room: Room, servers: readonly string[], ids: readonly string[]): Promise<RoomEvent[]> {
    const events: RoomEvent[] = [];
    const queue = [...ids];
    const work = async () => {
      for (let id = queue.pop(); id !== undefined; id = queue.pop()) {
        const event = await this.#fetchOne(room, servers, id);
        if (event) events.push(event);
      }
    };
    await Promise.all(Array.from({ length: Math.min(AT_A_TIME, ids.length) }, work));
    return events;
  }

  async #fetchOne(room: Room, servers: readonly string[], eventId: string): Promise<RoomEvent | undefined> {
    for (const server of servers) {
      const pdu = await this.#parts.remote.event(server, eventId).catch(() => undefined);
      if (!pdu || idOfPdu(pdu, room.version) !== eventId) continue;
      const [event] = await this.#check(room, [pdu]);
      if (event) return event;
    }
    return undefined;
  }

  async #check(room: Room, pdus: readonly Pdu[]): Promise<RoomEvent[]> {
    const checked = await checkIncoming(pdus, room.version, this.#parts.verifier);
    return checked.flatMap(({ event }) => (event?.roomId === room.roomId ? event : []));
  }

  async #unknown(room: Room, pdus: readonly Pdu[]): Promise<Pdu[]> {
    const byId = new Map<string, Pdu>();
    for (const [i, pdu] of pdus.entries()) {
      const id = idOfPdu(pdu, room.version);
      if (id !== undefined && !byId.has(id)) byId.set(id, pdu);
      // Others' requests get their turn between.
      if (i % IDS_A_TURN === IDS_A_TURN - 1) await new Promise(setImmediate);
    }
    const unknown = await this.unknownIds([...byId.keys()]);
    return unknown.map((id) => byId.get(id)!);
  }

  /** Those of the ids whose events are not here. */
  async unknownIds(ids: readonly string[]): Promise<string[]> {
    if (ids.length === 0) return [];
    const { events } = this.#parts.rooms.parts;
    const missing = ids.filter((id) => !events.cached(id));
    const known = missing.length > 0 ? await events.nidsOf(missing) : new Map<string, number>();
    return missing.filter((id) => !known.has(id));
  }
}
