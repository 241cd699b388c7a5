import { Readable } from 'node:stream';
import { forbidden, MatrixError } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue, RoomEvent } from '@trellis/protocol/event.ts';
import { serverNameOf } from '@trellis/protocol/identifiers.ts';
import { signEvent } from '@trellis/protocol/make-event.ts';
import { memberTemplate } from '@trellis/rooms/member-template.ts';
import { type RestrictedJoin, restrictedJoin } from '@trellis/rooms/restricted-join.ts';
import type { Room } from '@trellis/rooms/room.ts';
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
import { sendJoinAnswer } from './send-join-answer.ts';

/**
 * Joins to our rooms from other servers.
 * https://spec.matrix.org/v1.18/server-server-api/#joining-rooms
 */
export function joinRoutes(app: FastifyInstance, deps: HandshakeDeps): void {
  const { rooms } = deps;

  app.get<{ Params: { roomId: string; userId: string }; Querystring: { ver?: string | string[] } }>(
    '/_matrix/federation/v1/make_join/:roomId/:userId',
    async (request) => {
      const { roomId, userId } = request.params;
      const origin = originOf(request);
      requireUserOf(origin, userId);
      const room = await completeRoom(rooms, roomId, origin);
      requireVersion(room, request.query.ver, ['1']);
      if (!room.isJoined(userId)) deps.requireSpace?.(room);
      const authoriser = authoriserOf(await restrictedJoin(rooms, room, userId));
      const content = {
        membership: 'join' as const,
        ...(authoriser === undefined ? {} : { join_authorised_via_users_server: authoriser }),
      };
      return { room_version: room.version.id, event: await memberTemplate(rooms, room, userId, content) };
    },
  );

  for (const version of ['v1', 'v2'] as const)
    app.put<{
      Params: { roomId: string; eventId: string };
      Querystring: { omit_members?: string | string[] };
      Body: JsonValue;
    }>(`/_matrix/federation/${version}/send_join/:roomId/:eventId`, async (request, reply) => {
      const { roomId, eventId } = request.params;
      const origin = originOf(request);
      const room = await completeRoom(rooms, roomId, origin);
      const sent = { roomId, eventId, body: request.body };
      const pdu = ownMembershipEvent(sent, 'join', room.version, origin);
      if (!room.isJoined(pdu.sender as string)) deps.requireSpace?.(room);
      const servers = [...room.servers.keys()];
      const signed = await countersigned(deps, room, pdu);
      const join = await accept(
        deps,
        origin,
        await verifiedEvent(signed, eventId, room.version, deps.verifier),
      );
      const omitMembers = version === 'v2' && request.query.omit_members === 'true';
      const answer = await sendJoinAnswer(rooms, join, { version, servers, omitMembers });
      return reply.type('application/json; charset=utf-8').send(Readable.from(answer, { objectMode: false }));
    });
}

/** With this server's signature where the join says that one of its users authorised it, and one does. */
async function countersigned(
  { rooms }: HandshakeDeps,
  room: Room,
  pdu: JsonObject,
): Promise<RoomEvent['pdu']> {
  const { serverName, signingKey } = rooms.parts;
  const authoriser = (pdu.content as JsonObject).join_authorised_via_users_server;
  if (!room.version.restrictedJoins || typeof authoriser !== 'string') return pdu;
  // Another server's user has authorised it: that server's signature is on the event, or the event is refused.
  if (serverNameOf(authoriser) !== serverName) return pdu;
  const verdict = await restrictedJoin(rooms, room, pdu.sender as string);
  if (authoriserOf(verdict) === undefined) throw forbidden('The join needs nobody to authorise it');
  return signEvent(pdu, { version: room.version, key: signingKey, serverName }).pdu;
}

/** Who authorises a join, if that is needed. Throws the errors of "Restricted rooms". */
function authoriserOf(verdict: RestrictedJoin): string | undefined {
  switch (verdict.kind) {
    case 'authorised':
      return verdict.by;
    case 'not-needed':
      return undefined;
    case 'refused':
      throw forbidden('The user is in none of the rooms whose members may join');
    case 'ask-others':
      throw verdict.reason === 'unknown-rooms'
        ? new MatrixError(
            400,
            'M_UNABLE_TO_AUTHORISE_JOIN',
            'This server is not in the rooms whose members may join',
          )
        : new MatrixError(400, 'M_UNABLE_TO_GRANT_JOIN', 'Nobody on this server may invite to the room');
  }
}
