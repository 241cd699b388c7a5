import { invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { closestHere } from '@trellis/rooms/timestamp.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { originOf } from './authentication.ts';
import { roomOfMember } from './member-server.ts';

const text = Type.Optional(Type.String());
const querystring = Type.Object({ ts: text, dir: text });

/** https://spec.matrix.org/v1.18/server-server-api/#get_matrixfederationv1timestamp_to_eventroomid */
export function timestampRoutes(app: FastifyInstance, rooms: Rooms): void {
  app.get<{ Params: { roomId: string }; Querystring: { ts?: string; dir?: string } }>(
    '/_matrix/federation/v1/timestamp_to_event/:roomId',
    { schema: { querystring } },
    async (request) => {
      const { ts, dir } = request.query;
      const time = Number(ts);
      if (ts === undefined || !/^-?\d+$/.test(ts) || !Number.isSafeInteger(time))
        throw invalidParam('ts must be a number of milliseconds');
      if (dir !== 'f' && dir !== 'b') throw invalidParam('dir must be "f" or "b"');
      const room = await roomOfMember(rooms, request.params.roomId, originOf(request));
      const query = {
        ts: time,
        direction: dir === 'f' ? ('forward' as const) : ('backward' as const),
        end: Number.POSITIVE_INFINITY,
      };
      const found = await closestHere(rooms, room, query, async (events) => events);
      if (!found) throw notFound('Unable to find an event');
      return { event_id: found.eventId, origin_server_ts: found.originServerTs };
    },
  );
}
