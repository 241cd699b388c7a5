import { invalidParam } from '@trellis/protocol/errors.ts';
import type { JsonObject } from '@trellis/protocol/event.ts';
import { isServerName } from '@trellis/protocol/identifiers.ts';
import type { PublicRooms } from '@trellis/rooms/public-rooms.ts';
import {
  type PublicRoomsBody,
  publicRoomsBody,
  publicRoomsQuery,
} from '@trellis/rooms/public-rooms-request.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { limitOf } from './query-values.ts';

/** Directories of other servers. Implemented by federation. */
export interface RemotePublicRooms {
  /** The page as the server answered it. Throws what a client may see. */
  list(
    server: string,
    query: {
      limit?: number;
      since?: string;
      filter?: JsonObject;
      includeAllNetworks?: boolean;
      thirdPartyInstanceId?: string;
    },
  ): Promise<JsonObject>;
}

export interface PublicRoomsDeps {
  readonly publicRooms: PublicRooms;
  readonly remote: RemotePublicRooms;
  readonly serverName: string;
}

const MAX_LIMIT = 500;

const text = Type.Optional(Type.String());
const getQuery = Type.Object({ limit: text, since: text, server: text });
const postQuery = Type.Object({ server: text });
/** `GET` and `POST /publicRooms` (spec: "Published room directory"). */
export function publicRoomsRoutes(app: FastifyInstance, deps: PublicRoomsDeps): void {
  app.get<{ Querystring: { limit?: string; since?: string; server?: string } }>(
    '/_matrix/client/v3/publicRooms',
    { schema: { querystring: getQuery }, config: { auth: 'optional', guests: true } },
    async ({ query }) => {
      const limit = query.limit === undefined ? undefined : limitOf(query.limit, 0, MAX_LIMIT);
      return list(deps, query.server, { limit, since: query.since });
    },
  );

  app.post<{ Querystring: { server?: string }; Body: PublicRoomsBody | undefined }>(
    '/_matrix/client/v3/publicRooms',
    { schema: { querystring: postQuery, body: Type.Optional(publicRoomsBody) }, config: { guests: true } },
    async (request) => list(deps, request.query.server, request.body ?? {}),
  );
}

async function list(
  { publicRooms, remote, serverName }: PublicRoomsDeps,
  server: string | undefined,
  body: PublicRoomsBody,
) {
  if (server === undefined || server === serverName) return publicRooms.list(publicRoomsQuery(body));
  if (!isServerName(server)) throw invalidParam('server is no server name');
  return remote.list(server, {
    limit: body.limit,
    since: body.since,
    filter: body.filter as JsonObject | undefined,
    includeAllNetworks: body.include_all_networks,
    thirdPartyInstanceId: body.third_party_instance_id ?? undefined,
  });
}
