import { forbidden } from '@trellis/protocol/errors.ts';
import type { RoomInspector } from '@trellis/rooms/room-graph/room-inspector.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

interface Params {
  roomId: string;
}

const BASE = '/_trellis/admin/v1/rooms/:roomId/graph';
const params = Type.Object({ roomId: Type.String({ minLength: 1, maxLength: 255, pattern: '^![^\\0]*$' }) });

/** Looking at what a room is made of, and mending it. The specification leaves open how that is done. */
export function roomGraphRoutes(app: FastifyInstance, inspector: RoomInspector): void {
  app.register(async (scope) => {
    // Before anything else is looked at: others learn nothing.
    scope.addHook('preValidation', async (request) => {
      if (!requesterOf(request).isAdmin) throw forbidden('You are not an administrator');
    });

    scope.get<{ Params: Params }>(BASE, { schema: { params } }, async ({ params: { roomId } }) =>
      inspector.describe(roomId),
    );

    scope.post<{ Params: Params }>(`${BASE}/check`, { schema: { params } }, async ({ params: { roomId } }) =>
      inspector.check(roomId),
    );

    scope.post<{ Params: Params }>(
      `${BASE}/rebuild`,
      { schema: { params } },
      async ({ params: { roomId } }) => inspector.rebuild(roomId),
    );
  });
}
