import { forbidden, invalidParam, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { isRoomAlias, isRoomId } from '@trellis/protocol/identifiers.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import { admitsGuests } from '@trellis/rooms/guest-access.ts';
import type { Membership } from '@trellis/rooms/membership.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { ThirdPartyInvites } from '@trellis/rooms/third-party-invites.ts';
import type { FastifyInstance } from 'fastify';
import { type Static, Type } from 'typebox';
import { type Requester, requesterOf, requireActive } from './authentication.ts';

export interface MembershipDeps {
  readonly rooms: Rooms;
  readonly membership: Membership;
  readonly memberships: Memberships;
  readonly aliases: Aliases;
  readonly thirdPartyInvites: Pick<ThirdPartyInvites, 'takeUp'>;
}

interface ActionBody {
  user_id?: string;
  reason?: string;
  third_party_signed?: Static<typeof signedSchema>;
  id_server?: string;
}

/** Servers to try that one request may name. */
const MAX_VIA = 20;

const text = Type.String({ maxLength: 255 });
const signedSchema = Type.Object({
  sender: text,
  mxid: text,
  token: text,
  signatures: Type.Record(text, Type.Record(text, text, { maxProperties: 10 }), { maxProperties: 10 }),
});
const reasonBody = Type.Optional(Type.Object({ reason: Type.Optional(Type.String()) }));
const joinBody = Type.Optional(
  Type.Object({ reason: Type.Optional(Type.String()), third_party_signed: Type.Optional(signedSchema) }),
);
const targetBody = Type.Object({
  user_id: Type.Optional(Type.String()),
  reason: Type.Optional(Type.String()),
});

/** Members of a join's body that are not for the member event, or not for clients to say in it. */
const NOT_CONTENT = ['third_party_signed', 'membership', 'join_authorised_via_users_server'] as const;

/** Joining, leaving, inviting, kicking, banning, knocking, forgetting (spec: "Room membership"). */
export function membershipRoutes(
  app: FastifyInstance,
  { rooms, membership, memberships, aliases, thirdPartyInvites }: MembershipDeps,
): void {
  /** An invite by a third-party identifier becomes one of the user, who then joins by it. */
  const takeUp = async (roomId: string, userId: string, signed: ActionBody['third_party_signed']) => {
    if (signed === undefined) return;
    if (signed.mxid !== userId) throw forbidden('The invite is for somebody else');
    await thirdPartyInvites.takeUp(roomId, signed.sender, signed);
  };

  for (const kind of ['join', 'knock'] as const)
    app.post<{
      Params: { target: string };
      Body: ActionBody | undefined;
      Querystring: Record<string, string | string[]>;
    }>(
      `/_matrix/client/v3/${kind}/:target`,
      {
        schema: { body: kind === 'join' ? joinBody : reasonBody },
        config: { guests: kind === 'join', rateLimit: 'joins' },
      },
      async (request) => {
        const requester = requireActive(requesterOf(request));
        const { roomId, servers } = await resolve(aliases, request.params.target, request.query);
        await requireAdmitted(rooms, requester, roomId);
        if (kind === 'join') await takeUp(roomId, requester.userId, request.body?.third_party_signed);
        const content = kind === 'join' ? joinContent(request.body) : reasonOf(request.body);
        await membership[kind](roomId, requester.userId, servers, content);
        return { room_id: roomId };
      },
    );

  app.post<{ Params: { roomId: string }; Body: ActionBody | undefined }>(
    '/_matrix/client/v3/rooms/:roomId/join',
    { schema: { body: joinBody }, config: { guests: true, rateLimit: 'joins' } },
    async (request) => {
      const { roomId } = request.params;
      const requester = requireActive(requesterOf(request));
      if (!isRoomId(roomId)) throw invalidParam('That is no room id');
      await requireAdmitted(rooms, requester, roomId);
      await takeUp(roomId, requester.userId, request.body?.third_party_signed);
      await membership.join(roomId, requester.userId, [], joinContent(request.body));
      return { room_id: roomId };
    },
  );

  app.post<{ Params: { roomId: string }; Body: ActionBody | undefined }>(
    '/_matrix/client/v3/rooms/:roomId/leave',
    { schema: { body: reasonBody }, config: { guests: true } },
    async (request) => {
      await membership.leave(request.params.roomId, requesterOf(request).userId, reasonOf(request.body));
      return {};
    },
  );

  for (const action of ['invite', 'kick', 'ban', 'unban'] as const)
    app.post<{ Params: { roomId: string }; Body: ActionBody }>(
      `/_matrix/client/v3/rooms/:roomId/${action}`,
      { schema: { body: targetBody }, config: action === 'invite' ? { rateLimit: 'invites' } : {} },
      async (request) => {
        const { userId } = requireActive(requesterOf(request));
        const target = request.body.user_id;
        if (target === undefined) {
          if (action === 'invite' && request.body.id_server !== undefined)
            throw new MatrixError(400, 'M_SERVER_NOT_TRUSTED', 'This server works with no identity server');
          throw missingParam('user_id is missing');
        }
        await membership[action](request.params.roomId, userId, target, reasonOf(request.body));
        return {};
      },
    );

  app.post<{ Params: { roomId: string } }>('/_matrix/client/v3/rooms/:roomId/forget', async (request) => {
    const { userId } = requesterOf(request);
    const { roomId } = request.params;
    const current = (await memberships.of(userId)).get(roomId)?.membership;
    if (current === undefined) throw forbidden('You have never been in that room');
    if (current !== 'leave' && current !== 'ban')
      throw new MatrixError(400, 'M_UNKNOWN', 'Leave the room before you forget it');
    await memberships.forget(userId, roomId);
    return {};
  });

  app.get('/_matrix/client/v3/joined_rooms', { config: { guests: true } }, async (request) => ({
    joined_rooms: await memberships.joined(requesterOf(request).userId),
  }));
}

/** Guests join rooms that admit them (spec: "Guest Access"), which this server must be in to know of. */
async function requireAdmitted(rooms: Rooms, { isGuest }: Requester, roomId: string): Promise<void> {
  if (!isGuest) return;
  const room = await rooms.get(roomId);
  if (!room?.isResident || !(await admitsGuests(rooms, room)))
    throw new MatrixError(403, 'M_GUEST_ACCESS_FORBIDDEN', 'Guests may not join this room');
}

/** What of a join's body goes into the member event: the reason, and whatever else the client has put there. */
function joinContent(body: ActionBody = {}): JsonObject {
  const content: JsonObject = { ...body };
  for (const name of NOT_CONTENT) delete content[name];
  return content;
}

function reasonOf(body: ActionBody | undefined): JsonObject {
  return body?.reason === undefined ? {} : { reason: body.reason };
}

/** The room behind an id or alias, and the servers that may know it (`via`, and its older name `server_name`). */
async function resolve(aliases: Aliases, target: string, query: Record<string, string | string[]>) {
  const named = [query.via, query.server_name].flatMap((value) => value ?? []).slice(0, MAX_VIA);
  if (isRoomId(target)) return { roomId: target, servers: named };
  if (!isRoomAlias(target)) throw invalidParam('That is neither a room id nor a room alias');
  const found = await aliases.resolve(target);
  return { roomId: found.roomId, servers: [...new Set([...named, ...found.servers])] };
}
