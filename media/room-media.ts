import { isServerName } from '@trellis/protocol/identifiers.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import type { MediaName } from './media-table.ts';
import { isMediaId } from './repository.ts';

const AT_A_TIME = 500;
const MAX_URI = 600;

/**
 * Media that a room's events name, some at a time, each once. What encrypted events name is known to their readers
 * alone.
 */
export async function* mediaInRoom(
  db: Queryable,
  roomId: string,
): AsyncGenerator<MediaName[], void, undefined> {
  const seen = new Set<string>();
  let after: number | undefined;
  for (;;) {
    const rows: Array<{ pos: number; json: string }> = await db.query(
      `SELECT e.pos, e.json FROM events AS e JOIN rooms AS r ON r.nid = e.room
       WHERE r.room_id = $1 AND e.pos IS NOT NULL AND ($2::bigint IS NULL OR e.pos > $2) AND e.json LIKE '%mxc://%'
       ORDER BY e.pos LIMIT ${AT_A_TIME}`,
      [roomId, after],
    );
    if (rows.length === 0) return;
    after = rows.at(-1)!.pos;
    const names: MediaName[] = [];
    for (const uri of rows.flatMap(({ json }) => urisOf(json))) {
      const name = seen.has(uri) ? undefined : nameOf(uri);
      if (!name) continue;
      seen.add(uri);
      names.push(name);
    }
    yield names;
  }
}

interface Content {
  url?: unknown;
  file?: { url?: unknown } | null;
  info?: { thumbnail_url?: unknown; thumbnail_file?: { url?: unknown } | null } | null;
}

/** The file of a message, a sticker or an avatar of the room, and its thumbnail. */
function urisOf(json: string): string[] {
  const { content } = decodeJson(json) as { content: Content };
  const { url, file, info } = content;
  return [url, file?.url, info?.thumbnail_url, info?.thumbnail_file?.url].filter(
    (uri): uri is string => typeof uri === 'string' && uri.length <= MAX_URI,
  );
}

function nameOf(uri: string): MediaName | undefined {
  const match = /^mxc:\/\/([^/]+)\/([^/?#]+)/.exec(uri);
  if (!match) return undefined;
  const [, origin, mediaId] = match as unknown as [string, string, string];
  return isServerName(origin) && isMediaId(mediaId) ? { origin, mediaId } : undefined;
}
