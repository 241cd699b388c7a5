import type { Sessions } from '@trellis/users/sessions.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';

const body = Type.Object({ refresh_token: Type.String() });

/** `POST /refresh` (spec: "Refreshing access tokens"). */
export function refreshRoutes(app: FastifyInstance, { sessions }: { readonly sessions: Sessions }): void {
  app.post<{ Body: { refresh_token: string } }>(
    '/_matrix/client/v3/refresh',
    { schema: { body }, config: { auth: 'none' } },
    async (request) => sessions.refresh(request.body.refresh_token),
  );
}
