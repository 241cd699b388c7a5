import { invalidParam, missingParam } from '@trellis/protocol/errors.ts';
import { eventsBetween, eventsUpTo } from '@trellis/rooms/graph-walk.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { jsonForServer } from '@trellis/rooms/server-visibility.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { originOf } from './authentication.ts';
import { jsonList, roomOfMember } from './member-server.ts';

export interface BackfillRoutesDeps {
  readonly rooms: Rooms;
}

const MAX_BACKFILL = 100;
const MAX_FROM = 100;
const MAX_MISSING = 50;
const DEFAULT_MISSING = 10;

const missingBody = Type.Object({
  earliest_events: Type.Array(Type.String(), { maxItems: 1000 }),
  latest_events: Type.Array(Type.String(), { maxItems: 100 }),
  limit: Type.Optional(Type.Integer()),
  min_depth: Type.Optional(Type.Integer()),
});

/**
 * History for servers that lack some of it.
 * https://spec.matrix.org/v1.18/server-server-api/#backfilling-and-retrieving-missing-events
 */
export function backfillRoutes(app: FastifyInstance, { rooms }: BackfillRoutesDeps): void {
  const { serverName } = rooms.parts;

  app.get<{ Params: { roomId: string }; Querystring: { v?: string | string[]; limit?: string } }>(
    '/_matrix/federation/v1/backfill/:roomId',
    async (request, reply) => {
      const origin = originOf(request);
      const { v, limit } = request.query;
      if (v === undefined) throw missingParam('v is missing');
      const from = typeof v === 'string' ? [v] : v;
      if (from.length > MAX_FROM) throw invalidParam(`v names more than ${MAX_FROM} events`);
      const wanted = limit === undefined ? MAX_BACKFILL : Number(limit);
      if (!Number.isSafeInteger(wanted) || wanted < 1) throw invalidParam('limit must be a positive integer');
      const room = await roomOfMember(rooms, request.params.roomId, origin);
      const events = await eventsUpTo(rooms, room, from, Math.min(wanted, MAX_BACKFILL));
      const pdus = jsonList(await jsonForServer(rooms, origin, events));
      reply.type('application/json');
      return `{"origin":${JSON.stringify(serverName)},"origin_server_ts":${Date.now()},"pdus":${pdus}}`;
    },
  );

  app.post<{
    Params: { roomId: string };
    Body: { earliest_events: string[]; latest_events: string[]; limit?: number; min_depth?: number };
  }>(
    '/_matrix/federation/v1/get_missing_events/:roomId',
    { schema: { body: missingBody } },
    async (request, reply) => {
      const origin = originOf(request);
      const { earliest_events: earliest, latest_events: latest, limit, min_depth: minDepth } = request.body;
      const room = await roomOfMember(rooms, request.params.roomId, origin);
      const events = await eventsBetween(rooms, room, {
        earliest,
        latest,
        limit: Math.min(Math.max(limit ?? DEFAULT_MISSING, 0), MAX_MISSING),
        minDepth: minDepth ?? 0,
      });
      reply.type('application/json');
      return `{"events":${jsonList(await jsonForServer(rooms, origin, events))}}`;
    },
  );
}
