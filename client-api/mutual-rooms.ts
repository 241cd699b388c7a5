import { Buffer } from 'node:buffer';
import { invalidParam } from '@trellis/protocol/errors.ts';
import { isRoomId, parseUserId } from '@trellis/protocol/identifiers.ts';
import type { Memberships } from '@trellis/rooms/memberships.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { requesterOf } from './authentication.ts';

/** Rooms in one answer. */
const BATCH = 100;

interface MutualRoomsQuery {
  user_id?: string;
  from?: string;
  batch_token?: string;
}

/** Rooms that two users are both in (spec: "Mutual Rooms"). */
export function mutualRoomsRoutes(
  app: FastifyInstance,
  { memberships }: { readonly memberships: Memberships },
): void {
  app.get<{ Querystring: MutualRoomsQuery }>('/_matrix/client/v1/mutual_rooms', (request) =>
    mutualRooms(request, request.query.from),
  );

  // The form of MSC2666 before v1.19.
  app.get<{ Querystring: MutualRoomsQuery }>(
    '/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms',
    async (request) => {
      const { next_batch, ...answer } = await mutualRooms(request, request.query.batch_token);
      return { ...answer, ...(next_batch !== undefined && { next_batch_token: next_batch }) };
    },
  );

  async function mutualRooms(request: FastifyRequest, from: string | undefined) {
    const { userId } = requesterOf(request);
    const other = (request.query as MutualRoomsQuery).user_id;
    if (typeof other !== 'string' || !parseUserId(other)) throw invalidParam('user_id is not a user id');
    if (other === userId) throw invalidParam('user_id is your own');
    const [own, theirs] = await Promise.all([memberships.joined(userId), memberships.joined(other)]);
    const theirRooms = new Set(theirs);
    const rooms = own.filter((roomId) => theirRooms.has(roomId)).sort();
    // A token names the last room that was told, so that no room is left out when others come or go.
    const after = from === undefined ? undefined : roomOfToken(from);
    const rest = after === undefined ? rooms : rooms.filter((roomId) => roomId > after);
    const joined = rest.slice(0, BATCH);
    return {
      joined,
      count: rooms.length,
      ...(rest.length > BATCH && { next_batch: Buffer.from(joined.at(-1)!).toString('base64url') }),
    };
  }
}

function roomOfToken(token: string): string {
  const roomId = Buffer.from(token, 'base64url').toString();
  if (!isRoomId(roomId)) throw invalidParam('This is no token of an earlier answer');
  return roomId;
}
