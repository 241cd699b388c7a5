import { badJson, forbidden, invalidParam, MatrixError, notFound } from '@trellis/protocol/errors.ts';
import { isRoomId, parseRoomAlias } from '@trellis/protocol/identifiers.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import { mayListRoom } from '@trellis/rooms/room-rights.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { type Requester, requesterOf } from './authentication.ts';
import { removeFromCanonicalAlias } from './canonical-alias.ts';
import { type RoomAccess, viewRoom } from './room-access.ts';

/** What application services have of the aliases. Implemented by `appservices/`. */
export interface AliasNamespaces {
  /** Id of the application service that has the alias in an exclusive namespace. */
  exclusiveAliasOwner(alias: string): string | undefined;
  /** Whether the alias is in any namespace of the application service. */
  mayHaveAlias(appserviceId: string, alias: string): boolean;
}

export interface AliasDeps {
  readonly access: RoomAccess;
  readonly aliases: Aliases;
  readonly namespaces: AliasNamespaces;
}

const body = Type.Object({ room_id: Type.String() });

/** Room aliases of this server (spec: "Room aliases"). */
export function aliasRoutes(app: FastifyInstance, deps: AliasDeps): void {
  const { access, aliases } = deps;
  const { rooms } = access;
  const path = '/_matrix/client/v3/directory/room/:roomAlias';

  app.get<{ Params: { roomAlias: string } }>(path, { config: { auth: 'none' } }, async (request) => {
    const { roomId, servers } = await aliases.resolve(request.params.roomAlias);
    return { room_id: roomId, servers };
  });

  app.put<{ Params: { roomAlias: string }; Body: { room_id: string } }>(
    path,
    { schema: { body } },
    async (request) => {
      const requester = requesterOf(request);
      const { roomAlias } = request.params;
      const { room_id: roomId } = request.body;
      requireOwn(deps, roomAlias, requester);
      if (!isRoomId(roomId)) throw badJson('room_id is no room id');
      const room = await rooms.get(roomId);
      if (!room?.isJoined(requester.userId) && !requester.isAdmin && requester.appserviceId === undefined)
        throw forbidden('You are not in that room');
      await aliases.set(roomAlias, roomId, requester.userId, [rooms.parts.serverName]);
      return {};
    },
  );

  app.delete<{ Params: { roomAlias: string } }>(path, async (request) => {
    const requester = requesterOf(request);
    const { roomAlias } = request.params;
    const alias = parseRoomAlias(roomAlias) && (await aliases.creator(roomAlias));
    if (!alias) throw notFound('No room has that alias');
    requireOwn(deps, roomAlias, requester);
    const room = await rooms.get(alias.roomId);
    const mayDelete =
      alias.creator === requester.userId ||
      requester.isAdmin ||
      // It has full control over what is in its namespaces: that much has been found out above.
      requester.appserviceId !== undefined ||
      (room && (await mayListRoom(rooms, room, requester.userId)));
    if (!mayDelete) throw forbidden('You may not take that alias away');
    await aliases.remove(roomAlias);
    if (room?.isJoined(requester.userId))
      await removeFromCanonicalAlias(rooms, room, requester.userId, roomAlias);
    return {};
  });

  app.get<{ Params: { roomId: string } }>('/_matrix/client/v3/rooms/:roomId/aliases', async (request) => {
    const { roomId } = request.params;
    const { end } = await viewRoom(access, roomId, requesterOf(request).userId);
    // Who has left sees the room as it was, which says nothing of its aliases now.
    if (Number.isFinite(end)) throw forbidden('You are not in that room');
    return { aliases: await aliases.ofRoom(roomId) };
  });
}

/** @throws M_INVALID_PARAM for what is no alias of this server, M_EXCLUSIVE for one of an application service */
function requireOwn({ access, namespaces }: AliasDeps, alias: string, requester: Requester): void {
  const parsed = parseRoomAlias(alias);
  if (!parsed) throw invalidParam('That is no valid room alias');
  if (parsed.serverName !== access.rooms.parts.serverName)
    throw invalidParam('That alias belongs to another server');
  requireOwnNamespace(namespaces, alias, requester);
}

/** @throws M_EXCLUSIVE for an alias of an application service, and for one that the application service has no claim to */
export function requireOwnNamespace(
  namespaces: AliasNamespaces,
  alias: string,
  { appserviceId }: Requester,
): void {
  const owner = namespaces.exclusiveAliasOwner(alias);
  if (owner !== undefined && owner !== appserviceId)
    throw new MatrixError(400, 'M_EXCLUSIVE', 'That alias is reserved by an application service');
  if (appserviceId !== undefined && !namespaces.mayHaveAlias(appserviceId, alias))
    throw new MatrixError(400, 'M_EXCLUSIVE', 'That alias is in no namespace of the application service');
}
