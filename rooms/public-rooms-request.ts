import { invalidParam } from '@trellis/protocol/errors.ts';
import { type Static, Type } from 'typebox';
import type { PublicRoomsQuery } from './public-rooms.ts';

/** The body of `POST /publicRooms`, which clients and servers send alike. */
export const publicRoomsBody = Type.Object({
  limit: Type.Optional(Type.Integer({ minimum: 0 })),
  since: Type.Optional(Type.String()),
  filter: Type.Optional(
    Type.Object({
      generic_search_term: Type.Optional(Type.Union([Type.String(), Type.Null()])),
      room_types: Type.Optional(
        Type.Union([Type.Array(Type.Union([Type.String(), Type.Null()]), { maxItems: 100 }), Type.Null()]),
      ),
    }),
  ),
  include_all_networks: Type.Optional(Type.Boolean()),
  third_party_instance_id: Type.Optional(Type.Union([Type.String(), Type.Null()])),
});
export type PublicRoomsBody = Static<typeof publicRoomsBody>;

/** The body of a request, checked by its schema, as the directory takes it. */
export function publicRoomsQuery(body: PublicRoomsBody): PublicRoomsQuery {
  return {
    limit: body.limit,
    since: body.since,
    searchTerm: body.filter?.generic_search_term ?? undefined,
    roomTypes: body.filter?.room_types ?? undefined,
    network: networkOf(body),
  };
}

/** Instances of networks are named `application service|network` (see `/thirdparty/protocols`). */
function networkOf({ include_all_networks: all, third_party_instance_id: instance }: PublicRoomsBody) {
  if (all) return 'all' as const;
  if (!instance) return undefined;
  const at = instance.indexOf('|');
  if (at < 0) throw invalidParam('Unknown third_party_instance_id');
  return { appserviceId: instance.slice(0, at), networkId: instance.slice(at + 1) };
}
