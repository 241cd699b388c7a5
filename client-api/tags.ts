import { invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { isRoomId } from '@trellis/protocol/identifiers.ts';
import type { RoomTags } from '@trellis/users/tags.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requireSelf } from './authentication.ts';

export interface TagsDeps {
  readonly tags: RoomTags;
}

interface Params {
  userId: string;
  roomId: string;
}

const body = Type.Object({ order: Type.Optional(Type.Number()) });

/** Tags of rooms (spec: "Room Tagging"). */
export function tagRoutes(app: FastifyInstance, { tags }: TagsDeps): void {
  const url = '/_matrix/client/v3/user/:userId/rooms/:roomId/tags';

  app.get<{ Params: Params }>(url, async (request) => {
    const { userId, roomId } = checkedParams(request);
    return { tags: await tags.get(userId, roomId) };
  });

  app.put<{ Params: Params & { tag: string }; Body: JsonObject }>(
    `${url}/:tag`,
    { schema: { body } },
    async (request) => {
      const { userId, roomId } = checkedParams(request);
      await tags.set(userId, roomId, request.params.tag, request.body);
      return {};
    },
  );

  app.delete<{ Params: Params & { tag: string } }>(`${url}/:tag`, async (request) => {
    const { userId, roomId } = checkedParams(request);
    await tags.delete(userId, roomId, request.params.tag);
    return {};
  });
}

function checkedParams(request: FastifyRequest<{ Params: Params }>): Params {
  const { userId, roomId } = request.params;
  requireSelf(request, userId);
  if (!isRoomId(roomId)) throw invalidParam('That is no room id');
  return { userId, roomId };
}
