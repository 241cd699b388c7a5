import { missingParam, notFound } from '@trellis/protocol/errors.ts';
import { closestEvent, type TimestampParts } from '@trellis/rooms/timestamp.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { directionOf, integerOf } from './query-values.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';

const text = Type.Optional(Type.String());
const querystring = Type.Object({ ts: text, dir: text });

/** `GET /rooms/{roomId}/timestamp_to_event` (spec: "Getting events for a room"), under its old name too (MSC3030). */
export function timestampRoutes(app: FastifyInstance, access: RoomAccess, parts: TimestampParts): void {
  for (const prefix of ['/_matrix/client/v1', '/_matrix/client/unstable/org.matrix.msc3030'])
    app.get<{ Params: { roomId: string }; Querystring: { ts?: string; dir?: string } }>(
      `${prefix}/rooms/:roomId/timestamp_to_event`,
      { schema: { querystring } },
      async (request) => {
        const { userId } = requesterOf(request);
        const { query } = request;
        if (query.ts === undefined) throw missingParam('ts is missing');
        const ts = integerOf('ts', query.ts);
        const direction = directionOf(query.dir);
        const { room, end } = await viewRoom(access, request.params.roomId, userId);
        const found = await closestEvent(parts, room, userId, { ts, direction, end });
        if (!found) throw notFound(`Unable to find an event ${direction} from ${ts}`);
        return { event_id: found.eventId, origin_server_ts: found.originServerTs };
      },
    );
}
