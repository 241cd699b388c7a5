import type { Pdu, RoomEvent } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { readPdus, verifyIncoming } from './incoming-event.ts';
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
/** Batches being verified or stored while the next one is read. */
const AHEAD = 2;

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
  /** Under way, the last one last: each is stored after the one before. */
  readonly #storing: Array<Promise<void>> = [];
  /** What was not here when that was last seen. */
  readonly #absent: Set<string>;
  readonly #stored: (event: StoredEvent) => void;

  /**
   * @param absent what is known not to be here
   * @param stored told of each event once it is stored, of rejected ones too
   */
  constructor(
    parts: Pick<RemoteEventsParts, 'rooms' | 'verifier'>,
    room: Room,
    absent: Iterable<string> = [],
    stored: (event: StoredEvent) => void = () => {},
  ) {
    this.#parts = parts;
    this.#room = room;
    this.#absent = new Set(absent);
    this.#stored = stored;
  }

  async take(pdus: readonly Pdu[]): Promise<void> {
    const events = await this.#read(pdus);
    const needs = new Map([...events].map(([id, event]) => [id, dependencies(event, this.#room.version)]));
    await this.#lookUp(new Set([...events.keys(), ...[...needs.values()].flat()]));
    const ready: RoomEvent[] = [];
    for (const [id, event] of events) {
      if (this.#known.has(id)) continue;
      const isReady = needs.get(id)!.every((need) => this.#known.has(need) || events.has(need));
      if (isReady) {
        ready.push(event);
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
      for (let i = 0; i < ready.length; i += BATCH) await this.#admitAgain(ready.slice(i, i + BATCH));
    }
    await Promise.all(this.#storing);
    this.#absent.clear();
    // Loops and holes: storing them leaves out what nothing here authorises.
    await this.#admitAgain(this.#waiting.slice(0, BATCH));
    await Promise.all(this.#storing);
  }

  /** The events of the room, by id, that are not known. */
  async #read(pdus: readonly Pdu[]): Promise<Map<string, RoomEvent>> {
    const events = new Map<string, RoomEvent>();
    for (const { event } of await readPdus(pdus, this.#room.version))
      if (event?.roomId === this.#room.roomId && !this.#known.has(event.eventId))
        events.set(event.eventId, event);
    return events;
  }

  async #admitAgain(waiting: readonly Waiting[]): Promise<void> {
    const checked = await readPdus(
      waiting.map(({ json }) => decodeJson(json) as Pdu),
      this.#room.version,
    );
    await this.#admit(checked.flatMap(({ event }) => event ?? []));
  }

  /** Resolves when there is room for another batch. */
  async #admit(events: readonly RoomEvent[]): Promise<void> {
    if (events.length === 0) return;
    const storing = this.#checkAndStore(events, this.#storing.at(-1));
    // Whoever waits for it hears of it.
    storing.catch(() => {});
    this.#storing.push(storing);
    if (this.#storing.length > AHEAD) await this.#storing.shift();
  }

  async #checkAndStore(events: readonly RoomEvent[], before: Promise<void> | undefined): Promise<void> {
    const { rooms, verifier } = this.#parts;
    const checked = await verifyIncoming(
      events.map((event) => ({ eventId: event.eventId, event })),
      verifier,
    );
    const right = checked.flatMap(({ event, eventId }) => {
      // It may come again, and be right then.
      if (!event) this.#known.delete(eventId!);
      return event ?? [];
    });
    await before;
    const stored = await storeOutliers(rooms, this.#room, right, this.#absent);
    for (const { eventId } of right) this.#absent.delete(eventId);
    // Thousands of members would leave nothing else in the cache.
    for (const { type, eventId } of right) if (type === 'm.room.member') rooms.parts.events.forget(eventId);
    for (const event of stored.values()) this.#stored(event);
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
