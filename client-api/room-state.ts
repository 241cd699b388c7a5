import { invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';
import { sendJson } from './client-events.ts';
import { eventJson, eventListJson } from './event-json.ts';
import { type RoomAccess, viewCompleteRoom, viewRoom } from './room-access.ts';

const querystring = Type.Object({ format: Type.Optional(Type.String()) });

/** Reading the state of a room: as it is, or as it was when the user left (spec: "Getting events for a room"). */
export function roomStateRoutes(app: FastifyInstance, access: RoomAccess): void {
  const { events } = access.rooms.parts;

  for (const path of ['/state', '/state/'])
    app.get<{ Params: { roomId: string } }>(
      `/_matrix/client/v3/rooms/:roomId${path}`,
      { config: { guests: true } },
      async (request, reply) => {
        const reader = requesterOf(request);
        const { state } = await viewCompleteRoom(access, request.params.roomId, reader.userId);
        const ids = [...state.entries()].map(([, ref]) => ref.eventId);
        return sendJson(reply, eventListJson([...(await events.getMany(ids)).values()], reader));
      },
    );

  for (const path of ['/state/:eventType/:stateKey', '/state/:eventType', '/state/:eventType/'])
    app.get<{
      Params: { roomId: string; eventType: string; stateKey?: string };
      Querystring: { format?: string };
    }>(
      `/_matrix/client/v3/rooms/:roomId${path}`,
      { schema: { querystring }, config: { guests: true } },
      async (request, reply) => {
        const reader = requesterOf(request);
        const { roomId, eventType, stateKey = '' } = request.params;
        const { format = 'content' } = request.query;
        if (format !== 'content' && format !== 'event')
          throw invalidParam('format must be "content" or "event"');
        const { state } = await viewRoom(access, roomId, reader.userId);
        let ref = state.get(eventType, stateKey);
        if (!ref && eventType === 'm.room.member')
          ref = (await viewCompleteRoom(access, roomId, reader.userId)).state.get(eventType, stateKey);
        const event = ref && (await events.get(ref.eventId));
        if (!event) throw notFound('The room has no such state');
        return sendJson(reply, format === 'event' ? eventJson(event, reader) : JSON.stringify(event.content));
      },
    );
}
