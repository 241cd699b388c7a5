import { notFound } from '@trellis/protocol/errors.ts';
import { RECURSION_DEPTH, type Relations } from '@trellis/rooms/relations.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { visibleEvents } from '@trellis/rooms/visibility.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { type ClientEvents, sendJson } from './client-events.ts';
import { booleanOf, directionOf, limitOf } from './query-values.ts';
import { visibleEvent } from './room-events.ts';
import { parsePlaceToken, placeToken } from './sync/token.ts';

export interface RelationsDeps {
  readonly rooms: Rooms;
  readonly relations: Relations;
  readonly clientEvents: ClientEvents;
  readonly ignoredUsers: (userId: string) => Promise<ReadonlySet<string>>;
}

const DEFAULT_LIMIT = 20;
const MAX_LIMIT = 100;

const text = Type.Optional(Type.String());
const querystring = Type.Object({ from: text, to: text, limit: text, dir: text, recurse: text });
type Query = Partial<Record<keyof typeof querystring.properties, string>>;
interface Params {
  roomId: string;
  eventId: string;
  relType?: string;
  eventType?: string;
}

/** `GET /rooms/{roomId}/relations/{eventId}…` (spec: "Relationships API"). */
export function relationsRoutes(app: FastifyInstance, deps: RelationsDeps): void {
  const { rooms, relations, clientEvents, ignoredUsers } = deps;
  for (const path of ['', '/:relType', '/:relType/:eventType'])
    app.get<{ Params: Params; Querystring: Query }>(
      `/_matrix/client/v1/rooms/:roomId/relations/:eventId${path}`,
      { schema: { querystring } },
      async (request, reply) => {
        const reader = requesterOf(request);
        const { roomId, eventId, relType, eventType } = request.params;
        const { query } = request;
        const direction = directionOf(query.dir, 'b');
        const limit = limitOf(query.limit, DEFAULT_LIMIT, MAX_LIMIT, 1);
        const recurse = booleanOf('recurse', query.recurse);
        const found = await visibleEvent(rooms, roomId, eventId, reader.userId);
        if (!found) throw notFound('Event not found');
        const children = await relations.children(found.room, eventId, {
          relType,
          eventType,
          recurse,
          direction,
          ...range(query, direction),
          limit: limit + 1,
        });
        const page = children.slice(0, limit);
        const ignored = await ignoredUsers(reader.userId);
        const visible = await visibleEvents(
          rooms,
          found.room,
          reader.userId,
          page.filter((event) => !ignored.has(event.sender)),
        );
        const parts = [`"chunk":${await clientEvents.list(found.room, visible, reader)}`];
        const last = page.at(-1);
        if (children.length > limit && last)
          parts.push(`"next_batch":"${placeToken(direction === 'forward' ? last.pos! : last.pos! - 1)}"`);
        if (query.from) parts.push(`"prev_batch":${JSON.stringify(query.from)}`);
        if (query.recurse !== undefined) parts.push(`"recursion_depth":${recurse ? RECURSION_DEPTH : 1}`);
        return sendJson(reply, `{${parts.join(',')}}`);
      },
    );
}

/** The positions between two places, exclusive at both ends. */
function range(query: Query, direction: 'forward' | 'backward'): { after: number; before: number } {
  const from = query.from ? parsePlaceToken(query.from) : undefined;
  const to = query.to ? parsePlaceToken(query.to) : undefined;
  const [low, high] = direction === 'forward' ? [from, to] : [to, from];
  return {
    after: low ?? Number.NEGATIVE_INFINITY,
    before: high === undefined ? Number.POSITIVE_INFINITY : high + 1,
  };
}
