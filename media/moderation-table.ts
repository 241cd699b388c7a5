import type { Queryable } from '@trellis/storage/database.ts';
import type { MediaName } from './media-table.ts';

/** What administrators are shown. */
export interface MediaRecord extends MediaName {
  userId: string | null;
  createdTs: number;
  lastAccessTs: number;
  sha256: Buffer | null;
  size: number | null;
  contentType: string | null;
  filename: string | null;
  authenticated: boolean;
  quarantinedBy: string | null;
  protected: boolean;
}

/** Names that lists of media are sorted by, and the columns behind them. */
export const ORDERS = {
  media_id: 'media_id',
  upload_name: 'filename',
  created_ts: 'created_ts',
  last_access_ts: 'last_access_ts',
  media_length: 'size',
  media_type: 'content_type',
  quarantined_by: 'quarantined_by',
  safe_from_quarantine: 'protected',
} as const;

export interface Page {
  from: number;
  limit: number;
  orderBy: keyof typeof ORDERS;
  backwards: boolean;
}

const RECORD = `origin, media_id AS "mediaId", user_id AS "userId", created_ts AS "createdTs",
  last_access_ts AS "lastAccessTs", sha256, size, content_type AS "contentType", filename, authenticated,
  quarantined_by AS "quarantinedBy", protected`;

/** The named media, and whatever else has the same content. */
const NAMED = `WITH named AS (SELECT * FROM unnest($1::text[], $2::text[]) AS n (origin, media_id)),
  meant AS (
    SELECT origin, media_id FROM named
    UNION
    SELECT same.origin, same.media_id FROM named
    JOIN media AS m USING (origin, media_id) JOIN media AS same ON same.sha256 = m.sha256
    WHERE NOT m.protected
  )`;

/** @returns how many are so now that were not */
export async function quarantine(db: Queryable, names: readonly MediaName[], by: string): Promise<number> {
  const rows = await db.query(
    `${NAMED} UPDATE media SET quarantined_by = $3
     WHERE quarantined_by IS NULL AND NOT protected AND (origin, media_id) IN (SELECT origin, media_id FROM meant)
     RETURNING 1`,
    [...columnsOf(names), by],
  );
  return rows.length;
}

/** Rows for media of other servers that is not here: should it ever come, it is quarantined. @returns how many */
export async function quarantineUnseen(
  db: Queryable,
  localName: string,
  names: readonly MediaName[],
  by: string,
  now: number,
): Promise<number> {
  const rows = await db.query(
    `INSERT INTO media (origin, media_id, created_ts, last_access_ts, authenticated, quarantined_by)
     SELECT origin, media_id, $3, $3, true, $4 FROM unnest($1::text[], $2::text[]) AS n (origin, media_id)
     WHERE origin <> $5 ON CONFLICT DO NOTHING RETURNING 1`,
    [...columnsOf(names), now, by, localName],
  );
  return rows.length;
}

export async function unquarantine(db: Queryable, localName: string, name: MediaName): Promise<void> {
  const names = columnsOf([name]);
  await db.query(
    `${NAMED} UPDATE media SET quarantined_by = NULL
     WHERE quarantined_by IS NOT NULL AND (origin, media_id) IN (SELECT origin, media_id FROM meant)`,
    names,
  );
  await db.query(
    'DELETE FROM media WHERE origin = $1 AND media_id = $2 AND origin <> $3 AND sha256 IS NULL',
    [name.origin, name.mediaId, localName],
  );
}

/** @returns `false` when there is no such media */
export async function setProtected(db: Queryable, name: MediaName, value: boolean): Promise<boolean> {
  const rows = await db.query(
    'UPDATE media SET protected = $3 WHERE origin = $1 AND media_id = $2 RETURNING 1',
    [name.origin, name.mediaId, value],
  );
  return rows.length > 0;
}

export async function findRecord(db: Queryable, name: MediaName): Promise<MediaRecord | undefined> {
  const [record] = await db.query<MediaRecord>(
    `SELECT ${RECORD} FROM media WHERE origin = $1 AND media_id = $2 AND sha256 IS NOT NULL`,
    [name.origin, name.mediaId],
  );
  return record;
}

export async function uploadsOf(
  db: Queryable,
  userId: string,
  { from, limit, orderBy, backwards }: Page,
): Promise<MediaRecord[]> {
  return db.query<MediaRecord>(
    `SELECT ${RECORD} FROM media WHERE user_id = $1 AND sha256 IS NOT NULL
     ORDER BY ${ORDERS[orderBy]} ${backwards ? 'DESC' : 'ASC'}, media_id LIMIT $2 OFFSET $3`,
    [userId, limit, from],
  );
}

export async function uploadCount(db: Queryable, userId: string): Promise<number> {
  const [row] = await db.query<{ total: number }>(
    'SELECT count(*) AS total FROM media WHERE user_id = $1 AND sha256 IS NOT NULL',
    [userId],
  );
  return row!.total;
}

function columnsOf(names: readonly MediaName[]): [origins: string[], mediaIds: string[]] {
  return [names.map(({ origin }) => origin), names.map(({ mediaId }) => mediaId)];
}
