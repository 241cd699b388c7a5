import { badJson, MatrixError, missingParam } from '@trellis/protocol/errors.ts';
import type { Profiles } from '@trellis/users/profiles.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { requireActive, requireSelf } from './authentication.ts';

interface FieldParams {
  userId: string;
  keyName: string;
}

/** Profiles of everyone, to be changed by their users (spec: "Profiles"). */
export function profileRoutes(app: FastifyInstance, { profiles }: { readonly profiles: Profiles }): void {
  // The second is the name that MSC4133 had before v1.16.
  for (const base of ['/_matrix/client/v3/profile', '/_matrix/client/unstable/uk.tcpip.msc4133/profile']) {
    app.get<{ Params: { userId: string } }>(
      `${base}/:userId`,
      { config: { auth: 'none' } },
      async ({ params }) => profiles.get(params.userId),
    );

    app.get<{ Params: FieldParams }>(
      `${base}/:userId/:keyName`,
      { config: { auth: 'none' } },
      async ({ params: { userId, keyName } }) => ({ [keyName]: await profiles.getField(userId, keyName) }),
    );

    app.put<{ Params: FieldParams; Body: unknown }>(
      `${base}/:userId/:keyName`,
      { config: { guests: true } },
      async (request) => {
        const { userId, keyName } = owned(request);
        const { body } = request;
        if (typeof body !== 'object' || body === null || Array.isArray(body))
          throw badJson('The body is not a JSON object');
        if (!Object.hasOwn(body, keyName)) throw missingParam(`The body has no ${keyName}`);
        await profiles.set(userId, keyName, (body as Record<string, unknown>)[keyName]);
        return {};
      },
    );

    app.delete<{ Params: FieldParams }>(
      `${base}/:userId/:keyName`,
      { config: { guests: true } },
      async (request) => {
        const { userId, keyName } = owned(request);
        await profiles.delete(userId, keyName);
        return {};
      },
    );
  }
}

/** The field that a request is about, if the requester may change it. */
function owned(request: FastifyRequest): FieldParams {
  const params = request.params as FieldParams;
  const requester = requireActive(requireSelf(request, params.userId));
  if (requester.isGuest && params.keyName !== 'displayname')
    throw new MatrixError(403, 'M_GUEST_ACCESS_FORBIDDEN', 'Guests may change their display name only');
  return params;
}
