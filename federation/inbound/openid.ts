import { MatrixError } from '@trellis/protocol/errors.ts';
import type { ExpiringTokens } from '@trellis/users/expiring-tokens.ts';
import type { FastifyInstance } from 'fastify';

/**
 * Tells whoever has an OpenID token whose it is; the only endpoint besides keys and version that asks for no signature.
 * https://spec.matrix.org/v1.18/server-server-api/#get_matrixfederationv1openiduserinfo
 */
export function openIdRoutes(app: FastifyInstance, deps: { readonly openIdTokens: ExpiringTokens }): void {
  app.get<{ Querystring: { access_token?: string } }>(
    '/_matrix/federation/v1/openid/userinfo',
    async ({ query }) => {
      const token = query.access_token;
      if (typeof token !== 'string') throw new MatrixError(401, 'M_MISSING_TOKEN', 'access_token is missing');
      const userId = await deps.openIdTokens.owner(token);
      if (userId === undefined)
        throw new MatrixError(401, 'M_UNKNOWN_TOKEN', 'Access token unknown or expired');
      return { sub: userId };
    },
  );
}
