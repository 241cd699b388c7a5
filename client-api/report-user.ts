import { invalidParam } from '@trellis/protocol/errors.ts';
import { parseUserId } from '@trellis/protocol/identifiers.ts';
import type { UserReports } from '@trellis/users/user-reports.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

const body = Type.Object({ reason: Type.String({ maxLength: 10_000 }) });

/** `POST /users/{userId}/report` (spec: "Reporting content"). Does not say whether there is such a user. */
export function reportUserRoutes(app: FastifyInstance, { reports }: { readonly reports: UserReports }): void {
  // The second is the name that MSC4260 had before v1.14.
  for (const base of ['v3/users', 'unstable/org.matrix.msc4260/users'])
    app.post<{ Params: { userId: string }; Body: { reason: string } }>(
      `/_matrix/client/${base}/:userId/report`,
      { schema: { body } },
      async (request) => {
        const { userId } = request.params;
        if (!parseUserId(userId)) throw invalidParam('That is no user id');
        await reports.add(requesterOf(request).userId, userId, request.body.reason);
        return {};
      },
    );
}
