import { notFound } from '@trellis/protocol/errors.ts';
import type { FastifyInstance } from 'fastify';

/**
 * The beginning of single sign-on (spec: "SSO client login/authentication"). `GET /login` offers none here, so that
 * only a client that does not ask comes this way; no identity provider is recognised.
 */
export function ssoRoutes(app: FastifyInstance): void {
  for (const path of [
    '/_matrix/client/v3/login/sso/redirect',
    '/_matrix/client/v3/login/sso/redirect/:idpId',
  ])
    app.get(path, { config: { auth: 'none' } }, async () => {
      throw notFound('This server has no single sign-on: log in with a password');
    });
}
