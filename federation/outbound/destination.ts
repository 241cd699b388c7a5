import type { EventStore } from '@trellis/storage/events.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { Backlog } from './backlog.ts';
import type { BacklogRow, DeliveryStore } from './delivery-store.ts';
import { DeviceBacklog, type DeviceUpdates } from './device-backlog.ts';
import { type Edu, EphemeralEdus } from './ephemeral-edus.ts';

/** Spec: "Transactions". */
const MAX_PDUS = 50;
const MAX_EDUS = 100;
/** Of a transaction's PDUs together, and of its EDUs; one alone may be larger. */
const MAX_BYTES = 1024 * 1024;
/** Events held in memory for one destination; beyond, positions are held. */
const MAX_LIVE = 500;
const MAX_LIVE_BYTES = 2 * 1024 * 1024;

/** What is refused that often all by itself is left out. */
const TRIES_ALONE = 3;

/** What a destination needs to make transactions of its positions. */
export interface DeliveryParts {
  readonly store: DeliveryStore;
  readonly events: EventStore;
  readonly devices: DeviceUpdates;
  /** Whether a local user shares a room with a server. */
  readonly sharesRoom: (userId: string, server: string) => Promise<boolean>;
  /** Everything up to here is in the database. */
  readonly newest: () => number;
}

interface LiveEvent {
  readonly pos: number;
  readonly roomId: string;
  readonly event: StoredEvent;
  /** The destination left the room with it. */
  readonly isLast: boolean;
}

export interface OutgoingTransaction {
  readonly pdus: readonly StoredEvent[];
  readonly edus: readonly Edu[];
  /** To be called once the other side has taken it. */
  delivered(): Promise<void>;
}

/**
 * What one server is to get, and the transactions made of it.
 *
 * As long as the server keeps up, events for it wait in memory (`live`). When it does not answer, or there are too
 * many, only positions are kept (`backlog`) and the events are read when their turn comes. `live` is in use while
 * `backlog` is empty: what is in the backlog is older.
 */
export class Destination {
  readonly name: string;
  readonly ephemeral = new EphemeralEdus();
  readonly backlog: Backlog;
  devices: DeviceBacklog | undefined;
  /** There are rows in `federation_edus`. */
  hasStoredEdus = false;
  /** PDUs in a transaction: fewer after the other side refused one. */
  maxPdus = MAX_PDUS;
  /** Transactions refused in a row. */
  refusals = 0;
  /** Not to be tried before. */
  notBefore = 0;
  delivering = false;
  /** Another process delivers to it from now on. */
  isStopped = false;
  /** Breaks off what is in flight. */
  readonly stopping = new AbortController();
  timer: NodeJS.Timeout | undefined;
  /** What got no answer: sent again as it was (spec: `/send`), once. */
  unanswered: { readonly id: string; readonly transaction: OutgoingTransaction } | undefined;
  /** When it last got something, or when it first was to. */
  progressAt = Date.now();
  readonly #parts: DeliveryParts;
  #live: LiveEvent[] = [];
  #liveBytes = 0;

  constructor(name: string, parts: DeliveryParts) {
    this.name = name;
    this.#parts = parts;
    this.backlog = new Backlog(name);
  }

  /** There may be something to send. */
  get hasWork(): boolean {
    return this.#hasDurable || !this.ephemeral.isEmpty;
  }

  /** Nothing under way, nothing to send, and nothing to write down: may be forgotten. */
  get isIdle(): boolean {
    const isBusy = this.delivering || this.timer !== undefined || this.unanswered !== undefined;
    return !isBusy && !this.hasWork && !this.backlog.hasChanges && this.devices?.stored === undefined;
  }

