import { invalidParam } from '@trellis/protocol/errors.ts';
import { redactedCopy } from '@trellis/rooms/redacted-copy.ts';
import type { Relations } from '@trellis/rooms/relations.ts';
import type { Room } from '@trellis/rooms/room.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { StoredEvent } from '@trellis/storage/stored-event.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, sendJson } from './client-events.ts';
import { limitOf } from './query-values.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';
import { parsePlaceToken, placeToken } from './sync/token.ts';

export interface ThreadsDeps {
  readonly access: RoomAccess;
  readonly relations: Relations;
  readonly clientEvents: ClientEvents;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

const DEFAULT_LIMIT = 20;
const MAX_LIMIT = 100;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ include: text, limit: text, from: text });
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** `GET /rooms/{roomId}/threads` (spec: "Querying threads in a room"). */
export function threadRoutes(app: FastifyInstance, deps: ThreadsDeps): void {
  const { access, relations, clientEvents, ignoredUsers } = deps;
  app.get<{ Params: { roomId: string }; Querystring: Query }>(
    '/_matrix/client/v1/rooms/:roomId/threads',
    { schema: { querystring } },
    async (request, reply) => {
      const reader = requesterOf(request);
      const { include = 'all', limit: limitText, from } = request.query;
      if (include !== 'all' && include !== 'participated')
        throw invalidParam('include must be "all" or "participated"');
      const limit = limitOf(limitText, DEFAULT_LIMIT, MAX_LIMIT, 1);
      const { room, end } = await viewRoom(access, request.params.roomId, reader.userId);
      const ignored = await ignoredUsers(reader.userId);
      const threads = await relations.threads(room, {
        userId: reader.userId,
        participated: include === 'participated',
        ignored,
        before: from ? parsePlaceToken(from) + 1 : Number.POSITIVE_INFINITY,
        end,
        limit: limit + 1,
      });
      const page = threads.slice(0, limit);
      const roots = await rootEvents(
        access,
        room,
        page.map(({ root }) => root),
        reader.userId,
      );
      const shown = roots.map((event) => (ignored.has(event.sender) ? redactedCopy(event) : event));
      const parts = [`"chunk":${await clientEvents.list(room, shown, reader)}`];
      const last = page.at(-1);
      if (threads.length > limit && last) parts.push(`"next_batch":"${placeToken(last.latest - 1)}"`);
      return sendJson(reply, `{${parts.join(',')}}`);
    },
  );
}

async function rootEvents(
  { rooms }: RoomAccess,
  room: Room,
  ids: readonly string[],
  userId: string,
): Promise<StoredEvent[]> {
  const events = await rooms.parts.events.getMany(ids);
  const roots = ids.flatMap((id) => events.get(id) ?? []);
  return visibleEvents(
    rooms,
    room,
    userId,
    roots.filter((event) => event.roomId === room.roomId && event.status === 'accepted'),
  );
}
