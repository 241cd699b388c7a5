import type { JsonValue } from '@trellis/protocol/event.ts';
import { memberTemplate } from '@trellis/rooms/member-template.ts';
import type { FastifyInstance } from 'fastify';
import { originOf } from './authentication.ts';
import {
  accept,
  asVersion,
  completeRoom,
  type HandshakeDeps,
  ownMembershipEvent,
  requireUserOf,
  verifiedEvent,
} from './handshake.ts';

/**
 * Users of other servers leave our rooms, refuse invites, take back knocks.
 * https://spec.matrix.org/v1.18/server-server-api/#leaving-rooms-rejecting-invites
 */
export function leaveRoutes(app: FastifyInstance, deps: HandshakeDeps): void {
  const { rooms } = deps;

  app.get<{ Params: { roomId: string; userId: string } }>(
    '/_matrix/federation/v1/make_leave/:roomId/:userId',
    async (request) => {
      const { roomId, userId } = request.params;
      const origin = originOf(request);
      requireUserOf(origin, userId);
      const room = await completeRoom(rooms, roomId, origin);
      const event = await memberTemplate(rooms, room, userId, { membership: 'leave' });
      return { room_version: room.version.id, event };
    },
  );

  for (const version of ['v1', 'v2'] as const)
    app.put<{ Params: { roomId: string; eventId: string }; Body: JsonValue }>(
      `/_matrix/federation/${version}/send_leave/:roomId/:eventId`,
      async (request) => {
        const { roomId, eventId } = request.params;
        const origin = originOf(request);
        const room = await completeRoom(rooms, roomId, origin);
        const sent = { roomId, eventId, body: request.body };
        const pdu = ownMembershipEvent(sent, 'leave', room.version, origin);
        await accept(deps, origin, await verifiedEvent(pdu, eventId, room.version, deps.verifier));
        return asVersion(version, {});
      },
    );
}
