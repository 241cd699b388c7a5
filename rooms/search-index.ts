import type { Database, Queryable } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { topicOf } from './room-summary.ts';
import type { Rooms } from './rooms.ts';
import { wordsOf } from './search-words.ts';

/** Keys that can be searched (spec: "Search Categories"). */
export const SEARCH_KINDS = { 'content.body': 0, 'content.name': 1, 'content.topic': 2 } as const;
export type SearchKey = keyof typeof SEARCH_KINDS;

export interface SearchQuery {
  readonly rooms: readonly number[];
  readonly words: readonly string[];
  readonly keys: readonly SearchKey[];
  readonly order: 'recent' | 'rank';
  /** For `recent`: only before this position. */
  readonly before: number;
  /** For `rank`: results passed over. */
  readonly offset: number;
  readonly limit: number;
  readonly senders?: readonly string[];
  readonly notSenders?: readonly string[];
}

export interface SearchHit {
  readonly eventId: string;
  readonly pos: number;
  readonly rank: number;
}

/** Events read and stored at a time. */
const BATCH = 500;
/** Hits that are counted. */
const MAX_COUNT = 10_000;
const TYPES = ['m.room.message', 'm.room.name', 'm.room.topic'];

interface Reach {
  oldest: number;
  newest: number;
  complete: boolean;
}

/**
 * The words of messages, room names and topics. A room is indexed when somebody first searches it, from its newest
 * event back, and from then on whenever it is searched again: sending costs nothing. Where two processes are at the same
 * room, each says how far it has come: both are true, and what was indexed twice is stored once.
 */
export class SearchIndex {
  readonly #db: Database;
  readonly #history: Queryable;
  readonly #rooms: Rooms;
  readonly #running = new Map<number, Promise<void>>();

  /** @param history where searches read */
  constructor(db: Database, rooms: Rooms, history: Queryable = db) {
    this.#db = db;
    this.#history = history;
    this.#rooms = rooms;
  }

  /** Brings the rooms' index up to date, as far as that goes until `deadline`; later searches go on with it. */
  async update(roomNids: readonly number[], deadline: number): Promise<void> {
    for (const nid of roomNids) {
      if (Date.now() > deadline) return;
      let running = this.#running.get(nid);
      if (!running) {
        running = this.#updateRoom(nid, deadline).finally(() => this.#running.delete(nid));
        this.#running.set(nid, running);
      }
      await running;
    }
  }

