import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { makeEvent } from '@trellis/protocol/make-event.ts';
import { checkIncoming } from './incoming-event.ts';
import { dependencies, storeOutliers } from './outliers.ts';
import type { RemoteEventsParts } from './remote-events.ts';
import type { Room } from './room.ts';

/** A PDU that comes before what authorises it. */
interface Waiting {
  readonly id: string;
  readonly needs: readonly string[];
  /** As JSON, which takes a fraction of the memory. */
  readonly json: string;
}

/** PDUs taken in at a time. */
const BATCH = 400;

/**
 * Takes in the PDUs of a state or an auth chain of any size as they come, as outliers: while the next ones are read,
 * signatures of a batch are verified, and the one before is stored. Those whose auth events are still to come wait for the end.
 */
export class PduIntake {
  readonly #parts: Pick<RemoteEventsParts, 'rooms' | 'verifier'>;
  readonly #room: Room;
  /** What is here, or about to be stored. */
  readonly #known = new Set<string>();
  #waiting: Waiting[] = [];
  #storing: Promise<unknown> = Promise.resolve();
  /** What was not here when that was last seen. */
  readonly #absent: Set<string>;

  /** @param absent what is known not to be here */
  constructor(
    parts: Pick<RemoteEventsParts, 'rooms' | 'verifier'>,
    room: Room,
    absent: Iterable<string> = [],
  ) {
    this.#parts = parts;
    this.#room = room;
    this.#absent = new Set(absent);
  }

  async take(pdus: readonly Pdu[]): Promise<void> {
    const events = new Map<string, RoomEvent>();
    for (const { unsigned: _unsigned, ...pdu } of pdus) {
      const event = viewOf(pdu, this.#room);
      if (event && !this.#known.has(event.eventId)) events.set(event.eventId, event);
    }
    const needs = new Map([...events].map(([id, event]) => [id, dependencies(event, this.#room.version)]));
    await this.#lookUp(new Set([...events.keys(), ...[...needs.values()].flat()]));
    const ready: Pdu[] = [];
    for (const [id, event] of events) {
      if (this.#known.has(id)) continue;
      const isReady = needs.get(id)!.every((need) => this.#known.has(need) || events.has(need));
      if (isReady) {
        ready.push(event.pdu);
        this.#known.add(id);
      } else this.#waiting.push({ id, needs: needs.get(id)!, json: JSON.stringify(event.pdu) });
    }
    await this.#admit(ready);
  }

  /** All has come: those that waited are taken in as far as they can be authorised now. */
  async finish(): Promise<void> {
    while (this.#waiting.length > 0) {
      const ready: Waiting[] = [];
      const rest: Waiting[] = [];
      const soon = new Set<string>();
      for (const each of this.#waiting) {
        const isReady = each.needs.every((id) => this.#known.has(id) || soon.has(id));
        (isReady ? ready : rest).push(each);
        if (isReady) soon.add(each.id);
      }
      if (ready.length === 0) break;
      this.#waiting = rest;
      for (const { id } of ready) this.#known.add(id);
      for (let i = 0; i < ready.length; i += BATCH)
        await this.#admit(ready.slice(i, i + BATCH).map(({ json }) => JSON.parse(json) as Pdu));
    }
    await this.#storing;
    this.#absent.clear();
    // Loops and holes: storing them leaves out what nothing here authorises.
    const left = this.#waiting.slice(0, BATCH).map(({ json }) => JSON.parse(json) as Pdu);
    if (left.length > 0) await this.#admit(left);
    await this.#storing;
  }

  async #admit(pdus: readonly Pdu[]): Promise<void> {
    if (pdus.length === 0) return;
    const before = this.#storing;
    this.#storing = this.#checkAndStore(pdus, before);
    // Whoever waits for it next hears of it.
    this.#storing.catch(() => {});
    await before;
  }

  async #checkAndStore(pdus: readonly Pdu[], before: Promise<unknown>): Promise<void> {
    const { rooms, verifier } = this.#parts;
    const checked = await checkIncoming(pdus, this.#room.version, verifier);
    const events = checked.flatMap(({ event, eventId }) => {
      if (event?.roomId === this.#room.roomId) return event;
      // It may come again, and be right then.
      if (eventId !== undefined) this.#known.delete(eventId);
      return [];
    });
    await before;
    await storeOutliers(rooms, this.#room, events, this.#absent);
    for (const { eventId } of events) this.#absent.delete(eventId);
    // Thousands of members would leave nothing else in the cache.
    for (const { type, eventId } of events) if (type === 'm.room.member') rooms.parts.events.forget(eventId);
  }

  async #lookUp(ids: ReadonlySet<string>): Promise<void> {
    const unknown = [...ids].filter((id) => !this.#known.has(id) && !this.#absent.has(id));
    if (unknown.length === 0) return;
    for (const id of unknown) this.#absent.add(id);
    for (const id of (await this.#parts.rooms.parts.events.nidsOf(unknown)).keys()) {
      this.#absent.delete(id);
      this.#known.add(id);
    }
  }
}

function viewOf(pdu: Pdu, { version, roomId }: Room): RoomEvent | undefined {
  try {
    const event = makeEvent(pdu, version);
    return typeof event.eventId === 'string' && event.roomId === roomId && Array.isArray(pdu.auth_events)
      ? event
      : undefined;
  } catch {
    return undefined;
  }
}
