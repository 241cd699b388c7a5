import type { Queryable } from './database.ts';

/** Positions that one run of the server has for each stream; no run lives to use them up. */
const PER_RUN = 2 ** 32;

/**
 * Reserves a range of positions for this run in each stream and tells where it starts. Rows of streams get deleted
 * (messages that were received, data that was replaced), so the highest position in a table says nothing; a range
 * for each run keeps positions growing whatever was deleted, and costs no write for a position.
 */
export async function reserveStreamPositions(
  db: Queryable,
  streams: readonly string[],
): Promise<Map<string, number>> {
  const rows = await db.query<{ stream: string; start: number }>(
    `INSERT INTO stream_positions (stream, next_start) SELECT stream, $2::bigint FROM unnest($1::text[]) AS u(stream)
     ON CONFLICT (stream) DO UPDATE SET next_start = stream_positions.next_start + $2::bigint
     RETURNING stream, next_start - $2::bigint AS start`,
    [streams, PER_RUN],
  );
  return new Map(rows.map(({ stream, start }) => [stream, start]));
}

/** The newest position in the stream of events: of an event, or of a membership in a room elsewhere. */
export async function newestEventPosition(db: Queryable): Promise<number> {
  const [row] = await db.query<{ pos: number | null }>(
    'SELECT greatest((SELECT max(pos) FROM events WHERE NOT backfilled), (SELECT max(pos) FROM room_members)) AS pos',
  );
  return row?.pos ?? 0;
}
