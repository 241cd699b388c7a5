import type { Pdu } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { viewOf } from '@trellis/protocol/make-event.ts';
import { roomVersion } from '@trellis/protocol/room-versions.ts';
import { LRUCache } from 'lru-cache';
import { textArray } from './binary-arrays.ts';
import type { Queryable } from './database.ts';
import { type EventStatus, type ReplacedState, StoredEvent } from './stored-event.ts';

export const STATUS_CODES = { accepted: 0, 'soft-failed': 1, rejected: 2 } as const;
const STATUSES = Object.keys(STATUS_CODES) as EventStatus[];

interface EventRow {
  nid: number;
  event_id: string;
  room_id: string;
  version: string;
  pos: number | null;
  backfilled: boolean;
  status: number;
  state_before: number | null;
  room_state_before: number | null;
  replaces: string | null;
  replaced_json: string | null;
  redacted_by: string | null;
  txn_device: string | null;
  txn_id: string | null;
  json: string;
}

const COLUMNS = `e.nid, e.event_id, r.room_id, r.version, e.pos, e.backfilled, e.status, e.state_before,
  e.room_state_before, e.replaces, e.redacted_by, e.txn_device, e.txn_id, e.json, p.json AS replaced_json`;
const JOINED = 'JOIN rooms r ON r.nid = e.room LEFT JOIN events p ON p.event_id = e.replaces';
const FROM = `events e ${JOINED}`;
// Lists are joined, each item once. With `= ANY`, a plan that was made while there were few events would compare each
// event with each item of the longest list for as long as the connection lasts.
const OF_IDS = '(SELECT DISTINCT id FROM unnest($1::text[]) AS u(id)) AS w';
const OF_NIDS = '(SELECT DISTINCT nid FROM unnest($1::bigint[]) AS u(nid)) AS w';

/** Which part of a room's order to read. Positions are exclusive at `after` and `before`. */
export interface TimelineRange {
  readonly after?: number;
  readonly before?: number;
  /** `backward`: newest first. */
  readonly direction: 'forward' | 'backward';
  readonly limit: number;
  /** A long look back, that a replica may serve. */
  readonly history?: boolean;
}

/** In the place of an event's id: any may have changed. */
const ALL = '';

/** Events by id and by place, through a cache that is bounded by the size of their JSON. */
export class EventStore {
  readonly #db: Queryable;
  readonly #history: Queryable;
  readonly #cache: LRUCache<string, StoredEvent>;
  /** For each query under way: events that have changed meanwhile, so that what it reads of them may be old. */
  readonly #outdated = new Set<Set<string>>();

