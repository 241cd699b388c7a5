import { forbidden, invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import { isRoomId, parseUserId, serverNameOf } from '@trellis/protocol/identifiers.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { ThirdPartyInvites } from '@trellis/rooms/third-party-invites.ts';
import type { FastifyInstance } from 'fastify';
import { type Static, Type } from 'typebox';
import { originOf } from './authentication.ts';
import { residentRoom } from './handshake.ts';

export interface ThirdPartyInviteDeps {
  readonly rooms: Rooms;
  readonly thirdPartyInvites: ThirdPartyInvites;
}

export interface OnBindDeps extends ThirdPartyInviteDeps {
  readonly isLocalUser: (userId: string) => Promise<boolean>;
}

const signedSchema = Type.Object({
  mxid: Type.String({ maxLength: 255 }),
  token: Type.String({ maxLength: 255 }),
  signatures: Type.Record(
    Type.String({ maxLength: 255 }),
    Type.Record(Type.String({ maxLength: 255 }), Type.String({ maxLength: 255 }), { maxProperties: 10 }),
    { maxProperties: 10 },
  ),
});

const exchangeBody = Type.Object({
  type: Type.Literal('m.room.member'),
  room_id: Type.String(),
  sender: Type.String(),
  state_key: Type.String(),
  content: Type.Object({
    membership: Type.Literal('invite'),
    third_party_invite: Type.Object({ display_name: Type.Optional(Type.String()), signed: signedSchema }),
  }),
});

/** Invites that one notification of an identity server may carry. */
const MAX_INVITES = 20;
const bindBody = Type.Object({
  mxid: Type.String({ maxLength: 255 }),
  invites: Type.Array(Type.Object({ room_id: Type.String(), sender: Type.String(), signed: signedSchema }), {
    maxItems: MAX_INVITES,
  }),
});

/**
 * The invited user's server asks for the invite that follows from a third-party one of our user's.
 * https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv1exchange_third_party_inviteroomid
 */
export function thirdPartyInviteRoutes(app: FastifyInstance, deps: ThirdPartyInviteDeps): void {
  app.put<{ Params: { roomId: string }; Body: Static<typeof exchangeBody> }>(
    '/_matrix/federation/v1/exchange_third_party_invite/:roomId',
    { schema: { body: exchangeBody } },
    async (request) => {
      const { roomId } = request.params;
      const { room_id, sender, state_key: target, content } = request.body;
      const origin = originOf(request);
      await residentRoom(deps.rooms, roomId, origin);
      if (room_id !== roomId) throw invalidParam('The event is of another room');
      if (serverNameOf(sender) !== deps.rooms.parts.serverName)
        throw forbidden('The inviting user is not one of this server');
      if (parseUserId(target)?.serverName !== origin)
        throw forbidden('The invited user is not one of your server');
      const { signed } = content.third_party_invite;
      if (signed.mxid !== target) throw forbidden('The invite is signed for another user');
      await deps.thirdPartyInvites.issue(roomId, sender, signed);
      return {};
    },
  );
}

/**
 * An identity server tells that a third-party identifier is a user's now, and of the invites that wait for it. It does
 * not sign its requests: what counts are the signatures on the invites, which the inviting side verifies.
 * https://spec.matrix.org/v1.18/server-server-api/#put_matrixfederationv13pidonbind
 */
export function onBindRoutes(app: FastifyInstance, deps: OnBindDeps): void {
  app.put<{ Body: Static<typeof bindBody> }>(
    '/_matrix/federation/v1/3pid/onbind',
    { schema: { body: bindBody } },
    async (request) => {
      const { mxid, invites } = request.body;
      const isOurs = parseUserId(mxid)?.serverName === deps.rooms.parts.serverName;
      if (!isOurs || !(await deps.isLocalUser(mxid))) throw invalidParam('There is no such user here');
      for (const { room_id: roomId, sender, signed } of invites) {
        if (signed.mxid !== mxid || !isRoomId(roomId)) continue;
        await deps.thirdPartyInvites.takeUp(roomId, sender, signed).catch(ignoreRefusal);
      }
      return {};
    },
  );
}

/** One invite that comes to nothing does not stop the others. */
function ignoreRefusal(error: unknown): void {
  if (!(error instanceof MatrixError)) throw error;
}
