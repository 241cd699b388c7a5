import { forbidden } from '@trellis/protocol/errors.ts';
import type { JsonValue } from '@trellis/protocol/event.ts';
import { memberTemplate } from '@trellis/rooms/member-template.ts';
import { strippedStateEvents } from '@trellis/rooms/stripped-state.ts';
import type { FastifyInstance } from 'fastify';
import { originOf } from './authentication.ts';
import {
  accept,
  completeRoom,
  type HandshakeDeps,
  ownMembershipEvent,
  requireUserOf,
  requireVersion,
  verifiedEvent,
} from './handshake.ts';

/**
 * Users of other servers knock on our rooms.
 * https://spec.matrix.org/v1.18/server-server-api/#knocking-rooms
 */
export function knockRoutes(app: FastifyInstance, deps: HandshakeDeps): void {
  const { rooms } = deps;

  app.get<{ Params: { roomId: string; userId: string }; Querystring: { ver?: string | string[] } }>(
    '/_matrix/federation/v1/make_knock/:roomId/:userId',
    async (request) => {
      const { roomId, userId } = request.params;
      const origin = originOf(request);
      requireUserOf(origin, userId);
      const room = await completeRoom(rooms, roomId, origin);
      requireVersion(room, request.query.ver, []);
      if (!room.version.knocking) throw forbidden('This room version knows no knocking');
      const event = await memberTemplate(rooms, room, userId, { membership: 'knock' });
      return { room_version: room.version.id, event };
    },
  );

  app.put<{ Params: { roomId: string; eventId: string }; Body: JsonValue }>(
    '/_matrix/federation/v1/send_knock/:roomId/:eventId',
    async (request) => {
      const { roomId, eventId } = request.params;
      const origin = originOf(request);
      const room = await completeRoom(rooms, roomId, origin);
      const sent = { roomId, eventId, body: request.body };
      const pdu = ownMembershipEvent(sent, 'knock', room.version, origin);
      const knock = await accept(
        deps,
        origin,
        await verifiedEvent(pdu, eventId, room.version, deps.verifier),
      );
      const state = await rooms.parts.snapshots.load(knock.stateBefore!);
      const shown = await strippedStateEvents(rooms, { state });
      return { knock_room_state: shown.map((event) => event.pdu) };
    },
  );
}
