import { MatrixError } from '@trellis/protocol/errors.ts';
import { type CreateRoomParts, type CreateRoomRequest, createRoom } from '@trellis/rooms/create-room.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { type AliasNamespaces, requireOwnNamespace } from './aliases.ts';
import { requesterOf, requireActive } from './authentication.ts';

const object = Type.Record(Type.String(), Type.Any());

const body = Type.Object({
  visibility: Type.Optional(Type.Enum(['public', 'private'])),
  room_alias_name: Type.Optional(Type.String()),
  name: Type.Optional(Type.String()),
  topic: Type.Optional(Type.String()),
  invite: Type.Optional(Type.Array(Type.String(), { maxItems: 1000 })),
  invite_3pid: Type.Optional(Type.Array(object, { maxItems: 100 })),
  room_version: Type.Optional(Type.String()),
  creation_content: Type.Optional(object),
  initial_state: Type.Optional(
    Type.Array(
      Type.Object({ type: Type.String(), state_key: Type.Optional(Type.String()), content: object }),
      { maxItems: 500 },
    ),
  ),
  preset: Type.Optional(Type.Enum(['private_chat', 'public_chat', 'trusted_private_chat'])),
  is_direct: Type.Optional(Type.Boolean()),
  power_level_content_override: Type.Optional(object),
});

/** `POST /createRoom` (spec: "Room creation"). */
export function createRoomRoutes(
  app: FastifyInstance,
  parts: CreateRoomParts,
  namespaces: AliasNamespaces,
): void {
  app.post<{ Body: (CreateRoomRequest & { invite_3pid?: unknown[] }) | undefined }>(
    '/_matrix/client/v3/createRoom',
    { schema: { body }, config: { rateLimit: 'room_creation' } },
    async (request) => {
      const requester = requireActive(requesterOf(request));
      const { room_alias_name: name, invite_3pid: byThirdParty = [] } = request.body ?? {};
      if (byThirdParty.length > 0)
        throw new MatrixError(400, 'M_SERVER_NOT_TRUSTED', 'This server works with no identity server');
      if (name !== undefined)
        requireOwnNamespace(namespaces, `#${name}:${parts.rooms.parts.serverName}`, requester);
      return { room_id: await createRoom(parts, requester.userId, request.body ?? {}) };
    },
  );
}
