import { forbidden } from '@trellis/protocol/errors.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { Typing } from '@trellis/users/typing.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requireSelf } from './authentication.ts';

export interface TypingDeps {
  readonly rooms: Rooms;
  readonly typing: Typing;
}

const body = Type.Object({ typing: Type.Boolean(), timeout: Type.Optional(Type.Integer()) });

/** Typing notifications (spec: "Typing Notifications"). */
export function typingRoutes(app: FastifyInstance, { rooms, typing }: TypingDeps): void {
  app.put<{ Params: { roomId: string; userId: string }; Body: { typing: boolean; timeout?: number } }>(
    '/_matrix/client/v3/rooms/:roomId/typing/:userId',
    { schema: { body } },
    async (request) => {
      const { roomId, userId } = request.params;
      requireSelf(request, userId);
      const room = await rooms.get(roomId);
      if (!room?.isJoined(userId)) throw forbidden('You are not in that room');
      if (request.body.typing) await typing.start(roomId, userId, request.body.timeout);
      else await typing.stop(roomId, userId);
      return {};
    },
  );
}