  /**
   * @param cacheBytes about how much memory cached events may take
   * @param history where long looks back are read
   */
  constructor(db: Queryable, cacheBytes = 64 * 1024 * 1024, history = db) {
    this.#db = db;
    this.#history = history;
    this.#cache = new LRUCache({
      maxSize: cacheBytes,
      sizeCalculation: (event) => 2 * event.json.length + 1024,
    });
  }

  cached(eventId: string): StoredEvent | undefined {
    return this.#cache.get(eventId);
  }

  remember(event: StoredEvent): void {
    this.#cache.set(event.eventId, event);
  }

  forget(eventId: string): void {
    this.#cache.delete(eventId);
    this.outdated(eventId);
  }

  /** The event is another in the database now: who is reading it reads it again. */
  outdated(eventId: string): void {
    for (const changed of this.#outdated) changed.add(eventId);
  }

  /** Another process has stored an event in its place; `cache` when somebody is likely to ask for it. */
  told(event: StoredEvent, cache: boolean): void {
    const { eventId } = event;
    const known = this.#cache.peek(eventId);
    if (known?.pos !== undefined) return;
    if (cache || known) this.#cache.set(eventId, event);
    this.outdated(eventId);
  }

  /** Forgets all events but those that `keep` names. */
  clear(keep: (event: StoredEvent) => boolean): void {
    for (const [eventId, event] of [...this.#cache.entries()]) if (!keep(event)) this.forget(eventId);
    for (const changed of this.#outdated) changed.add(ALL);
  }

  async get(eventId: string): Promise<StoredEvent | undefined> {
    return this.#cache.get(eventId) ?? (await this.getMany([eventId])).get(eventId);
  }

  /** Those of the events that are known here, rejected ones and outliers too. */
  async getMany(eventIds: Iterable<string>): Promise<Map<string, StoredEvent>> {
    const found = new Map<string, StoredEvent>();
    const missing: string[] = [];
    for (const id of new Set(eventIds)) {
      const event = this.#cache.get(id);
      if (event) found.set(id, event);
      else missing.push(id);
    }
    if (missing.length > 0) {
      const events = await this.#select(
        {
          name: 'events-by-id',
          text: `SELECT ${COLUMNS} FROM ${OF_IDS} JOIN events e ON e.event_id = w.id ${JOINED}`,
        },
        [missing],
      );
      for (const event of events) found.set(event.eventId, event);
    }
    return found;
  }

  /** Ids and nids of those events that are known here, without reading them. */
  async nidsOf(eventIds: readonly string[]): Promise<Map<string, number>> {
    const rows = await this.#db.query<{ event_id: string; nid: number }>(
      { name: 'event-nids', text: `SELECT event_id, nid FROM ${OF_IDS} JOIN events e ON e.event_id = w.id` },
      [textArray(eventIds)],
    );
    return new Map(rows.map((row) => [row.event_id, row.nid]));
  }

  /** Events by numeric id, in no order. */
  async byNids(nids: readonly number[]): Promise<StoredEvent[]> {
    return this.#select(
      {
        name: 'events-by-nid',
        text: `SELECT ${COLUMNS} FROM ${OF_NIDS} JOIN events e ON e.nid = w.nid ${JOINED}`,
      },
      [nids],
    );
  }

  /** Event ids by numeric id, in no order. */
  async idsOf(nids: readonly number[]): Promise<string[]> {
    const rows = await this.#db.query<{ event_id: string }>(
      { name: 'events-ids', text: `SELECT event_id FROM ${OF_NIDS} JOIN events e ON e.nid = w.nid` },
      [nids],
    );
    return rows.map((row) => row.event_id);
  }

  /**
   * The PDUs of events as JSON text, in no order and past the cache: for answers that hold a room's whole state, which
   * would push everything else out of it.
   */
  async jsonByNids(nids: readonly number[]): Promise<string[]> {
    const rows = await this.#db.query<{ json: string }>(
      { name: 'events-json', text: `SELECT json FROM ${OF_NIDS} JOIN events e ON e.nid = w.nid` },
      [nids],
    );
    return rows.map(({ json }) => json);
  }

  /** The PDUs of events as JSON text by event id, past the cache, as `jsonByNids`. */
  async jsonByIds(eventIds: readonly string[]): Promise<string[]> {
    if (eventIds.length === 0) return [];
    const rows = await this.#db.query<{ json: string }>(
      { name: 'events-json-by-id', text: `SELECT json FROM ${OF_IDS} JOIN events e ON e.event_id = w.id` },
      [textArray(eventIds)],
    );
    return rows.map(({ json }) => json);
  }

  /** The accepted events of a room's order within a range. Soft-failed and rejected ones are not shown to clients. */
  async timeline(roomNid: number, range: TimelineRange): Promise<StoredEvent[]> {
    const forward = range.direction === 'forward';
    return this.#select(
      {
        name: `timeline-${range.direction}`,
        text: `SELECT ${COLUMNS} FROM ${FROM}
               WHERE e.room = $1 AND e.pos > $2 AND e.pos < $3 AND e.status = 0
               ORDER BY e.pos ${forward ? 'ASC' : 'DESC'} LIMIT $4`,
      },
      [
        roomNid,
        // Infinities, which are no integers to the database, mean the same as nothing.
        Math.max(range.after ?? Number.MIN_SAFE_INTEGER, Number.MIN_SAFE_INTEGER),
        Math.min(range.before ?? Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
        range.limit,
      ],
      range.history ? this.#history : this.#db,
    );
  }

  /** Accepted news of all rooms after a position, oldest first: for readers that catch up with the stream of events. */
  async newsAfter(pos: number, upTo: number, limit: number): Promise<StoredEvent[]> {
    return this.#select(
      {
        name: 'events-news',
        text: `SELECT ${COLUMNS} FROM ${FROM} WHERE e.pos > $1 AND e.pos <= $2 AND NOT e.backfilled AND e.status = 0
               ORDER BY e.pos LIMIT $3`,
      },
      [pos, upTo, limit],
    );
  }

  async #select(
    query: { name: string; text: string },
    params: unknown[],
    db = this.#db,
  ): Promise<StoredEvent[]> {
    const outdated = new Set<string>();
    this.#outdated.add(outdated);
    try {
      return await this.#read(await db.query<EventRow>(query, params), outdated);
    } finally {
      this.#outdated.delete(outdated);
    }
  }

  async #read(rows: EventRow[], outdated: ReadonlySet<string>): Promise<StoredEvent[]> {
    const redactions = rows.map((row) => row.redacted_by).filter((id) => id !== null);
    const redactedBy = redactions.length > 0 ? await this.getMany(redactions) : undefined;
    const again: string[] = [];
    const found = rows.map((row) => {
      const cached = this.#cache.get(row.event_id);
      // The cache is the newer of the two: an outlier may have been given its place since the query began.
      if (cached && (cached.pos !== undefined || row.pos === null)) return cached;
      const event = readRow(row, redactedBy?.get(row.redacted_by ?? ''));
      if (outdated.has(row.event_id) || outdated.has(ALL)) again.push(row.event_id);
      else this.#cache.set(event.eventId, event);
      return event;
    });
    if (again.length === 0) return found;
    const newer = await this.getMany(again);
    return found.map((event) => newer.get(event.eventId) ?? event);
  }
}

function readRow(row: EventRow, redactedBy: StoredEvent | undefined): StoredEvent {
  const version = roomVersion(row.version);
  if (!version) throw new Error(`room ${row.room_id} has the unknown version ${row.version}`);
  const pdu = decodeJson(row.json) as Pdu;
  return new StoredEvent(
    viewOf(pdu, row.event_id, version),
    {
      nid: row.nid,
      pos: row.pos ?? undefined,
      status: STATUSES[row.status]!,
      stateBefore: row.state_before ?? undefined,
      roomStateBefore: row.room_state_before ?? undefined,
      backfilled: row.backfilled,
    },
    {
      json: row.json,
      replaces: readReplaced(row),
      transaction:
        row.txn_id !== null && row.txn_device !== null
          ? { deviceId: row.txn_device, txnId: row.txn_id }
          : undefined,
      redactedBy,
    },
  );
}

function readReplaced(row: EventRow): ReplacedState | undefined {
  if (row.replaces === null || row.replaced_json === null) return undefined;
  const pdu = decodeJson(row.replaced_json) as { sender: string; content: ReplacedState['content'] };
  return { eventId: row.replaces, sender: pdu.sender, content: pdu.content };
}
