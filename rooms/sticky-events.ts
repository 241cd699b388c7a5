import { setTimeout as delay } from 'node:timers/promises';
import type { JsonObject, RoomEvent } from '@trellis/protocol/event.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** MSC4354: no event is sticky for longer. */
export const MAX_STICKY_MS = 3_600_000;

/** Sticky events that a sync tells of in one room, and that are remembered for it; the newest of them. */
const MAX_IN_ROOM = 200;
/** Rooms with sticky events that are remembered. */
const MAX_ROOMS = 50_000;
const SWEEP_MS = 60_000;
const RETRY_MS = 1_000;

interface Entry {
  readonly eventId: string;
  readonly pos: number;
  readonly expiresTs: number;
}

/** When an event that came now ceases to be sticky; `undefined` when it is not. */
export function stickyUntil({ pdu, originServerTs }: RoomEvent, now = Date.now()): number | undefined {
  const { duration_ms: duration } = (pdu.msc4354_sticky ?? {}) as JsonObject;
  if (typeof duration !== 'number' || !(duration >= 0)) return undefined;
  const until = Math.min(now, originServerTs) + Math.min(duration, MAX_STICKY_MS);
  return until > now ? until : undefined;
}

/** What remembers a sticky event, in the transaction that stores it; nothing for any other. */
export function storeSticky(
  room: Room,
  event: RoomEvent,
  pos: number,
): ((tx: Queryable) => Promise<void>) | undefined {
  if (event.pdu.msc4354_sticky === undefined) return undefined;
  const until = stickyUntil(event);
  if (until === undefined) return undefined;
  return async (tx) => {
    await tx.query('INSERT INTO sticky_events VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING', [
      event.eventId,
      room.nid,
      pos,
      until,
    ]);
  };
}

/** The events that clients get whatever the limit of their timeline is (MSC4354), of all rooms, in memory. */
export class StickyEvents {
  readonly #db: Database;
  readonly #rooms: Rooms;
  readonly #sticky = new Map<string, Entry[]>();
  #timer: NodeJS.Timeout | undefined;
  #reading: Promise<void> | undefined;

  constructor(db: Database, rooms: Rooms) {
    this.#db = db;
    this.#rooms = rooms;
    rooms.parts.stream.subscribe(
      (pos, { roomId, event, outOfBand }) => {
        if (outOfBand || event.stickyMs === undefined) return;
        const expiresTs = stickyUntil(event);
        if (expiresTs !== undefined) this.#remember(roomId, { eventId: event.eventId, pos, expiresTs });
      },
      () => this.#readAgain(),
    );
  }

  async start(): Promise<void> {
    await this.#read();
    this.#timer = setInterval(() => this.sweep().catch(() => {}), SWEEP_MS).unref();
  }

  /** After a gap, until it succeeds: who asks meanwhile waits. */
  #readAgain(): void {
    const reading = (async () => {
      for (;;)
        try {
          return await this.#read();
        } catch {
          await delay(RETRY_MS, undefined, { ref: false });
        }
    })();
    this.#reading = reading;
    void reading.then(() => {
      if (this.#reading === reading) this.#reading = undefined;
    });
  }

  async #read(): Promise<void> {
    const rows = await this.#db.query<Entry & { roomId: string }>(
      `SELECT r.room_id AS "roomId", s.event_id AS "eventId", s.pos, s.expires_ts AS "expiresTs"
       FROM sticky_events s JOIN rooms r ON r.nid = s.room WHERE s.expires_ts > $1 ORDER BY s.pos DESC LIMIT $2`,
      [Date.now(), MAX_ROOMS],
    );
    for (const { roomId, ...entry } of rows.reverse()) this.#remember(roomId, entry);
  }

  close(): void {
    clearInterval(this.#timer);
  }

  has(roomId: string): boolean {
    return this.#reading !== undefined || this.#sticky.has(roomId);
  }

  /** Events of the room that came in (from, to] and are still sticky, oldest first; redacted ones are not. */
  async between(roomId: string, from: number | undefined, to: number): Promise<StoredEvent[]> {
    await this.#reading;
    const entries = this.#sticky.get(roomId);
    if (!entries) return [];
    const now = Date.now();
    const wanted = entries.filter(
      ({ pos, expiresTs }) => expiresTs > now && pos <= to && (from === undefined || pos > from),
    );
    if (wanted.length === 0) return [];
    const events = await this.#rooms.parts.events.getMany(wanted.map(({ eventId }) => eventId));
    return wanted.flatMap(({ eventId }) => {
      const event = events.get(eventId);
      return event?.status === 'accepted' && !event.redactedBy ? [event] : [];
    });
  }

  /** Forgets what is no longer sticky. */
  async sweep(): Promise<void> {
    const now = Date.now();
    for (const [roomId, entries] of this.#sticky) {
      const left = entries.filter(({ expiresTs }) => expiresTs > now);
      if (left.length === 0) this.#sticky.delete(roomId);
      else if (left.length < entries.length) this.#sticky.set(roomId, left);
    }
    if (this.#rooms.parts.cluster.owns('task', 'sticky-events'))
      await this.#db.query('DELETE FROM sticky_events WHERE expires_ts <= $1', [now]);
  }

  #remember(roomId: string, entry: Entry): void {
    const entries = this.#sticky.get(roomId);
    if (entries) {
      // What is read again is mostly known.
      const after = entries.findLastIndex(({ pos }) => pos <= entry.pos);
      if (entries[after]?.eventId === entry.eventId) return;
      entries.splice(after + 1, 0, entry);
      if (entries.length > MAX_IN_ROOM) entries.shift();
      return;
    }
    this.#sticky.set(roomId, [entry]);
    if (this.#sticky.size > MAX_ROOMS) this.#sticky.delete(this.#sticky.keys().next().value!);
  }
}
