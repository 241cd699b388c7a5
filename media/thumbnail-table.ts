import type { Queryable } from '@trellis/storage/database.ts';
import type { ContentLocks } from './content-locks.ts';

export interface ThumbnailKey {
  width: number;
  height: number;
  method: 'crop' | 'scale';
  animated: boolean;
}

/** Content that is served in place of an image. */
export interface ThumbnailInfo {
  sha256: Buffer;
  size: number;
  contentType: string;
}

export async function findThumbnail(
  db: Queryable,
  source: Buffer,
  key: ThumbnailKey,
): Promise<ThumbnailInfo | undefined> {
  const [row] = await db.query<{ thumbnail_sha256: Buffer; size: number; content_type: string }>(
    {
      name: 'media_thumbnail_find',
      text: `SELECT thumbnail_sha256, size, content_type FROM media_thumbnails
             WHERE sha256 = $1 AND width = $2 AND height = $3 AND method = $4 AND animated = $5`,
    },
    [source, key.width, key.height, key.method, key.animated],
  );
  return row && { sha256: row.thumbnail_sha256, size: row.size, contentType: row.content_type };
}

/** @param commit puts the thumbnail's content into the store */
export async function insertThumbnail(
  locks: ContentLocks,
  source: Buffer,
  key: ThumbnailKey,
  thumbnail: ThumbnailInfo,
  commit: () => Promise<void>,
): Promise<void> {
  await locks.run(thumbnail.sha256, async (tx) => {
    await tx.query(
      `INSERT INTO media_thumbnails
         (sha256, width, height, method, animated, thumbnail_sha256, size, content_type)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
      [
        source,
        key.width,
        key.height,
        key.method,
        key.animated,
        thumbnail.sha256,
        thumbnail.size,
        thumbnail.contentType,
      ],
    );
    await commit();
  });
}

/** @returns the hashes of their contents */
export async function removeThumbnailsOf(db: Queryable, source: Buffer): Promise<Buffer[]> {
  const rows = await db.query<{ thumbnail_sha256: Buffer }>(
    'DELETE FROM media_thumbnails WHERE sha256 = $1 RETURNING thumbnail_sha256',
    [source],
  );
  return rows.map((row) => row.thumbnail_sha256);
}
