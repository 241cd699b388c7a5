import { invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { relationOf } from '@trellis/rooms/append.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { ThreadSubscription, ThreadSubscriptions } from '@trellis/users/thread-subscriptions.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { limitOf } from './query-values.ts';
import { visibleEvent } from './room-events.ts';
import { parsePosToken } from './sync/token.ts';

export interface ThreadSubscriptionsRoutesDeps {
  readonly rooms: Rooms;
  readonly subscriptions: ThreadSubscriptions;
}

const SUBSCRIPTION = '/_matrix/client/unstable/io.element.msc4306/rooms/:roomId/thread/:eventId/subscription';
const body = Type.Object({ automatic: Type.Optional(Type.String()) });
const text = Type.Optional(Type.String());
const querystring = Type.Object({ dir: text, from: text, to: text, limit: text });
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

interface Params {
  roomId: string;
  eventId: string;
}

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 512;

/** Following threads (MSC4306), and the list of all that changed of it (MSC4308). */
export function threadSubscriptionRoutes(app: FastifyInstance, deps: ThreadSubscriptionsRoutesDeps): void {
  const { rooms, subscriptions } = deps;

  const eventOf = async (roomId: string, eventId: string, userId: string): Promise<StoredEvent> => {
    const found = await visibleEvent(rooms, roomId, eventId, userId);
    if (!found) throw notFound('Event not found');
    return found.event;
  };

  app.get<{ Params: Params }>(SUBSCRIPTION, async (request) => {
    const { userId } = requesterOf(request);
    const { roomId, eventId } = request.params;
    await eventOf(roomId, eventId, userId);
    const subscription = await subscriptions.get(userId, roomId, eventId);
    if (!subscription) throw notFound('You do not follow that thread');
    return { automatic: subscription.automatic };
  });

  app.put<{ Params: Params; Body: { automatic?: string } }>(
    SUBSCRIPTION,
    { schema: { body } },
    async (request) => {
      const { userId } = requesterOf(request);
      const { roomId, eventId } = request.params;
      const { automatic } = request.body;
      await eventOf(roomId, eventId, userId);
      const cause = automatic === undefined ? undefined : await eventOf(roomId, automatic, userId);
      if (cause && !isInThread(cause, eventId))
        throw new MatrixError(
          400,
          'IO.ELEMENT.MSC4306.M_NOT_IN_THREAD',
          'The event that is said to be the cause is not in the thread',
        );
      if (!(await subscriptions.subscribe(userId, roomId, eventId, cause?.pos)))
        throw new MatrixError(
          409,
          'IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION',
          'You have unsubscribed from the thread since that event',
        );
      return {};
    },
  );

  app.delete<{ Params: Params }>(SUBSCRIPTION, async (request) => {
    const { userId } = requesterOf(request);
    const { roomId, eventId } = request.params;
    await eventOf(roomId, eventId, userId);
    await subscriptions.unsubscribe(userId, roomId, eventId, rooms.parts.stream.current);
    return {};
  });

  app.get<{ Querystring: Query }>(
    '/_matrix/client/unstable/io.element.msc4308/thread_subscriptions',
    { schema: { querystring } },
    async (request) => {
      const { userId } = requesterOf(request);
      const { dir, from, to, limit } = request.query;
      if (dir !== 'b') throw invalidParam('dir must be "b"');
      const { changes, more } = await subscriptions.changes(userId, {
        from: to === undefined ? 0 : positionOf(to),
        to: from === undefined ? Number.MAX_SAFE_INTEGER : positionOf(from),
        limit: limitOf(limit, DEFAULT_LIMIT, MAX_LIMIT, 1),
      });
      return { ...subscriptionChanges(changes), ...(more && { end: changesToken(changes) }) };
    },
  );
}

function isInThread(event: StoredEvent, root: string): boolean {
  const relation = relationOf(event);
  return relation?.relType === 'm.thread' && relation.target === root;
}

/** Changes as clients get them (MSC4308). */
export function subscriptionChanges(changes: readonly ThreadSubscription[]): object {
  type ByRoom = Record<string, Record<string, object>>;
  const subscribed: ByRoom = {};
  const unsubscribed: ByRoom = {};
  for (const { roomId, thread, subscribed: follows, automatic, pos } of changes) {
    const rooms = follows ? subscribed : unsubscribed;
    rooms[roomId] ??= {};
    rooms[roomId][thread] = follows ? { automatic, bump_stamp: pos } : { bump_stamp: pos };
  }
  return {
    ...(Object.keys(subscribed).length > 0 && { subscribed }),
    ...(Object.keys(unsubscribed).length > 0 && { unsubscribed }),
  };
}

/** Where to go on towards older changes. */
export function changesToken(changes: readonly ThreadSubscription[]): string {
  return `t${changes.at(-1)!.pos - 1}`;
}

/** A token of ours, or the `pos` of a sliding sync. */
function positionOf(token: string): number {
  const own = /^t(\d{1,16})$/.exec(token)?.[1];
  return own === undefined ? parsePosToken(token).accountData : Number(own);
}
