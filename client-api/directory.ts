import { forbidden, notFound } from '@trellis/protocol/errors.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import type { PublicRooms } from '@trellis/rooms/public-rooms.ts';
import { mayListRoom } from '@trellis/rooms/room-rights.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface DirectoryDeps {
  readonly rooms: Rooms;
  readonly aliases: Aliases;
  readonly publicRooms: PublicRooms;
}

interface VisibilityBody {
  visibility?: 'public' | 'private';
}

const visibility = Type.Enum(['public', 'private']);

/** Which rooms are in the published room directory (spec: "Published room directory"). */
export function directoryRoutes(app: FastifyInstance, { rooms, aliases, publicRooms }: DirectoryDeps): void {
  const path = '/_matrix/client/v3/directory/list/room/:roomId';

  app.get<{ Params: { roomId: string } }>(path, { config: { auth: 'none' } }, async (request) => {
    const room = await rooms.get(request.params.roomId);
    if (!room || room.extremities.length === 0) throw notFound('Room not found');
    return { visibility: room.published ? 'public' : 'private' };
  });

  app.put<{ Params: { roomId: string }; Body: VisibilityBody | undefined }>(
    path,
    { schema: { body: Type.Optional(Type.Object({ visibility: Type.Optional(visibility) })) } },
    async (request) => {
      const { userId, isAdmin } = requesterOf(request);
      const room = await rooms.get(request.params.roomId);
      if (!room || room.extremities.length === 0) throw notFound('Room not found');
      if (!isAdmin && !(await mayListRoom(rooms, room, userId)))
        throw forbidden('You may not change whether the room is published');
      await aliases.publish(room.roomId, request.body?.visibility !== 'private');
      return {};
    },
  );

  // Application Service API, "Published room directory".
  app.put<{ Params: { networkId: string; roomId: string }; Body: Required<VisibilityBody> }>(
    '/_matrix/client/v3/directory/list/appservice/:networkId/:roomId',
    { schema: { body: Type.Object({ visibility }) } },
    async (request) => {
      const { appserviceId } = requesterOf(request);
      if (appserviceId === undefined) throw forbidden('Only application services may do this');
      const { networkId, roomId } = request.params;
      const room = await rooms.get(roomId);
      if (!room) throw notFound('Room not found');
      const published = request.body.visibility === 'public';
      await publicRooms.publishInNetwork(appserviceId, networkId, room.nid, published);
      return {};
    },
  );
}
