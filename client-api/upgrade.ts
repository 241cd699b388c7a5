import { invalidParam } from '@trellis/protocol/errors.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import type { CreateRoomParts } from '@trellis/rooms/create-room.ts';
import { upgradeRoom } from '@trellis/rooms/upgrade.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

const body = Type.Object({
  new_version: Type.String(),
  additional_creators: Type.Optional(Type.Array(Type.String(), { maxItems: 100 })),
});

/** `POST /rooms/{roomId}/upgrade` (spec: "Room Upgrades"). */
export function upgradeRoutes(app: FastifyInstance, parts: CreateRoomParts): void {
  app.post<{ Params: { roomId: string }; Body: { new_version: string; additional_creators?: string[] } }>(
    '/_matrix/client/v3/rooms/:roomId/upgrade',
    { schema: { body } },
    async (request) => {
      const { new_version: newVersion, additional_creators: additionalCreators = [] } = request.body;
      for (const userId of additionalCreators)
        if (!parseUserId(userId)) throw invalidParam(`${userId} is no user id`);
      const replacement = await upgradeRoom(parts, request.params.roomId, requesterOf(request).userId, {
        newVersion,
        additionalCreators,
      });
      return { replacement_room: replacement };
    },
  );
}
