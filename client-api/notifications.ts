import { invalidParam } from '@trellis/protocol/errors.ts';
import { decodeJson } from '@trellis/protocol/json.ts';
import type { Notifications } from '@trellis/rooms/notifications.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { eventJson } from './event-json.ts';

export interface NotificationsDeps {
  readonly notifications: Notifications;
}

const DEFAULT_LIMIT = 20;
const MAX_LIMIT = 100;

const querystring = Type.Object({
  from: Type.Optional(Type.String()),
  limit: Type.Optional(Type.String()),
  only: Type.Optional(Type.String()),
});
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** What the user was notified of (spec: "Listing Notifications"). */
export function notificationRoutes(app: FastifyInstance, { notifications }: NotificationsDeps): void {
  app.get<{ Querystring: Query }>(
    '/_matrix/client/v3/notifications',
    { schema: { querystring } },
    async (request) => {
      const { userId, deviceId } = requesterOf(request);
      const { from, limit, only } = request.query;
      const before = from === undefined ? Number.MAX_SAFE_INTEGER : placeIn(from);
      const found = await notifications.list(userId, before, limitIn(limit), only === 'highlight');
      return {
        notifications: found.notifications.map(({ event, actions, read }) => ({
          actions,
          event: decodeJson(eventJson(event, { userId, deviceId })) as object,
          read,
          room_id: event.roomId,
          ts: event.originServerTs,
        })),
        ...(found.next !== undefined && { next_token: String(found.next) }),
      };
    },
  );
}

function placeIn(token: string): number {
  const place = Number(token);
  if (!/^\d+$/.test(token) || !Number.isSafeInteger(place)) throw invalidParam('Unknown pagination token');
  return place;
}

function limitIn(text: string | undefined): number {
  if (text === undefined) return DEFAULT_LIMIT;
  const limit = Number(text);
  if (!Number.isSafeInteger(limit) || limit < 1) throw invalidParam('limit is not a positive number');
  return Math.min(limit, MAX_LIMIT);
}
