import { invalidParam, missingParam, notFound } from '@trellis/protocol/errors.ts';
import { parseRoomAlias, parseUserId } from '@trellis/protocol/identifiers.ts';
import type { Aliases } from '@trellis/rooms/aliases.ts';
import type { Profiles } from '@trellis/users/profiles.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';

export interface QueryDeps {
  readonly serverName: string;
  readonly aliases: Pick<Aliases, 'resolve'>;
  readonly profiles: Pick<Profiles, 'get'>;
}

const text = Type.Optional(Type.String());

/** https://spec.matrix.org/v1.18/server-server-api/#querying-for-information */
export function queryRoutes(app: FastifyInstance, { serverName, aliases, profiles }: QueryDeps): void {
  app.get<{ Querystring: { room_alias?: string } }>(
    '/_matrix/federation/v1/query/directory',
    { schema: { querystring: Type.Object({ room_alias: text }) } },
    async ({ query: { room_alias: alias } }) => {
      if (alias === undefined) throw missingParam('room_alias is missing');
      const parsed = parseRoomAlias(alias);
      if (!parsed) throw invalidParam('That is no valid room alias');
      if (parsed.serverName !== serverName) throw notFound('That alias belongs to another server');
      const { roomId, servers } = await aliases.resolve(alias);
      return { room_id: roomId, servers };
    },
  );

  app.get<{ Querystring: { user_id?: string; field?: string } }>(
    '/_matrix/federation/v1/query/profile',
    { schema: { querystring: Type.Object({ user_id: text, field: text }) } },
    async ({ query: { user_id: userId, field } }) => {
      if (userId === undefined) throw missingParam('user_id is missing');
      const parsed = parseUserId(userId);
      if (!parsed) throw invalidParam('That is no user id');
      if (parsed.serverName !== serverName) throw notFound('That user belongs to another server');
      if (field === undefined) return profiles.get(userId);
      // A user without that field is no error here, other than a user who does not exist.
      const profile = await profiles.get(userId);
      return Object.hasOwn(profile, field) ? { [field]: profile[field] } : {};
    },
  );

  app.get('/_matrix/federation/v1/query/:queryType', async () => {
    throw notFound('This server answers no such query');
  });
}
