import type { Queryable } from '@trellis/storage/database.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import { REDACTION } from './append.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';

/** Events that a parent's `m.reference` aggregation names at the most. */
const MAX_REFERENCES = 200;
/** Relationships followed from child to child (spec: `recurse`, at least 3). */
export const RECURSION_DEPTH = 3;

export interface ThreadSummary {
  readonly latest: string;
  readonly count: number;
  readonly participated: boolean;
}

/** What relates to an event, as far as the server sums it up (spec: "Aggregations of child events"). */
export interface Aggregation {
  thread?: ThreadSummary;
  /** Id of the newest valid edit. */
  replacement?: string;
  references?: string[];
}

export interface ChildQuery {
  readonly relType: string | undefined;
  readonly eventType: string | undefined;
  readonly recurse: boolean;
  readonly direction: 'forward' | 'backward';
  /** Positions, exclusive. */
  readonly after: number;
  readonly before: number;
  readonly limit: number;
}

/** Relationships between events, read from the table that the event writer keeps. */
export class Relations {
  readonly #db: Queryable;
  readonly #history: Queryable;
  readonly #rooms: Rooms;

  /** @param history where lists of what relates to an event, and of threads, are read */
  constructor(db: Queryable, rooms: Rooms, history = db) {
    this.#db = db;
    this.#history = history;
    this.#rooms = rooms;
  }

  /**
   * Sums up what relates to events of one room, leaving out what ignored users sent and what came after position
   * `end`.
   */
  async aggregate(
    room: Room,
    events: readonly StoredEvent[],
    viewer: { readonly userId: string; readonly ignored: ReadonlySet<string>; readonly end: number },
  ): Promise<Map<string, Aggregation>> {
    // State events receive no aggregations (spec, same section).
    const parents = events.filter((event) => event.stateKey === undefined && event.hasRelations !== false);
    const found = new Map<string, Aggregation>();
    if (parents.length === 0) return found;
    const ids = parents.map((event) => event.eventId);
    const related = await this.#relatedTypes(room, ids);
    for (const parent of parents) {
      // Only when nobody has: an event may be related to while this looks.
      if (!related.has(parent.eventId)) parent.hasRelations ??= false;
    }
    const having = (relType: string) =>
      parents.filter((event) => related.get(event.eventId)?.includes(relType));
    const of = (eventId: string) => {
      const aggregation = found.get(eventId) ?? {};
      found.set(eventId, aggregation);
      return aggregation;
    };
    const end = Math.min(viewer.end, Number.MAX_SAFE_INTEGER);
    const scope: Scope = [room.nid, end, [...viewer.ignored]];
    const [threads, edits, references] = await Promise.all([
      this.#threads(scope, viewer.userId, having('m.thread')),
      this.#edits(scope, having('m.replace')),
      this.#references(scope, having('m.reference')),
    ]);
    for (const [id, thread] of threads) of(id).thread = thread;
    for (const [id, edit] of edits) of(id).replacement = edit;
    for (const [id, children] of references) of(id).references = children;
    return found;
  }

