import type { ExpiringTokens } from '@trellis/users/expiring-tokens.ts';
import type { FastifyInstance } from 'fastify';
import { requireSelf } from './authentication.ts';

export interface OpenIdDeps {
  readonly openIdTokens: ExpiringTokens;
  readonly serverName: string;
}

/** `POST /user/{userId}/openid/request_token` (spec: "OpenID"); other services ask `openid/userinfo` whose it is. */
export function openIdRoutes(app: FastifyInstance, { openIdTokens, serverName }: OpenIdDeps): void {
  app.post<{ Params: { userId: string } }>(
    '/_matrix/client/v3/user/:userId/openid/request_token',
    async (request) => {
      const { userId } = requireSelf(request, request.params.userId);
      return {
        access_token: await openIdTokens.issue(userId),
        token_type: 'Bearer',
        matrix_server_name: serverName,
        expires_in: Math.floor(openIdTokens.lifetimeMs / 1000),
      };
    },
  );
}
