import { invalidParam, MatrixError, notFound, tooLarge } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Database, Queryable } from '@trellis/storage/database.ts';
import { isName } from './key-json.ts';

/** The version of a backup as `/room_keys/version` shows it. */
export interface BackupInfo {
  readonly version: string;
  readonly algorithm: string;
  readonly auth_data: JsonObject;
  readonly count: number;
  readonly etag: string;
}

export interface BackedUpKey {
  readonly roomId: string;
  readonly sessionId: string;
  readonly first_message_index: number;
  readonly forwarded_count: number;
  readonly is_verified: boolean;
  readonly session_data: JsonObject;
}

/** Which keys of a backup: all, those of a room, or one. */
export interface KeyRange {
  readonly roomId?: string;
  readonly sessionId?: string;
}

interface BackupRow {
  version: number;
  algorithm: string;
  authData: string;
  count: number;
  etag: number;
}

const COLUMNS = 'version, algorithm, auth_data AS "authData", count, etag';
/** Keys that a backup can hold. */
const MAX_KEYS = 1_000_000;
const PAGE = 1000;

/** Whether `excluded` is the better key (spec: "Server-side key backups"). */
const IS_BETTER = `
  (excluded.is_verified AND NOT s.is_verified) OR (excluded.is_verified = s.is_verified AND (
    excluded.first_message_index < s.first_message_index OR
    (excluded.first_message_index = s.first_message_index AND excluded.forwarded_count < s.forwarded_count)))`;

/** Encrypted copies of room keys that users keep on the server (spec: "Server-side key backups"). */
export class KeyBackups {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** @returns the version */
  async create(userId: string, algorithm: string, authData: JsonObject): Promise<string> {
    return this.#db.transaction(async (tx) => {
      await tx.query('SELECT 1 FROM accounts WHERE user_id = $1 FOR NO KEY UPDATE', [userId]);
      const [row] = await tx.query<{ version: number }>(
        `INSERT INTO key_backups (user_id, version, algorithm, auth_data)
         SELECT $1, coalesce(max(version), 0) + 1, $2, $3 FROM key_backups WHERE user_id = $1 RETURNING version`,
        [userId, algorithm, JSON.stringify(authData)],
      );
      return String(row!.version);
    });
  }

  /** The given version, or the current one. @throws M_NOT_FOUND */
  async info(userId: string, version?: string): Promise<BackupInfo> {
    const row =
      version === undefined ? await current(this.#db, userId) : await find(this.#db, userId, version);
    if (!row) throw version === undefined ? notFound('No current backup version') : unknownVersion();
    return {
      version: String(row.version),
      algorithm: row.algorithm,
      auth_data: decodeJson(row.authData) as JsonObject,
      count: row.count,
      etag: String(row.etag),
    };
  }

  /** @throws M_NOT_FOUND; M_INVALID_PARAM for another algorithm */
  async update(userId: string, version: string, algorithm: string, authData: JsonObject): Promise<void> {
    await this.#db.transaction(async (tx) => {
      const row = await find(tx, userId, version, 'FOR UPDATE');
      if (!row) throw unknownVersion();
      if (row.algorithm !== algorithm) throw invalidParam('The backup has another algorithm');
      await tx.query('UPDATE key_backups SET auth_data = $3 WHERE user_id = $1 AND version = $2', [
        userId,
        row.version,
        JSON.stringify(authData),
      ]);
    });
  }

  /** Also of a backup that was deleted before. @throws M_NOT_FOUND when there never was one */
  async remove(userId: string, version: string): Promise<void> {
    const number = versionNumber(version);
    await this.#db.transaction(async (tx) => {
      const rows = await tx.query(
        `UPDATE key_backups SET deleted = true, count = 0, auth_data = '{}' WHERE user_id = $1 AND version = $2
         RETURNING 1`,
        [userId, number],
      );
      if (rows.length === 0) throw unknownVersion();
      await tx.query('DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2', [userId, number]);
    });
  }

  /** Everything of a user: their account is deactivated. */
  async forget(userId: string): Promise<void> {
    await this.#db.transaction(async (tx) => {
      for (const table of ['key_backups', 'key_backup_sessions'])
        await tx.query(`DELETE FROM ${table} WHERE user_id = $1`, [userId]);
    });
  }

  /**
   * Adds keys to the current backup; of a session that is in it already the better key stays.
   *
   * @throws M_WRONG_ROOM_KEYS_VERSION, M_NOT_FOUND
   */
  async put(
    userId: string,
    version: string,
    keys: readonly BackedUpKey[],
  ): Promise<{ etag: string; count: number }> {
    if (!keys.every(({ roomId, sessionId }) => isName(roomId) && isName(sessionId)))
      throw invalidParam('A room or session id is none');
    return this.#db.transaction(async (tx) => {
      const backup = await lockCurrent(tx, userId, version);
      const ids = [keys.map(({ roomId }) => roomId), keys.map(({ sessionId }) => sessionId)];
      const [known] = await tx.query<{ count: number }>(
        `SELECT count(*) FROM key_backup_sessions
         JOIN unnest($3::text[], $4::text[]) AS k (room_id, session_id) USING (room_id, session_id)
         WHERE user_id = $1 AND version = $2`,
        [userId, backup.version, ...ids],
      );
      const count = backup.count + keys.length - known!.count;
      if (count > MAX_KEYS) throw tooLarge(`A backup can hold ${MAX_KEYS} keys`);
      const changed = await tx.query(
        `INSERT INTO key_backup_sessions AS s (user_id, version, room_id, session_id, first_message_index,
           forwarded_count, is_verified, session_data)
         SELECT $1, $2, k.* FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::boolean[], $8::text[]) AS k
         ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET
           first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
           is_verified = excluded.is_verified, session_data = excluded.session_data
         WHERE ${IS_BETTER}
         RETURNING 1`,
        [
          userId,
          backup.version,
          ...ids,
          keys.map((key) => key.first_message_index),
          keys.map((key) => key.forwarded_count),
          keys.map((key) => key.is_verified),
          keys.map((key) => JSON.stringify(key.session_data)),
        ],
      );
      return recount(tx, userId, backup, changed.length > 0, count);
    });
  }

  /** Keys in the order of rooms and sessions, a page at a time. @throws M_NOT_FOUND */
  async *keys(userId: string, version: string, range: KeyRange): AsyncGenerator<BackedUpKey[]> {
    const backup = await find(this.#db, userId, version);
    if (!backup) throw unknownVersion();
    let after = ['', ''];
    for (;;) {
      const rows = await this.#db.query<Omit<BackedUpKey, 'session_data'> & { session_data: string }>(
        `SELECT room_id AS "roomId", session_id AS "sessionId", first_message_index, forwarded_count, is_verified,
                session_data
         FROM key_backup_sessions
         WHERE user_id = $1 AND version = $2 AND (room_id, session_id) > ($3, $4)
           AND room_id = coalesce($5, room_id) AND session_id = coalesce($6, session_id)
         ORDER BY room_id, session_id LIMIT $7`,
        [userId, backup.version, ...after, range.roomId ?? null, range.sessionId ?? null, PAGE],
      );
      if (rows.length > 0)
        yield rows.map((row) => ({ ...row, session_data: decodeJson(row.session_data) as JsonObject }));
      const last = rows.at(-1);
      if (!last || rows.length < PAGE) return;
      after = [last.roomId, last.sessionId];
    }
  }

  /** @throws M_NOT_FOUND */
  async removeKeys(
    userId: string,
    version: string,
    range: KeyRange,
  ): Promise<{ etag: string; count: number }> {
    return this.#db.transaction(async (tx) => {
      const backup = await find(tx, userId, version, 'FOR UPDATE');
      if (!backup) throw unknownVersion();
      const removed = await tx.query(
        `DELETE FROM key_backup_sessions
         WHERE user_id = $1 AND version = $2 AND room_id = coalesce($3, room_id)
           AND session_id = coalesce($4, session_id) RETURNING 1`,
        [userId, backup.version, range.roomId ?? null, range.sessionId ?? null],
      );
      return recount(tx, userId, backup, removed.length > 0, backup.count - removed.length);
    });
  }
}

