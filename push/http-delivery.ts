import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { Badges } from './badges.ts';
import type { PushNotification } from './candidates.ts';
import type { Gateway, GatewayAnswer } from './gateway.ts';
import { badgeNotification, eventNotification } from './notification.ts';
import type { PusherQueue } from './pusher-queue.ts';

/** What becomes of a pusher after a delivery. */
export type Delivery =
  | { readonly kind: 'done' }
  /** The rest is tried again then. */
  | { readonly kind: 'wait'; readonly dueTs: number; readonly error?: unknown }
  | { readonly kind: 'gone' };

export interface HttpDeliveryDeps {
  readonly rooms: Rooms;
  readonly gateway: Gateway;
  readonly badges: Badges;
  /** A notification has arrived: how far the pusher is now may be stored. */
  readonly progressed: (queue: PusherQueue) => void;
}

const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 3_600_000;
/** After so long the outstanding notifications are given up, but for the last. */
const GIVE_UP_MS = 24 * 3_600_000;

/** Tells a push gateway, one notification after the other. */
export class HttpDelivery {
  readonly #deps: HttpDeliveryDeps;

  constructor(deps: HttpDeliveryDeps) {
    this.#deps = deps;
  }

  async deliver(
    queue: PusherQueue,
    notifications: readonly PushNotification[],
    to: number,
  ): Promise<Delivery> {
    const { rooms, badges } = this.#deps;
    const { userId } = queue.row;
    // Without a receipt and without a number that was told before there is nothing to correct.
    const isBadgeKnown = queue.badgeDue || queue.lastBadge !== undefined;
    queue.badgeDue = false;
    const isGivenUp = Date.now() - (queue.row.failingSinceTs ?? Number.POSITIVE_INFINITY) > GIVE_UP_MS;
    for (const notification of isGivenUp ? notifications.slice(-1) : notifications) {
      if (queue.isRemoved) return { kind: 'done' };
      const { pos } = notification.event;
      const unread = await badges.of(userId);
      const body = await eventNotification(rooms, queue.row, notification, unread);
      const ended = await this.#send(queue, body, pos! - 1);
      if (ended) return ended;
      queue.row.pos = pos!;
      queue.lastBadge = unread;
      this.#deps.progressed(queue);
    }
    const unread = isBadgeKnown ? await badges.of(userId) : queue.lastBadge;
    if (unread !== undefined && queue.lastBadge !== unread && !queue.isRemoved) {
      const ended = await this.#send(queue, badgeNotification(queue.row, unread), to);
      if (ended) return ended;
      queue.lastBadge = unread;
    }
    queue.row.pos = Math.max(queue.row.pos, to);
    return { kind: 'done' };
  }

  /** @param before where the pusher stands when this does not arrive */
  async #send(queue: PusherQueue, body: object, before: number): Promise<Delivery | undefined> {
    const { row } = queue;
    const answer = await this.#deps.gateway.notify(String(row.data.url), row.pushkey, body);
    if (answer.outcome === 'rejected') return { kind: 'gone' };
    if (answer.outcome === 'failed') {
      row.pos = Math.max(row.pos, before);
      queue.badgeDue = true;
      return failed(queue, answer);
    }
    row.failures = 0;
    row.failingSinceTs = null;
    return undefined;
  }
}

function failed({ row }: PusherQueue, answer: GatewayAnswer & { outcome: 'failed' }): Delivery {
  const now = Date.now();
  const wait = Math.min(FIRST_WAIT_MS * 2 ** Math.min(row.failures, 30), LONGEST_WAIT_MS);
  row.failures++;
  row.failingSinceTs ??= now;
  // Spread by a tenth, so that what failed together is not tried together for ever.
  const spread = wait * (0.9 + Math.random() * 0.2);
  return {
    kind: 'wait',
    dueTs: Math.round(now + Math.max(spread, answer.retryAfterMs)),
    error: answer.error,
  };
}
