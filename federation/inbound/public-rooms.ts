import { invalidParam } from '@trellis/protocol/errors.ts';
import type { PublicRooms } from '@trellis/rooms/public-rooms.ts';
import {
  type PublicRoomsBody,
  publicRoomsBody,
  publicRoomsQuery,
} from '@trellis/rooms/public-rooms-request.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';

const text = Type.Optional(Type.String());
const querystring = Type.Object({
  limit: text,
  since: text,
  include_all_networks: text,
  third_party_instance_id: text,
});
type Query = Partial<Record<keyof typeof querystring.properties, string>>;

/** https://spec.matrix.org/v1.18/server-server-api/#published-room-directory */
export function publicRoomsRoutes(app: FastifyInstance, publicRooms: PublicRooms): void {
  const path = '/_matrix/federation/v1/publicRooms';
  app.get<{ Querystring: Query }>(path, { schema: { querystring } }, async ({ query }) => {
    const limit = query.limit === undefined ? undefined : Number(query.limit);
    if (limit !== undefined && (!Number.isSafeInteger(limit) || limit < 0))
      throw invalidParam('limit must be a number of rooms');
    return publicRooms.list(
      publicRoomsQuery({
        limit,
        since: query.since,
        include_all_networks: query.include_all_networks === 'true',
        third_party_instance_id: query.third_party_instance_id,
      }),
    );
  });
  app.post<{ Body: PublicRoomsBody | undefined }>(
    path,
    { schema: { body: Type.Optional(publicRoomsBody) } },
    async ({ body }) => publicRooms.list(publicRoomsQuery(body ?? {})),
  );
}
