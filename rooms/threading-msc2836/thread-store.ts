import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { Room } from '../room.ts';

/** Numbers of children by relation type, and a hash of their ids: `unsigned.children` and `unsigned.children_hash`. */
export interface ChildrenSummary {
  readonly children: Readonly<Record<string, number>>;
  readonly hash: string;
}

/** What is kept of threads beside the events themselves. */
export class ThreadStore {
  readonly #db: Queryable;

  constructor(db: Queryable) {
    this.#db = db;
  }

  /** Ids of the children of an event, by their time. */
  async children(
    room: Room,
    parent: string,
    query: { readonly recentFirst: boolean; readonly limit: number },
  ): Promise<string[]> {
    const order = query.recentFirst ? 'DESC' : 'ASC';
    const rows = await this.#db.query<{ child: string }>(
      {
        name: `relationships-children-${order}`,
        text: `SELECT child FROM event_relationships WHERE room = $1 AND parent = $2
               ORDER BY origin_server_ts ${order}, child ${order} LIMIT $3`,
      },
      [room.nid, parent, query.limit],
    );
    return rows.map(({ child }) => child);
  }

  /** The event that another is a child of; also where a redaction has emptied that one. */
  async parent(room: Room, child: string): Promise<string | undefined> {
    const [row] = await this.#db.query<{ parent: string }>(
      {
        name: 'relationships-parent',
        text: 'SELECT parent FROM event_relationships WHERE child = $2 AND room = $1 LIMIT 1',
      },
      [room.nid, child],
    );
    return row?.parent;
  }

  /** Of those that have any, the children that are known here. */
  async summaries(room: Room, parents: readonly string[]): Promise<Map<string, ChildrenSummary>> {
    if (parents.length === 0) return new Map();
    const rows = await this.#db.query<{ parent: string } & ChildrenSummary>(
      {
        name: 'relationships-summaries',
        text: `WITH own AS (SELECT parent, child, rel_type FROM event_relationships
                            WHERE room = $1 AND parent = ANY($2::text[])),
                 hashes AS (SELECT parent, rtrim(encode(sha256(convert_to(
                              string_agg(child, '' ORDER BY child COLLATE "C"), 'UTF8')), 'base64'), '=') AS hash
                            FROM own GROUP BY parent),
                 counts AS (SELECT parent, json_object_agg(rel_type, n) AS children
                            FROM (SELECT parent, rel_type, count(*) AS n FROM own GROUP BY parent, rel_type) AS t
                            GROUP BY parent)
               SELECT * FROM hashes JOIN counts USING (parent)`,
      },
      [room.nid, [...parents]],
    );
    return new Map(rows.map(({ parent, children, hash }) => [parent, { children, hash }]));
  }

  /** What another server said of events not all of whose children are here. */
  async unexplored(room: Room, eventIds: readonly string[]): Promise<Map<string, ChildrenSummary>> {
    if (eventIds.length === 0) return new Map();
    const rows = await this.#db.query<{ eventId: string; children: string; hash: string }>(
      {
        name: 'relationships-unexplored',
        text: `SELECT event_id AS "eventId", children, children_hash AS hash FROM unexplored_relationships
               WHERE room = $1 AND event_id = ANY($2::text[])`,
      },
      [room.nid, [...eventIds]],
    );
    return new Map(
      rows.map(({ eventId, children, hash }) => [
        eventId,
        { children: decodeJson(children) as Record<string, number>, hash },
      ]),
    );
  }

  /** Compares what another server said of events with what is here, and remembers where that is less. */
  async noteClaims(room: Room, claims: ReadonlyMap<string, ChildrenSummary>): Promise<void> {
    if (claims.size === 0) return;
    const known = await this.summaries(room, [...claims.keys()]);
    const open = [...claims].filter(([id, { hash }]) => known.get(id)?.hash !== hash);
    await this.explored(room, [...claims.keys()]);
    if (open.length === 0) return;
    await this.#db.query(
      `INSERT INTO unexplored_relationships (room, event_id, children, children_hash)
       SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[])
       ON CONFLICT (room, event_id) DO UPDATE SET children = EXCLUDED.children, children_hash = EXCLUDED.children_hash`,
      [
        room.nid,
        open.map(([id]) => id),
        open.map(([, { children }]) => JSON.stringify(children)),
        open.map(([, { hash }]) => hash),
      ],
    );
  }

  async explored(room: Room, eventIds: readonly string[]): Promise<void> {
    await this.#db.query(
      {
        name: 'relationships-explored',
        text: 'DELETE FROM unexplored_relationships WHERE room = $1 AND event_id = ANY($2::text[])',
      },
      [room.nid, [...eventIds]],
    );
  }
}