  async #relatedTypes(room: Room, targets: string[]): Promise<Map<string, string[]>> {
    const rows = await this.#db.query<{ target: string; types: string[] }>(
      {
        name: 'relations-types',
        text: `SELECT target, array_agg(DISTINCT rel_type) AS types FROM relations
               WHERE room = $1 AND target = ANY($2::text[]) AND rel_type <> $3 GROUP BY target`,
      },
      [room.nid, targets, REDACTION],
    );
    return new Map(rows.map((row) => [row.target, row.types]));
  }

  async #threads(scope: Scope, userId: string, roots: StoredEvent[]): Promise<Map<string, ThreadSummary>> {
    if (roots.length === 0) return new Map();
    const rows = await this.#db.query<{ target: string; latest: string; count: number; mine: boolean }>(
      {
        name: 'relations-threads',
        text: `SELECT r.target, count(*) AS count, bool_or(r.sender = $5) AS mine,
                      (array_agg(r.event_id ORDER BY r.pos DESC))[1] AS latest
               FROM relations r JOIN events e ON e.event_id = r.event_id
               WHERE r.room = $1 AND r.pos <= $2 AND r.sender <> ALL($3::text[]) AND r.target = ANY($4::text[])
                 AND r.rel_type = 'm.thread' AND ${COUNTS} GROUP BY r.target`,
      },
      [...scope, roots.map((event) => event.eventId), userId],
    );
    const senders = new Map(roots.map((event) => [event.eventId, event.sender]));
    return new Map(
      rows.map(({ target, latest, count, mine }) => [
        target,
        { latest, count, participated: mine || senders.get(target) === userId },
      ]),
    );
  }

  /** The newest valid edit of each event (spec: "Validity of replacement events"). */
  async #edits(scope: Scope, originals: StoredEvent[]): Promise<Map<string, string>> {
    const editable = originals.filter((event) => !event.redactedBy && relTypeOf(event) !== 'm.replace');
    if (editable.length === 0) return new Map();
    const rows = await this.#db.query<{ target: string; eventId: string }>(
      {
        name: 'relations-edits',
        text: `SELECT DISTINCT ON (r.target) r.target, r.event_id AS "eventId"
               FROM unnest($4::text[], $5::text[], $6::text[]) AS o(target, sender, type)
                 JOIN relations r ON r.target = o.target AND r.sender = o.sender AND r.type = o.type
                 JOIN events e ON e.event_id = r.event_id
               WHERE r.room = $1 AND r.pos <= $2 AND r.sender <> ALL($3::text[]) AND r.rel_type = 'm.replace'
                 AND e.state_key IS NULL AND ${COUNTS}
                 AND (e.type = 'm.room.encrypted' OR strpos(e.json, '"m.new_content"') > 0)
               ORDER BY r.target, e.origin_server_ts DESC, e.event_id COLLATE "C" DESC`,
      },
      [
        ...scope,
        editable.map((event) => event.eventId),
        editable.map((event) => event.sender),
        editable.map((event) => event.type),
      ],
    );
    return new Map(rows.map((row) => [row.target, row.eventId]));
  }

  async #references(scope: Scope, parents: StoredEvent[]): Promise<Map<string, string[]>> {
    if (parents.length === 0) return new Map();
    const rows = await this.#db.query<{ target: string; children: string[] }>(
      {
        name: 'relations-references',
        text: `SELECT o.target, c.children FROM unnest($4::text[]) AS o(target), LATERAL (
                 SELECT array_agg(event_id ORDER BY pos) AS children FROM (
                   SELECT r.event_id, r.pos FROM relations r JOIN events e ON e.event_id = r.event_id
                   WHERE r.room = $1 AND r.pos <= $2 AND r.sender <> ALL($3::text[]) AND r.target = o.target
                     AND r.rel_type = 'm.reference' AND ${COUNTS} ORDER BY r.pos LIMIT ${MAX_REFERENCES}
                 ) AS first) AS c WHERE c.children IS NOT NULL`,
      },
      [...scope, parents.map((event) => event.eventId)],
    );
    return new Map(rows.map((row) => [row.target, row.children]));
  }

  /** Events that relate to one, directly or by way of others, in their order. */
  async children(room: Room, parentId: string, query: ChildQuery): Promise<StoredEvent[]> {
    const order = query.direction === 'forward' ? 'ASC' : 'DESC';
    const rows = await this.#history.query<{ eventId: string }>(
      {
        name: `relations-children-${order}`,
        text: `WITH RECURSIVE child AS (
                 SELECT event_id, pos, 1 AS depth FROM relations
                 WHERE room = $1 AND target = $2 AND rel_type <> $3
                   AND ($4::text IS NULL OR rel_type = $4) AND ($5::text IS NULL OR type = $5)
                 UNION
                 SELECT r.event_id, r.pos, c.depth + 1 FROM child c
                   JOIN relations r ON r.room = $1 AND r.target = c.event_id AND r.rel_type <> $3
                   AND ($4::text IS NULL OR r.rel_type = $4) AND ($5::text IS NULL OR r.type = $5)
                 WHERE c.depth < $6
               )
               SELECT e.event_id AS "eventId" FROM (SELECT DISTINCT event_id FROM child) c
                 JOIN events e ON e.event_id = c.event_id
               WHERE e.pos > $7 AND e.pos < $8 AND ${COUNTS} ORDER BY e.pos ${order} LIMIT $9`,
      },
      [
        room.nid,
        parentId,
        REDACTION,
        query.relType ?? null,
        query.eventType ?? null,
        query.recurse ? RECURSION_DEPTH : 1,
        bounded(query.after),
        bounded(query.before),
        query.limit,
      ],
    );
    return this.#inOrder(rows.map(({ eventId }) => eventId));
  }

  /** Roots of the room's threads with an event before position `before`, those with the newest events first. */
  async threads(
    room: Room,
    query: {
      readonly userId: string;
      readonly participated: boolean;
      readonly ignored: ReadonlySet<string>;
      readonly before: number;
      readonly end: number;
      readonly limit: number;
    },
  ): Promise<Array<{ root: string; latest: number }>> {
    return this.#history.query(
      {
        name: 'relations-thread-list',
        text: `SELECT r.target AS root, max(r.pos) AS latest
               FROM relations r JOIN events e ON e.event_id = r.event_id
               WHERE r.room = $1 AND r.rel_type = 'm.thread' AND r.pos <= $2 AND r.sender <> ALL($3::text[]) AND ${COUNTS}
               GROUP BY r.target
               HAVING max(r.pos) < $4 AND (NOT $5 OR bool_or(r.sender = $6)
                 OR EXISTS (SELECT FROM events t WHERE t.event_id = r.target AND t.sender = $6))
               ORDER BY latest DESC LIMIT $7`,
      },
      [
        room.nid,
        bounded(query.end),
        [...query.ignored],
        bounded(query.before),
        query.participated,
        query.userId,
        query.limit,
      ],
    );
  }

  async #inOrder(ids: readonly string[]): Promise<StoredEvent[]> {
    const events = await this.#rooms.parts.events.getMany(ids);
    return ids.flatMap((id) => events.get(id) ?? []);
  }
}

type Scope = readonly [roomNid: number, end: number, ignored: string[]];

/** A redacted child has lost its relationship; what was not accepted never had one. */
const COUNTS = 'e.status = 0 AND e.redacted_by IS NULL';

function bounded(position: number): number {
  return Math.max(Number.MIN_SAFE_INTEGER, Math.min(position, Number.MAX_SAFE_INTEGER));
}

function relTypeOf(event: StoredEvent): unknown {
  const relates = event.content['m.relates_to'];
  return typeof relates === 'object' && relates !== null && !Array.isArray(relates)
    ? relates.rel_type
    : undefined;
}
