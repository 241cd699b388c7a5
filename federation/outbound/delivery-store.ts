import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';

/** What a destination lacks of a room. */
export interface BacklogRow {
  readonly destination: string;
  readonly roomId: string;
  readonly opened: number;
  readonly from: number;
  /** `null` while the destination is in the room. */
  readonly to: number | null;
}

export interface BacklogChanges {
  readonly put: readonly BacklogRow[];
  readonly removed: ReadonlyArray<Pick<BacklogRow, 'destination' | 'roomId' | 'opened'>>;
  /** Destination to position; `undefined` when it has caught up. */
  readonly devices: ReadonlyMap<string, number | undefined>;
}

export interface StoredEdu {
  readonly id: number;
  readonly type: string;
  readonly content: JsonObject;
}

/** What the recovery looks at of an event. */
export interface NewsRow {
  readonly pos: number;
  readonly roomId: string;
  readonly sender: string;
  readonly type: string;
  readonly stateKey: string | null;
  readonly relayed: boolean;
  /** Of member events: the event itself, and the one that it replaced. */
  readonly json: string | null;
  readonly replacedJson: string | null;
}

const SENDERS_SERVER = `substr(e.sender, strpos(e.sender, ':') + 1)`;
const IS_RELAYED = 'EXISTS (SELECT FROM relayed_events y WHERE y.room = e.room AND y.pos = e.pos)';

/** The tables of what is not delivered yet. */
export class DeliveryStore {
  readonly #db: Database;
  readonly #serverName: string;

  constructor(db: Database, serverName: string) {
    this.#db = db;
    this.#serverName = serverName;
  }

