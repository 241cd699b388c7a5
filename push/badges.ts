import { RecentlyUsed } from '@trellis/protocol/recently-used.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Unread } from '@trellis/rooms/unread.ts';
import type { Queryable } from '@trellis/storage/database.ts';
import { KeyedQueue } from '@trellis/users/keyed-queue.ts';

export interface BadgesDeps {
  readonly db: Queryable;
  readonly memberships: Pick<Memberships, 'of'>;
  readonly unread: Pick<Unread, 'counts'>;
  /** What is counted: unread messages, or rooms that have some. */
  readonly counted: 'messages' | 'rooms';
}

interface Badge {
  /** Rooms with something unread, as far as known. */
  readonly rooms: Map<string, number>;
  /** Rooms to be counted again. */
  readonly changed: Set<string>;
}

const MAX_USERS = 20_000;
/** Rooms that are looked at when a user's badge is first counted, the most recently active ones. */
const MAX_ROOMS = 1_000;

/**
 * What a user has not read yet, over all rooms (push gateway API: `counts.unread`). Counted once for each user; after
 * that only rooms in which something happened are counted again.
 */
export class Badges {
  readonly #deps: BadgesDeps;
  readonly #queue = new KeyedQueue();
  readonly #badges = new RecentlyUsed<string, Badge>(MAX_USERS);

  constructor(deps: BadgesDeps) {
    this.#deps = deps;
  }

  /** Something happened in the room, or the user has read there. */
  roomChanged(userId: string, roomId: string): void {
    this.#badges.get(userId)?.changed.add(roomId);
  }

  /** Something may have happened anywhere. */
  forget(): void {
    this.#badges.clear();
  }

  of(userId: string): Promise<number> {
    return this.#queue.run(userId, () => this.#of(userId));
  }

  async #of(userId: string): Promise<number> {
    let badge = this.#badges.get(userId);
    if (!badge) {
      badge = { rooms: new Map(), changed: new Set() };
      this.#badges.set(userId, badge);
      for (const roomId of await this.#candidates(userId)) badge.changed.add(roomId);
    }
    for (const roomId of badge.changed) {
      badge.changed.delete(roomId);
      const count = await this.#count(userId, roomId);
      if (count > 0) badge.rooms.set(roomId, count);
      else badge.rooms.delete(roomId);
    }
    let sum = 0;
    for (const count of badge.rooms.values()) sum += this.#deps.counted === 'rooms' ? 1 : count;
    return sum + (await this.#invites(userId));
  }

  async #count(userId: string, roomId: string): Promise<number> {
    const { notify, threads } = await this.#deps.unread.counts(userId, roomId);
    let count = notify;
    for (const thread of threads.values()) count += thread.notify;
    return count;
  }

  /** An invite that is not answered is something unread as well. */
  async #invites(userId: string): Promise<number> {
    let count = 0;
    for (const { membership } of (await this.#deps.memberships.of(userId)).values())
      if (membership === 'invite') count++;
    return count;
  }

  /** Rooms in which others sent something since the user joined and last read. */
  async #candidates(userId: string): Promise<string[]> {
    const rows = await this.#deps.db.query<{ roomId: string }>(
      {
        name: 'push-badge-rooms',
        text: `SELECT r.room_id AS "roomId" FROM room_members m JOIN rooms r ON r.nid = m.room
               CROSS JOIN LATERAL (
                 SELECT e.pos FROM events e
                 WHERE e.room = m.room AND e.status = 0 AND NOT e.backfilled AND e.sender <> $1
                   AND e.pos > greatest(m.pos, (SELECT max(c.event_pos) FROM receipts c WHERE c.user_id = $1
                     AND c.room = m.room AND c.type IN ('m.read', 'm.read.private') AND c.thread = ''))
                 ORDER BY e.pos DESC LIMIT 1
               ) news
               WHERE m.user_id = $1 AND m.membership = 'join' ORDER BY news.pos DESC LIMIT $2`,
      },
      [userId, MAX_ROOMS],
    );
    return rows.map(({ roomId }) => roomId);
  }
}
