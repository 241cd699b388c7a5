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

/**
 * Where this run starts in the stream of events: well above everything stored. Positions that were handed out and then
 * not stored, because the write failed, may stand in the tokens of clients; nothing new may come to lie below those.
 */
export async function eventStreamStart(db: Queryable): Promise<number> {
  const [row] = await db.query<{ pos: number | null }>(
    'SELECT greatest((SELECT max(pos) FROM events WHERE NOT backfilled), (SELECT max(pos) FROM room_members)) AS pos',
  );
  return row?.pos == null ? 0 : row.pos + PER_RUN;
}