/** Whoever changes a backup's keys holds its row, so that count and etag are those of the keys. */
async function recount(
  tx: Queryable,
  userId: string,
  { version, etag }: BackupRow,
  changed: boolean,
  count: number,
): Promise<{ etag: string; count: number }> {
  if (!changed) return { etag: String(etag), count };
  await tx.query('UPDATE key_backups SET etag = etag + 1, count = $3 WHERE user_id = $1 AND version = $2', [
    userId,
    version,
    count,
  ]);
  return { etag: String(etag + 1), count };
}

async function lockCurrent(tx: Queryable, userId: string, version: string): Promise<BackupRow> {
  const wanted = await find(tx, userId, version, 'FOR UPDATE');
  const newest = await current(tx, userId);
  if (!newest || !wanted) throw unknownVersion();
  if (newest.version !== wanted.version)
    throw new MatrixError(403, 'M_WRONG_ROOM_KEYS_VERSION', 'Wrong backup version.', {
      current_version: String(newest.version),
    });
  return wanted;
}

async function current(db: Queryable, userId: string): Promise<BackupRow | undefined> {
  const [row] = await db.query<BackupRow>(
    `SELECT ${COLUMNS} FROM key_backups WHERE user_id = $1 AND NOT deleted ORDER BY version DESC LIMIT 1`,
    [userId],
  );
  return row;
}

async function find(
  db: Queryable,
  userId: string,
  version: string,
  lock: '' | 'FOR UPDATE' = '',
): Promise<BackupRow | undefined> {
  const [row] = await db.query<BackupRow>(
    `SELECT ${COLUMNS} FROM key_backups WHERE user_id = $1 AND version = $2 AND NOT deleted ${lock}`,
    [userId, versionNumber(version)],
  );
  return row;
}

/** Versions are opaque to clients: what is no number is one that there never was. */
function versionNumber(version: string): number {
  return /^[1-9]\d{0,14}$/.test(version) ? Number(version) : 0;
}

function unknownVersion(): MatrixError {
  return notFound('Unknown backup version');
}