  /** Rooms among these whose newest event the index does not reach: most have nothing new. */
  async stale(roomNids: readonly number[]): Promise<number[]> {
    const rows = await this.#db.query<{ nid: number }>(
      {
        name: 'search-stale',
        text: `SELECT r.nid FROM unnest($1::bigint[]) AS r(nid) LEFT JOIN search_rooms s ON s.room = r.nid
               WHERE s.room IS NULL OR NOT s.complete OR EXISTS (
                 SELECT FROM events e WHERE e.room = r.nid AND e.pos > s.newest)`,
      },
      [roomNids],
    );
    return rows.map(({ nid }) => nid);
  }

  /** History came in before what was there: the room is gone through once more when it is searched next. */
  async backfilled(roomNid: number): Promise<void> {
    await this.#db.query('DELETE FROM search_rooms WHERE room = $1', [roomNid]);
  }

  async search(query: SearchQuery): Promise<{ hits: SearchHit[]; count: number }> {
    const params = [
      query.words,
      query.rooms.map(roomWord),
      query.keys.map((key) => SEARCH_KINDS[key]),
      query.senders ?? null,
      query.notSenders ?? [],
    ];
    const matching = `FROM search_words s JOIN events e ON e.nid = s.event
      WHERE s.words @> $1::text[] AND s.words && $2::text[] AND s.kind = ANY($3::smallint[])
        AND ($4::text[] IS NULL OR e.sender = ANY($4)) AND e.sender <> ALL($5::text[])
        AND e.status = 0 AND e.redacted_by IS NULL`;
    // The more of the text is what was searched for, the better it matches.
    const rank = `cardinality($1::text[])::float / (cardinality($1::text[]) + ln(1 + s.length))`;
    const page =
      query.order === 'recent'
        ? `AND s.pos < $6 ORDER BY s.pos DESC LIMIT $7`
        : `AND s.pos < $6 ORDER BY rank DESC, s.pos DESC LIMIT $7 OFFSET ${Math.trunc(query.offset)}`;
    const [hits, [count]] = await Promise.all([
      this.#history.query<SearchHit>(
        `SELECT e.event_id AS "eventId", s.pos, ${rank} AS rank ${matching} ${page}`,
        [...params, Math.min(query.before, Number.MAX_SAFE_INTEGER), query.limit],
      ),
      this.#history.query<{ count: number }>(
        `SELECT count(*)::int AS count FROM (SELECT 1 ${matching} LIMIT ${MAX_COUNT}) AS found`,
        params,
      ),
    ]);
    return { hits, count: count?.count ?? 0 };
  }

  async #updateRoom(roomNid: number, deadline: number): Promise<void> {
    const [row] = await this.#db.query<Reach>(
      'SELECT oldest, newest, complete FROM search_rooms WHERE room = $1',
      [roomNid],
    );
    let reach = row;
    if (reach) {
      for (let more = true; more && Date.now() <= deadline; ) {
        const events = await this.#next(roomNid, { after: reach.newest, direction: 'forward' });
        more = events.length === BATCH;
        if (events.length > 0)
          reach = await this.#store(roomNid, { ...reach, newest: events.at(-1)!.pos! }, events);
      }
    }
    while (!reach?.complete && Date.now() <= deadline) {
      const events: StoredEvent[] = await this.#next(roomNid, {
        before: reach?.oldest,
        direction: 'backward',
      });
      const oldest = events.at(-1)?.pos ?? reach?.oldest ?? 0;
      const newest = reach?.newest ?? events[0]?.pos ?? 0;
      reach = await this.#store(roomNid, { oldest, newest, complete: events.length < BATCH }, events);
    }
  }

  #next(
    roomNid: number,
    range: { after?: number; before?: number; direction: 'forward' | 'backward' },
  ): Promise<StoredEvent[]> {
    return this.#rooms.parts.events.timeline(roomNid, { ...range, limit: BATCH, history: true });
  }

  async #store(roomNid: number, reach: Reach, events: readonly StoredEvent[]): Promise<Reach> {
    const rows = events.flatMap((event) => rowOf(roomNid, event) ?? []);
    await this.#db.transaction(async (tx) => {
      if (rows.length > 0)
        await tx.query(
          {
            name: 'search-insert',
            text: `INSERT INTO search_words (event, room, pos, kind, length, words)
                   SELECT event, $1, pos, kind, length, string_to_array(words, ' ')
                   FROM unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::int[], $6::text[])
                     AS n(event, pos, kind, length, words)
                   ON CONFLICT DO NOTHING`,
          },
          [
            roomNid,
            rows.map((row) => row.nid),
            rows.map((row) => row.pos),
            rows.map((row) => row.kind),
            rows.map((row) => row.length),
            rows.map((row) => row.words.join(' ')),
          ],
        );
      await tx.query(
        {
          name: 'search-reach',
          text: `INSERT INTO search_rooms (room, oldest, newest, complete) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (room) DO UPDATE SET oldest = EXCLUDED.oldest, newest = EXCLUDED.newest,
                   complete = EXCLUDED.complete`,
        },
        [roomNid, reach.oldest, reach.newest, reach.complete],
      );
    });
    return reach;
  }
}

/** Names a room among the words: no word has this character. */
function roomWord(roomNid: number): string {
  return `!${roomNid}`;
}

function rowOf(roomNid: number, event: StoredEvent) {
  if (!TYPES.includes(event.type) || event.redactedBy || event.pos === undefined) return undefined;
  const [key, text] = textOf(event) ?? [];
  if (key === undefined || typeof text !== 'string') return undefined;
  const words = wordsOf(text);
  if (words.length === 0) return undefined;
  return {
    nid: event.nid,
    pos: event.pos,
    kind: SEARCH_KINDS[key],
    length: words.length,
    words: [...new Set(words), roomWord(roomNid)],
  };
}

function textOf({ type, content, stateKey }: StoredEvent): [SearchKey, unknown] | undefined {
  if (type === 'm.room.message') return ['content.body', content.body];
  if (stateKey !== '') return undefined;
  if (type === 'm.room.name') return ['content.name', content.name];
  return [
    'content.topic',
    [...new Set([topicOf(content), content.topic])].filter((t) => typeof t === 'string').join('\n'),
  ];
}
