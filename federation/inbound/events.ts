import { notFound } from '@trellis/protocol/errors.ts';
import { authChain } from '@trellis/rooms/auth-chain.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { jsonForServer } from '@trellis/rooms/server-visibility.ts';
import type { FastifyInstance } from 'fastify';
import { originOf } from './authentication.ts';
import { jsonList, jsonOf, roomOfMember } from './member-server.ts';

export interface EventRoutesDeps {
  readonly rooms: Rooms;
}

/**
 * Single events and what authorises them.
 * https://spec.matrix.org/v1.18/server-server-api/#retrieving-events
 */
export function eventRoutes(app: FastifyInstance, { rooms }: EventRoutesDeps): void {
  const { db, events, serverName } = rooms.parts;

  app.get<{ Params: { eventId: string } }>(
    '/_matrix/federation/v1/event/:eventId',
    async (request, reply) => {
      const origin = originOf(request);
      const event = await events.get(request.params.eventId);
      if (!event || event.rejected) throw notFound('Unknown event');
      await roomOfMember(rooms, event.roomId, origin);
      const pdus = jsonList(await jsonForServer(rooms, origin, [event]));
      reply.type('application/json');
      return `{"origin":${JSON.stringify(serverName)},"origin_server_ts":${Date.now()},"pdus":${pdus}}`;
    },
  );

  app.get<{ Params: { roomId: string; eventId: string } }>(
    '/_matrix/federation/v1/event_auth/:roomId/:eventId',
    async (request, reply) => {
      const { roomId, eventId } = request.params;
      await roomOfMember(rooms, roomId, originOf(request));
      const event = await events.get(eventId);
      if (event?.roomId !== roomId) throw notFound('Unknown event');
      const own = await events.getMany(event.authEvents);
      const chain = new Map(own);
      for (const each of await authChain(db, events, event.authEvents)) chain.set(each.eventId, each);
      reply.type('application/json');
      return `{"auth_chain":${jsonOf(chain.values())}}`;
    },
  );
}
