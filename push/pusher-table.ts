import { randomBytes } from 'node:crypto';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import { Batcher } from '@trellis/storage/batcher.ts';
import type { Queryable } from '@trellis/storage/database.ts';

/** A pusher that is switched on, and how far its deliveries are. */
export interface PusherRow {
  readonly userId: string;
  readonly appId: string;
  readonly pushkey: string;
  readonly createdTs: number;
  kind: string;
  lang: string;
  data: JsonObject;
  /** Everything up to here has been told. */
  pos: number;
  /** What came after `pos` waits until then. */
  dueTs: number | null;
  failingSinceTs: number | null;
  failures: number;
  mails: number;
  mailedTs: number | null;
}

const COLUMNS = `user_id AS "userId", app_id AS "appId", pushkey, kind, lang, data, created_ts AS "createdTs", pos,
  due_ts AS "dueTs", failing_since_ts AS "failingSinceTs", failures, mails, mailed_ts AS "mailedTs"`;

/** Rooms that one pusher catches up with at a time. */
const MAX_ROOMS = 1_000;

/** Where the deliveries of pushers stand, in the table `pushers`. */
export class PusherTable {
  readonly #db: Queryable;
  readonly #saves = new Batcher<PusherRow>((rows) => this.#store(rows));
  /** Batches are stored in order: after this all that were to be saved before it are. */
  #lastSave: Promise<void> | undefined;

  constructor(db: Queryable) {
    this.#db = db;
  }

  /** Everybody who has a pusher that is switched on. */
  async users(): Promise<string[]> {
    const rows = await this.#db.query<{ userId: string }>(
      'SELECT DISTINCT user_id AS "userId" FROM pushers WHERE enabled',
    );
    return rows.map(({ userId }) => userId);
  }

  /** Those for whom something is outstanding. */
  async usersWaiting(): Promise<string[]> {
    const rows = await this.#db.query<{ userId: string }>(
      'SELECT DISTINCT user_id AS "userId" FROM pushers WHERE due_ts IS NOT NULL AND enabled',
    );
    return rows.map(({ userId }) => userId);
  }

  async of(userId: string): Promise<PusherRow[]> {
    await this.#lastSave?.catch(() => {});
    const rows = await this.#db.query<Omit<PusherRow, 'data'> & { data: string }>(
      { name: 'push-pushers', text: `SELECT ${COLUMNS} FROM pushers WHERE user_id = $1 AND enabled` },
      [userId],
    );
    return rows.map((row) => ({ ...row, data: decodeJson(row.data) as JsonObject }));
  }

  /** Stores how far a pusher is, as it is now. Whoever does not wait for it loses nothing but time when it fails. */
  save(row: PusherRow): Promise<void> {
    this.#lastSave = this.#saves.add({ ...row });
    return this.#lastSave;
  }

  async delete(userId: string, appId: string, pushkey: string): Promise<void> {
    await this.#db.query('DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3', [
      userId,
      appId,
      pushkey,
    ]);
  }

  idle(): Promise<void> {
    return this.#saves.idle();
  }

  /** Members of rooms who have pushers that are switched on. */
  membersOf(roomIds: readonly string[]): Promise<Array<{ userId: string; roomId: string }>> {
    return this.#db.query(
      {
        name: 'push-members-of',
        text: `SELECT DISTINCT m.user_id AS "userId", r.room_id AS "roomId"
               FROM rooms r JOIN room_members m ON m.room = r.nid
               WHERE r.room_id = ANY($1) AND m.membership = 'join'
                 AND m.user_id IN (SELECT user_id FROM pushers WHERE enabled)`,
      },
      [roomIds],
    );
  }

  /** Rooms that a user is in or invited to with something new after a position, the newest first. */
  async roomsWithNews(userId: string, after: number, upTo: number): Promise<string[]> {
    const rows = await this.#db.query<{ roomId: string }>(
      {
        name: 'push-catch-up',
        text: `SELECT r.room_id AS "roomId" FROM room_members m JOIN rooms r ON r.nid = m.room
               CROSS JOIN LATERAL (
                 SELECT pos FROM events WHERE room = m.room AND pos > $2 AND pos <= $3 AND status = 0 AND NOT backfilled
                 ORDER BY pos DESC LIMIT 1
               ) e
               WHERE m.user_id = $1 AND m.membership IN ('join', 'invite') ORDER BY e.pos DESC LIMIT $4`,
      },
      [userId, after, upTo, MAX_ROOMS],
    );
    return rows.map(({ roomId }) => roomId);
  }

  /** Whom what happened in between may concern: for the start, after a stop that was not orderly. */
  async usersWithNews(after: number, upTo: number): Promise<Array<{ userId: string; roomId: string }>> {
    return this.#db.query(
      `SELECT DISTINCT m.user_id AS "userId", r.room_id AS "roomId"
       FROM events e JOIN rooms r ON r.nid = e.room JOIN room_members m ON m.room = e.room
       WHERE e.pos > $1 AND e.pos <= $2 AND e.status = 0 AND NOT e.backfilled
         AND m.membership IN ('join', 'invite') AND m.user_id IN (SELECT user_id FROM pushers WHERE enabled)`,
      [after, upTo],
    );
  }

  /** What a link to switch a pusher off bears; made when first asked for. */
  async unsubscribeToken({ userId, appId, pushkey }: PusherRow): Promise<string> {
    const [row] = await this.#db.query<{ token: string }>(
      `UPDATE pushers SET unsubscribe = coalesce(unsubscribe, $4)
       WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 RETURNING unsubscribe AS token`,
      [userId, appId, pushkey, randomBytes(24).toString('base64url')],
    );
    return row?.token ?? '';
  }

  async findByUnsubscribeToken(
    token: string,
  ): Promise<{ userId: string; appId: string; pushkey: string } | undefined> {
    const [row] = await this.#db.query<{ userId: string; appId: string; pushkey: string }>(
      'SELECT user_id AS "userId", app_id AS "appId", pushkey FROM pushers WHERE unsubscribe = $1',
      [token.replaceAll('\0', '')],
    );
    return row;
  }

  async #store(rows: readonly PusherRow[]): Promise<void> {
    const last = [...new Map(rows.map((row) => [`${row.userId} ${row.appId} ${row.pushkey}`, row])).values()];
    await this.#db.query(
      {
        name: 'push-save',
        text: `UPDATE pushers p SET pos = u.pos, due_ts = u.due_ts, failing_since_ts = u.failing_since_ts,
                 failures = u.failures, mails = u.mails, mailed_ts = u.mailed_ts
               FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::int[],
                           $8::int[], $9::bigint[])
                 AS u (user_id, app_id, pushkey, pos, due_ts, failing_since_ts, failures, mails, mailed_ts)
               WHERE p.user_id = u.user_id AND p.app_id = u.app_id AND p.pushkey = u.pushkey AND p.pos <= u.pos`,
      },
      [
        last.map(({ userId }) => userId),
        last.map(({ appId }) => appId),
        last.map(({ pushkey }) => pushkey),
        last.map(({ pos }) => pos),
        last.map(({ dueTs }) => dueTs),
        last.map(({ failingSinceTs }) => failingSinceTs),
        last.map(({ failures }) => failures),
        last.map(({ mails }) => mails),
        last.map(({ mailedTs }) => mailedTs),
      ],
    );
  }
}
