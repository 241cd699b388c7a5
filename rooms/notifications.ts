import type { Action } from '@trellis/protocol/push-rules/index.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { PushEvaluation } from './push-evaluation.ts';
import type { Rooms } from './rooms.ts';
import { threadOf } from './thread-of.ts';
import type { ReadPositions } from './unread.ts';
import { readPosition } from './unread-counter.ts';

/** An event that the user was notified of, or would have been. */
export interface Notification {
  readonly event: StoredEvent;
  readonly actions: readonly Action[];
  readonly read: boolean;
}

export interface NotificationsDeps {
  readonly rooms: Rooms;
  readonly evaluation: PushEvaluation;
  readonly reads: ReadPositions;
}

/** Events looked at in one step, and steps for one page. */
const STEP = 100;
const MAX_STEPS = 10;

/** The list behind `/notifications`: found by the same rules as the counts, in the rooms that the user is in. */
export class Notifications {
  readonly #deps: NotificationsDeps;

  constructor(deps: NotificationsDeps) {
    this.#deps = deps;
  }

  /**
   * Newest first.
   *
   * @param before position that the page ends before
   * @returns also where the next page goes on; that may be so without any found here, when few events notify
   */
  async list(
    userId: string,
    before: number,
    limit: number,
    onlyHighlights: boolean,
  ): Promise<{ notifications: Notification[]; next: number | undefined }> {
    const notifications: Notification[] = [];
    let end = before;
    for (let step = 0; step < MAX_STEPS; step++) {
      const events = await this.#eventsBefore(userId, end);
      for (const event of events) {
        const found = await this.#notificationOf(userId, event, onlyHighlights);
        end = event.pos!;
        if (!found) continue;
        notifications.push(found);
        if (notifications.length === limit) return { notifications, next: end };
      }
      if (events.length < STEP) return { notifications, next: undefined };
    }
    return { notifications, next: end };
  }

  async #notificationOf(
    userId: string,
    event: StoredEvent,
    onlyHighlights: boolean,
  ): Promise<Notification | undefined> {
    const { rooms, evaluation, reads } = this.#deps;
    const room = await rooms.get(event.roomId);
    if (!room || event.redactedBy) return undefined;
    const { notify, highlight, actions } = (await evaluation.forUser(room, userId))(event);
    if (!notify || (onlyHighlights && !highlight)) return undefined;
    const read = await reads.readUpTo(userId, room.roomId);
    const thread = await threadOf(rooms.parts.events, event);
    return { event, actions, read: event.pos! <= readPosition(read, thread) };
  }

  /** The newest events that others sent to the user's rooms since the user joined, newest first. */
  async #eventsBefore(userId: string, before: number): Promise<StoredEvent[]> {
    const { db, events } = this.#deps.rooms.parts;
    const rows = await db.query<{ nid: number }>(
      {
        name: 'notification-candidates',
        text: `SELECT e.nid FROM room_members m
               CROSS JOIN LATERAL (
                 SELECT nid, pos FROM events
                 WHERE room = m.room AND pos > m.pos AND pos < $2 AND status = 0 AND NOT backfilled
                   AND sender <> $1 ORDER BY pos DESC LIMIT $3
               ) e
               WHERE m.user_id = $1 AND m.membership = 'join' ORDER BY e.pos DESC LIMIT $3`,
      },
      [userId, before, STEP],
    );
    const found = await events.byNids(rows.map(({ nid }) => nid));
    return found.sort((a, b) => b.pos! - a.pos!);
  }
}
