import type { Queryable } from '@trellis/storage/database.ts';
import type { Room } from './room.ts';
import type { Rooms } from './rooms.ts';
import { visibilityIn } from './visibility.ts';

/** Rooms looked at to see whether they are open to all, for one question. */
const MAX_ROOMS = 300;

/**
 * Whom a user may find (spec: "User Directory"): who shares a room with them, or is in a room that is public or
 * readable by all. They find themselves only in the latter: sharing a room with oneself tells nothing.
 */
export class UserVisibility {
  readonly #db: Queryable;
  readonly #rooms: Rooms;

  constructor(db: Queryable, rooms: Rooms) {
    this.#db = db;
    this.#rooms = rooms;
  }

  async visibleTo(requesterId: string, userIds: readonly string[]): Promise<ReadonlySet<string>> {
    const visible = await this.#sharingRoom(requesterId, userIds);
    const hidden = new Set(userIds.filter((userId) => !visible.has(userId)));
    for (const { roomId, members } of await this.#roomsOf([...hidden])) {
      if (hidden.size === 0) break;
      const sought = members.filter((userId) => hidden.has(userId));
      if (sought.length === 0) continue;
      const room = await this.#rooms.get(roomId);
      if (!room?.isResident || !(await this.#isOpen(room))) continue;
      for (const userId of sought) {
        visible.add(userId);
        hidden.delete(userId);
      }
    }
    return visible;
  }

  async #sharingRoom(requesterId: string, userIds: readonly string[]): Promise<Set<string>> {
    const rows = await this.#db.query<{ userId: string }>(
      {
        name: 'users-sharing-room',
        text: `SELECT DISTINCT m.user_id AS "userId" FROM room_members own
                 JOIN room_members m ON m.room = own.room
               WHERE own.user_id = $1 AND own.membership = 'join' AND m.user_id = ANY($2) AND m.user_id <> $1
                 AND m.membership = 'join'`,
      },
      [requesterId, userIds],
    );
    return new Set(rows.map(({ userId }) => userId));
  }

  /** Rooms with the users in them, those with most of them first. */
  async #roomsOf(userIds: readonly string[]): Promise<Array<{ roomId: string; members: string[] }>> {
    if (userIds.length === 0) return [];
    return this.#db.query(
      {
        name: 'rooms-of-users',
        text: `SELECT r.room_id AS "roomId", array_agg(m.user_id) AS members FROM room_members m
                 JOIN rooms r ON r.nid = m.room
               WHERE m.user_id = ANY($1) AND m.membership = 'join'
               GROUP BY r.room_id ORDER BY count(*) DESC LIMIT ${MAX_ROOMS}`,
      },
      [userIds],
    );
  }

  async #isOpen(room: Room): Promise<boolean> {
    const ref = room.state.get('m.room.join_rules', '');
    const rules = ref && (await this.#rooms.parts.events.get(ref.eventId));
    if (rules?.content.join_rule === 'public') return true;
    return (await visibilityIn(this.#rooms, room.state)) === 'world_readable';
  }
}
