import { badJson } from '@trellis/protocol/errors.ts';
import type { JsonValue } from '@trellis/protocol/event.ts';
import type { Filters } from '@trellis/users/filters.ts';
import type { FastifyInstance } from 'fastify';
import { requireSelf } from './authentication.ts';

export interface FilterDeps {
  readonly filters: Filters;
}

/** Storing filters (spec: "Filtering"). */
export function filterRoutes(app: FastifyInstance, { filters }: FilterDeps): void {
  app.post<{ Params: { userId: string }; Body: JsonValue | undefined }>(
    '/_matrix/client/v3/user/:userId/filter',
    { config: { guests: true } },
    async (request) => {
      const { userId } = request.params;
      requireSelf(request, userId);
      if (request.body === undefined) throw badJson('The body is not a filter');
      return { filter_id: await filters.store(userId, request.body) };
    },
  );

  app.get<{ Params: { userId: string; filterId: string } }>(
    '/_matrix/client/v3/user/:userId/filter/:filterId',
    { config: { guests: true } },
    async (request) => {
      const { userId, filterId } = request.params;
      requireSelf(request, userId);
      return filters.get(userId, filterId);
    },
  );
}
