import { invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { describeRoom, mayBeDescribed, type Onlooker, type SpaceRoom } from '@trellis/rooms/spaces.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { originOf } from './authentication.ts';

/** Children described in one answer. */
const MAX_CHILDREN = 100;

const querystring = Type.Object({ suggested_only: Type.Optional(Type.String()) });

/** https://spec.matrix.org/v1.18/server-server-api/#spaces */
export function hierarchyRoutes(app: FastifyInstance, rooms: Rooms): void {
  app.get<{ Params: { roomId: string }; Querystring: { suggested_only?: string } }>(
    '/_matrix/federation/v1/hierarchy/:roomId',
    { schema: { querystring } },
    async (request) => {
      const { suggested_only: suggested = 'false' } = request.query;
      if (suggested !== 'true' && suggested !== 'false') throw invalidParam('suggested_only is no boolean');
      const onlooker = serverOnlooker(rooms, originOf(request));
      const room = await describe(rooms, request.params.roomId);
      if (!room || !(await mayBeDescribed(room, onlooker))) throw notFound('Room does not exist');
      if (suggested === 'true')
        room.children_state = room.children_state.filter(({ content }) => content.suggested === true);
      const children: SpaceRoom[] = [];
      const inaccessible: string[] = [];
      for (const { state_key: roomId } of room.children_state.slice(0, MAX_CHILDREN)) {
        const child = await describe(rooms, roomId);
        // Of a room that this server is not in, it says nothing.
        if (!child) continue;
        if (await mayBeDescribed(child, onlooker)) children.push(child);
        else inaccessible.push(roomId);
      }
      return { room, children, inaccessible_children: inaccessible };
    },
  );
}

async function describe(rooms: Rooms, roomId: string): Promise<SpaceRoom | undefined> {
  const room = await rooms.get(roomId);
  return room?.isResident ? describeRoom(rooms, room) : undefined;
}

/** A server sees what any of its users may. */
function serverOnlooker(rooms: Rooms, origin: string): Onlooker {
  return {
    async membershipIn(roomId) {
      const room = await rooms.get(roomId);
      if (!room?.isResident) return undefined;
      if (room.servers.has(origin)) return 'join';
      for (const [userId, { membership }] of room.members())
        if (membership === 'invite' && userId.endsWith(`:${origin}`)) return 'invite';
      return undefined;
    },
  };
}