  backlog(): Promise<BacklogRow[]> {
    return this.#db.query<BacklogRow>(
      `SELECT destination, room_id AS "roomId", opened, from_pos AS from, to_pos AS to
       FROM federation_backlog ORDER BY opened`,
    );
  }

  async deviceBacklog(): Promise<Map<string, number>> {
    const rows = await this.#db.query<{ destination: string; pos: number }>(
      'SELECT destination, pos FROM federation_device_backlog',
    );
    return new Map(rows.map(({ destination, pos }) => [destination, pos]));
  }

  async destinationsWithEdus(): Promise<string[]> {
    const rows = await this.#db.query<{ destination: string }>(
      'SELECT DISTINCT destination FROM federation_edus',
    );
    return rows.map(({ destination }) => destination);
  }

  /** Writes down what changed, together with the progress that it stands for. */
  async save(tx: Queryable, { put, removed, devices }: BacklogChanges): Promise<void> {
    const behind = [...devices].filter((entry): entry is [string, number] => entry[1] !== undefined);
    const done = [...devices].filter(([, pos]) => pos === undefined).map(([destination]) => destination);
    if (removed.length > 0)
      await tx.query(
        `DELETE FROM federation_backlog b
         USING unnest($1::text[], $2::text[], $3::bigint[]) AS u(destination, room_id, opened)
         WHERE b.destination = u.destination AND b.room_id = u.room_id AND b.opened = u.opened`,
        [
          removed.map(({ destination }) => destination),
          removed.map(({ roomId }) => roomId),
          removed.map(({ opened }) => opened),
        ],
      );
    if (put.length > 0)
      await tx.query(
        `INSERT INTO federation_backlog (destination, room_id, opened, from_pos, to_pos)
         SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
         ON CONFLICT (destination, room_id, opened) DO UPDATE
         SET from_pos = excluded.from_pos, to_pos = excluded.to_pos`,
        [
          put.map(({ destination }) => destination),
          put.map(({ roomId }) => roomId),
          put.map(({ opened }) => opened),
          put.map(({ from }) => from),
          put.map(({ to }) => to),
        ],
      );
    if (behind.length > 0)
      await tx.query(
        `INSERT INTO federation_device_backlog (destination, pos) SELECT * FROM unnest($1::text[], $2::bigint[])
         ON CONFLICT (destination) DO UPDATE SET pos = excluded.pos`,
        [behind.map(([destination]) => destination), behind.map(([, pos]) => pos)],
      );
    if (done.length > 0)
      await tx.query('DELETE FROM federation_device_backlog WHERE destination = ANY($1)', [done]);
  }

  /**
   * The first events, in the order of their positions, that a destination lacks of some rooms: those of local users,
   * and those passed on for others.
   */
  lackingEvents(
    destination: string,
    rooms: ReadonlyArray<{ readonly roomId: string; readonly from: number; readonly to: number }>,
    limit: number,
  ): Promise<Array<{ nid: number; pos: number; roomId: string }>> {
    return this.#db.query(
      {
        name: 'federation-lacking',
        text: `SELECT found.nid, found.pos, i.room_id AS "roomId"
               FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS i(room_id, low, high)
               JOIN rooms r ON r.room_id = i.room_id
               CROSS JOIN LATERAL (
                 SELECT e.nid, e.pos FROM events e
                 WHERE e.room = r.nid AND e.pos >= i.low AND e.pos <= i.high AND e.status = 0 AND NOT e.backfilled
                   AND (${SENDERS_SERVER} = $4 OR (${SENDERS_SERVER} <> $5 AND ${IS_RELAYED}))
                 ORDER BY e.pos LIMIT $6
               ) found
               ORDER BY found.pos LIMIT $6`,
      },
      [
        rooms.map(({ roomId }) => roomId),
        rooms.map(({ from }) => from),
        rooms.map(({ to }) => to),
        this.#serverName,
        destination,
        limit,
      ],
    );
  }

  /** News that say what is to be delivered or who is in a room, oldest first. */
  news(after: number, upTo: number, limit: number): Promise<NewsRow[]> {
    return this.#db.query<NewsRow>(
      `SELECT e.pos, r.room_id AS "roomId", e.sender, e.type, e.state_key AS "stateKey", ${IS_RELAYED} AS relayed,
              CASE WHEN e.type = 'm.room.member' THEN e.json END AS json,
              CASE WHEN e.type = 'm.room.member' THEN p.json END AS "replacedJson"
       FROM events e JOIN rooms r ON r.nid = e.room LEFT JOIN events p ON p.event_id = e.replaces
       WHERE e.pos > $1 AND e.pos <= $2 AND NOT e.backfilled AND e.status = 0
         AND (e.type = 'm.room.member' OR ${SENDERS_SERVER} = $3 OR ${IS_RELAYED})
       ORDER BY e.pos LIMIT $4`,
      [after, upTo, this.#serverName, limit],
    );
  }

  /** Changes of membership in one room, oldest first. */
  memberNews(roomId: string, after: number, upTo: number): Promise<NewsRow[]> {
    return this.#db.query<NewsRow>(
      `SELECT e.pos, r.room_id AS "roomId", e.sender, e.type, e.state_key AS "stateKey", false AS relayed, e.json,
              p.json AS "replacedJson"
       FROM events e JOIN rooms r ON r.nid = e.room LEFT JOIN events p ON p.event_id = e.replaces
       WHERE r.room_id = $1 AND e.pos > $2 AND e.pos <= $3 AND NOT e.backfilled AND e.status = 0
         AND e.type = 'm.room.member'
       ORDER BY e.pos`,
      [roomId, after, upTo],
    );
  }

  /** Forgets which events were passed on, where nobody lacks them any more. */
  async prune(): Promise<void> {
    await this.#db.query(
      `DELETE FROM relayed_events y USING rooms r
       WHERE r.nid = y.room AND y.pos <= (
         SELECT min(events_pos) FROM (
           SELECT events_pos FROM duty_marks WHERE duty = 'destination' UNION ALL
           SELECT events_pos FROM duty_handovers WHERE duty = 'destination') p)
         AND NOT EXISTS (SELECT FROM federation_backlog b WHERE b.room_id = r.room_id AND b.from_pos <= y.pos)`,
    );
  }

  /** Within the caller's transaction: messages to devices are to be delivered once that is committed. */
  async addEdus(
    tx: Queryable,
    edus: ReadonlyArray<{ destination: string; eduType: string; content: JsonObject }>,
  ): Promise<void> {
    if (edus.length === 0) return;
    await tx.query(
      {
        name: 'federation-edus-insert',
        text: `INSERT INTO federation_edus (destination, edu_type, content)
               SELECT * FROM unnest($1::text[], $2::text[], $3::text[])`,
      },
      [
        edus.map(({ destination }) => destination),
        edus.map(({ eduType }) => eduType),
        edus.map(({ content }) => JSON.stringify(content)),
      ],
    );
  }

  async edus(destination: string, limit: number): Promise<StoredEdu[]> {
    const rows = await this.#db.query<{ id: number; type: string; content: string }>(
      {
        name: 'federation-edus-of',
        text: `SELECT id, edu_type AS type, content FROM federation_edus WHERE destination = $1
               ORDER BY id LIMIT $2`,
      },
      [destination, limit],
    );
    return rows.map((row) => ({ ...row, content: decodeJson(row.content) as JsonObject }));
  }

  async removeEdus(ids: readonly number[]): Promise<void> {
    await this.#db.query('DELETE FROM federation_edus WHERE id = ANY($1::bigint[])', [ids]);
  }
}
