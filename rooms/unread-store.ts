import { Batcher } from '@trellis/storage/batcher.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { UnreadCounter } from './unread-counter.ts';

interface Row {
  readonly userId: string;
  readonly roomNid: number;
  readonly pos: number;
  readonly joinedPos: number;
  readonly counts: string;
}

/**
 * The table `unread_counts`: counts as of some position, from which on they can be counted up again. Every process
 * counts for itself, and stores what is newer than what is there.
 */
export class UnreadStore {
  readonly #db: Queryable;
  readonly #writes = new Batcher<Row>((rows) => this.#store(rows));

  constructor(db: Queryable) {
    this.#db = db;
  }

  /** The user's counters by room id. */
  async load(userId: string): Promise<Map<string, { counter: UnreadCounter; roomNid: number }>> {
    const rows = await this.#db.query<Row & { roomId: string }>(
      {
        name: 'unread-counts',
        text: `SELECT r.room_id AS "roomId", c.room AS "roomNid", c.pos, c.joined_pos AS "joinedPos", c.counts
               FROM unread_counts c JOIN rooms r ON r.nid = c.room WHERE c.user_id = $1`,
      },
      [userId],
    );
    return new Map(
      rows.map(({ roomId, roomNid, joinedPos, pos, counts }) => [
        roomId,
        { roomNid, counter: UnreadCounter.fromJson(joinedPos, pos, counts) },
      ]),
    );
  }

  /** Stored soon; when that fails, nothing is lost but time. */
  save(userId: string, roomNid: number, counter: UnreadCounter): Promise<void> {
    counter.unsaved = 0;
    const { lastEvent: pos, joinedPos } = counter;
    return this.#writes.add({ userId, roomNid, pos, joinedPos, counts: counter.toJson() }).catch(() => {});
  }

  async #store(rows: readonly Row[]): Promise<void> {
    const last = [...new Map(rows.map((row) => [`${row.roomNid} ${row.userId}`, row])).values()];
    await this.#db.query(
      {
        name: 'unread-counts-set',
        text: `INSERT INTO unread_counts (user_id, room, pos, joined_pos, counts)
               SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])
               ON CONFLICT (user_id, room) DO UPDATE SET pos = EXCLUDED.pos,
                 joined_pos = EXCLUDED.joined_pos, counts = EXCLUDED.counts
               WHERE (unread_counts.joined_pos, unread_counts.pos) < (EXCLUDED.joined_pos, EXCLUDED.pos)`,
      },
      [
        last.map(({ userId }) => userId),
        last.map(({ roomNid }) => roomNid),
        last.map(({ pos }) => pos),
        last.map(({ joinedPos }) => joinedPos),
        last.map(({ counts }) => counts),
      ],
    );
  }
}
