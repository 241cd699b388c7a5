import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { PushNotification } from './candidates.ts';
import type { Delivery } from './http-delivery.ts';
import type { SendMail } from './mailer.ts';
import { namesFor } from './notification.ts';
import { type MailMessage, type MailRoom, notificationMail } from './notification-mail.ts';
import type { PusherQueue } from './pusher-queue.ts';
import type { PusherRow, PusherTable } from './pusher-table.ts';

export interface MailDeliveryDeps {
  readonly rooms: Rooms;
  readonly table: Pick<PusherTable, 'unsubscribeToken'>;
  readonly send: SendMail;
  readonly serverName: string;
  readonly clientUrl: string;
  /** Where the switch-off links lead to; the token is put at its end. */
  readonly unsubscribeUrl: string;
  /** How long something is unread before a mail tells of it. */
  readonly delayMs: number;
}

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const FIRST_RETRY_MS = 60_000;
const LONGEST_RETRY_MS = 6 * HOUR_MS;

/**
 * Mails what is still unread after a while, all of it in one mail. Who does not come to read is mailed less and less
 * often, at last once a day; who reads begins anew.
 */
export class MailDelivery {
  readonly #deps: MailDeliveryDeps;

  constructor(deps: MailDeliveryDeps) {
    this.#deps = deps;
  }

  async deliver(
    queue: PusherQueue,
    notifications: readonly PushNotification[],
    to: number,
  ): Promise<Delivery> {
    const { row } = queue;
    const [first] = notifications;
    if (!first) {
      row.pos = Math.max(row.pos, to);
      return { kind: 'done' };
    }
    const now = Date.now();
    const dueTs = Math.max(row.dueTs ?? now + this.#deps.delayMs, this.#nextMailTs(row));
    if (dueTs > now) {
      row.pos = Math.max(row.pos, first.event.pos! - 1);
      return { kind: 'wait', dueTs };
    }
    try {
      await this.#mail(row, notifications);
    } catch (error) {
      const wait = Math.min(FIRST_RETRY_MS * 2 ** Math.min(row.failures, 20), LONGEST_RETRY_MS);
      row.failures++;
      row.failingSinceTs ??= now;
      row.pos = Math.max(row.pos, first.event.pos! - 1);
      return { kind: 'wait', dueTs: now + wait, error };
    }
    row.pos = Math.max(row.pos, to);
    row.mails++;
    row.mailedTs = now;
    row.failures = 0;
    row.failingSinceTs = null;
    return { kind: 'done' };
  }

  #nextMailTs({ mails, mailedTs }: PusherRow): number {
    if (mailedTs === null) return 0;
    const { delayMs } = this.#deps;
    const intervals = [delayMs, 6 * delayMs, 36 * delayMs];
    return mailedTs + Math.min(intervals[mails] ?? DAY_MS, DAY_MS);
  }

  async #mail(row: PusherRow, notifications: readonly PushNotification[]): Promise<void> {
    const { rooms, table, send, serverName, clientUrl, unsubscribeUrl } = this.#deps;
    const byRoom = new Map<string, MailRoom & { messages: MailMessage[] }>();
    for (const notification of notifications) {
      const { event, room } = notification;
      const names = await namesFor(rooms, notification);
      let entry = byRoom.get(room.roomId);
      if (!entry) {
        entry = { roomId: room.roomId, names, messages: [] };
        byRoom.set(room.roomId, entry);
      }
      entry.messages.push({ event, senderName: names.senderName ?? event.sender });
    }
    await send(
      notificationMail([...byRoom.values()], {
        to: row.pushkey,
        userId: row.userId,
        serverName,
        clientUrl,
        unsubscribeUrl: unsubscribeUrl + (await table.unsubscribeToken(row)),
      }),
    );
  }
}
