import { invalidParam, MatrixError } from '@trellis/protocol/errors.ts';
import type { Accounts } from '@trellis/users/accounts.ts';
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

const text = Type.String({ maxLength: 1024 });
const sendAttempt = Type.Integer({ minimum: 0 });
const secret = Type.String({ pattern: '^[0-9a-zA-Z.=_-]{1,255}$' });
const requestBodies = {
  email: Type.Object({ client_secret: secret, email: text, send_attempt: sendAttempt }),
  msisdn: Type.Object({
    client_secret: secret,
    country: text,
    phone_number: text,
    send_attempt: sendAttempt,
  }),
};
const identifierBody = Type.Object({
  medium: Type.Enum(['email', 'msisdn']),
  address: text,
  id_server: Type.Optional(text),
});
const credentials = { client_secret: text, sid: text };
const bindBody = Type.Object({ ...credentials, id_server: text, id_access_token: text });

/**
 * Third-party identifiers of accounts (spec: "Adding Account Administrative Contact Information"). This server
 * sends neither mail nor text messages and trusts no identity server: it can list and delete identifiers, and says
 * by the errors meant for it that none can be added.
 */
export function threepidRoutes(app: FastifyInstance, { accounts }: { readonly accounts: Accounts }): void {
  const base = '/_matrix/client/v3/account/3pid';

  app.get(base, async (request) => ({
    threepids: await accounts.threepids(requesterOf(request).userId),
  }));

  app.post<{ Body: { medium: string; address: string } }>(
    `${base}/delete`,
    { schema: { body: identifierBody } },
    async (request) => {
      const { medium, address } = request.body;
      await accounts.deleteThreepid(requesterOf(request).userId, medium, address);
      return { id_server_unbind_result: 'no-support' };
    },
  );

  app.post(`${base}/unbind`, { schema: { body: identifierBody } }, async () => ({
    id_server_unbind_result: 'no-support',
  }));

  app.post(`${base}/add`, { schema: { body: Type.Object(credentials) } }, async () => {
    throw new MatrixError(400, 'M_THREEPID_AUTH_FAILED', 'No such validation session');
  });

  app.post(base, { schema: { body: Type.Object({ three_pid_creds: bindBody }) } }, async () => {
    throw new MatrixError(403, 'M_THREEPID_AUTH_FAILED', 'No identity server is trusted here');
  });

  app.post(`${base}/bind`, { schema: { body: bindBody } }, async () => {
    throw new MatrixError(400, 'M_SERVER_NOT_TRUSTED', 'No identity server is trusted here');
  });

  for (const medium of ['email', 'msisdn'] as const) {
    const options = {
      schema: { body: requestBodies[medium] },
      config: { auth: 'none', rateLimit: 'registration' },
    } as const;
    const thing = medium === 'email' ? 'e-mail addresses' : 'phone numbers';

    app.post(`/_matrix/client/v3/register/${medium}/requestToken`, options, async () => {
      throw new MatrixError(403, 'M_THREEPID_DENIED', `Nobody registers with ${thing} here`);
    });
    app.post(`/_matrix/client/v3/account/password/${medium}/requestToken`, options, async () => {
      throw new MatrixError(403, 'M_THREEPID_DENIED', `Passwords are not reset by ${thing} here`);
    });
    app.post<{ Body: { email?: string } }>(`${base}/${medium}/requestToken`, options, async ({ body }) => {
      if (medium === 'email' && !/^[^\s@]+@[^\s@]+$/.test(body.email!))
        throw invalidParam('Not an e-mail address');
      throw new MatrixError(400, 'M_THREEPID_MEDIUM_NOT_SUPPORTED', `Accounts here have no ${thing}`);
    });
  }
}
