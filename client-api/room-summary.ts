import { invalidParam, notFound } from '@trellis/protocol/errors.ts';
import { isRoomAlias, isRoomId, isServerName } from '@trellis/protocol/identifiers.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import type { Hierarchies } from '@trellis/rooms/hierarchy.ts';
import type { Rooms } from '@trellis/rooms/rooms.ts';
import { isOpen, mayBeDescribed } from '@trellis/rooms/spaces.ts';
import type { FastifyInstance } from 'fastify';

export interface RoomSummaryDeps {
  readonly rooms: Rooms;
  readonly aliases: Aliases;
  readonly hierarchies: Hierarchies;
}

/** Servers to ask that one request may name. */
const MAX_VIA = 20;

/** `GET /room_summary/{roomIdOrAlias}` (spec: "Room summaries"), and by the paths that it had before (MSC3266). */
export function roomSummaryRoutes(
  app: FastifyInstance,
  { rooms, aliases, hierarchies }: RoomSummaryDeps,
): void {
  for (const path of [
    '/_matrix/client/v1/room_summary/:target',
    '/_matrix/client/unstable/im.nheko.summary/summary/:target',
    '/_matrix/client/unstable/im.nheko.summary/rooms/:target/summary',
  ])
    app.get<{ Params: { target: string }; Querystring: Record<string, string | string[]> }>(
      path,
      { config: { auth: 'optional', guests: true } },
      async (request) => {
        const userId = request.requester?.userId;
        const { roomId, servers } = await resolve(request.params.target, viaOf(request.query), userId);
        const summary = await hierarchies.describe(roomId, servers);
        if (!summary) throw notFound('Room not found');
        const { children_state: _children, ...room } = summary;
        if (userId === undefined) {
          if (!room.world_readable && !isOpen(room.join_rule)) throw notFound('Room not found');
          return room;
        }
        if (!(await mayBeDescribed(room, hierarchies.onlooker(userId)))) throw notFound('Room not found');
        const membership = (await rooms.get(roomId))?.membership(userId) ?? 'leave';
        return { ...room, membership };
      },
    );

  /** Without a user, no other server is bothered. */
  async function resolve(target: string, via: string[], userId: string | undefined) {
    if (isRoomId(target)) {
      const origin = target.includes(':') ? [target.slice(target.indexOf(':') + 1)] : [];
      return { roomId: target, servers: userId === undefined ? [] : [...via, ...origin] };
    }
    if (!isRoomAlias(target)) throw invalidParam('That is neither a room id nor a room alias');
    if (userId === undefined && !target.endsWith(`:${rooms.parts.serverName}`))
      throw notFound('Room not found');
    const found = await aliases.resolve(target);
    return { roomId: found.roomId, servers: userId === undefined ? [] : [...via, ...found.servers] };
  }
}

function viaOf(query: Record<string, string | string[]>): string[] {
  return [query.via, query.server_name]
    .flatMap((value) => value ?? [])
    .filter((server) => isServerName(server))
    .slice(0, MAX_VIA);
}
