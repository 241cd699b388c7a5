import { createHash } from 'node:crypto';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';

/** Previews by URL: the table `url_previews`. */
export async function findPreview(
  db: Queryable,
  url: string,
  now: number,
): Promise<Record<string, unknown> | undefined> {
  const [row] = await db.query<{ preview: string }>(
    {
      name: 'url_preview_find',
      text: 'SELECT preview FROM url_previews WHERE url_sha256 = $1 AND expires_ts > $2',
    },
    [hashOf(url), now],
  );
  return row && (decodeJson(row.preview) as Record<string, unknown>);
}

export async function storePreview(
  db: Queryable,
  url: string,
  preview: Record<string, unknown>,
  now: number,
  expiresTs: number,
): Promise<void> {
  await db.query(
    `INSERT INTO url_previews (url_sha256, preview, fetched_ts, expires_ts) VALUES ($1, $2, $3, $4)
     ON CONFLICT (url_sha256) DO UPDATE
     SET preview = excluded.preview, fetched_ts = excluded.fetched_ts, expires_ts = excluded.expires_ts`,
    [hashOf(url), JSON.stringify(preview), now, expiresTs],
  );
}

export async function removeExpiredPreviews(db: Queryable, now: number): Promise<void> {
  await db.query('DELETE FROM url_previews WHERE expires_ts <= $1', [now]);
}

/** URLs are what users wrote to each other, so the table does not hold them. */
function hashOf(url: string): Buffer {
  return createHash('sha256').update(url).digest();
}
