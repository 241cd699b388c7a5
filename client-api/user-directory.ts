import type { UserDirectory } from '@trellis/users/user-directory.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

const MAX_RESULTS = 50;

const body = Type.Object({
  search_term: Type.String(),
  limit: Type.Optional(Type.Integer({ minimum: 0 })),
});

/** `POST /user_directory/search` (spec: "User Directory"). */
export function userDirectoryRoutes(
  app: FastifyInstance,
  { directory }: { readonly directory: UserDirectory },
): void {
  app.post<{ Body: { search_term: string; limit?: number } }>(
    '/_matrix/client/v3/user_directory/search',
    { schema: { body } },
    async (request) => {
      const { search_term: term, limit = 10 } = request.body;
      return directory.search(requesterOf(request).userId, term, Math.min(limit, MAX_RESULTS));
    },
  );
}