  get #hasDurable(): boolean {
    return (
      this.#live.length > 0 ||
      !this.backlog.isEmpty ||
      this.hasStoredEdus ||
      (this.devices !== undefined && !this.devices.isEmpty)
    );
  }

  /** Position of the oldest event that is known in memory only. */
  get oldestLive(): number | undefined {
    return this.#live[0]?.pos;
  }

  add(event: StoredEvent, pos: number, roomId: string, isLast: boolean): void {
    if (this.backlog.isEmpty) {
      if (this.#live.length === 0) this.progressAt = Date.now();
      this.#live.push({ event, pos, roomId, isLast });
      this.#liveBytes += event.json.length;
      if (this.#live.length > MAX_LIVE || this.#liveBytes > MAX_LIVE_BYTES) this.fallBehind();
    } else {
      this.addPosition(roomId, pos, isLast);
    }
  }

  addPosition(roomId: string, pos: number, isLast: boolean): void {
    this.fallBehind();
    this.backlog.add(roomId, pos);
    if (isLast) this.backlog.close(roomId, pos);
  }

  restore(row: BacklogRow): void {
    this.backlog.restore(row, this.#parts.newest());
  }

  /** The destination is no longer in a room, by an event that was not for it. */
  leftRoom(roomId: string, pos: number): void {
    this.backlog.close(roomId, pos);
  }

  addDevice(userId: string, pos: number): void {
    this.devices ??= new DeviceBacklog(pos - 1, pos, 'none');
    this.devices.add(userId, pos);
  }

  taken(): void {
    this.refusals = 0;
    this.notBefore = 0;
    this.maxPdus = Math.min(MAX_PDUS, this.maxPdus * 2);
  }

  /**
   * The other side refused a transaction that it understood: the next is smaller, so that one bad event does not
   * keep the others. `out`: what was refused stood alone, and was refused often enough to be left out.
   */
  refused(count: number): 'smaller' | 'again' | 'out' {
    if (count > 1 && this.maxPdus > 1) {
      this.maxPdus = Math.max(1, this.maxPdus >> 2);
      return 'smaller';
    }
    return ++this.refusals >= TRIES_ALONE ? 'out' : 'again';
  }

  /** From here on only positions are kept. */
  fallBehind(): void {
    const live = this.#takeLive(this.#live.length);
    for (const { roomId, pos, isLast } of live) {
      this.backlog.add(roomId, pos);
      if (isLast) this.backlog.close(roomId, pos);
    }
  }

  /** The next transaction; `undefined` when there is nothing. */
  async next(): Promise<OutgoingTransaction | undefined> {
    for (;;) {
      const transaction = await this.#assemble();
      if (transaction.pdus.length > 0 || transaction.edus.length > 0) return transaction;
      // There may have been positions behind which nothing was after all.
      if (!this.#hasDurable) return undefined;
      await transaction.delivered();
    }
  }

  async #assemble(): Promise<OutgoingTransaction> {
    const pdus = this.backlog.isEmpty ? this.#nextLive() : await this.#nextLacking();
    const done: Array<() => Promise<void> | void> = [pdus.delivered];
    const edus: Edu[] = [];
    const limit = this.#maxEdus(pdus.events.length);
    if (this.hasStoredEdus && limit > 0) done.push(await this.#takeStoredEdus(edus, Math.ceil(limit / 2)));
    if (this.devices && !this.devices.isEmpty && edus.length < limit) {
      const { devices, sharesRoom } = this.#parts;
      const concerns = (userId: string) => sharesRoom(userId, this.name);
      const batch = await this.devices.next(devices, this.name, concerns, limit - edus.length);
      edus.push(...batch.edus);
      done.push(batch.delivered);
    }
    edus.push(...this.ephemeral.take(limit - edus.length));
    return {
      pdus: pdus.events,
      edus,
      delivered: async () => {
        this.progressAt = Date.now();
        for (const task of done) await task();
      },
    };
  }

  /** While it is tried out what the other side refuses, things go one by one. */
  #maxEdus(pdus: number): number {
    if (this.maxPdus >= MAX_PDUS) return MAX_EDUS;
    return this.maxPdus === 1 && pdus > 0 ? 0 : this.maxPdus;
  }

  #nextLive() {
    const count = countWithin(
      this.#live.slice(0, this.maxPdus).map(({ event }) => event.json.length),
      MAX_BYTES,
    );
    const taken = this.#live.slice(0, count);
    return {
      events: taken.map(({ event }) => event),
      delivered: () => {
        // Unless it fell behind meanwhile, these are still the first.
        if (this.#live[0] && this.#live[0] === taken[0]) this.#takeLive(taken.length);
        else for (const { roomId, pos } of taken) this.backlog.delivered(roomId, pos);
      },
    };
  }

  async #nextLacking() {
    const { store, events, newest } = this.#parts;
    const rooms = this.backlog.next().map((room) => ({ ...room, to: Math.min(room.to, newest()) }));
    const found = await store.lackingEvents(this.name, rooms, this.maxPdus);
    const byNid = new Map(
      (await events.byNids(found.map(({ nid }) => nid))).map((event) => [event.nid, event]),
    );
    const sizes = found.map(({ nid }) => byNid.get(nid)?.json.length ?? 0);
    const count = found.length === 0 ? 0 : countWithin(sizes, MAX_BYTES);
    const taken = found.slice(0, count);
    const complete = count === found.length && found.length < this.maxPdus;
    return {
      events: taken.flatMap(({ nid }) => byNid.get(nid) ?? []),
      delivered: () => {
        for (const { roomId, pos } of taken) this.backlog.delivered(roomId, pos);
        if (complete) for (const { roomId, to } of rooms) this.backlog.delivered(roomId, to);
      },
    };
  }

  async #takeStoredEdus(edus: Edu[], limit: number): Promise<() => Promise<void>> {
    const { store } = this.#parts;
    // Whoever adds more sets it again.
    this.hasStoredEdus = false;
    const rows = await store.edus(this.name, limit);
    const count = countWithin(
      rows.map(({ content }) => JSON.stringify(content).length),
      MAX_BYTES,
    );
    const taken = rows.slice(0, count);
    if (rows.length > 0) this.hasStoredEdus = true;
    for (const { type, content } of taken) edus.push({ edu_type: type, content });
    return async () => {
      if (taken.length === 0) return;
      await store.removeEdus(taken.map(({ id }) => id));
    };
  }

  #takeLive(count: number): LiveEvent[] {
    const taken = this.#live.splice(0, count);
    for (const { event } of taken) this.#liveBytes -= event.json.length;
    return taken;
  }
}

/** How many of the sizes, at least one, are together within a limit. */
function countWithin(sizes: readonly number[], limit: number): number {
  let sum = 0;
  let count = 0;
  for (const size of sizes) {
    sum += size;
    if (sum > limit && count > 0) break;
    count++;
  }
  return count;
}
